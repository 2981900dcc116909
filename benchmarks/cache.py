"""Gain of the embedding cache: stages with frozen sides, with and without it, from their second epoch on.

    python benchmarks/cache.py [--steps 2] [--rounds 3] [--batch 8] [--only vit|resnet18|heads|rows]

Three pairs of towers with random weights on the same 224-pixel images: two equal ViT-B/32, one of them
frozen; a resnet18 against a frozen ViT-B/32; and two ViT-B/32 of which only a linear head is trained.
Beside our stage with and without the cache stand open_clip's own training loop
(`open_clip_train.train.train_one_epoch`) on the same towers, and the limit: what a bare step of both sides
costs, by what a bare step of the trained side alone costs. Rounds alternate; a step is timed as the
difference between a long and a short run, in CPU seconds of one thread, which other programs on the machine
disturb least.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from geobind import Binder, Modality, Pair, plugins
from geobind.evaluation import unit
from geobind.recipe import build_recipe

WIDTH = 512
EPOCH = 2  # steps
KINDS = {"ViT-B/32, ViT-B/32 frozen": "vit", "resnet18, ViT-B/32 frozen": "resnet18"}


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind == "vit":
            import open_clip

            self.trunk = open_clip.create_model("ViT-B-32").visual
        else:
            import timm

            self.trunk = timm.create_model(kind, num_classes=0)
        self.head = nn.Linear(512, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x.float() / 255))


class One(Modality):
    """Images, trained."""

    name, role = "one", "trainable"
    kind: str = "vit"

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return Net(self.kind)

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        return torch.from_numpy(raw)


class Two(One):
    """The same images, frozen; brings the pairs."""

    name, role = "two", "frozen"
    rows: int = 16

    def pairs(self, split: str, anchor: str) -> list[Pair]:
        images = np.random.default_rng(0).integers(0, 256, (self.rows, 3, 224, 224), dtype=np.uint8)
        return [Pair(image, image, str(number)) for number, image in enumerate(images)]


def recipe(kind: str, train: dict[str, str], batch: int, steps: int, cache: str):
    registry = {c.name: plugins.Plugin(c, plugins.Source(c.name, "benchmark", "0")) for c in (One, Two)}
    plugins.registry = lambda: plugins.Registry("modality", registry, ())
    modalities = {"one": {"kind": kind}, "two": {"rows": EPOCH * batch, "role": "trainable"}}
    stage = {"name": "s", "align": "two", "train": train, "batch_size": batch, "steps": steps, "cache": cache}
    values = {
        "name": "cache",
        "width": WIDTH,
        "anchor": "one",
        "workers": 0,
        "fabric": {"accelerator": "cpu"},
    }
    return build_recipe({**values, "modalities": modalities, "stages": [stage]}, Path(), source="cache")


def stage(kind: str, train: dict[str, str], batch: int, cache: str) -> Callable[[int], float]:
    """Return what runs our stage for some steps and says how long that took."""
    from geobind.training.launch import make_fabric
    from geobind.training.metrics import MetricsFile
    from geobind.training.stage import StageRun, run_stage
    from geobind.training.stage_data import StageData

    def run(steps: int) -> float:
        made = recipe(kind, train, batch, steps, cache)
        binder, fabric = Binder(made.built, WIDTH, seed=0), make_fabric(made.fabric, "32-true")
        with tempfile.TemporaryDirectory() as folder:
            metrics = MetricsFile(Path(folder) / "m.csv")
            rows = StageData(made).rows(made.stages[0])
            job = StageRun(made, made.stages[0], binder, rows, Path(folder), metrics, "key")
            start = time.process_time()
            run_stage(fabric, job)
            return time.process_time() - start

    return run


def towers(kind: str, batch: int) -> tuple[nn.Module, nn.Module, list[torch.Tensor]]:
    """Return both encoders, and the batches of an epoch."""
    made = recipe(kind, {"one": "full"}, batch, EPOCH, "off")
    binder = Binder(made.built, WIDTH, seed=0)
    images = torch.from_numpy(np.stack([pair.other for pair in made.built["two"].pairs("train", "one")]))
    frozen = binder.encoders["two"].eval().requires_grad_(False)
    return binder.encoders["one"].train(), frozen, list(images.split(batch))


def bare(kind: str, batch: int, both: bool) -> Callable[[int], float]:
    """Return what takes bare steps, of both sides or of the trained one alone."""

    def run(steps: int) -> float:
        trained, frozen, batches = towers(kind, batch)
        fixed_BD = torch.randn(batch, WIDTH)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
        start = time.process_time()
        for step in range(steps):
            x = batches[step % EPOCH]
            other_BD = frozen(x) if both else fixed_BD
            logits_BB = unit(trained(x)) @ unit(other_BD).T / 0.07
            target_B = torch.arange(batch)
            terms = (functional.cross_entropy(part, target_B) for part in (logits_BB, logits_BB.T))
            (sum(terms) / 2).backward()
            nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return time.process_time() - start

    return run


class Clip(nn.Module):
    """Both towers, the second in eval mode, as open_clip's loop calls a model."""

    def __init__(self, trained: nn.Module, frozen: nn.Module) -> None:
        super().__init__()
        self.trained, self.frozen = trained, frozen
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def train(self, mode: bool = True) -> Clip:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        features = {"image_features": unit(self.trained(image)), "text_features": unit(self.frozen(text))}
        return {**features, "logit_scale": self.logit_scale.exp()}


class Batches(list):
    """An epoch as open_clip's loop wants it."""

    num_batches = num_samples = 0


