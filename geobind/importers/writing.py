"""Manifests written from an importer's rows."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from geobind.data.cells import (
    PLACE_COLUMNS,
    CellError,
    degrees_to_arrow,
    is_missing,
    strings_to_arrow,
    times_to_arrow,
)
from geobind.data.columns import SAMPLED_CELLS, looks_like_file_name
from geobind.data.rasters.column import WINDOW, check_window
from geobind.data.readers.files import show_value
from geobind.data.readers.tar import parse_member
from geobind.errors import DataError, PluginError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import list_by_stem, list_names
from geobind.utils.progress import track

Missing = Literal["skip", "keep"]
Convert = Callable[[list[Any]], pa.Array]
FILELESS = "none of its files is there"
_ROWS = 16_384  # rows of a group without bytes
_PACKED_ROWS = 100  # with bytes: what a reader decodes at a time
_PACKED_BYTES = 64_000_000
_NUMBERS = {"lat": pa.float64(), "lon": pa.float64(), "time": pa.timestamp("us", "UTC")}
_PLACE = {name: _NUMBERS.get(name, pa.string()) for name in PLACE_COLUMNS}
_KINDS = {"file": pa.string(), "string": pa.list_(pa.string()), "bytes": pa.binary(), "window": WINDOW}
# Faults of data, not of importers: such a row is left out and counted.
_DOUBTFUL: dict[str, tuple[Convert, str]] = {
    "lat": (lambda values: degrees_to_arrow(values, 90.0), "its latitude is not degrees from -90 to 90"),
    "lon": (lambda values: degrees_to_arrow(values, 180.0), "its longitude is not degrees from -180 to 180"),
    "time": (times_to_arrow, "its time is not ISO 8601"),
}


@dataclass
class ImportCounts:
    """Counters of an import."""

    rows: int = 0
    splits: Counter[str] = field(default_factory=lambda: Counter[str]())  # "" counts rows of no split
    filled: Counter[str] = field(default_factory=lambda: Counter[str]())  # cells by column
    missing: Counter[str] = field(default_factory=lambda: Counter[str]())  # files not there, by column
    absent: str = ""  # one of them
    left_out: Counter[str] = field(default_factory=lambda: Counter[str]())  # by reason
    like_files: Counter[str] = field(default_factory=lambda: Counter[str]())  # of a column's first cells


def build_schema(columns: Mapping[str, Column]) -> pa.Schema:
    """Return the columns of a manifest."""
    kinds = {
        name: pa.list_(pa.string()) if column.several else _KINDS[column.kind]
        for name, column in columns.items()
    }
    return pa.schema([pa.field(name, kind) for name, kind in {**_PLACE, **kinds}.items()])


@dataclass
class ManifestBuilder:
    """Builder of Arrow tables of one schema from rows, which counts what is missing.

    Args:
        name: The importer's, for messages.
        columns: What it fills.
        base: The folder that file names are relative to, absolute.
        missing: Leave cells whose file is not there empty ("skip"), or name it all the same ("keep").
    """

    name: str
    columns: Mapping[str, Column]
    base: Path
    missing: Missing
    tally: ImportCounts = field(default_factory=ImportCounts)

    def tables(self, rows: Iterator[Row | LeftOut], limit: int | None = None) -> Iterator[pa.Table]:
        """Yield tables of the rows, at most `limit` of them.

        Raises:
            DataError: A file lies outside of the base.
            PluginError: A row is not what its columns say.
        """
        schema = build_schema(self.columns)
        most = _PACKED_ROWS if pa.binary() in schema.types else _ROWS
        chunk: list[Row] = []
        size = 0
        for row in rows:
            if isinstance(row, LeftOut):
                self.tally.left_out[row.reason] += 1
                continue
            chunk.append(row)
            size += sum(len(cell) for cell in row.values() if isinstance(cell, bytes))
            room = most if limit is None else min(most, limit - self.tally.rows)
            if len(chunk) >= room or size > _PACKED_BYTES:
                yield self._table(chunk, schema)
                chunk, size = [], 0
                if self.tally.rows == limit:
                    return
        if chunk:
            yield self._table(chunk, schema)

    def _table(self, rows: list[Row], schema: pa.Schema) -> pa.Table:
        strange = next((name for row in rows for name in row if name not in schema.names), None)
        if strange:
            raise PluginError(f"importer '{self.name}' fills '{strange}', which is none of its columns")
        for name in _DOUBTFUL:
            rows = self._without_wrong(name, rows)
        rows = [row for row in map(self._resolved, rows) if row is not None]
        if not rows:
            return schema.empty_table()
        self._count(rows)
        return pa.table([self._array(rows, fld) for fld in schema], schema=schema)

    def _without_wrong(self, name: str, rows: list[Row]) -> list[Row]:
        convert, reason = _DOUBTFUL[name]
        if _can_convert(convert, [row.get(name) for row in rows]):
            return rows
        kept = [row for row in rows if _can_convert(convert, [row.get(name)])]
        self.tally.left_out[reason] += len(rows) - len(kept)
        return kept

    def _resolved(self, row: Row) -> Row | None:
        """Return the row as it is written, or None, counted, if all of its files are missing."""
        absent: list[tuple[str, str]] = []
        cells = {name: self._cell(name, row, absent) for name in self.columns}
        for column, file in absent:
            self.tally.missing[column] += 1
            self.tally.absent = self.tally.absent or file
        if absent and all(
            cell is None or self.columns[name].kind == "string" for name, cell in cells.items()
        ):
            self.tally.left_out[FILELESS] += 1
            return None
        place = {name: row.get(name) for name in _PLACE} | {"split": row.get("split", "train")}
        if is_missing(place["lat"]) or is_missing(place["lon"]):
            place |= {"lat": None, "lon": None}
        return place | cells

    def _cell(self, name: str, row: Row, absent: list[tuple[str, str]]) -> Any:
        cell, column = row.get(name), self.columns[name]
        if cell is None:
            return None
        if column.kind == "file":
            items: list[Any] = cast("list[Any]", cell) if isinstance(cell, list) else [cell]
            if all(isinstance(item, Path) for item in items) and (column.several or len(items) == 1):
                names = [file for item in items if (file := self._named(item, name, absent))]
                return (names if column.several else names[0]) if names else None
        elif column.kind == "string":
            texts: list[Any] = cast("list[Any]", cell) if isinstance(cell, list) else [cell]
            if all(isinstance(text, str) for text in texts):
                return [text.strip() for text in texts if text.strip()] or None
        elif column.kind == "bytes" and isinstance(cell, bytes):
            return cell or None
        elif column.kind == "window" and isinstance(cell, dict) and isinstance(cell.get("raster"), Path):
            raster = self._named(cell["raster"], name, absent)
            return check_window({**cast("Row", cell), "raster": raster}) if raster else None
        raise PluginError(
            f"importer '{self.name}': row {row.get('key')}: {show_value(cell)} in column '{name}', "
            f"which is of kind {column.kind}{' and holds one' if column.kind == 'file' else ''}"
        )

    @cached_property
    def _prefix(self) -> str:
        """The prefix of the dataset's files; their paths are strings here because there are many."""
        return os.path.join(self.base, "")

    def _named(self, path: Path, column: str, absent: list[tuple[str, str]]) -> str | None:
        """Return a file's name relative to the base, or None if it is missing and to be skipped."""
        member = parse_member(str(path))
        absolute = os.path.abspath(member.tar if member else path)
        folder, name = os.path.split(absolute)
        if not absolute.startswith(self._prefix):
            raise DataError(
                f"{path}: lies outside of {self.base}, which file names are relative to; "
                "name a folder above both with --root"
            )
        if name not in list_names(folder):
            absent.append((column, absolute))
            if self.missing == "skip":
                return None
        inside = absolute[len(self._prefix) :].replace(os.sep, "/")
        return f"{inside}::{member.name}" if member else inside

    def _count(self, rows: list[Row]) -> None:
        self.tally.rows += len(rows)
        for row in rows:
            self.tally.splits[str(row["split"] or "").strip()] += 1
            for name, column in self.columns.items():
                cell = row[name]
                if cell is None:
                    continue
                if self.tally.filled[name] < SAMPLED_CELLS and column.kind in ("file", "string"):
                    like = map(looks_like_file_name, [cell] if isinstance(cell, str) else cell)
                    self.tally.like_files[name] += all(like) if column.kind == "file" else any(like)
                self.tally.filled[name] += 1

    def _array(self, rows: list[Row], fld: pa.Field) -> pa.Array:
        values = [row[fld.name] for row in rows]
        if fld.name in _DOUBTFUL:
            return _DOUBTFUL[fld.name][0](values).cast(fld.type)
        if fld.name not in _PLACE:
            return pa.array(values, fld.type)
        try:
            return strings_to_arrow(values)
        except CellError as error:
            raise PluginError(
                f"importer '{self.name}': row {rows[error.index]['key']}: '{fld.name}': {error}"
            ) from error


