"""Whether the manifests of a recipe have the columns that its losses and batches ask for."""

from __future__ import annotations

from collections.abc import Iterator

from geobind.data.options import DataOptions
from geobind.errors import DataError
from geobind.recipe.reading import Path_
from geobind.recipe.schema import Recipe, Stage
from geobind.recipe.stages import own_pairs

_WITH_HEADER = (".csv", ".tsv", ".parquet", ".geoparquet", "")  # a row of JSONL need not name all columns


def column_faults(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    """List what a stage asks of its rows that no column of a manifest says, as far as its header tells.

    Manifests that are not there, or cannot be read, are left to those who say so.
    """
    for number, stage in enumerate(recipe.stages):
        own = own_pairs(stage, recipe.built)
        tabled = [name for name in stage.aligned if name not in own and name in recipe.modalities]
        for at, columns in _asked(stage).items():
            for table in recipe.tables_of(stage, tabled) if tabled else ():
                there = _columns_of(recipe, table)
                absent = [name for name in columns if there and table.columns.get(name, name) not in there]
                if absent and table.manifest is not None:
                    named = " and ".join(f"`{name}`" for name in absent)
                    message = (
                        f"needs {named} of every row, but {table.manifest.name} has no such column; add it, "
                        f"or map another with `columns: {{{absent[0]}: COLUMN}}`"
                    )
                    yield ("stages", number, *at), message


def _asked(stage: Stage) -> dict[Path_, tuple[str, ...]]:
    """The columns that a stage needs, by what needs them."""
    loss, place = stage.loss, ("lat", "lon")
    asked = {
        ("batches",): place if stage.batches else (),
        ("loss", "positives"): ("label",) if loss.positives == "label" else (),
        ("loss", "same_within_m"): place if loss.same_within_m else (),
        ("loss", "ignore_within_m"): place if loss.ignore_within_m else (),
        ("loss", "ignore_within_hours"): (*place, "time") if loss.needs_times else (),
    }
    return {at: columns for at, columns in asked.items() if columns}


def _columns_of(recipe: Recipe, table: DataOptions) -> list[str]:
    """The columns of a manifest; none where they cannot be told without reading all of it."""
    if table.manifest is None or table.manifest.suffix.lower() not in _WITH_HEADER:
        return []
    from geobind.data.tables.manifest import manifest_columns_there

    try:
        return manifest_columns_there(recipe.base / table.manifest)
    except (DataError, OSError):
        return []
