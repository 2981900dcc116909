"""Rows of CSV, TSV and JSONL files, and the conversion of their cells."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa

from geobind.data.rasters.column import WINDOW, check_window
from geobind.data.readers.files import join_names, shorten
from geobind.errors import DataError
from geobind.utils.arrow import pc, wrap_in_lists

_JSON_LIST = re.compile(r'\s*\[\s*(["\]]|\{\s*")')  # not "[sic] a text"
_WINDOW = re.compile(r'\s*\{.*"raster"\s*:', re.DOTALL)  # a JSON object that is a window of a raster


class CellError(ValueError):
    """A value that cannot be used; `index` is its place in the column."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def strings_to_arrow(values: list[Any]) -> pa.Array:
    """Convert strings or numbers to strings; blank ones become null.

    Raises:
        CellError: One is neither.
    """
    plain = _trim_strings(values)
    if plain is not None:
        return plain
    for index, value in enumerate(values):
        if not isinstance(value, str | int | float | None):
            raise CellError(index, f"{shorten(value)} is not a string")
    return pa.array([None if value is None else str(value).strip() or None for value in values], pa.string())


def degrees_to_arrow(values: list[Any], limit: float) -> pa.Array:
    """Convert degrees within a limit; blank ones become null.

    Raises:
        CellError: One is no number, or out of range.
    """
    quick = _parse_numbers(values)
    if quick is not None and pc.all(pc.less_equal(pc.abs(quick), limit)).as_py() is not False:
        return quick
    is_filled = [value is not None and not (isinstance(value, str) and not value.strip()) for value in values]
    try:
        degrees_N = np.array(
            [float(value) if filled else 0.0 for value, filled in zip(values, is_filled, strict=True)]
        )
    except (TypeError, ValueError, OverflowError):
        index = next(i for i, value in enumerate(values) if is_filled[i] and not _is_number(value))
        raise CellError(index, f"{shorten(values[index])} is not a number of degrees") from None
    wrong_N = ~(np.abs(degrees_N) <= limit)  # NaN is wrong too
    if wrong_N.any():
        index = int(np.argmax(wrong_N))
        raise CellError(
            index, f"{shorten(values[index])} is not degrees between -{limit:.0f} and {limit:.0f}"
        )
    return pa.array(degrees_N, mask=~np.array(is_filled))


def times_to_arrow(values: list[Any]) -> pa.Array:
    """Convert ISO 8601 times to UTC; times without a zone are UTC, blank ones become null.

    Raises:
        CellError: One is no such time.
    """
    times: list[datetime | None] = []
    for index, value in enumerate(values):
        if value is None or value == "":
            times.append(None)
            continue
        try:
            time = datetime.fromisoformat(str(value).strip())
            times.append(time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time)
        except (ValueError, OverflowError):
            raise CellError(index, f"{shorten(value)} is not a time such as 2024-06-01T14:30:00Z") from None
    return pa.array(times, pa.timestamp("us"))


def cells_to_arrow(values: list[Any]) -> pa.Array:
    """Convert a modality's cells to lists of strings, numbers or raster windows; blank ones become null.

    A string is a list of one, and so is a window.

    Raises:
        CellError: One is neither a string, nor a list of strings or of numbers, nor JSON of such a list, nor
            a window or a list of them; or some are windows and others not.
    """
    plain = _trim_strings(values)
    if (
        plain is not None and not pc.any(pc.match_substring_regex(plain, r"[\[{]")).as_py()
    ):  # nearly all columns
        return wrap_in_lists(plain)
    items = [_parse_items(value, index) for index, value in enumerate(values)]
    windows = [cell is not None and isinstance(cell[0], dict) for cell in items]
    if not any(windows):
        return pa.array(items)
    for index, cell in enumerate(items):
        if cell is not None and not windows[index]:
            raise CellError(
                index, f"{shorten(values[index])} is no window of a raster, but others in this column are"
            )
    return pa.array(items, pa.list_(WINDOW))


def _trim_strings(values: list[Any]) -> pa.Array | None:
    """Return stripped strings, blank ones null; None if a value is not a string."""
    try:
        strings = pc.utf8_trim_whitespace(pa.array(values, pa.string()))
    except (pa.ArrowException, TypeError, ValueError):  # ValueError: half a surrogate pair
        return None
    return pc.if_else(pc.equal(pc.binary_length(strings), 0), pa.scalar(None, pa.string()), strings)


def _parse_numbers(values: list[Any]) -> pa.Array | None:
    """Parse numbers in strings, blank ones null; None if Arrow cannot read one of them."""
    strings = _trim_strings(values)
    if strings is None:
        return None
    try:
        numbers = pc.cast(strings, pa.float64())
    except pa.ArrowException:
        return None
    return None if pc.any(pc.is_nan(numbers)).as_py() else numbers


def _parse_items(value: Any, index: int) -> list[str] | list[float] | list[dict[str, Any]] | None:
    if isinstance(value, str) and (_JSON_LIST.match(value) or _WINDOW.match(value)):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            kind = "list" if value.lstrip().startswith("[") else "object"
            raise CellError(
                index, f"{shorten(value)} begins like a JSON {kind} but is not one: {error}"
            ) from error
    if value is None:
        return None
    items: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    if all(isinstance(item, str) for item in items):
        return [item.strip() for item in items if item.strip()] or None
    if items and all(isinstance(item, dict) and "raster" in item for item in items):
        try:
            return [check_window(item) for item in items]
        except ValueError as error:
            raise CellError(index, str(error)) from error
    if all(isinstance(item, int | float) and not isinstance(item, bool) for item in items):
        try:
            return [float(item) for item in items]
        except OverflowError as error:
            raise CellError(index, f"{shorten(cast(Any, value))} holds a number that is too large") from error
    raise CellError(
        index,
        f"{shorten(cast(Any, value))} must be a string, strings, numbers, or a window such as "
        '{"raster": "scene.tif", "size_m": 480}',
    )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


