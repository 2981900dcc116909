"""`geobind data` and `geobind toyearth`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geobind.cli.options import json_option, out_file, parse_columns, print_json, split_vectors
from geobind.errors import RecipeError

if TYPE_CHECKING:
    from geobind.data.contact_sheet import Rows
    from geobind.data.options import DataOptions
    from geobind.data.table import Table
    from geobind.recipe import Recipe, Stage


@click.group("data")
def data_command() -> None:
    """Look at manifests, split them, pack them.

    A MANIFEST is a CSV, TSV, JSONL or Parquet file, a folder of Parquet files, or a recipe, which stands for
    its `data`.
    """


def _columns_option(given: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--column",
        "columns",
        multiple=True,
        metavar="NAME=COLUMN",
        help="Read a column of the manifest as this modality, or as key, split, lat, lon, time, label or "
        "group; repeatable. By default every column counts under its own name.",
    )(given)


def _table_options(given: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.argument("manifest", type=click.Path(path_type=Path)),
        _columns_option,
        click.option(
            "--root", type=click.Path(path_type=Path), help="Folder that file names are relative to."
        ),
        click.option("--files", multiple=True, metavar="COLUMN", help="A column whose strings name files."),
        click.option(
            "--inline", multiple=True, metavar="COLUMN", help="A column whose strings are the text."
        ),
        click.option(
            "--limit", type=click.IntRange(1), help="Use only N rows, evenly spread over all of them."
        ),
    ):
        given = option(given)
    return given


def _open(**given: Any) -> Table:
    return _open_with_recipe(**given)[0]


def _open_with_recipe(
    manifest: Path,
    columns: tuple[str, ...],
    root: Path | None,
    files: tuple[str, ...],
    inline: tuple[str, ...],
    limit: int | None,
) -> tuple[Table, Recipe | None]:
    """Open what a command names: the table, and the recipe if it is one."""
    from geobind.data.cells import PLACE_COLUMNS
    from geobind.data.manifest import list_manifest_columns
    from geobind.data.options import DataOptions
    from geobind.data.table import open_table
    from geobind.errors import DataError

    if _is_yaml(manifest):
        if columns or root or files or inline:
            raise DataError(f"{manifest}: is a recipe and says itself which columns and files are meant")
        table, recipe = _open_recipe(manifest)
        return _spread(table, limit), recipe
    said = split_vectors(parse_columns(columns))
    options = DataOptions(manifest=manifest, columns=said, root=root, files=files, inline=inline)
    names = [name for name in said if name not in PLACE_COLUMNS]
    if not names:
        taken = {str(said.get(name, name)) for name in PLACE_COLUMNS} | {"geometry"}
        names = [column for column in list_manifest_columns(manifest) if column not in taken]
    if not names:
        raise DataError(f"{manifest}: has no column of observations")
    return _spread(open_table(options, Path(), names), limit), None


def _is_yaml(manifest: Path) -> bool:
    return manifest.suffix.lower() in (".yaml", ".yml")


def _spread(table: Table, limit: int | None) -> Table:
    """Take rows evenly from all of a table: its beginning may be of one split, class or folder alone."""
    import numpy as np

    if limit is None or limit >= len(table):
        return table
    return table.take(np.arange(limit) * len(table) // limit)


def _open_recipe(path: Path) -> tuple[Table, Recipe]:
    from geobind.data.table import open_table
    from geobind.errors import DataError
    from geobind.recipe import load_recipe

    recipe = load_recipe(str(path))
    data: DataOptions | None = recipe.data
    if data is None:
        raise DataError(f"{path}: names no `data` for the whole recipe; give the manifest instead")
    return open_table(data, recipe.base, list(recipe.modalities)), recipe


@data_command.command("check")
@_table_options
@click.option("--quick", is_flag=True, help="Only check that files exist; decode and compare nothing.")
@click.option(
    "--good",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the manifest's rows of which nothing is broken as this file, of the manifest's kind.",
)
@json_option
def check(quick: bool, good: Path | None, as_json: bool, **given: Any) -> None:
    """Check every observation of MANIFEST: broken files, copies, leaks between splits, sizes, classes.

    Of a recipe each observation is also prepared as its modality does: what that refuses cannot be used.
    Exits with 2 if an observation cannot be used, with 0 otherwise, warnings or not; with --good with 0.
    """
    from geobind.data.inspect import format_report, inspect_table
    from geobind.errors import DataError

    table, recipe = _open_with_recipe(**given)
    prepare = {name: kind.prepare for name, kind in recipe.built.items()} if recipe else None
    training = recipe.stages[0].split if recipe else "train"
    report = inspect_table(table, quick=quick, prepare=prepare, training=training)
    if as_json:
        print_json(report)
    else:
        for line in format_report(report):
            click.echo(line)
    if good is None:
        sys.exit(2 if report["broken"] else 0)
    manifest = recipe.base / recipe.data.manifest if recipe and recipe.data and recipe.data.manifest else None
    manifest = manifest or given["manifest"]
    if _is_yaml(manifest):
        raise DataError(f"{manifest}: --good writes rows of a manifest, and its data is a dataset")
    _write_good(manifest, good, len(table), report["broken_rows"])


def _write_good(manifest: Path, good: Path, count: int, broken: Sequence[int]) -> None:
    """Write the rows of a manifest that are not broken."""
    from geobind.data.split import select_rows

    lost = set(broken)
    select_rows(manifest, good, [row not in lost for row in range(count)])
    click.echo(f"{good}: {count - len(lost):,} of {count:,} rows", err=True)
    _warn_of_folder(manifest, good)


def _warn_of_folder(manifest: Path, target: Path) -> None:
    if target.parent.resolve() != manifest.parent.resolve():
        click.echo(f"file names in it are relative to {manifest.parent}: say so with `root`", err=True)


@data_command.command("split")
@click.argument("manifest", type=click.Path(path_type=Path))
@_columns_option
@click.option("--by", type=click.Choice(["place", "group", "random"]), default="place", show_default=True)
@click.option(
    "--group",
    metavar="COLUMN",
    help="With --by group: the column whose values are never cut.  [default: group]",
)
@click.option("--cell-km", type=float, default=100.0, show_default=True, help="Width of a block of land.")
@click.option(
    "--buffer-km", type=float, default=0.0, help="Leave out rows nearer than this to the first split."
)
@click.option("--shares", default="0.8,0.1,0.1", show_default=True, help="Shares of the rows.")
@click.option("--names", help="Names of the splits.  [default: train,val,test or train,test]")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@out_file("-o", "--out", about="The manifest to write.")
@json_option
def split(
    manifest: Path,
    columns: tuple[str, ...],
    shares: str,
    names: str | None,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Write MANIFEST again with its column `split` filled, so that no block of land lies in two splits."""
    from geobind.data.split import SplitOptions, split_manifest
    from geobind.errors import DataError

    try:
        numbers = tuple(float(share) for share in shares.split(","))
    except ValueError as error:
        raise DataError(
            f"--shares {shares}: write numbers with commas between, such as 0.8,0.1,0.1"
        ) from error
    chosen = SplitOptions(shares=numbers, names=tuple(names.split(",")) if names else (), **options)
    counts = split_manifest(manifest, out, chosen, parse_columns(columns))
    if as_json:
        print_json({"file": str(out), "splits": counts})
    else:
        told = ", ".join(f"{name or 'left out'} {count}" for name, count in counts.items())
        click.echo(f"{out}: {told}")
    _warn_of_folder(manifest, out)


