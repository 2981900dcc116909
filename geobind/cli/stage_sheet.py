"""What `geobind data show` draws of a recipe's stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geobind.errors import RecipeError

if TYPE_CHECKING:
    from geobind.data.contact_sheet import Rows
    from geobind.data.options import DataOptions
    from geobind.recipe import Recipe, Stage


def is_recipe(name: Path) -> bool:
    """Whether this is a recipe's file, or the bare name of one that comes with geobind."""
    from geobind.recipe.loading import is_shipped

    return name.suffix.lower() in (".yaml", ".yml") or is_shipped(name)


def stage_sheet(
    name: Path, stage_name: str | None, given: Mapping[str, Any], *, rows: int, seed: int, draws: int
) -> bytes:
    """Draw what a stage of a recipe sees; PNG bytes.

    Args:
        name: The recipe.
        stage_name: The stage, by default the first.
        given: The manifest whose rows are drawn, with what was said about it (columns by name, root, files,
            inline, limit); the recipe itself as the manifest means its own rows.
        rows: How many rows.
        seed: Which rows, and which draws.
        draws: Training draws of each.

    Raises:
        RecipeError: The recipe has mistakes, no such stage, or no rows for it.
        DataError: The rows cannot be read.
    """
    from geobind.data.contact_sheet import Side, sheet_of_stage
    from geobind.recipe import load_recipe
    from geobind.recipe.loading import is_shipped

    own = given["manifest"] == name
    recipe = load_recipe(name, files=own and not is_shipped(name))
    stages = {stage.name: stage for stage in recipe.stages}
    stage = stages.get(stage_name or recipe.stages[0].name)
    if stage is None:
        raise RecipeError(f"{name}: has no stage '{stage_name}'; its stages: {', '.join(stages)}")
    stage_rows = _own_rows(recipe, stage) if own else _rows_of(recipe, stage, given)
    sides = {side: Side(recipe.built[side], side in stage.parts) for side in recipe.names_of(stage)}
    return sheet_of_stage(stage_rows, sides, rows, seed, draws)


def _own_rows(recipe: Recipe, stage: Stage) -> Rows:
    from geobind.training.stage_data import Sources

    # The data of other stages need not be there.
    return Sources(recipe.model_copy(update={"stages": [stage], "evaluate": None})).rows(stage)


def _rows_of(recipe: Recipe, stage: Stage, given: Mapping[str, Any]) -> Rows:
    """The rows of another manifest, read as the stage's own table is, but for what is said about it."""
    from geobind.data.sources import TableRows
    from geobind.data.table import open_table

    table = next(iter(recipe.tables_of(stage)), None)
    names = recipe.names_of(stage)
    found = open_table(_replaced(table, given), recipe.base, tuple(recipe.modalities)).split(stage.split)
    there = tuple(name for name in names if name in found.columns)
    return TableRows(found.take(found.rows_with(there)), there)


def _replaced(data: DataOptions | None, given: Mapping[str, Any]) -> DataOptions:
    from geobind.data.options import DataOptions

    kept = data.model_dump(exclude={"weight"}) if data is not None and data.manifest else {}
    said = {
        **given,
        "manifest": given["manifest"].resolve(),
        "root": given["root"] and given["root"].resolve(),
    }
    return DataOptions.model_validate({**kept, "root": None, **{k: v for k, v in said.items() if v}})
