"""Stages on two vision transformers with random weights, to be run and timed.

The towers are open_clip's. Their images lie in memory, by default on the device: the loader then brings the
number of each image, so that a stage costs what its computation and its loop cost.
"""

# B rows of a batch

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from open_clip.transformer import VisionTransformer
from torch import nn

from geobind import plugins
from geobind.binder import Binder
from geobind.modality import Modality, Pair
from geobind.recipe import Recipe, build_recipe
from geobind.training.launch import make_fabric
from geobind.training.metrics import MetricsFile
from geobind.training.stage import StageResult, StageRun, run_stage
from geobind.training.stage_data import StageData

IMAGES = 256  # that there are; rows beyond them see the same ones again


class Shape(NamedTuple):
    """A vision transformer; the defaults are ViT-B/32."""

    size: int = 224
    patch: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12


TINY = Shape(size=16, patch=8, width=32, layers=2, heads=2)
SMALL = Shape(size=64, patch=16, width=192, layers=4, heads=3)


@lru_cache(maxsize=8)
def images(size: int, device: str) -> torch.Tensor:
    """Return the images, uint8 (IMAGES, 3, size, size), on a device."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randint(0, 256, (IMAGES, 3, size, size), dtype=torch.uint8, generator=generator)
    return made.to(device)


class Tower(nn.Module):
    """A vision transformer, called with images or with their numbers."""

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        self.size = shape.size
        sizes = {"image_size": shape.size, "patch_size": shape.patch, "width": shape.width}
        self.trunk = VisionTransformer(
            **sizes, layers=shape.layers, heads=shape.heads, mlp_ratio=4.0, output_dim=width
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if batch.ndim == 1:
            batch = images(self.size, str(batch.device))[batch % IMAGES]
        return self.trunk(batch.to(self.trunk.conv1.weight.dtype) / 127.5 - 1)


class One(Modality):
    """The anchor: images, prepared as their numbers, or with `host` as pixels."""

    name, role = "one", "trainable"
    shape: tuple[int, int, int, int, int] = tuple(TINY)
    host: bool = False

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return Tower(Shape(*self.shape), width)

    def prepare(self, raw: Any, *, training: bool = False) -> torch.Tensor:
        return images(self.shape[0], "cpu")[raw % IMAGES] if self.host else torch.tensor(raw)


class Two(One):
    """The same images; brings the pairs."""

    name, role = "two", "trainable"
    rows: int = IMAGES

    def pairs(self, split: str, anchor: str) -> list[Pair]:
        return [Pair(i, i, str(i)) for i in range(self.rows)]


@dataclass(frozen=True)
class Stage:
    """A stage to run: the options of a recipe that benchmarks vary."""

    device: str
    batch: int
    steps: int
    rows: int | None = None  # default: those of one batch
    shape: Shape = TINY
    width: int = 512
    train: tuple[str, ...] = ("one", "two")
    precision: str = "32-true"
    cache: str = "off"
    chunk: int | None = None
    compile: bool | str = False
    checkpoint_activations: bool | str = False
    host: bool = False
    rate: float = 5e-4
    workers: int | str = 0

    def recipe(self) -> Recipe:
        """Return the recipe of this stage alone."""
        made = {c.name: plugins.Plugin(c, plugins.Source(c.name, "benchmark", "0")) for c in (One, Two)}
        plugins.registry = lambda: plugins.Registry("modality", made, ())
        one = {"shape": list(self.shape), "host": self.host}
        accelerator = "cuda" if self.device == "cuda" else "cpu"
        stage = {
            "name": "stage",
            "align": "two",
            "train": list(self.train),
            "batch_size": self.batch,
            "steps": self.steps,
            "chunk": self.chunk,
            "cache": self.cache,
            "optimizer": {"name": "adamw", "lr": self.rate},
            "schedule": {"name": "constant"},
            "checkpoint_seconds": 1e6,
        }
        values: dict[str, Any] = {
            "name": "benchmark",
            "width": self.width,
            "anchor": "one",
            "workers": self.workers,
            "modalities": {"one": one, "two": {**one, "rows": self.rows or self.batch}},
            "fabric": {
                "accelerator": accelerator,
                "devices": 1,
                "precision": self.precision,
                "compile": self.compile,
                "checkpoint_activations": self.checkpoint_activations,
            },
            "stages": [stage],
        }
        return build_recipe(values, Path(), source="benchmark")

    def binder(self) -> Binder:
        """Return both towers with the random weights of seed 0."""
        return Binder(self.recipe().built, self.width, seed=0)


class Ran(NamedTuple):
    """A stage that was run."""

    outcome: StageResult
    fabric: Fabric
    losses: list[float]  # of each step
    norms: list[float]  # of each step's gradient
    stamps: list[float]  # when each look at the losses was over, the device waited for


def synchronize(device: str) -> None:
    """Wait until a device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


class Stamps(MetricsFile):
    """A metrics.csv that remembers its figures and when they came, and may do something else in between."""

    write_every = 0.0  # each look has its own time
    between: Callable[[int], None] | None = None  # called with the number of each look

    def __init__(self, path: Path, device: str) -> None:
        super().__init__(path)
        self.device, self.stamps = device, list[float]()
        self.losses, self.norms = list[float](), list[float]()

    def add(self, stage: str, rows: Any) -> None:
        super().add(stage, rows)
        synchronize(self.device)
        self.stamps.append(time.perf_counter())
        self.losses += [float(row["loss"]) for row in rows]
        self.norms += [float(row["grad_norm"]) for row in rows]
        if self.between is not None:
            self.between(len(self.stamps) - 1)


def run(
    stage: Stage,
    binder: Binder,
    *,
    every: int = 1,
    between: Callable[[int, StageRun, Stamps], None] | None = None,
) -> Ran:
    """Run a stage on the towers of a binder, which it leaves on the device.

    Args:
        stage: The stage.
        binder: Its towers.
        every: Steps between two looks at the losses, each of which waits for the device.
        between: Called after each look with its number, the stage's job and its figures so far.
    """
    recipe = stage.recipe()
    fabric = make_fabric(recipe.fabric, stage.precision)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        metrics = Stamps(folder / "metrics.csv", stage.device)
        if between is not None:
            metrics.between = lambda look: between(look, job, metrics)
        rows = StageData(recipe).rows(recipe.stages[0])
        job = StageRun(recipe, recipe.stages[0], binder, rows, folder, metrics, "key", log_every=every)
        outcome = run_stage(fabric, job)
    return Ran(outcome, fabric, metrics.losses, metrics.norms, metrics.stamps)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an exception, or one that caused it, says that memory is full."""
    while error is not None:
        message = str(error).lower()
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and ("out of memory" in message or "alloc_failed" in message):
            return True
        error = error.__cause__
    return False


def states_of(modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Return a copy on the CPU of every parameter and buffer."""
    return {
        f"{name}.{key}": value.detach().cpu().clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
