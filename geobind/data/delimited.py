"""Rows of CSV, TSV, JSONL and JSON files."""

from __future__ import annotations

import codecs
import csv
import json
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from geobind.data.cells import CellError, convert_column
from geobind.data.readers.files import join_names, show_value
from geobind.errors import DataError

ROWS_PER_CHUNK = 2048  # more take longer: Python's garbage collector goes through them again and again
CHUNK_BYTES = 64_000_000  # of text; a chunk ends with the row that reaches it
MAX_LINE = 10_000_000  # bytes of a line, and letters of a cell, which may have several lines
MAX_COLUMNS = 10_000
_STEP = 16  # records read before the size of a chunk is looked at
MAX_JSON = 64_000_000  # bytes of a JSON array, which is read at once
Chunk = tuple[list[int], Mapping[str, list[Any]]]  # lines, and the values of each column

_SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}
# What other files begin with.
_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_OTHER = {
    b"PK\3\4": "is a zip archive, perhaps an Excel workbook; save the table as CSV with UTF-8 encoding",
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook; save the table as CSV with UTF-8 encoding",
    b"\x1f\x8b": "is compressed with gzip; decompress it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; decompress it",
    b"PAR1": "is a Parquet file; let its name end in .parquet",
    b"ARROW1": "is an Arrow file; write it as Parquet",
    b"SQLite format": "is an SQLite database; write the table as CSV or Parquet",
}
_CR = "lines end in CR alone (old Mac line ends); save the file with LF or CRLF"


class DelimitedFile:
    """The rows of a CSV, TSV, JSONL or JSON file in chunks; going through them fills `columns`.

    Raises (on the way):
        DataError: The file is not UTF-8, not well-formed, has a column twice, or a row of another length.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: dict[str, None] = {}

    def __iter__(self) -> Iterator[Chunk]:
        suffix = self.path.suffix.lower()
        if suffix in (".csv", ".tsv"):
            return self._csv("\t" if suffix == ".tsv" else ",")
        return self._objects(_read_array(self.path) if is_json_array(self.path) else _read_objects(self.path))

    def _csv(self, delimiter: str) -> Iterator[Chunk]:
        chunks = read_records(self.path, delimiter)
        first_lines, first_rows = next(chunks, ([1], [list[str]()]))
        header = _check_header(first_rows[0], delimiter, f"{self.path}:{first_lines[0]}")
        self.columns |= dict.fromkeys(header)
        for lines, rows in chain([(first_lines[1:], first_rows[1:])], chunks):
            if rows:
                self._check_lengths(lines, rows, header, delimiter)
                yield lines, dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))

    def _check_lengths(
        self, lines: list[int], rows: list[list[str]], header: list[str], delimiter: str
    ) -> None:
        count = len(header)
        wrong = next((number for number, cells in enumerate(rows) if len(cells) != count), None)
        if wrong is None:
            return
        cells = rows[wrong]
        fix = f"quote texts that hold {_SEPARATORS[delimiter]}"
        if cells[0].lstrip().startswith("#"):
            fix = "is it a comment? Remove it"
        elif len(cells) == count + 1 and lines[wrong] == 2:
            fix += ", and name every column (R writes row names without one: row.names=FALSE)"
        raise DataError(
            f"{self.path}:{lines[wrong]}: {len(cells)} cells, but the header has {count} columns "
            f"({join_names(header)}); {fix}"
        )

    def _objects(self, objects: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[Chunk]:
        for numbered in _split_into_chunks(objects):
            rows = [row for _, row in numbered]
            if not self.columns:
                _check_layout(rows[0], self.path)
            self.columns |= dict.fromkeys(column for row in rows for column in row)
            if len(self.columns) > MAX_COLUMNS:
                raise DataError(f"{self.path}: over {MAX_COLUMNS} columns; is this a manifest?")
            yield [line for line, _ in numbered], _Fields(rows, self.columns)


class _Fields(Mapping[str, list[Any]]):
    """The values of objects by name, gathered when asked for: each of many objects may have other names."""

    def __init__(self, rows: Sequence[dict[str, Any]], names: dict[str, None]) -> None:
        self._rows, self._names = rows, names

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._names:
            raise KeyError(name)
        return [row.get(name) for row in self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def rows_to_arrow(rows: DelimitedFile, fields: Mapping[str, str], limit: int | None) -> Iterator[pa.Table]:
    """Check rows and gather them into Arrow tables of `line` and those of the given fields that are there.

    Args:
        rows: The file's rows.
        fields: Column of the file by field wanted: place columns, those that begin with `NUMBER`, or cells.
        limit: Stop after so many rows.
    """
    count = 0
    for lines, columns in rows:
        lines = lines[: None if limit is None else limit - count]
        arrays: dict[str, pa.Array] = {"line": pa.array(lines, pa.int64())}
        for field, column in fields.items():
            values = columns.get(column, [])[: len(lines)]
            if not values:
                continue
            try:
                arrays[field] = convert_column(field, values)
            except CellError as error:
                raise DataError(f"{rows.path}:{lines[error.index]}: column '{column}': {error}") from error
            except ValueError as error:
                raise DataError(f"{rows.path}:{lines[0]}-{lines[-1]}: column '{column}': {error}") from error
        yield pa.table(arrays)
        count += len(lines)
        if count == limit:
            break


def read_records(
    path: Path, delimiter: str, *, strict: bool = True
) -> Iterator[tuple[list[int], list[list[str]]]]:
    """Yield chunks of the records of a CSV file, with the lines that they end on; blank ones are left out.

    Args:
        path: The file, UTF-8.
        delimiter: What stands between cells.
        strict: Refuse quotes that are not where they belong.

    Raises:
        DataError: It cannot be read, is not UTF-8, or not well-formed.
    """
    lines = _Lines(path, has_records=True)
    reader = csv.reader(lines, delimiter=delimiter, strict=strict)
    more = True
    while more:
        before, rows, lines.size = reader.line_num, list[list[str]](), 0
        with _long_cells():
            try:
                while more and len(rows) < ROWS_PER_CHUNK and lines.size < CHUNK_BYTES:
                    count = len(rows)
                    rows += islice(reader, _STEP)
                    more = len(rows) - count == _STEP
            except csv.Error as error:
                raise DataError(f"{path}:{reader.line_num}: {_explain(error, delimiter)}") from error
        numbers = _number_lines(rows, before, reader.line_num)
        if not all(rows):  # a blank line has no cells
            numbers = [number for number, row in zip(numbers, rows, strict=True) if row]
            rows = [row for row in rows if row]
        if rows:
            yield numbers, rows


_CELL_LIMIT = threading.Lock()


@contextmanager
def _long_cells() -> Generator[None]:
    """Raise the limit of Python's csv to cells of `MAX_LINE` letters; it holds for the whole process."""
    with _CELL_LIMIT:
        before = csv.field_size_limit(MAX_LINE)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _explain(error: csv.Error, delimiter: str) -> str:
    """Explain what is wrong with a CSV file."""
    text = str(error)
    if "field larger" in text:
        return f"a cell of over {MAX_LINE // 1_000_000} million letters; is a quote not closed above?"
    if "unexpected end" in text:
        return "not well-formed CSV: a quoted cell is not closed before the end of the file"
    if "expected after" in text:
        return (
            'not well-formed CSV: a quote stands inside of a quoted cell; double it (""), and put no spaces '
            f"between quotes and {_SEPARATORS.get(delimiter, 'separators')}"
        )
    return _CR if "new-line" in text else f"not well-formed CSV: {text}"


