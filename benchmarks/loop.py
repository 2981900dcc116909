"""The cost of the framework: our training stage against a bare PyTorch loop on the same model and batches.

    python benchmarks/loop.py [--steps 30] [--rounds 3] [--batch 32] [--small 4 32] [--cached]

Both sides read the same images in the same order and train the same resnet18 against the same frozen one,
with InfoNCE, AdamW, clipping and a cosine schedule; ours also logs every step, checks the loss and writes
metrics.csv. With --cached both read what the frozen one makes: ours from the embedding cache, the bare loop
from an array in memory.

The two take turns step by step: whenever our trained encoder is called, which is once a step, the bare
loop takes a step. So whatever else the machine does meets both. Of each pair of neighbouring steps, in CPU
seconds, the ratio is taken; printed is the median over all rounds, with a bootstrap interval. A round builds
both sides anew. What is done once a stage (hashes, files) lies before the first step or after the last, and
is not counted. Then the same with stacks of small layers as encoders, whose steps take
milliseconds: there the difference shows what a step costs however small it is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from paired import difference, ratio
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from geobind import Binder, Modality, Pair, plugins
from geobind.data.sampler import MixedDataset, WeightedSource, batch_indices
from geobind.data.sources import PluginPairs
from geobind.evaluation import unit
from geobind.recipe import build_recipe
from geobind.utils.hashing import derive_seed

WIDTH = 128
EPOCH = 8  # steps, where embeddings are cached
WARM = 3  # steps that are not counted: memory is taken, code is read
IMAGES = np.random.default_rng(0).integers(0, 256, (2048, 3, 64, 64), dtype=np.uint8)


class Net(nn.Module):
    before: Callable[[], None] | None = None  # called before each step
    small = False

    def __init__(self) -> None:
        super().__init__()
        import timm

        layers = [nn.Flatten(), nn.Linear(3 * 64 * 64, 32), *(nn.Linear(32, 32) for _ in range(30))]
        self.trunk = nn.Sequential(*layers) if self.small else timm.create_model("resnet18", num_classes=0)
        self.head = nn.Linear(32 if self.small else 512, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.before is not None:
            self.before()
        return self.head(self.trunk(x.float() / 255))


class One(Modality):
    """Images, trained."""

    name, role = "one", "trainable"

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return Net()

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        return torch.from_numpy(IMAGES[raw])


class Two(One):
    """The same images, frozen; brings the pairs."""

    name, role = "two", "frozen"
    rows: int = len(IMAGES)

    def pairs(self, split: str, anchor: str) -> list[Pair]:
        return [Pair(i, i, str(i)) for i in range(self.rows)]


class Plain(Dataset):
    """Images and what the frozen side sees: the same, or what it once made of them."""

    def __init__(self, rows: int, frozen: torch.Tensor | None) -> None:
        self.rows, self.frozen = rows, frozen

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.from_numpy(IMAGES[i])
        return image, image if self.frozen is None else self.frozen[i]


def recipe(steps: int, batch: int, cached: bool):
    registry = {c.name: plugins.Plugin(c, plugins.Source(c.name, "benchmark", "0")) for c in (One, Two)}
    plugins.registry = lambda: plugins.Registry("modality", registry, ())
    stage = {"name": "s", "align": "two", "train": ["one"], "batch_size": batch, "steps": steps}
    stage["cache"] = "auto" if cached else "off"
    rows = batch * EPOCH if cached else len(IMAGES)
    values = {"name": "loop", "width": WIDTH, "anchor": "one", "workers": 0, "fabric": {"accelerator": "cpu"}}
    return build_recipe(
        {**values, "modalities": {"one": {}, "two": {"rows": rows}}, "stages": [stage]}, Path(), source="loop"
    )


def ours(steps: int, batch: int, cached: bool, before: Callable[[], None]) -> None:
    """Run a stage; `before` is called before each of its steps."""
    from geobind.training.launch import make_fabric
    from geobind.training.metrics import MetricsFile
    from geobind.training.stage import StageRun, run_stage

    made = recipe(steps, batch, cached)
    binder = Binder(made.built, WIDTH, seed=0)
    binder.encoders["one"].before = before
    rows = MixedDataset(
        (WeightedSource("two", PluginPairs(made.built["two"].pairs("train", "one"), "one", "two")),)
    )
    with tempfile.TemporaryDirectory() as folder:
        metrics = MetricsFile(Path(folder) / "m.csv")
        job = StageRun(made, made.stages[0], binder, rows, Path(folder), metrics, "key")
        run_stage(make_fabric(made.fabric, "32-true"), job)


def bare(steps: int, batch: int, cached: bool) -> Iterator[None]:
    """Get ready, and take a step each time that it is asked."""
    made = recipe(steps, batch, cached)
    binder, rows = Binder(made.built, WIDTH, seed=0), made.built["two"].rows
    trained, frozen = binder.encoders["one"].train(), binder.encoders["two"].eval().requires_grad_(False)
    scale = nn.Parameter(torch.tensor(1 / 0.07).log())
    optimizer = torch.optim.AdamW(
        [*trained.parameters(), scale], lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seed = derive_seed(0, "s", "data")
    order = [i for step in range(steps) for i in batch_indices(rows, batch, step, seed).tolist()]
    kept = embedded(frozen, rows) if cached else None
    yield
    for x, y in DataLoader(Plain(rows, kept), batch, sampler=order):
        logits = unit(trained(x)) @ (y if cached else unit(frozen(y))).T * scale.exp()
        target = torch.arange(len(logits))
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        loss.backward()
        nn.utils.clip_grad_norm_([*trained.parameters(), scale], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()
        yield


@torch.no_grad()
def embedded(frozen: nn.Module, rows: int) -> torch.Tensor:
    return torch.cat([unit(frozen(part)) for part in torch.from_numpy(IMAGES[:rows]).split(64)])


def take_turns(steps: int, batch: int, cached: bool) -> tuple[list[float], list[float]]:
    """Return the CPU seconds of our steps and, each beside its neighbour, of the bare loop's."""
    total = steps + WARM + 1
    other, began = bare(total, batch, cached), 0.0
    next(other)
    times: tuple[list[float], list[float]] = [], []

    def before() -> None:
        nonlocal began
        now = time.process_time()
        times[0].append(now - began)  # from one call of the encoder to the next
        next(other)
        began = time.process_time()
        times[1].append(began - now)

    ours(total, batch, cached, before)
    return times[0][WARM + 1 :], times[1][WARM + 1 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--small", type=int, nargs="*", default=[4, 32], help="rows, with small encoders")
    parser.add_argument("--cached", action="store_true", help="both read what the frozen side makes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["GEOBIND_CACHE"] = cache
        take_turns(1, args.batch, args.cached)  # pays for imports
        compare(args.steps, args.rounds, args.batch, args.cached)
        Net.small = True
        for batch in args.small:
            compare(10 * args.steps, args.rounds, batch, args.cached)


def compare(steps: int, rounds: int, batch: int, cached: bool) -> None:
    """Print what a step costs in each loop, and how the two compare."""
    found = [take_turns(steps, batch, cached) for _ in range(rounds)]
    times = [[second for round_ in found for second in round_[side]] for side in (0, 1)]
    middle = [1000 * statistics.median(side) for side in times]
    told = f"ours {middle[0]:.2f}, bare {middle[1]:.2f} CPU ms a step; {len(times[0])} pairs"
    print(f"{'small encoders' if Net.small else 'resnet18'}, batch {batch}: {told}")
    print(f"  ours / bare: {ratio(*times)}; of single rounds {_each(found, ratio)}")
    print(f"  ours - bare, ms: {difference(*times, unit=1e-3)}", flush=True)


def _each(found, of) -> str:
    return ", ".join(of(*times).partition(" ")[0] for times in found)


if __name__ == "__main__":
    main()
