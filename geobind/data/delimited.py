"""Rows of CSV, TSV and JSONL files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa

from geobind.data.cells import CellError, find_converter
from geobind.data.readers.files import join_names
from geobind.errors import DataError

ROWS_PER_CHUNK = 2048  # more take longer: Python's garbage collector goes through them again and again
MAX_LINE = 10_000_000  # bytes
T = TypeVar("T")
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
                arrays[field] = find_converter(field)(values)
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
