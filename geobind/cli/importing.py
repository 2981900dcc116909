"""`geobind import` and its summary."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geobind.cli.options import json_option, list_plugins, parse_assignments, print_json
from geobind.importers.contract import Importer
from geobind.importers.writing import ImportSummary
from geobind.plugins import Source

if TYPE_CHECKING:
    from geobind.plugins import Plugin


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
    help="Leave out missing files, or list them anyway.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder that file names are relative to; by default the manifest's, else the dataset's.",
)
@click.option("--limit", type=click.IntRange(1), help="Write only the first N rows.")
@click.option("--list", "listed", is_flag=True, help="List the importers.")
@click.option(
    "--show", "shown", is_flag=True, help="Show the importer NAME: licence, citation, layout, options."
)
@json_option
def import_command(
    name: str | None,
    sources: tuple[Path, ...],
    out: Path | None,
    options: tuple[str, ...],
    listed: bool,
    shown: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Write a manifest of the dataset NAME, which lies in SOURCES as it is distributed.

    \b
    geobind import --list
    geobind import --show NAME
    geobind import NAME FOLDER --out data.parquet
    """  # noqa: D301 (click reads the escape)
    if listed:
        return _list(as_json)
    if name is None:
        raise click.UsageError("name a dataset; `geobind import --list` lists those that can be imported")
    if shown:
        return _show(name, as_json)
    if out is None or not sources:
        from geobind.importers.registry import registry

        registry().get(name)  # a name that no importer has is what is wrong first
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
    from geobind.importers.registry import build_importer, registry
    from geobind.importers.writing import write_manifest
    from geobind.plugins import registry as modalities

    values = parse_assignments(
        "--option",
        options,
        "KEY=VALUE",
        "split=psm",
        empty=True,
        repeat="a list is written as JSON, such as KEY=[1, 2]",
    )
    importer = build_importer(registry().get(name), sources, values)
    summary = write_manifest(importer, out, **given)
    installed = modalities().plugins
    if as_json:
        print_json(summary_values(summary, installed))
        return
    for line in summary_lines(summary):
        click.echo(line)
    click.echo(f"  licence: {' '.join(importer.licence.split())}")
    click.echo(f"\n{data_block(summary, installed)}")


def _list(as_json: bool) -> None:
    from geobind.importers.registry import registry

    list_plugins(registry(), "importers", _row, lambda row: row["title"], as_json)


def _show(name: str, as_json: bool) -> None:
    from geobind.importers.registry import registry
    from geobind.recipe.describe import list_options

    cls = registry().get(name)
    found = registry().plugins[name]
    options = [option for option in list_options(cls) if option["path"] != "sources"]
    if as_json:
        columns = {name: column._asdict() for name, column in cls.columns.items()}
        told = {**_row(found), "columns": columns, "layout": cls.layout, "options": options}
        print_json(told)
        return
    for line in describe_importer(cls, found.source, options):
        click.echo(line)


def _row(found: Plugin[Importer]) -> dict[str, Any]:
    told = ("name", "title", "home", "licence", "citation")
    row = {word: " ".join(getattr(found.cls, word).split()) for word in told}
    return {**row, "plugin": str(found.source)}


def summary_lines(summary: ImportSummary) -> Iterator[str]:
    """Yield the result of an import, for people."""
    told = ", ".join(f"{split or 'in no split'} {count}" for split, count in summary.splits.items())
    yield f"{summary.manifest}: {summary.rows} rows ({told})"
    yield "  " + ", ".join(f"{name} {count}" for name, count in summary.filled.items())
    for reason, count in summary.left_out.items():
        yield f"  left out {count}: {reason}"
    if summary.missing:
        counted = ", ".join(f"{count} of {name}" for name, count in summary.missing.items())
        yield f"  files that are not there: {counted}; such as {summary.absent}"
    for note in summary.notes:
        yield f"  note: {note}"


def summary_values(summary: ImportSummary, modalities: Collection[str]) -> dict[str, Any]:
    """Return the result of an import, for programs."""
    return {
        "manifest": str(summary.manifest),
        "rows": summary.rows,
        "splits": summary.splits,
        "columns": {
            name: {"kind": column.kind, "filled": summary.filled[name], "note": column.note}
            for name, column in summary.columns.items()
        },
        "missing": summary.missing,
        "left_out": summary.left_out,
        "notes": list(summary.notes),
        "data": data_values(summary, modalities),
    }


def data_values(summary: ImportSummary, modalities: Collection[str]) -> dict[str, Any]:
    """Return the `data` block with which a recipe in the working folder uses the manifest.

    Args:
        summary: The import.
        modalities: The installed modalities; a column of any other name has to be mapped.
    """
    values: dict[str, Any] = {"manifest": _from_here(summary.manifest)}
    if summary.root:
        values["root"] = _from_here(summary.root)
    strange = {f"MODALITY_{n}": name for n, name in enumerate(_unmapped(summary, modalities), start=1)}
    optional = {"columns": strange, "files": list(summary.files), "inline": list(summary.inline)}
    return values | {word: value for word, value in optional.items() if value}


def data_block(summary: ImportSummary, modalities: Collection[str]) -> str:
    """Return the lines of a recipe that use the manifest, as YAML."""
    import yaml

    values = data_values(summary, modalities)
    lines = ["data:"]
    for word, value in values.items():
        shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
        remark = _REMARKS.get(word, "")
        lines.append(f"  {word}: {shown.removesuffix('...' + chr(10)).strip()}{remark}")
    return "\n".join(lines)


_REMARKS = {
    "manifest": "  # relative to the recipe; written for one in this folder",
    "columns": "  # write the modality that reads each column",
}


def _from_here(path: Path) -> str:
    return min(os.path.relpath(path), os.path.abspath(path), key=len)


def _unmapped(summary: ImportSummary, modalities: Collection[str]) -> list[str]:
    return [name for name in summary.columns if name not in modalities]


def describe_importer(
    importer: type[Importer], source: Source, options: list[dict[str, Any]]
) -> Iterator[str]:
    """Yield the description of an importer, for people."""
    yield f"{importer.name}: {importer.title}"
    for word in ("home", "licence", "citation"):
        yield from _wrapped(word, getattr(importer, word))
    yield from _wrapped("plugin", str(source))
    yield "  columns, beside key, split, lat, lon, time, label and licence as far as known"
    for name, column in importer.columns.items():
        yield f"    {name}: {column.kind}{', ' + column.note if column.note else ''}"
    yield "  options"
    for option in options:
        default = "must be given" if option["required"] else f"default {option['default']!r}"
        yield f"    {option['path']}: {option['type']}, {default}"
        if option["help"]:
            yield from textwrap.wrap(option["help"], 96, initial_indent=" " * 8, subsequent_indent=" " * 8)
    if not options:
        yield "    none"
    yield "  expected files"
    yield textwrap.indent(textwrap.dedent(importer.layout).strip("\n").rstrip(), "    ")


def _wrapped(word: str, text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        100,
        initial_indent=f"  {word:9}",
        subsequent_indent=" " * 11,
        break_long_words=False,
        break_on_hyphens=False,
    )