@data_command.command("pack")
@_table_options
@click.option("--shard-mb", type=click.IntRange(1, 2000), default=200, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The folder to fill.")
@json_option
def pack(shard_mb: int, out: Path, as_json: bool, **given: Any) -> None:
    """Pack MANIFEST with all its files into Parquet shards; the folder is then a manifest itself.

    An interrupted command continues where it stopped when it is run again.
    """
    from geobind.data.pack import pack_table

    packed = pack_table(_open(**given), out, shard_bytes=shard_mb * 1_000_000)
    if as_json:
        print_json({"folder": str(out), **asdict(packed)})
        return
    there = f" ({packed.kept} were there)" if packed.kept else ""
    click.echo(f"{out}: {packed.rows} rows, {packed.shards} shards{there}, {packed.size / 1e6:.1f} MB")
    for fault in packed.faults[:5]:
        click.echo(f"left out: {fault}", err=True)
    if len(packed.faults) > 5:
        click.echo(f"left out: {len(packed.faults) - 5} more", err=True)


@data_command.command("show")
@_table_options
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="Show what a stage of this recipe sees of MANIFEST's rows.",
)
@click.option("--stage", "stage_name", help="The stage; by default the recipe's first.")
@click.option("--rows", type=click.IntRange(1, 30), default=6, show_default=True)
@click.option(
    "--draws",
    type=click.IntRange(0, 8),
    default=3,
    show_default=True,
    help="Training draws of each modality, as its augmentations make them.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@out_file("-o", "--out", about="The PNG file to write.")
@json_option
def show(
    recipe: Path | None,
    stage_name: str | None,
    rows: int,
    draws: int,
    seed: int,
    out: Path,
    as_json: bool,
    **given: Any,
) -> None:
    """Draw some rows of MANIFEST; or of a recipe, or with --recipe, what a stage sees of them.

    What a stage sees is each raw input, what is made of it to embed it, and several of the draws that
    training makes of it.
    """
    from geobind.utils.files import write_atomic

    named = recipe or (given["manifest"] if is_recipe(given["manifest"]) or stage_name else None)
    if named is None:
        from geobind.data.contact_sheet import draw_table_sheet

        write_atomic(out, draw_table_sheet(_open(**given), rows, seed))
    else:
        said = {**given, "columns": parse_columns(given["columns"])}
        write_atomic(out, stage_sheet(named, stage_name, said, rows=rows, seed=seed, draws=draws))
    if as_json:
        print_json({"file": str(out)})
        return
    click.echo(f"sheet: {out}")


def is_recipe(name: Path) -> bool:
    """Return whether this is a recipe's file or the name of a shipped recipe."""
    from geobind.recipe.shipped import is_shipped

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
    from geobind.data.contact_sheet import SheetModality, draw_stage_sheet
    from geobind.recipe import load_recipe
    from geobind.recipe.shipped import is_shipped

    own = given["manifest"] == name
    recipe = load_recipe(name, files=own and not is_shipped(name))
    stages = {stage.name: stage for stage in recipe.stages}
    stage = stages.get(stage_name or recipe.stages[0].name)
    if stage is None:
        raise RecipeError(f"{name}: has no stage '{stage_name}'; its stages: {', '.join(stages)}")
    stage_rows = _own_rows(recipe, stage) if own else _rows_of(recipe, stage, given)
    geometry, augmented = recipe.geometry_of(stage), recipe.augmented_in(stage)
    sides = {
        side: SheetModality(recipe.built[side], side in augmented, geometry[side])
        for side in recipe.names_of(stage)
    }
    return draw_stage_sheet(stage_rows, sides, rows, seed, draws)


def _own_rows(recipe: Recipe, stage: Stage) -> Rows:
    from geobind.training.stage_data import StageData

    # The data of other stages may be absent.
    return StageData(recipe.model_copy(update={"stages": [stage], "evaluate": None})).rows(stage)


def _rows_of(recipe: Recipe, stage: Stage, given: Mapping[str, Any]) -> Rows:
    """Return the rows of another manifest, read with the stage's own table options where none are given."""
    from geobind.data.sources import TableRows
    from geobind.data.table import open_table

    table = next(iter(recipe.tables_of(stage)), None)
    names = recipe.names_of(stage)
    found = open_table(_replaced(table, given), recipe.base, tuple(recipe.modalities)).split(stage.split)
    found = _spread(found, given["limit"])
    there = tuple(name for name in names if name in found.columns)
    return TableRows(found.take(found.rows_with(there)), there)


def _replaced(data: DataOptions | None, given: Mapping[str, Any]) -> DataOptions:
    from geobind.data.options import DataOptions

    kept = data.model_dump(exclude={"weight"}) if data is not None and data.manifest else {}
    said = {
        **{name: value for name, value in given.items() if name != "limit"},
        "manifest": given["manifest"].resolve(),
        "root": given["root"] and given["root"].resolve(),
    }
    return DataOptions.model_validate({**kept, "root": None, **{k: v for k, v in said.items() if v}})


@click.command("toyearth")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--places", type=click.IntRange(1, 100_000), default=100, show_default=True)
@click.option("--held-out", type=click.IntRange(0, 100_000), default=20, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@json_option
def dataset_command(folder: Path, places: int, held_out: int, seed: int, as_json: bool) -> None:
    """Write toy Earth to FOLDER as files with a manifest: tiles, photos, sounds, captions."""
    from geobind.data.dataset import registry

    options = {"places": places, "held_out": held_out, "seed": seed}
    manifest = registry().get("toyearth").model_validate(options).write_files(folder)
    if as_json:
        print_json({"manifest": str(manifest), **options})
        return
    click.echo(f"manifest: {manifest}")