class _Lines:
    """The lines of a file, with their line ends; `size` counts their bytes.

    Raises (on the way):
        DataError: The file cannot be read, is not UTF-8, or has a line that is too long.
    """

    def __init__(self, path: Path, has_records: bool = False) -> None:
        self.path, self.has_records, self.size = path, has_records, 0

    def __iter__(self) -> Iterator[str]:
        line = 0
        try:
            file = open(self.path, "rb")
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from error
        with file:
            while raw := file.readline(MAX_LINE + 1):
                line += 1
                self.size += len(raw)
                if line == 1:
                    _check_beginning(raw, self.path, self.has_records)
                if len(raw) > MAX_LINE:
                    raise DataError(
                        f"{self.path}:{line}: line of over {MAX_LINE // 1_000_000} MB; is this a manifest?"
                    )
                try:
                    yield raw.decode("utf-8-sig" if line == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{self.path}:{line}: byte {error.start + 1} is not UTF-8; save the file with UTF-8 "
                        "encoding"
                    ) from error


def _check_beginning(raw: bytes, path: Path, has_records: bool) -> None:
    """Check by its first line that a file is text in UTF-8, with line ends that are read.

    Raises:
        DataError: It is not; the message names what it is.
    """
    wide = next((name for mark, name in _WIDE.items() if raw.startswith(mark)), None)
    if wide or b"\0" in raw[:1000]:
        raise DataError(f"{path}: is {wide or 'UTF-16, or no text'}; save the file with UTF-8 encoding")
    other = next((reason for magic, reason in _OTHER.items() if raw.startswith(magic)), None)
    if other:
        raise DataError(f"{path}: {other}")
    body = raw.removesuffix(b"\n").removesuffix(b"\r") if raw.endswith(b"\n") else raw
    if has_records and b"\r" in body and body[: body.index(b"\r")].count(b'"') % 2 == 0:
        raise DataError(f"{path}: {_CR}")


