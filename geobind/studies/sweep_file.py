"""Sweep files: a recipe, changes for every run, and varied values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geobind.errors import RecipeError
from geobind.recipe.parsing import ParsedYaml, Problem, RecipeProblems, parse_yaml, read_yaml_text
from geobind.recipe.shipped import find_recipe, recipe_folders
from geobind.studies.grid import Axis, Cell, build_grid, make_axis
from geobind.studies.summary import SEED


class SweepFile(BaseModel):
    """The contents of a sweep file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str = Field(description="a shipped recipe's name, or a path from the sweep file")
    about: str = Field(default="", description="the question this sweep answers, in a sentence")
    set: dict[str, Any] = Field(default={}, description="changes for every run, as `--set` takes them")
    vary: dict[str, list[Any] | dict[str, dict[str, Any]]] = Field(
        min_length=1,
        description="a key of the recipe and its values, or a name and, for each variant, its changes",
    )
    seeds: list[int] = Field(default=[0], min_length=1, description="every setting is run once with each")


class Sweep(NamedTuple):
    """A sweep file, ready to run."""

    name: str
    about: str
    cells: list[Cell]


def load_sweeps(name: str) -> list[Sweep]:
    """Load a sweep file, or all of a folder; a bare name is a shipped one.

    Raises:
        RecipeProblems: There is none, or it has mistakes.
    """
    path = _located(name)
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise RecipeError(f"{path}: a folder without sweep files (*.yaml)")
    return [_read(file) for file in files]


def _located(name: str) -> Path:
    """Return the path of a file or folder, also below the shipped recipes, such as `ablations`."""
    path = Path(name)
    if path.exists():
        return path
    for shelf in recipe_folders():
        for there in (shelf / name, shelf / f"{name}.yaml"):
            if there.exists() and there.resolve().is_relative_to(shelf.resolve()):
                return there
    offered = ", ".join(_offered()) or "none"
    raise RecipeProblems([Problem(name, "", f"no such sweep file or folder; shipped: {offered}")])


def _offered() -> Iterator[str]:
    for shelf in recipe_folders():
        for file in sorted(shelf.glob("ablations/*.yaml")):
            yield f"{file.parent.name}/{file.stem}"


def _read(file: Path) -> Sweep:
    values, marks = parse_yaml(read_yaml_text(file), str(file))
    written = ParsedYaml(values, marks, str(file))
    try:
        plan = SweepFile.model_validate(values)
    except ValidationError as error:
        raise RecipeProblems(
            written.problem(item["loc"], item["msg"]) for item in error.errors(include_url=False)
        ) from None
    near = file.parent / plan.recipe
    recipe = str(near if near.is_file() else find_recipe(plan.recipe))
    overrides = [f"{path}={_text(value)}" for path, value in plan.set.items()]
    axes = [_axis(written, name, values) for name, values in plan.vary.items()]
    axes.append(make_axis(SEED, {str(seed): {SEED: seed} for seed in plan.seeds}))
    return Sweep(file.stem, plan.about, build_grid(recipe, axes, overrides))


def _axis(written: ParsedYaml, name: str, values: list[Any] | dict[str, dict[str, Any]]) -> Axis:
    if not values:
        raise RecipeProblems([written.problem(("vary", name), "has no values; list at least one")])
    if isinstance(values, list):
        return make_axis(name, {_text(value): {name: _text(value)} for value in values})
    return make_axis(
        name,
        {variant: {path: _text(to) for path, to in changes.items()} for variant, changes in values.items()},
    )


def _text(value: Any) -> str:
    """Return a value as text for `--set`, which reads YAML and thus JSON."""
    return value if isinstance(value, str) else json.dumps(value)
