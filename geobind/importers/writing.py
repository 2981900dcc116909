"""Write what an importer reads as a Parquet manifest, row by row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from geobind.errors import DataError, PluginError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.gathering import Gatherer, Missing, Tally, schema_of
from geobind.importers.reading import by_stem, names_in
from geobind.utils.progress import track

MADE_BY = b"geobind.importer"  # where a manifest says what it was imported from
_SHOWN = 3  # reasons in the message of an import that left nothing


@dataclass(frozen=True)
class Summary:
    """What an import made."""

    manifest: Path
    root: Path | None  # the folder that file names are relative to, if not the manifest's
    columns: dict[str, Column]
    rows: int
    splits: dict[str, int]  # rows by split; those of none under ""
    filled: dict[str, int]  # cells by column
    missing: dict[str, int]  # files that are not there, by column
    absent: str  # one of them
    left_out: dict[str, int]  # rows by reason
    files: tuple[str, ...]  # columns of files that do not look like it
    inline: tuple[str, ...]  # columns of text that look like files
    notes: tuple[str, ...]


def write_manifest(
    importer: Importer,
    out: Path,
    *,
    missing: Missing = "skip",
    root: Path | None = None,
    limit: int | None = None,
    show: bool | None = None,
) -> Summary:
    """Write a dataset's manifest; it is there whole or not at all.

    Args:
        importer: The dataset and its options.
        out: The manifest, a `.parquet` file.
        missing: What becomes of a file that is not there: "skip" leaves its cell empty, and a row out of
            which nothing but text is left; "keep" names it all the same. Both are counted.
        root: The folder that file names are relative to. By default the manifest's own, if the dataset lies
            in it, else the lowest folder that holds the dataset.
        limit: Write only so many rows.
        show: Show progress; by default if a person is watching.

    Returns:
        What was written, and what was not.

    Raises:
        DataError: The sources are not laid out as the dataset is, or not a row could be written.
        PluginError: The importer yields something else than it declares.
        StorageError: The manifest cannot be written.
    """
    from geobind.utils.files import replacing

    if out.suffix.lower() != ".parquet":
        raise DataError(f"{out}: a manifest is written as Parquet; let its name end in .parquet")
    for cached in (names_in, by_stem):
        cached.cache_clear()  # files may have come since
    columns = _columns(importer)
    base, named_root = _base(importer, columns, out, root)
    gatherer = Gatherer(importer.name, columns, base, missing)
    tables = gatherer.tables(_reading(importer, show), limit)
    filled = (table for table in tables if table.num_rows)
    first = next(filled, None)
    if first is None:
        raise _nothing(importer, gatherer.tally)
    schema = schema_of(columns).with_metadata({MADE_BY: json.dumps(_origin(importer)).encode()})
    with replacing(out) as temporary, pq.ParquetWriter(temporary, schema, **_format(schema)) as writer:
        for table in chain([first], filled):
            writer.write_table(table.replace_schema_metadata(schema.metadata))
    return _summary(out, named_root, columns, gatherer.tally, importer.notes())


def _columns(importer: Importer) -> dict[str, Column]:
    from geobind.data.delimited import PLACE_COLUMNS

    columns = dict(importer.contents())
    taken = sorted(set(columns) & set(PLACE_COLUMNS))
    if taken or not columns:
        what = f"'{taken[0]}', which every manifest has" if taken else "no columns"
        raise PluginError(f"importer '{importer.name}' fills {what}")
    return columns


def _base(
    importer: Importer, columns: dict[str, Column], out: Path, root: Path | None
) -> tuple[Path, Path | None]:
    """The folder that names are relative to, and what a recipe has to say of it."""
    here = Path(os.path.abspath(out.parent))
    if root is not None:
        chosen = Path(os.path.abspath(root))
        return chosen, None if chosen == here else chosen
    if all(column.kind in ("string", "bytes") for column in columns.values()):
        return here, None
    folders = [Path(os.path.abspath(folder)) for folder in importer.folders()]
    if all(folder.is_relative_to(here) for folder in folders):
        return here, None
    common = Path(os.path.commonpath(folders))
    if common == Path(common.anchor):
        raise DataError(
            f"{', '.join(map(str, folders))}: have no folder in common that file names could be relative to; "
            "move or link them into one, or name one with --root"
        )
    return common, common


def _reading(importer: Importer, show: bool | None) -> Iterator[Row | LeftOut]:
    """The importer's rows, with progress; what the system cannot read is the dataset's fault."""
    try:
        yield from track(importer.rows(), f"reading {importer.name}", show=show)
    except OSError as error:
        raise DataError(f"{error.filename or importer.name}: {error.strerror or error}") from error


def _nothing(importer: Importer, tally: Tally) -> DataError:
    reasons = [f"{count} left out: {reason}" for reason, count in tally.left_out.most_common(_SHOWN)]
    if tally.absent:
        reasons.append(f"{sum(tally.missing.values())} files are not there, such as {tally.absent}")
    return importer.misplaced("not a row could be written: " + ("; ".join(reasons) or "there is none"))


def _origin(importer: Importer) -> dict[str, Any]:
    options = importer.model_dump(mode="json", exclude={"sources"})
    told = ("name", "title", "home", "licence", "citation")
    return {**{word: getattr(importer, word) for word in told}, "options": options}


def _format(schema: pa.Schema) -> dict[str, Any]:
    """How columns are compressed: encoded images and sounds would not shrink."""
    packed = {fld.name for fld in schema if fld.type == pa.binary()}
    if not packed:
        return {"compression": "zstd"}
    leaves = {leaf: fld.name not in packed for fld in schema for leaf in _leaves(fld)}
    plain = [leaf for leaf, is_plain in leaves.items() if is_plain]
    compression = {leaf: "zstd" if is_plain else "NONE" for leaf, is_plain in leaves.items()}
    return {"compression": compression, "use_dictionary": plain, "write_statistics": plain}


def _leaves(fld: pa.Field) -> list[str]:
    """The names under which Parquet keeps a column's values."""
    if pa.types.is_struct(fld.type):
        inner = [cast(pa.Field, fld.type.field(index)) for index in range(fld.type.num_fields)]
        return [f"{fld.name}.{leaf}" for part in inner for leaf in _leaves(part)]
    return [f"{fld.name}.list.element" if pa.types.is_list(fld.type) else fld.name]


def _summary(
    out: Path, root: Path | None, columns: dict[str, Column], tally: Tally, notes: list[str]
) -> Summary:
    from geobind.data.columns import LOOK_AT

    def mixed(kind: str, like_files: bool) -> tuple[str, ...]:
        """Columns whose strings would be taken for the other, or for both."""
        return tuple(
            name
            for name, column in columns.items()
            if column.kind == kind
            and (0 if like_files else min(tally.filled[name], LOOK_AT)) != tally.like_files[name]
        )

    return Summary(
        manifest=out,
        root=root,
        columns=columns,
        rows=tally.rows,
        splits=dict(sorted(tally.splits.items())),
        filled={name: tally.filled[name] for name in columns},
        missing=dict(sorted(tally.missing.items())),
        absent=tally.absent,
        left_out=dict(tally.left_out.most_common()),
        files=mixed("file", like_files=False),
        inline=mixed("string", like_files=True),
        notes=tuple(notes),
    )
