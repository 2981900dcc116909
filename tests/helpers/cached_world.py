"""Recipes over CSV tables of notes, for stages that read some of their sides from the cache."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import world

from geobind import plugins
from geobind.modality import Modality

ROWS = 48


class Left(world.Note):
    """The anchor."""

    name = "left"
    role = "trainable"


class Right(world.Note):
    """The aligned modality."""

    name = "right"
    role = "trainable"


class Third(world.Note):
    """A modality that some rows lack."""

    name = "third"
    role = "trainable"


def registry() -> plugins.Registry:
    classes: tuple[type[Modality], ...] = (Left, Right, Third)
    return plugins.Registry(
        "modality",
        {c.name: plugins.Plugin(c, world.SOURCE._replace(entry_point=c.name)) for c in classes},
        (),
    )


def note(i: int, kind: int) -> str:
    return f"{i % 5} {i * kind % 7 - 3} {(i * i + kind) % 11 - 5} {i / 10}"


def write_table(
    folder: Path, *, broken: tuple[int, ...] = (), several: bool = False, lacking: bool = False
) -> None:
    """Write `notes.csv`: one note a side and row, or lists of three of the right one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "notes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, ["key", "split", "lat", "lon", "time", "label", "left", "right", "third"]
        )
        writer.writeheader()
        for i in range(ROWS):
            right = json.dumps([note(i + 100 * k, 2) for k in range(3)]) if several else note(i, 2)
            row = {"key": f"row{i}", "left": note(i, 1), "right": right, "third": note(i, 3)}
            row |= {"lat": i / 3, "lon": i / 2, "label": "odd" if i % 2 else "even", "split": "train"}
            if i % 4:
                row["time"] = f"2024-05-{1 + i % 28:02d}T06:30:00Z"
            if i in broken:
                row["right"] = "no numbers"
            if lacking and i % 3 == 0:
                row["third" if i % 2 else "right"] = ""
            writer.writerow(row)


RECIPE = """\
name: notes
width: 6
anchor: left
workers: 0
modalities: {left: {}, right: {}, third: {}}
data: {manifest: notes.csv, inline: [left, right, third]}
stages:
  - {name: one, align: right, train: [left], batch_size: 8, epochs: 3, optimizer: {name: adamw, lr: 0.003}}
"""


def recipe(folder: Path, *overrides: str):
    from geobind.recipe import load_recipe

    path = folder / "notes.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return load_recipe(path, overrides)


def run_notes(folder: Path, name: str, *overrides: str) -> Path:
    from geobind.training.run import run

    return run(recipe(folder, *overrides), folder / name).folder


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]