ROWS_PER_CHUNK = 2048  # more take longer: Python's garbage collector goes through them again and again
MAX_LINE = 10_000_000  # bytes
T = TypeVar("T")
_CONVERTERS: dict[str, Callable[[list[Any]], pa.Array]] = {
    "key": strings_to_arrow,
    "split": strings_to_arrow,
    "label": strings_to_arrow,
    "group": strings_to_arrow,
    "licence": strings_to_arrow,
    "lat": lambda values: degrees_to_arrow(values, 90.0),
    "lon": lambda values: degrees_to_arrow(values, 180.0),
    "time": times_to_arrow,
}
PLACE_COLUMNS = tuple(_CONVERTERS)
Chunk = tuple[list[int], dict[str, list[Any]]]  # lines, and the values of each column


class DelimitedFile:
    """The rows of a CSV or JSONL file in chunks; going through them fills `columns`, the columns there are.

    Raises (on the way):
        DataError: The file is not UTF-8, not well-formed, has a column twice, or a row of another length.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: dict[str, None] = {}

    def __iter__(self) -> Iterator[Chunk]:
        suffix = self.path.suffix.lower()
        return self._jsonl() if suffix == ".jsonl" else self._csv("\t" if suffix == ".tsv" else ",")

    def _csv(self, delimiter: str) -> Iterator[Chunk]:
        reader = csv.reader(_read_lines(self.path), delimiter=delimiter, strict=True)
        try:
            header = _check_header(next(reader, []), self.path)
            self.columns |= dict.fromkeys(header)
            before = reader.line_num
            while cells := list(islice(reader, ROWS_PER_CHUNK)):
                lines = _number_lines(cells, before, reader.line_num)
                before = reader.line_num
                if not all(cells):  # a blank line has none
                    lines, cells = _drop_blank_rows(lines, cells)
                if cells:
                    self._check_lengths(lines, cells, header)
                    yield lines, dict(zip(header, map(list, zip(*cells, strict=True)), strict=True))
        except csv.Error as error:
            raise DataError(f"{self.path}:{reader.line_num}: not well-formed CSV: {error}") from error

    def _check_lengths(self, lines: list[int], rows: list[list[str]], header: list[str]) -> None:
        count = len(header)
        wrong = next((number for number, cells in enumerate(rows) if len(cells) != count), None)
        if wrong is not None:
            raise DataError(
                f"{self.path}:{lines[wrong]}: {len(rows[wrong])} cells, but the header has {count} columns "
                f"({join_names(header)}); quote texts that hold commas"
            )

    def _jsonl(self) -> Iterator[Chunk]:
        texts = ((line, text) for line, text in enumerate(_read_lines(self.path), start=1) if text.strip())
        for numbered in _split_into_chunks(texts):
            rows = [_parse_json_object(text, f"{self.path}:{line}") for line, text in numbered]
            self.columns |= dict.fromkeys(column for row in rows for column in row)
            yield [line for line, _ in numbered], {c: [row.get(c) for row in rows] for c in self.columns}


def rows_to_arrow(rows: DelimitedFile, fields: Mapping[str, str], limit: int | None) -> Iterator[pa.Table]:
    """Check rows and gather them into Arrow tables of `line` and those of the given fields that are there.

    Args:
        rows: The file's rows.
        fields: Column of the file by field wanted; a field that is no place column holds cells.
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
                arrays[field] = _CONVERTERS.get(field, cells_to_arrow)(values)
            except CellError as error:
                raise DataError(f"{rows.path}:{lines[error.index]}: column '{column}': {error}") from error
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise DataError(
                    f"{rows.path}:{lines[0]}-{lines[-1]}: column '{column}': {' '.join(str(error).split())}"
                ) from error
        yield pa.table(arrays)
        count += len(lines)
        if count == limit:
            break


def _read_lines(path: Path) -> Iterator[str]:
    line = 0
    try:
        file = open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    with file:
        while raw := file.readline(MAX_LINE + 1):
            line += 1
            if len(raw) > MAX_LINE:
                raise DataError(
                    f"{path}:{line}: line of over {MAX_LINE // 1_000_000} MB; is this a manifest?"
                )
            try:
                yield raw.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{line}: byte {error.start + 1} is not UTF-8; save the file with UTF-8 encoding"
                ) from error


def _number_lines(rows: list[list[str]], before: int, after: int) -> list[int]:
    """Return the line on which each row ends, given the lines read before and after them."""
    if after - before == len(rows):
        return list(range(before + 1, after + 1))
    return list(accumulate((1 + sum(cell.count("\n") for cell in row) for row in rows), initial=before))[1:]


def _drop_blank_rows(lines: list[int], rows: list[list[str]]) -> tuple[list[int], list[list[str]]]:
    kept = [number for number, row in enumerate(rows) if row]
    return [lines[number] for number in kept], [rows[number] for number in kept]


def _check_header(cells: list[str], path: Path) -> list[str]:
    header = [cell.strip() for cell in cells]
    for position, column in enumerate(header, start=1):
        if not column:
            raise DataError(f"{path}:1: column {position} of the header has no name")
        if header.index(column) != position - 1:
            raise DataError(f"{path}:1: column '{column}' is there twice; rename one")
    return header


def _parse_json_object(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f'{where}: each line must be an object such as {{"tile": "a.png"}}')
    return cast("dict[str, Any]", row)


def _split_into_chunks(items: Iterator[tuple[int, T]]) -> Iterator[list[tuple[int, T]]]:
    while chunk := list(islice(items, ROWS_PER_CHUNK)):
        yield chunk
