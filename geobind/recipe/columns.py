"""Whether the manifests of a recipe have the columns that it maps, and those that its options ask for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from geobind.data.options import DataOptions
from geobind.errors import DataError, did_you_mean
from geobind.recipe.reading import Path_
from geobind.recipe.schema import Recipe, Stage
from geobind.recipe.stages import own_pairs

_WITH_HEADER = (".csv", ".tsv", ".parquet", ".geoparquet", "")  # a row of JSONL need not name all columns
Fault = tuple[Path_, str]  # where in the recipe, and what to do about it
_CLUSTERS = {None: (), "cell": ("lat", "lon"), "group": ("group",)}


def column_faults(recipe: Recipe, blocks: Iterable[tuple[Path_, DataOptions]]) -> Iterator[Fault]:
    """List what a recipe asks of its rows that no column of a manifest says, as far as its header tells.

    Manifests that are not there, or cannot be read, are left to those who say so.

    Args:
        recipe: The recipe.
        blocks: Every `data` block of it, with its path.
    """
    for path, table in blocks:
        yield from _mapped(recipe, path, table)
    for number, stage in enumerate(recipe.stages):
        own = own_pairs(stage, recipe.built)
        tabled = [name for name in stage.aligned if name not in own and name in recipe.modalities]
        tables = recipe.tables_of(stage, tabled) if tabled else ()
        for at, columns in _asked(stage).items():
            yield from _needed(recipe, ("stages", number, *at), columns, tables)
        if stage.watch and stage.watch.by == "label":
            held = tables if stage.watch.data is None else (stage.watch.data,)
            yield from _needed(recipe, ("stages", number, "watch", "by"), ("label",), held)
    evaluate = recipe.evaluate
    measured = evaluate and (evaluate.data or recipe.data)
    if evaluate and measured:
        asked = {"by": ("label",) if evaluate.by == "label" else (), "clusters": _CLUSTERS[evaluate.clusters]}
        for word, columns in asked.items():
            yield from _needed(recipe, ("evaluate", word), columns, (measured,))


def _mapped(recipe: Recipe, path: Path_, table: DataOptions) -> Iterator[Fault]:
    """List the columns that a block maps and its manifest has not got."""
    there = _columns_of(recipe, table)
    if not there or table.manifest is None:
        return
    from geobind.data.delimited import PLACE_COLUMNS
    from geobind.data.readers.files import listed

    for name, column in table.columns.items():
        if column not in there and (name in recipe.modalities or name in PLACE_COLUMNS):
            hint = did_you_mean(column, there, f"its columns: {listed(there)}")
            yield (*path, "columns", name), f"{table.manifest.name} has no column '{column}'; {hint}"


def _needed(
    recipe: Recipe, path: Path_, columns: Sequence[str], tables: Iterable[DataOptions]
) -> Iterator[Fault]:
    """List the tables that lack columns that an option needs; of those that are mapped `_mapped` tells."""
    for table in tables if columns else ():
        there = _columns_of(recipe, table)
        absent = [name for name in columns if there and name not in there and name not in table.columns]
        if absent and table.manifest is not None:
            named = " and ".join(f"`{name}`" for name in absent)
            message = (
                f"needs {named} of every row, but {table.manifest.name} has no such column; add it, "
                f"or map another with `columns: {{{absent[0]}: COLUMN}}`"
            )
            yield path, message


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
    from geobind.data.manifest import manifest_columns_there

    try:
        return manifest_columns_there(recipe.base / table.manifest)
    except (DataError, OSError):
        return []