def _number_lines(rows: Sequence[list[str]], before: int, after: int) -> list[int]:
    """Return the line on which each row ends, given the lines read before and after them."""
    if after - before == len(rows):
        return list(range(before + 1, after + 1))
    return list(accumulate((1 + sum(cell.count("\n") for cell in row) for row in rows), initial=before))[1:]


def _check_header(cells: list[str], delimiter: str, where: str) -> list[str]:
    """Check the first line of a CSV file, and return the names of its columns.

    Raises:
        DataError: It names no columns, has other separators, or a name is missing or there twice.
    """
    header = [cell.strip() for cell in cells]
    if len(header) > MAX_COLUMNS:
        raise DataError(f"{where}: {len(header)} columns; is this a manifest?")
    if header and header[0].lower().startswith("sep="):
        raise DataError(f"{where}: {show_value(header[0])} is no header; remove the line")
    if header and header[0].startswith("#") and (len(header) == 1 or header[0].startswith("# ")):
        raise DataError(f"{where}: {show_value(header[0])} is a comment, not a header; remove the line")
    other = [sign for sign in _SEPARATORS if len(header) == 1 and sign != delimiter and sign in header[0]]
    if other:
        named = " (or let its name end in .tsv)" if other[0] == "\t" else ""
        raise DataError(
            f"{where}: its separators are {_SEPARATORS[other[0]]}, but such a file is read with "
            f"{_SEPARATORS[delimiter]} as separators; save it so{named}"
        )
    for position, column in enumerate(header, start=1):
        if not column:
            index = " (pandas and R write their row index so; write with index=False or row.names=FALSE)"
            last = f" (does every line end in one of the {_SEPARATORS[delimiter]}?)"
            why = index if position == 1 else last if position == len(header) else ""
            raise DataError(f"{where}: column {position} of the header has no name{why}")
    ((column, count),) = Counter(header).most_common(1) or [("", 0)]
    if count > 1:
        raise DataError(f"{where}: column '{column}' is there twice; rename one")
    return header


def is_json_array(path: Path) -> bool:
    """Return whether a file's name ends in .json and its content begins as an array does."""
    if path.suffix.lower() != ".json":
        return False
    try:
        with path.open("rb") as file:
            return file.read(1000).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def _read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file that has one on each line."""
    for line, text in enumerate(_Lines(path), start=1):
        if text.strip():
            yield line, _parse_json_object(text, f"{path}:{line}")


def _read_array(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON array, numbered from 1."""
    if path.stat().st_size > MAX_JSON:
        raise DataError(
            f"{path}: a JSON array of over {MAX_JSON // 1_000_000} MB; write one object per line, as .jsonl"
        )
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_unique_object)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    for number, row in enumerate(cast("list[Any]", rows), start=1):
        yield number, _check_object(row, f"{path}:{number}")


def _parse_json_object(text: str, where: str) -> dict[str, Any]:
    """Parse a line of JSONL.

    Raises:
        DataError: It is no JSON object, or has a name twice; `where` names the line.
    """
    try:
        row = json.loads(text, object_pairs_hook=_unique_object)
    except (ValueError, RecursionError) as error:
        hint = "; an object has a line of its own" if text.strip() in ("[", "{") else ""
        raise DataError(f"{where}: not JSON: {error}{hint}") from error
    return _check_object(row, where)


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{show_value(twice)} is there twice; rename one")
    return found


def _check_layout(row: dict[str, Any], path: Path) -> None:
    """Check by its first object that a JSON file has one for each row.

    Raises:
        DataError: It has one for all rows, in a layout that other programs write.
    """
    if row.get("type") == "FeatureCollection":
        raise DataError(f"{path}: is GeoJSON; write GeoParquet, for example gdf.to_parquet(...)")
    by_column = all(isinstance(cell, dict) and "0" in cell for cell in row.values())
    if row and (by_column or row.keys() >= {"columns", "data"}):
        raise DataError(
            f"{path}: is a table by columns, as pandas' to_json writes it; write one object per row, with "
            "df.to_json(..., orient='records', lines=True)"
        )


def _check_object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f'{where}: each line must be an object such as {{"tile": "a.png"}}')
    return cast("dict[str, Any]", row)


def _split_into_chunks(objects: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[list[tuple[int, Any]]]:
    chunk: list[tuple[int, Any]] = []
    size = 0
    for numbered in objects:
        chunk.append(numbered)
        size += sum(len(cell) for cell in numbered[1].values() if isinstance(cell, str | list))
        if len(chunk) >= ROWS_PER_CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
