"""The cells of a study: which recipe each runs, what is changed in it, and the folder it goes to."""

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
_READABLE = 60  # letters of a folder's name that tell people what it holds


class Cell(NamedTuple):
    """One run of a study."""

    recipe: str  # a path, or the name of a shipped recipe
    overrides: tuple[str, ...]  # as `--set` takes them
    settings: Mapping[str, str]  # what tells this cell from the others: axis -> value

    @property
    def name(self) -> str:
        """The name of its folder: readable, and different for different overrides."""
        said = "_".join(f"{axis.rsplit('.', 1)[-1]}={value}" for axis, value in self.settings.items())
        plain = re.sub(r"[^A-Za-z0-9=.+-]+", "_", said)[:_READABLE].strip("_.")
        return f"{plain}-{fingerprint(self.recipe, self.overrides)[:8]}"

    @property
    def title(self) -> str:
        """What tells it from the others, in words."""
        return ", ".join(f"{axis} = {value}" for axis, value in self.settings.items())


class Axis(NamedTuple):
    """One thing that a grid varies: each of its values is a set of changes."""

    name: str
    values: Mapping[str, tuple[str, ...]]  # what to call it -> overrides


def parse_axis(text: str) -> Axis:
    """Read an axis as the command line gives it, `stages.1.lr=1e-4,3e-4`.

    Commas inside brackets, braces and quotes do not part values.

    Raises:
        RecipeError: It is not of that form, or names a value twice.
    """
    path, equals, rest = text.partition("=")
    values = [value.strip() for value in _parted(rest)]
    if not equals or not path.strip() or not all(values):
        raise RecipeError(f"--sweep {text}: write it as --sweep stages.1.optimizer.lr=1e-4,3e-4")
    return make_axis(path.strip(), {value: {path.strip(): value} for value in _once(path, values)})


def make_axis(name: str, values: Mapping[str, Mapping[str, Any]]) -> Axis:
    """Make an axis of values that each change one or several keys of a recipe."""
    return Axis(
        name, {str(v): tuple(f"{path}={to}" for path, to in changes.items()) for v, changes in values.items()}
    )


def build_grid(recipe: str, axes: Sequence[Axis], overrides: Sequence[str] = ()) -> list[Cell]:
    """Every combination of the axes' values, the last axis changing fastest.

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


def _once(path: str, values: Sequence[str]) -> Sequence[str]:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise RecipeError(f"--sweep {path}: {twice} is named twice; name each value once")
    return values


def _parted(text: str) -> Iterable[str]:
    """Part a text at its commas, but for those inside brackets, braces and quotes."""
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
