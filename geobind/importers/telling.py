"""Say in words what an importer is and what an import made."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from geobind.importers.contract import Importer
from geobind.importers.writing import Summary
from geobind.registering import Source


def summary_lines(summary: Summary) -> Iterator[str]:
    """Yield what an import made, for people."""
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


def summary_values(summary: Summary, modalities: Collection[str]) -> dict[str, Any]:
    """Return what an import made, for programs."""
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


def data_values(summary: Summary, modalities: Collection[str]) -> dict[str, Any]:
    """Return what a recipe in the working folder says under `data` to use the manifest.

    Args:
        summary: The import.
        modalities: The names of those that are installed; a column of another name has to be mapped.
    """
    values: dict[str, Any] = {"manifest": _from_here(summary.manifest)}
    if summary.root:
        values["root"] = _from_here(summary.root)
    strange = {f"MODALITY_{n}": name for n, name in enumerate(_unmapped(summary, modalities), start=1)}
    optional = {"columns": strange, "files": list(summary.files), "inline": list(summary.inline)}
    return values | {word: value for word, value in optional.items() if value}


def data_block(summary: Summary, modalities: Collection[str]) -> str:
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


def _unmapped(summary: Summary, modalities: Collection[str]) -> list[str]:
    return [name for name in summary.columns if name not in modalities]


def about(importer: type[Importer], source: Source, options: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what an importer is, for people."""
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
