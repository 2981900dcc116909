"""Encoders with blocks, for tests of what several processes, sharding and compiling make of them.

`python deep.py [JSON ...]` does one run after another, so that several share the start of the processes:
`{"out": folder, "set": [...], "resume": false, "halt": step, "kill": [rank, step]}`; with `"wheel": true` it
is that of toy.py, whose table lies in `out`. What a process is told instead of a result lies in
`out/told-RANK.json`.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from pathlib import Path

import torch
import toy
from torch import nn

from geobind import plugins
from geobind.errors import GeobindError
from geobind.utils import files

RECIPE = """\
name: deep
width: 8
anchor: near
workers: 0
fabric: {accelerator: cpu}
modalities: {near: {}, far: {}, cold: {}}
stages:
  - {name: one, align: far, train: [near, far], batch_size: 16, steps: 6, checkpoint_seconds: 0,
     optimizer: {name: adamw, lr: 0.003}, clip_norm: 0.5}
  - {name: two, align: far, anchor: cold, train: {far: {part: last, blocks: 1}}, batch_size: 16, steps: 3,
     checkpoint_seconds: 0, optimizer: {name: adamw, lr: 0.003}, clip_norm: null}
"""


class Block(nn.Module):
    def __init__(self, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16) if batch_norm else nn.LayerNorm(16)
        self.up = nn.Linear(16, 33)  # an odd number, which four processes do not share alike
        self.down = nn.Linear(33, 16)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BF: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return x_BF + scale * self.down(self.dropout(torch.tanh(self.up(self.norm(x_BF)))))


class Deep(nn.Module):
    def __init__(self, width: int, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(10, 16)
        self.scale = nn.Parameter(torch.tensor(1.0))  # a number has no shards
        self.blocks = nn.ModuleList([Block(dropout, batch_norm) for _ in range(3)])
        self.register_buffer("table", torch.linspace(0.1, 1, 16), persistent=False)
        self.head = nn.Linear(16, width)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        x_BF = self.stem(x_BF) * self.table
        for block in self.blocks:
            x_BF = block(x_BF, scale=self.scale)
        return self.head(x_BF)


class Near(toy.Numbers):
    """The anchor."""

    name = "near"
    role = "trainable"
    batch_norm: bool = False

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return Deep(width, self.dropout, self.batch_norm)


class Far(Near):
    """The aligned modality, which brings its own pairs."""

    name = "far"
    pairs = toy.Right.pairs


def figures(run: Path) -> list[tuple[str, int, float, float]]:
    """Read each step of a run's metrics.csv: stage, number, loss and norm of the gradient."""
    with (run / "metrics.csv").open() as file:
        rows = csv.DictReader(file)
        return [(r["stage"], int(r["step"]), float(r["loss"]), float(r["grad_norm"])) for r in rows]


def registry() -> plugins.Registry:
    known = toy.registry()
    more = {c.name: plugins.Plugin(c, plugins.Source(c.name, "toy", "1.0")) for c in (Near, Far)}
    return plugins.Registry("modality", {**known.plugins, **more}, ())


def recipe(folder: Path, *overrides: str):
    from geobind.recipe import load_recipe

    plugins.registry = registry
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"deep-{os.environ.get('RANK', 0)}.yaml"
    files.write_atomic(path, RECIPE.encode())  # another process may be reading it
    return load_recipe(path, overrides)


class Halt(BaseException):
    """Ends a run on every process after a step, as a signal would."""


def run_one(out: str, set: list[str] = (), resume=False, halt=None, kill=None, wheel=False) -> None:
    from geobind.training import metrics
    from geobind.training.run import run

    rank, add, taken = int(os.environ.get("RANK", 0)), metrics.Recorder.add, iter(range(10_000))

    def add_then_end(self, step, broken):
        add(self, step, broken)
        number = next(taken)
        if kill == [rank, number]:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == halt:
            raise Halt

    metrics.Recorder.add, told = add_then_end, {}
    try:
        run((toy.wheel if wheel else recipe)(Path(out), *set), Path(out) / "run", resume=resume)
    except Halt:
        told = {"halted": halt}
    except (GeobindError, SystemExit) as error:
        told = {type(error).__name__: str(error)}
        if isinstance(error, GeobindError) and kill:
            print(f"error: {error}", file=sys.stderr, flush=True)
    finally:
        metrics.Recorder.add = add
    if told:
        (Path(out) / f"told-{rank}.json").write_text(json.dumps(told))


def main(jobs: list[str]) -> None:
    torch.set_num_threads(1)
    for job in jobs:
        run_one(**json.loads(job))


if __name__ == "__main__":
    main(sys.argv[1:])
