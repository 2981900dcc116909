"""`geobind archive`: info, check, merge."""

from __future__ import annotations

from pathlib import Path

import click

from geobind.cli.options import json_option, print_json
from geobind.errors import DataError

_archive_argument = click.argument("archive", type=click.Path(path_type=Path))


@click.group("archive")
def archive_command() -> None:
    """Look at an archive of embeddings, check it, or join its parts."""


@archive_command.command("info")
@_archive_argument
@json_option
def info_command(archive: Path, as_json: bool) -> None:
    """Show what ARCHIVE, a .parquet file, holds; its embeddings are not read."""
    from geobind.archive.archive import Archive
    from geobind.utils.formatting import format_size

    opened = Archive.open(archive)
    box = opened.bounds
    if as_json:
        facts = opened.metadata.model_dump(mode="json")
        print_json({"rows": len(opened), "bounds": box, **facts})
        return
    metadata = opened.metadata
    name = f" of {metadata.bundle}" if metadata.bundle else ""
    click.echo(
        f"{archive}: {len(opened):,} x {opened.width} {opened.dtype}, {format_size(archive.stat().st_size)}"
    )
    click.echo(
        f"embedded: '{opened.modality}'{name}, model {opened.model[:12]}, from {metadata.source or 'arrays'}"
    )
    if metadata.computed != "float32":
        alike = "" if metadata.cosine is None else f", least cosine to float32 {metadata.cosine:.5f}"
        click.echo(f"computed: in {metadata.computed}{alike}")
    if box:
        west, south, east, north = box
        click.echo(f"bounds: {west:.5f},{south:.5f},{east:.5f},{north:.5f} (west,south,east,north)")
    if grid := opened.grid:
        click.echo(
            f"grid: {grid.rows} x {grid.columns} tiles of {grid.size_m:g} m every {grid.stride_m:g} m, "
            f"{'a local CRS' if len(grid.crs) > 40 else grid.crs}"
        )
    if metadata.naming not in ("", "raster"):
        click.echo(f"cells: {metadata.naming}")


@archive_command.command("check")
@_archive_argument
@click.option("--bundle", help="Check as well that this bundle's model made it.")
@json_option
def check_command(archive: Path, bundle: str | None, as_json: bool) -> None:
    """Read all of ARCHIVE: checksums, embeddings, names, places. Exits with 2 at the first fault."""
    from geobind.archive.archive import Archive
    from geobind.binder import Binder

    opened = Archive.open(archive, None if bundle is None else Binder.from_pretrained(bundle))
    rows = opened.check()
    if as_json:
        print_json({"archive": str(archive), "rows": rows})
        return
    click.echo(f"{archive}: {rows:,} rows, none of them faulty")


@archive_command.command("merge")
@click.argument("archives", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ARCHIVE...")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Join several archives into this."
)
@json_option
def merge_command(archives: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Join the parts that shares (`geobind embed ... --shard I/N`) have written of ARCHIVE.

    With --out, join several archives of one model into one.
    """
    from geobind.archive.archive import Archive
    from geobind.archive.job import finish, parts_folder, read_parts
    from geobind.archive.joining import join_archives

    archive = archives[0]
    if out is not None:
        archive, opened = out, join_archives(archives, out)
    elif len(archives) > 1:
        raise DataError("several archives are joined into another one: name it with --out")
    elif archive.is_file() and not parts_folder(archive).is_dir():
        opened = Archive.open(archive)
        if not as_json:
            click.echo(f"{archive}: is joined already, {len(opened):,} rows")
            return
    else:
        opened = finish(read_parts(archive))
    if as_json:
        print_json(
            {"file": str(archive), "rows": len(opened), "width": opened.width, "dtype": str(opened.dtype)}
        )
        return
    click.echo(f"{archive}: {len(opened):,} x {opened.width} {opened.dtype}, unit length")
