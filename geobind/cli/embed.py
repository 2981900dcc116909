"""`geobind embed`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from geobind.cli.options import (
    Compute,
    bundle_argument,
    compute_options,
    data_options_from_cli,
    describe_precisions,
    json_option,
    out_file,
    parse_columns,
    print_json,
    print_precisions,
    read_bundle_card,
)
from geobind.errors import DataError

if TYPE_CHECKING:
    from geobind.archive.job import Job
    from geobind.archive.sources import FolderFiles, InputSource, ManifestRows

Command = TypeVar("Command", bound=Callable[..., Any])


METRES = click.FloatRange(min=0.001)


def _raster_options(command: Command) -> Command:
    """Add the options of tiles of a raster."""
    for option in (
        click.option("--nearest", is_flag=True, help="Take the nearest pixel, as class maps need it."),
        click.option("--time", metavar="TIME", help="When the raster was taken, such as 2024-07-01 (UTC)."),
        click.option(
            "--min-valid",
            type=click.FloatRange(0, 1),
            help="Share of a tile's pixels that must be there: 0.5.",
        ),
        click.option("--nodata", type=float, help="A value that means missing, if the raster states none."),
        click.option("--stretch", metavar="LOW,HIGH", help="Values that become 0 and 255."),
        click.option("--bands", metavar="1,2,3", help="Bands to read; default: all but alpha."),
        click.option("--gsd", type=METRES, help="Metres per pixel of a tile; default: the raster's own."),
        click.option(
            "--grid",
            default="raster",
            show_default=True,
            help="`raster`, or the cells of a published grid: majortom:10km.",
        ),
        click.option("--stride-m", type=METRES, help="Metres from tile to tile; default: their size."),
        click.option("--size-m", type=METRES, help="Side of a tile in metres."),
        click.option("--raster", type=click.Path(path_type=Path), help="Embed the tiles of this GeoTIFF."),
    ):
        command = option(command)
    return command


def _table_options(command: Command) -> Command:
    """Add the options of rows of a table and files of a folder."""
    for option in (
        click.option("--skip-broken", is_flag=True, help="Leave out what cannot be read, with a warning."),
        click.option("--pattern", help="Of a folder: files to embed, such as '*.png'."),
        click.option("--split", help="Of a manifest: only rows of this split."),
        click.option("--root", type=click.Path(path_type=Path), help="Folder that file names start from."),
        click.option(
            "--column",
            "columns",
            multiple=True,
            metavar="MODALITY=COLUMN",
            help="Column of the modality, or of key, lat, lon, time; repeatable.",
        ),
        click.option("--data", help="Embed the rows of a manifest or dataset, or the files of a folder."),
    ):
        command = option(command)
    return command


def _job_options(command: Command) -> Command:
    """Add the options of a job that writes an archive."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Show what would be done."),
        click.option("--fresh", is_flag=True, help="Replace what is there of another job."),
        click.option("--ray", metavar="ADDRESS", help="Let a Ray cluster do it: its address, or `auto`."),
        click.option("--shard", metavar="I/N", help="Do share I of N, from 0; join: geobind archive merge."),
        click.option(
            "--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True
        ),
    ):
        command = option(command)
    return command


