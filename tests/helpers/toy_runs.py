"""Runs of the toy modalities: how to start one, and what it left."""

import csv
import multiprocessing
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import toy
from safetensors.torch import load_file

from geobind.training.run import run

PROGRAM = Path(toy.__file__)


def toy_run(folder: Path, *overrides: str, resume: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    return run(toy.recipe(folder, *overrides), folder / "run", resume=resume).folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "bundle" / "model.safetensors")


def losses(folder: Path) -> list[tuple[str, int, float]]:
    with (folder / "metrics.csv").open() as file:
        return [(row["stage"], int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Ended(NamedTuple):
    """How a process ended: its exit code, minus the signal that killed it, and its standard error."""

    code: int
    said: str


def run_apart(folder: Path, *words: str) -> Ended:
    """Run the program of `toy` in a process of its own, which can kill itself.

    It is forked from this one, which has imported what takes seconds to import; where autograd keeps threads
    for an accelerator, a process that is forked cannot train.
    """
    said = folder / "said.txt"
    context = multiprocessing.get_context("spawn" if torch.accelerator.is_available() else "fork")
    process = context.Process(target=_tell, args=(said, [str(folder), *words]))
    process.start()
    process.join()
    return Ended(process.exitcode or 0, said.read_text())


def _tell(said: Path, words: list[str]) -> None:
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    toy.main(words)
