"""geobind import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geobind.cli.listing import list_plugins
from geobind.cli.options import json_option

if TYPE_CHECKING:
    from geobind.importers.contract import Importer
    from geobind.registering import Plugin


@click.command("import")
@click.argument("name", required=False)
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The manifest to write, a .parquet file.")
@click.option(
    "--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the importer; repeatable."
)
@click.option(
    "--missing",
    type=click.Choice(["skip", "keep"]),
    default="skip",
    show_default=True,
    help="Leave out files that are not there, or name them all the same.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder that file names are relative to; by default the manifest's, else the dataset's.",
)
@click.option("--limit", type=click.IntRange(1), help="Write only so many rows.")
@click.option("--list", "listed", is_flag=True, help="List the importers.")
@click.option(
    "--show", "shown", is_flag=True, help="Show the importer NAME: licence, citation, layout, options."
)
@json_option
def command(
    name: str | None,
    sources: tuple[Path, ...],
    out: Path | None,
    options: tuple[str, ...],
    listed: bool,
    shown: bool,
    as_json: bool,
    **given: Any,
) -> None:
    r"""Write a manifest of the dataset NAME, which lies in SOURCES as it is distributed.

    \b
    geobind import --list
    geobind import --show NAME
    geobind import NAME FOLDER --out data.parquet
    """
    if listed:
        return _list(as_json)
    if name is None:
        raise click.UsageError("name a dataset; `geobind import --list` lists those that can be imported")
    if shown:
        return _show(name, as_json)
    if out is None or not sources:
        raise click.UsageError(
            f"say where {name} lies and what to write: geobind import {name} FOLDER --out {name}.parquet"
        )
    _import(name, sources, out, options, as_json, given)


def _import(
    name: str,
    sources: tuple[Path, ...],
    out: Path,
    options: tuple[str, ...],
    as_json: bool,
    given: dict[str, Any],
) -> None:
    from geobind.importers.registry import make, registry
    from geobind.importers.telling import data_block, summary_lines, summary_values
    from geobind.importers.writing import write_manifest
    from geobind.plugins import registry as modalities

    importer = make(registry().get(name), sources, _named(options))
    summary = write_manifest(importer, out, **given)
    installed = modalities().plugins
    if as_json:
        click.echo(json.dumps(summary_values(summary, installed), indent=1))
        return
    for line in summary_lines(summary):
        click.echo(line)
    click.echo(f"  licence: {' '.join(importer.licence.split())}")
    click.echo(f"\n{data_block(summary, installed)}")


def _named(options: tuple[str, ...]) -> dict[str, str]:
    from geobind.errors import DataError

    named: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not key or not equals:
            raise DataError(f"--option {option}: write KEY=VALUE, such as --option split=psm")
        if key in named:
            raise DataError(f"--option {key} is given twice; a list is written as JSON, such as {key}=[1, 2]")
        named[key] = value
    return named


def _list(as_json: bool) -> None:
    from geobind.importers.registry import registry

    list_plugins(registry(), "importers", _row, lambda row: row["title"], as_json)


def _show(name: str, as_json: bool) -> None:
    from geobind.importers.registry import registry
    from geobind.importers.telling import about
    from geobind.recipe.describe import options_of

    cls = registry().get(name)
    found = registry().plugins[name]
    options = [option for option in options_of(cls) if option["path"] != "sources"]
    if as_json:
        columns = {name: column._asdict() for name, column in cls.columns.items()}
        told = {**_row(found), "columns": columns, "layout": cls.layout, "options": options}
        click.echo(json.dumps(told, indent=1))
        return
    for line in about(cls, found.source, options):
        click.echo(line)


def _row(found: Plugin[Importer]) -> dict[str, Any]:
    told = ("name", "title", "home", "licence", "citation")
    row = {word: " ".join(getattr(found.cls, word).split()) for word in told}
    return {**row, "plugin": str(found.source)}
