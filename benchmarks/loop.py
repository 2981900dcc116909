"""The cost of the framework: our training stage against a bare PyTorch loop on the same model and batches.

    python benchmarks/loop.py [--steps 12] [--rounds 7] [--batch 64] [--cached]

Both sides read the same images in the same order and train the same resnet18 against the same frozen one,
with InfoNCE, AdamW, clipping and a cosine schedule; ours also logs every step, checks the loss and writes
metrics.csv. With --cached both read what the frozen one makes: ours from the embedding cache, the bare loop
from an array in memory. Rounds alternate; printed are medians and their ratio, in CPU seconds, which other
programs on the machine disturb least. What is done once a stage (hashes, files) is taken off: each round
also runs it for a few steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from geobind import plugins
from geobind.binder import Binder, unit
from geobind.data.mixing import Mixture, OwnRows, Source
from geobind.data.order import batch_indices
from geobind.modality import Modality, Pair
from geobind.recipe import recipe_from
from geobind.seeds import seed_of

WIDTH = 128
EPOCH = 8  # steps, where embeddings are cached: a stage reads the cache from its second epoch on
IMAGES = np.random.default_rng(0).integers(0, 256, (2048, 3, 64, 64), dtype=np.uint8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        import timm

        self.trunk = timm.create_model("resnet18", num_classes=0)
        self.head = nn.Linear(512, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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
    plugins.registry = lambda: plugins.Registry(registry, ())
    stage = {"name": "s", "align": "two", "train": ["one"], "batch_size": batch, "steps": steps}
    stage["cache"] = "auto" if cached else "off"
    rows = batch * EPOCH if cached else len(IMAGES)
    values = {"name": "loop", "width": WIDTH, "anchor": "one", "workers": 0, "fabric": {"accelerator": "cpu"}}
    return recipe_from(
        {**values, "modalities": {"one": {}, "two": {"rows": rows}}, "stages": [stage]}, Path(), source="loop"
    )


def ours(steps: int, batch: int, cached: bool) -> float:
    from geobind.training.job import Job
    from geobind.training.record import Metrics
    from geobind.training.run import make_fabric
    from geobind.training.stage import run_stage

    made = recipe(steps, batch, cached)
    binder = Binder(made.built, WIDTH, seed=0)
    fabric = make_fabric(made.fabric, "32-true")
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            made,
            made.stages[0],
            binder,
            Mixture((Source("two", OwnRows(made.built["two"].pairs("train", "one"), "one", "two")),)),
            Path(folder),
            Metrics(Path(folder) / "m.csv"),
            "key",
        )
        start = time.process_time()
        run_stage(fabric, job)
        return time.process_time() - start


def bare(steps: int, batch: int, cached: bool) -> float:
    made = recipe(steps, batch, cached)
    binder, rows = Binder(made.built, WIDTH, seed=0), made.built["two"].rows
    trained, frozen = binder.encoders["one"].train(), binder.encoders["two"].eval().requires_grad_(False)
    scale = nn.Parameter(torch.tensor(1 / 0.07).log())
    optimizer = torch.optim.AdamW(
        [*trained.parameters(), scale], lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seed = seed_of(0, "s", "data")
    order = [i for step in range(steps) for i in batch_indices(rows, batch, step, seed).tolist()]
    kept = embedded(frozen, rows) if cached else None
    start = time.process_time()
    for x, y in DataLoader(Plain(rows, kept), batch, sampler=order):
        logits = unit(trained(x)) @ (y if cached else unit(frozen(y))).T * scale.exp()
        target = torch.arange(len(logits))
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()
    return time.process_time() - start


@torch.no_grad()
def embedded(frozen: nn.Module, rows: int) -> torch.Tensor:
    return torch.cat([unit(frozen(part)) for part in torch.from_numpy(IMAGES[:rows]).split(64)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--cached", action="store_true", help="both read what the frozen side makes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["GEOBIND_CACHE"] = cache
        compare(args.steps, args.rounds, args.batch, args.cached)


def compare(steps: int, rounds: int, batch: int, cached: bool) -> None:
    """Print what a step costs in each loop, and the ratio."""
    first = EPOCH if cached else 1
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    bare(first, batch, cached), ours(first, batch, cached)  # the first call pays for imports
    for _ in range(rounds):
        for name, call in (("bare", bare), ("ours", ours)):
            more = call(first + steps, batch, cached) - call(first, batch, cached)
            times[name].append(more / steps)
    middle = {name: statistics.median(values) for name, values in times.items()}
    for name, value in middle.items():
        spread = f"{min(times[name]):.4f} to {max(times[name]):.4f}"
        print(f"{name}: {value:.4f} CPU s a step ({spread} in {rounds} rounds)")
    pairs = [o / b for o, b in zip(times["ours"], times["bare"], strict=True)]
    ratio, per_round = middle["ours"] / middle["bare"], statistics.median(pairs)
    print(f"ours / bare: {ratio:.3f} (median of the rounds' ratios {per_round:.3f})")


if __name__ == "__main__":
    main()
