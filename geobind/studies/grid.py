"""Cells of a study: recipes with changed values, and their folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from typing import Any, NamedTuple

from geobind.errors import RecipeError
from geobind.recipe import Recipe, load_recipe
from geobind.recipe.parsing import RecipeProblems
from geobind.utils.hashing import fingerprint

MAX_CELLS = 1000
_READABLE = 60  # letters of the readable part of a folder's name


class Cell(NamedTuple):
    """One run of a study."""

    recipe: str  # a path, or the name of a shipped recipe
    overrides: tuple[str, ...]  # as `--set` takes them
    settings: Mapping[str, str]  # the values that distinguish this cell: axis -> value

    @property
    def name(self) -> str:
        """The name of the folder: readable, and unique for its overrides."""
        said = "_".join(f"{axis.rsplit('.', 1)[-1]}={value}" for axis, value in self.settings.items())
        plain = re.sub(r"[^A-Za-z0-9=.+-]+", "_", said)[:_READABLE].strip("_.")
        return f"{plain}-{fingerprint(self.recipe, self.overrides)[:8]}"

    @property
    def title(self) -> str:
        """The settings of the cell, in words."""
        return ", ".join(f"{axis} = {value}" for axis, value in self.settings.items())


class Axis(NamedTuple):
    """One thing that a grid varies: each of its values is a set of changes."""

    name: str
    values: Mapping[str, tuple[str, ...]]  # what to call it -> overrides


def parse_axis(text: str) -> Axis:
    """Parse an axis of the command line, such as `stages.1.lr=1e-4,3e-4`.

    Commas inside brackets, braces and quotes do not separate values.

    Raises:
        RecipeError: It is not of that form, or names a value twice.
    """
    path, equals, rest = text.partition("=")
    values = [value.strip() for value in _split_values(rest)]
    if not equals or not path.strip() or not all(values):
        raise RecipeError(f"--sweep {text}: write it as --sweep stages.1.optimizer.lr=1e-4,3e-4")
    return make_axis(path.strip(), {value: {path.strip(): value} for value in _check_unique(path, values)})


def make_axis(name: str, values: Mapping[str, Mapping[str, Any]]) -> Axis:
    """Build an axis of values that each change one or several keys of a recipe."""
    return Axis(
        name, {str(v): tuple(f"{path}={to}" for path, to in changes.items()) for v, changes in values.items()}
    )


def build_grid(recipe: str, axes: Sequence[Axis], overrides: Sequence[str] = ()) -> list[Cell]:
    """Build a cell for every combination of the axes' values, the last axis changing fastest.

    Raises:
        RecipeError: Two axes have one name, or there are too many combinations.
    """
    names = [axis.name for axis in axes]
    if len(set(names)) < len(names):
        raise RecipeError(f"'{next(n for n in names if names.count(n) > 1)}' is swept twice; name it once")
    cells: list[Cell] = []
    for chosen in product(*(axis.values for axis in axes)):
        changes = [axis.values[value] for axis, value in zip(axes, chosen, strict=True)]
        cells.append(
            Cell(recipe, (*overrides, *chain.from_iterable(changes)), dict(zip(names, chosen, strict=True)))
        )
    if len(cells) > MAX_CELLS:
        raise RecipeError(f"{len(cells)} runs; a sweep may have {MAX_CELLS}: sweep fewer values at once")
    return cells


def check_cells(cells: Iterable[Cell]) -> list[Recipe]:
    """Check the recipe of every cell before the first one runs.

    Raises:
        RecipeProblems: At least one has mistakes; those of all are listed, each once.
    """
    recipes: list[Recipe] = []
    problems: dict[str, Any] = {}
    for cell in cells:
        try:
            recipes.append(load_recipe(cell.recipe, cell.overrides))
        except RecipeProblems as error:
            problems |= {str(problem): problem for problem in error.problems}
    if problems:
        raise RecipeProblems(problems.values())
    return recipes


def _check_unique(path: str, values: Sequence[str]) -> Sequence[str]:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise RecipeError(f"--sweep {path}: {twice} is named twice; name each value once")
    return values


def _split_values(text: str) -> Iterable[str]:
    """Split a text at commas outside brackets, braces and quotes."""
    depth, quote, word = 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            yield word
            word = ""
            continue
        word += letter
    yield word