def _can_convert(convert: Convert, values: list[Any]) -> bool:
    try:
        convert(values)
    except CellError:
        return False
    return True


MADE_BY = b"geobind.importer"  # where a manifest says what it was imported from
_SHOWN = 3  # reasons in the message of an import that left nothing


@dataclass(frozen=True)
class ImportSummary:
    """Result of an import."""

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
) -> ImportSummary:
    """Write a dataset's manifest atomically.

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
    from geobind.utils.files import replace_atomic

    if out.suffix.lower() != ".parquet":
        raise DataError(f"{out}: a manifest is written as Parquet; let its name end in .parquet")
    for cached in (list_names, list_by_stem):
        cached.cache_clear()  # files may have come since
    columns = _columns(importer)
    base, named_root = _choose_base(importer, columns, out, root)
    gatherer = ManifestBuilder(importer.name, columns, base, missing)
    tables = gatherer.tables(_read_rows(importer, show), limit)
    filled = (table for table in tables if table.num_rows)
    first = next(filled, None)
    if first is None:
        raise _explain_empty_import(importer, gatherer.tally)
    schema = build_schema(columns).with_metadata({MADE_BY: json.dumps(_describe_origin(importer)).encode()})
    with (
        replace_atomic(out) as temporary,
        pq.ParquetWriter(temporary, schema, **_choose_compression(schema)) as writer,
    ):
        for table in chain([first], filled):
            writer.write_table(table.replace_schema_metadata(schema.metadata))
    return _summary(out, named_root, columns, gatherer.tally, importer.notes())


def _columns(importer: Importer) -> dict[str, Column]:
    columns = dict(importer.contents())
    taken = sorted(set(columns) & set(PLACE_COLUMNS))
    if taken or not columns:
        what = f"'{taken[0]}', which every manifest has" if taken else "no columns"
        raise PluginError(f"importer '{importer.name}' fills {what}")
    return columns


def _choose_base(
    importer: Importer, columns: dict[str, Column], out: Path, root: Path | None
) -> tuple[Path, Path | None]:
    """Return the folder that file names are relative to, and again if a recipe must name it."""
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


def _read_rows(importer: Importer, show: bool | None) -> Iterator[Row | LeftOut]:
    """Yield the importer's rows with progress; read errors of the system become DataErrors."""
    try:
        yield from track(importer.rows(), f"reading {importer.name}", show=show)
    except OSError as error:
        raise DataError(f"{error.filename or importer.name}: {error.strerror or error}") from error


