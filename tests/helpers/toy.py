"""Two tiny modalities that share a hidden vector, and a program that binds them: what training tests run.

`python toy.py OUT [--resume] [--set a.b=c ...] [--die-after-step N]`
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from torch import nn

from geobind import plugins
from geobind.errors import DataError, GeobindError
from geobind.modality import Modality, Pair, Place
from geobind.utils import files
from geobind.utils.logs import log_to_stderr

PAIRS = 96
HIDDEN = 6


def hidden(index: int) -> torch.Tensor:
    return torch.randn(HIDDEN, generator=torch.Generator().manual_seed(index))


def view(index: int, which: str) -> tuple[float, ...]:
    mix = torch.randn(10, HIDDEN, generator=torch.Generator().manual_seed(len(which)))
    noise = 0.1 * torch.randn(10, generator=torch.Generator().manual_seed(1000 + index))
    return tuple((mix @ hidden(index) + noise).tolist())


def place(index: int) -> Place:
    """Places some 124 km apart in a row, one more each hour."""
    return Place(index / 2, index, datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=index))


class Net(nn.Module):
    def __init__(self, width: int, dropout: float, norm: bool) -> None:
        super().__init__()
        between = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.trunk = nn.Sequential(nn.Linear(10, 16), between, nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(16, width)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x_BF))


def grow(net: Net, _) -> None:
    net.head.weight.data.mul_(1.01)


class Numbers(Modality):
    """Ten numbers."""

    dropout: float = 0.0
    norm: bool = True
    noise: float = 0.0  # augmentation
    poison: int | None = None  # the pair with this number is not finite
    drift: bool = False  # a fault: the encoder changes though it is frozen
    wrong_width: bool = False  # a fault
    count: int = PAIRS

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        net = Net(width + self.wrong_width, self.dropout, self.norm)
        if self.drift:
            net.register_forward_pre_hook(grow)
        return net

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        if not isinstance(raw, tuple | np.ndarray) or len(raw) != 10:
            raise DataError("ten numbers, please")
        x_F = torch.tensor(raw)
        return x_F + self.noise * torch.randn(10) if training and self.noise else x_F


class Left(Numbers):
    """The anchor."""

    name = "left"
    role = "trainable"


class Right(Numbers):
    """The aligned modality, which brings its own pairs."""

    name = "right"
    role = "trainable"

    def pairs(self, split: str, anchor: str) -> list[Pair]:
        pairs = [
            Pair(view(i, "left"), view(i, "right"), f"row{i}", place(i), "even" if i % 2 == 0 else "odd")
            for i in range(self.count)
        ]
        if self.poison is not None:
            pairs[self.poison] = pairs[self.poison]._replace(other=(float("inf"),) * 10)
        return pairs


class Cold(Left):
    """A modality its plugin keeps frozen."""

    name = "cold"
    role = "frozen"


class Hub(Numbers):
    """The anchor of a wheel, whose rows lie in tables."""

    name = "hub"
    role = "trainable"


class Spoke(Numbers):
    """Missing from some rows."""

    name = "spoke"
    role = "trainable"


class Rim(Numbers):
    """Missing from others."""

    name = "rim"
    role = "trainable"


WHEEL = """\
name: wheel
width: 8
anchor: hub
workers: 0
fabric: {accelerator: cpu}
modalities: {hub: {}, spoke: {}, rim: {}}
data: {manifest: wheel.jsonl}
stages:
  - {name: one, align: [spoke, rim], train: [hub, spoke, rim], batch_size: 16, steps: 12,
     checkpoint_seconds: 0, optimizer: {name: adamw, lr: 0.01}}
"""


def write_wheel(path: Path, lacks=lambda i: {1: "spoke", 2: "rim"}.get(i % 3), rows: int = PAIRS) -> Path:
    """Write a table with the names that `lacks` gives left out of each row; a fourth of it is held out."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            split = "test" if i % 4 == 3 else "train"
            row = {"key": f"{path.stem}{i}", "split": split, "label": "even" if i % 2 == 0 else "odd"}
            row |= {"lat": i / 2, "lon": i / 2}
            lacking = lacks(i) or ""
            row |= {name: view(i, name) for name in ("hub", "spoke", "rim") if name not in lacking.split()}
            file.write(json.dumps(row) + "\n")
    return path


RECIPE = """\
name: toy
width: 8
anchor: left
workers: 0
modalities: {left: {}, right: {}, cold: {}}
stages:
  - {name: one, align: right, train: [left, right], batch_size: 16, epochs: 3, checkpoint_seconds: 0,
     optimizer: {name: adamw, lr: 0.01}}
  - {name: two, align: right, anchor: cold, train: [right], batch_size: 16, steps: 7, checkpoint_seconds: 0,
     schedule: {name: warm_restarts, period: 3}, optimizer: {name: adamw, lr: 0.01}}
"""


def registry() -> plugins.Registry:
    classes = (Left, Right, Cold, Hub, Spoke, Rim)
    return plugins.Registry(
        "modality", {c.name: plugins.Plugin(c, plugins.Source(c.name, "toy", "1.0")) for c in classes}, ()
    )


def install() -> None:
    plugins.registry = registry


def recipe(folder: Path, *overrides: str, text: str = RECIPE):
    from geobind.recipe import load_recipe

    install()
    path = folder / "toy.yaml"
    files.write_atomic(path, text.encode())  # another process may be reading it
    return load_recipe(path, overrides)


def wheel(folder: Path, *overrides: str):
    if not (folder / "wheel.jsonl").exists():
        write_wheel(folder / "wheel.jsonl")
    return recipe(folder, *overrides, text=WHEEL)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--die-after-step", type=int)
    parser.add_argument("--wheel", action="store_true")
    args = parser.parse_args(words)
    torch.set_num_threads(1)

    from geobind.training import metrics
    from geobind.training.run import run

    if args.die_after_step is not None:
        taken = iter(range(10_000))
        add = metrics.Recorder.add

        def add_then_die(self, step, broken):
            add(self, step, broken)
            if next(taken) == args.die_after_step:
                os.kill(os.getpid(), signal.SIGKILL)

        metrics.Recorder.add = add_then_die
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        make = wheel if args.wheel else recipe
        with log_to_stderr():
            run(make(args.out, *args.set), args.out / "run", resume=args.resume)
    except GeobindError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
