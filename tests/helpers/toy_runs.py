"""Runs of the toy modalities: how to start one, and what it left."""

import csv
from pathlib import Path

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