@click.command("embed")
@bundle_argument
@click.argument("modality")
@click.argument("inputs", nargs=-1)
@_raster_options
@_table_options
@_job_options
@out_file("-o", "--out", about="NAME.npy for INPUTS; NAME.parquet, an archive, with --raster or --data.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@compute_options(workers=True, runtime=True)
@json_option
def embed_command(
    bundle: str,
    modality: str,
    inputs: tuple[str, ...],
    out: Path,
    batch_size: int,
    raster: Path | None,
    data: str | None,
    as_json: bool,
    compute: Compute,
    **given: Any,
) -> None:
    """Embed INPUTS, a raster's tiles, or a table's rows with BUNDLE, a folder or a hub id.

    INPUTS are files, or sentences for a text modality. --raster and --data write an archive: GeoParquet with
    the places of all rows. What was stopped goes on when the same command is given again.
    """
    if sum([bool(inputs), raster is not None, data is not None]) != 1:
        raise DataError("what is embedded? give INPUTS, --raster SCENE.tif, or --data TABLE or FOLDER")
    if inputs:
        _require_suffix(out, ".npy", "INPUTS")
        _refuse_options(given, "INPUTS", ())
        _embed_inputs(bundle, modality, inputs, out, batch_size, compute, as_json)
        return
    _require_suffix(out, ".parquet", "--raster" if raster else "--data")
    if raster is not None:
        _refuse_options(given, "--raster", (*_RASTER, *_JOB))
        source = _open_raster(raster, given)
    else:
        _refuse_options(given, "--data", (*_TABLE, *_JOB))
        source = open_data(bundle, modality, data or "", given)
    _write_archive(bundle, modality, source, out, batch_size, compute, given, as_json)


_RASTER = ("size_m", "stride_m", "grid", "gsd", "bands", "stretch", "nodata", "min_valid", "time", "nearest")
_TABLE = ("columns", "root", "split", "pattern", "skip_broken")
_JOB = ("dtype", "shard", "ray", "fresh", "dry_run")
_USUAL = {"grid": "raster", "dtype": "float16"}


def _refuse_options(given: dict[str, Any], what: str, allowed: tuple[str, ...]) -> None:
    """Raise for an option that has no meaning for what is embedded."""
    for name, value in given.items():
        if name not in allowed and value and value != _USUAL.get(name):
            option = "column" if name == "columns" else name.replace("_", "-")
            raise DataError(f"--{option} does not go with {what}")


def _require_suffix(out: Path, suffix: str, what: str) -> None:
    if out.suffix.lower() != suffix:
        kind = "an archive" if suffix == ".parquet" else "an array"
        raise DataError(f"--out {out}: {what} becomes {kind}; let its name end in {suffix}")


def _embed_inputs(
    bundle: str,
    modality: str,
    inputs: tuple[str, ...],
    out: Path,
    batch_size: int,
    compute: Compute,
    as_json: bool,
) -> None:
    """Write the embeddings of inputs."""
    from geobind.utils.files import write_npy

    binder = compute.load(bundle, [modality])
    embedding_ND = binder.embed(modality, list(inputs), batch_size=batch_size, numpy=True)
    write_npy(out, embedding_ND)
    print_precisions(binder)
    rows, width = embedding_ND.shape
    _print_written(out, rows, width, "float32", as_json, precision=describe_precisions(binder))


def _print_written(out: Path, rows: int, width: int, dtype: str, as_json: bool, **facts: Any) -> None:
    if as_json:
        print_json({"file": str(out), "rows": rows, "width": width, "dtype": dtype, **facts})
    else:
        click.echo(f"{out}: {rows:,} x {width} {dtype}, unit length")


def _open_raster(raster: Path, given: dict[str, Any]) -> InputSource:
    from geobind.archive.sources import RasterTiles, build_reading, parse_time

    size_m = given["size_m"]
    if size_m is None:
        raise DataError("--raster needs --size-m, the side of a tile in metres")
    if given["grid"] != "raster" and given["stride_m"] is not None:
        raise DataError(f"--stride-m does not go with --grid {given['grid']}, which has a tile for each cell")
    reading = build_reading(
        size_m=size_m,
        gsd=given["gsd"],
        bands=_split_numbers("--bands", given["bands"], int),
        stretch=_split_numbers("--stretch", given["stretch"], float),
        min_valid=given["min_valid"],
        nearest=given["nearest"] or None,
    )
    stride_m = given["stride_m"] if given["stride_m"] is not None else size_m
    if not stride_m > 0:
        raise DataError(f"--stride-m {stride_m:g}: must be above 0")
    return RasterTiles(raster, reading, stride_m, given["grid"], parse_time(given["time"]), given["nodata"])


def _split_numbers(option: str, text: str | None, kind: Callable[[str], Any]) -> tuple[Any, ...] | None:
    try:
        return None if text is None else tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise DataError(f"{option} {text}: write numbers with commas between") from None


def open_data(bundle: str, modality: str, data: str, given: Mapping[str, Any]) -> ManifestRows | FolderFiles:
    """Return the rows or files of `--data`, with the options that go with it."""
    from geobind.archive.sources import ManifestRows, is_folder_of_files, open_source

    split, pattern = given["split"], given["pattern"] or "*"
    columns = parse_columns(given["columns"])
    if is_folder_of_files(Path(data)):
        return open_source(data, modality, dict(columns), split=split, pattern=pattern)
    if pattern != "*":
        raise DataError(f"--pattern {pattern}: {data} is no folder of files")
    options = data_options_from_cli(read_bundle_card(bundle), data, columns, given["root"])
    return ManifestRows(options, Path.cwd(), modality, split)


def _write_archive(
    bundle: str,
    modality: str,
    source: InputSource,
    out: Path,
    batch_size: int,
    compute: Compute,
    given: dict[str, Any],
    as_json: bool,
) -> None:
    from geobind.archive.embedding import choose_runner
    from geobind.archive.job import plan_job, run_job

    shard = _parse_shard(given["shard"])
    binder = compute.load(bundle, [modality])
    job = plan_job(
        binder,
        modality,
        source,
        out,
        dtype=given["dtype"],
        batch_size=batch_size,
        skip_broken=given["skip_broken"],
    )
    if given["dry_run"]:
        _show_plan(job)
        return
    print_precisions(binder)
    runner = choose_runner(binder, bundle, binder.workers, given["ray"])
    archive = run_job(job, runner, shard=shard, fresh=given["fresh"])
    if archive is not None:
        facts = {"precision": describe_precisions(binder)}
        _print_written(out, len(archive), archive.width, str(archive.dtype), as_json, **facts)
        return
    missing = len(job.parts.list_missing())
    rest = f"{missing} are missing yet" if missing else f"join them: geobind archive merge {out}"
    if as_json:
        print_json({"folder": str(job.parts.folder), "parts": job.parts.blocks, "missing": missing})
        return
    click.echo(f"{job.parts.folder}: {job.parts.blocks - missing} of {job.parts.blocks} parts; {rest}")


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    share, slash, count = text.partition("/")
    if not (slash and share.isdecimal() and count.isdecimal() and int(share) < int(count)):
        raise DataError(f"--shard {text}: write I/N, counted from 0, such as 0/4 to 3/4")
    return int(share), int(count)


def _show_plan(job: Job) -> None:
    """Print what a job would do."""
    from geobind.utils.formatting import format_size

    parts, source, metadata = job.parts, job.source, job.metadata
    rows = sum(source.count(block) for block in range(parts.blocks))
    if grid := metadata.grid:
        across = f"{metadata.pixels} x {metadata.pixels} pixels"
        click.echo(f"grid: {grid.rows} x {grid.columns} tiles of {grid.size_m:g} m, {across}")
    size = rows * (metadata.width * (2 if metadata.dtype == "float16" else 4) + 120)
    click.echo(f"rows: at most {rows:,}, {metadata.width} numbers each; about {format_size(size)}")
    done = "there already" if parts.is_done() else f"{parts.blocks - len(parts.list_missing())} there already"
    click.echo(f"parts: {parts.blocks}, {done}")