def _explain_empty_import(importer: Importer, tally: ImportCounts) -> DataError:
    reasons = [f"{count} left out: {reason}" for reason, count in tally.left_out.most_common(_SHOWN)]
    if tally.absent:
        reasons.append(f"{sum(tally.missing.values())} files are not there, such as {tally.absent}")
    return importer.misplaced("not a row could be written: " + ("; ".join(reasons) or "there is none"))


def _describe_origin(importer: Importer) -> dict[str, Any]:
    options = importer.model_dump(mode="json", exclude={"sources"})
    fields = ("name", "title", "home", "licence", "citation")
    return {**{word: getattr(importer, word) for word in fields}, "options": options}


def _choose_compression(schema: pa.Schema) -> dict[str, Any]:
    """Choose the compression of each column: encoded images and sounds would not shrink."""
    packed = {fld.name for fld in schema if fld.type == pa.binary()}
    if not packed:
        return {"compression": "zstd"}
    leaves = {leaf: fld.name not in packed for fld in schema for leaf in _leaves(fld)}
    plain = [leaf for leaf, is_plain in leaves.items() if is_plain]
    compression = {leaf: "zstd" if is_plain else "NONE" for leaf, is_plain in leaves.items()}
    return {"compression": compression, "use_dictionary": plain, "write_statistics": plain}


def _leaves(fld: pa.Field) -> list[str]:
    """Return the names under which Parquet keeps a column's values."""
    if pa.types.is_struct(fld.type):
        inner = [cast(pa.Field, fld.type.field(index)) for index in range(fld.type.num_fields)]
        return [f"{fld.name}.{leaf}" for part in inner for leaf in _leaves(part)]
    return [f"{fld.name}.list.element" if pa.types.is_list(fld.type) else fld.name]


def _summary(
    out: Path, root: Path | None, columns: dict[str, Column], tally: ImportCounts, notes: list[str]
) -> ImportSummary:
    from geobind.data.columns import SAMPLED_CELLS

    def mixed(kind: str, like_files: bool) -> tuple[str, ...]:
        """Return the columns whose strings would be mistaken for the other kind."""
        return tuple(
            name
            for name, column in columns.items()
            if column.kind == kind
            and (0 if like_files else min(tally.filled[name], SAMPLED_CELLS)) != tally.like_files[name]
        )

    return ImportSummary(
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