def open_clip_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[torch.Tensor],
    loss: nn.Module,
    *,
    device: str = "cpu",
    precision: str = "fp32",
) -> None:
    """Train a model for an epoch of these batches, each of which both towers see, by open_clip's own loop."""
    from open_clip_train.train import train_one_epoch

    args = SimpleNamespace(device=device, precision=precision, accum_freq=1, distill=False)
    args.__dict__.update(skip_scheduler=True, log_every_n_steps=100, log_local=False, wandb=False)
    args.__dict__.update(grad_clip_norm=1.0, rank=0, local_rank=0, world_size=1, horovod=False)
    args.batch_size = len(batches[0])
    epoch = Batches((batch, batch) for batch in batches)
    epoch.num_batches, epoch.num_samples = len(batches), len(batches) * args.batch_size
    data = {"train": SimpleNamespace(dataloader=epoch, set_epoch=lambda number: None)}
    train_one_epoch(model, data, loss, 0, optimizer, None, None, None, args)


def open_clip_loop(kind: str, batch: int) -> Callable[[int], float]:
    """Return what runs open_clip's own loop over the same towers."""
    from open_clip.loss import ClipLoss

    def run(steps: int) -> float:
        trained, frozen, batches = towers(kind, batch)
        model = Clip(trained, frozen)
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
        start = time.process_time()
        open_clip_epoch(model, optimizer, [batches[step % EPOCH] for step in range(steps)], ClipLoss())
        return time.process_time() - start

    return run


def compared(
    contenders: dict[str, Callable[[int], float]], steps: dict[str, int], rounds: int
) -> dict[str, float]:
    """Time a step of each, in turns; return the medians."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run(EPOCH)  # pays for imports, and fills the cache: what is timed is the second epoch on
    for _ in range(rounds):
        for name, run in contenders.items():
            more = steps.get(name, steps[""])
            times[name].append((run(EPOCH + more) - run(EPOCH)) / more)
    middle = {name: statistics.median(values) for name, values in times.items()}
    for name, value in middle.items():
        print(
            f"  {name}: {value:.4f} CPU s a step ({min(times[name]):.4f} to {max(times[name]):.4f})",
            flush=True,
        )
    return middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", choices=[*KINDS.values(), "heads", "rows"], help="one part")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns of random weights
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GEOBIND_CACHE"] = folder
        for title, kind in KINDS.items():
            if args.only in (None, kind):
                one_side(title, kind, args)
        if args.only in (None, "heads"):
            heads(args)
        if args.only in (None, "rows"):
            rows(Path(folder))


def one_side(title: str, kind: str, args: argparse.Namespace) -> None:
    print(f"{title}, batch {args.batch}", flush=True)
    contenders = {
        "cached": stage(kind, {"one": "full"}, args.batch, "auto"),
        "computed": stage(kind, {"one": "full"}, args.batch, "off"),
        "open_clip's loop": open_clip_loop(kind, args.batch),
        "bare, both sides": bare(kind, args.batch, True),
        "bare, trained side": bare(kind, args.batch, False),
    }
    found = compared(contenders, {"": args.steps}, args.rounds)
    gain, other = (found[name] / found["cached"] for name in ("computed", "open_clip's loop"))
    limit = found["bare, both sides"] / found["bare, trained side"]
    print(f"  cached / computed, samples/s: {gain:.2f}; limit {limit:.2f} ({gain / limit:.0%} of it)")
    print(f"  cached / open_clip's loop, samples/s: {other:.2f}", flush=True)


def heads(args: argparse.Namespace) -> None:
    print(f"heads alone on two ViT-B/32, batch {args.batch}", flush=True)
    train, kept = {"one": "head", "two": "head"}, {"cached": "auto", "computed": "off"}
    contenders = {name: stage("vit", train, args.batch, cache) for name, cache in kept.items()}
    found = compared(contenders, {"": args.steps, "cached": 100}, args.rounds)
    print(f"  cached / computed, samples/s: {found['computed'] / found['cached']:.0f}", flush=True)


def rows(folder: Path) -> None:
    """Time the cache by itself: telling contents, writing rows, reading them in random batches."""
    from geobind.embedding_cache.keys import FileHashes, content_hashes, pack_hashes
    from geobind.embedding_cache.store import CacheEntry

    count, batches, rng = 100_000, 100, np.random.default_rng(0)
    files = FileHashes(folder / "files.sqlite")
    texts = [f"caption number {number} of a place" for number in range(count)]
    tiles = list(rng.integers(0, 256, (2000, 64, 64, 3), dtype=np.uint8))
    value_MF = rng.normal(size=(count, WIDTH)).astype(np.float32)
    entry = CacheEntry({"benchmark": "rows"})

    def rate(name: str, many: int, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        found = call()
        print(f"  {name}: {many / (time.process_time() - start):,.0f} a second", flush=True)
        return found

    print(f"the cache by itself, rows of {WIDTH} numbers")
    told = rate("texts told apart", count, lambda: [one for (one,) in content_hashes(texts, files)])
    rate("tiles of 12 KB told apart", len(tiles), lambda: list(content_hashes(tiles, files)))
    rate("rows written", count, lambda: entry.add(pack_hashes(told), value_MF))
    opened = entry.rows()
    wanted = [rng.integers(0, count, 1024) for _ in range(batches)]
    for row_B in wanted:
        opened.read(row_B)  # from memory from here on
    rate("rows read, 1,024 at a time", batches * 1024, lambda: [opened.read(row_B) for row_B in wanted])


if __name__ == "__main__":
    main()
