"""Recipes of a moment over the toy modalities, run in a forked process that can be killed anywhere."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import toy
from fault_moments import Moments

from geobind.report import page
from geobind.training import cache
from geobind.training.run import run

# Three modalities in a table, held-out rows, two stages: the second reads the first one's anchor from the
# embedding cache.
THREE = """\
name: three
width: 8
anchor: hub
workers: 0
fabric: {accelerator: cpu}
modalities: {hub: {dropout: 0.2}, spoke: {noise: 0.1}, rim: {}}
data: {manifest: wheel.jsonl}
stages:
  - {name: one, align: spoke, train: [hub, spoke], batch_size: 16, epochs: 2, checkpoint_seconds: 0,
     optimizer: {name: adamw, lr: 0.01}}
  - {name: two, align: rim, train: [rim], batch_size: 16, epochs: 2, checkpoint_seconds: 0,
     optimizer: {name: adamw, lr: 0.01}}
evaluate: {split: test}
"""
# Every word of a recipe that adds something to what a checkpoint has to hold.
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "several pairs": ("stages.0.align=[spoke, rim]", "stages.0.train=[hub, spoke, rim]"),
    "queue": (
        "stages.1.loss={name: infonce, direction: anchor_to_other, queue: 16}",
        "stages.1.train=[hub]",
    ),
    "siglip": ("stages.0.loss={name: siglip}", "stages.1.loss={name: siglip, hardness: 0.5}"),
    "head": ("stages.1.train={rim: head}", "stages.0.schedule={name: warm_restarts, period: 3}"),
    "rare checkpoints": ("stages.0.checkpoint_seconds=0.02", "stages.1.checkpoint_seconds=600"),
    "no cache": ("stages.1.cache=off", "max_broken=0"),
    "two passes": ("stages.0.chunk=8", "stages.1.chunk=4", "stages.1.cache=off"),
    "accumulated": ("stages.0.accumulate=2", "stages.1.accumulate=3"),
    "averaged": ("stages.0.ema=0.9", "stages.1.ema={decay: 0.9, warmup: false}"),
    "watched": (
        "stages.0.watch={every: 2, split: val, measure: R@1}",
        "stages.1.watch={every: 2, split: val, measure: loss, patience: 1}",
        "stages.1.ema=0.9",
    ),
}


_OF_THE_CLOCK = ("samples_per_second", "seconds")  # columns


class Outcome(NamedTuple):
    """The results that must be the same, however often the run was killed."""

    weights: str  # SHA-256 of the bundle's weights
    retrieval: str  # ... of what was measured
    losses: tuple[tuple[str, ...], ...]  # metrics.csv and validation.csv without what depends on the clock


class Ended(NamedTuple):
    """How a process ended."""

    code: int  # minus the signal that killed it
    said: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


def quick(*, whole: bool = False) -> None:
    """Make runs shorter: nothing is drawn, unless the `whole` is wanted; shards are many and small."""
    torch.set_num_threads(1)
    toy.install()
    cache._BATCH = {"cpu": 16}
    from geobind.embedding_cache import build

    build._SECONDS = 0.0
    if not whole:
        page.draw_png = lambda *_: b"a figure"
        page.draw_svg = lambda *_: "<svg/>"
        page.render_template = lambda *_, **__: b"a page"


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = toy.write_wheel(folder / "wheel.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    half = [line.replace('"test"', '"val"') if number % 8 == 7 else line for number, line in enumerate(lines)]
    path.write_text("".join(half))


def train(folder: Path, *overrides: str, resume: bool = False) -> Path:
    return run(toy.recipe(folder, *overrides, text=THREE), folder / "run", resume=resume).folder


def outcome(folder: Path) -> Outcome:
    weights, retrieval = (
        hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("bundle/model.safetensors", "retrieval.json")
    )
    told = [folder / name for name in ("metrics.csv", "validation.csv") if (folder / name).exists()]
    return Outcome(weights, retrieval, tuple(row for path in told for row in _rows(path)))


def _rows(path: Path) -> Iterator[tuple[str, ...]]:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield tuple(value for name, value in row.items() if name not in _OF_THE_CLOCK)


def live(
    folder: Path,
    *overrides: str,
    moments: Moments | None = None,
    kill_after: float | None = None,
    resume: bool = True,
) -> Ended:
    """Run in a process of its own, forked from this one, which has imported all there is to import.

    Args:
        folder: With the table; the run goes into `run` in it, the cache beside it.
        overrides: Of the recipe.
        moments: Where the process kills itself.
        kill_after: Seconds after which this process kills it.
        resume: Go on with what lies there.
    """
    told = folder / "said.txt"
    started = time.monotonic()
    child = os.fork()
    if not child:
        code = 1
        try:
            with told.open("w") as file:
                os.dup2(file.fileno(), 2)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            os.environ["GEOBIND_CACHE"] = str(folder / "cache")
            if moments is not None:
                moments.install()
            train(folder, *overrides, resume=resume)
            if moments is not None:
                moments.write(folder / "moments.txt")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)  # one that has ended is a zombie, and feels nothing
    status = os.waitpid(child, 0)[1]
    return Ended(os.waitstatus_to_exitcode(status), told.read_text(), time.monotonic() - started)
