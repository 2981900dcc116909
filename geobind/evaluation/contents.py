"""Find observations that two tables share, by their bytes; files are read only where sizes agree."""

# N rows

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from geobind.data.table import Table
from geobind.errors import DataError

Digest: TypeAlias = bytes
_CHUNK = 2**20


@dataclass(frozen=True)
class Copies:
    """Test rows that have an observation of a training row, byte for byte."""

    compared: int  # test rows whose observations could be read
    rows: int
    words: bool  # observations are strings: two places may well be described alike
    example: str | None  # keys of two such rows


def copies(train: Table, test: Table, name: str) -> Copies:
    """Looks for the test rows of one modality whose bytes a training row has too.

    Files are compared by content, so that copies under other names are found; lists (of captions) by each of
    their items. What cannot be read is passed over here: whoever loads it will say so.
    """
    rows_train, rows_test = train.rows_with([name]), test.rows_with([name])
    sizes = _sizes(test, name, rows_test) & _sizes(train, name, rows_train)
    first = {digest: row for row, digest in _digests(train, name, rows_train, sizes)}
    compared: set[int] = set()
    found: dict[int, int] = {}
    words = False
    for row, item in _items(test, name, rows_test):
        compared.add(row)
        words = words or isinstance(item, str)
        digest = _digest(item, sizes)
        if digest in first:
            found.setdefault(row, first[digest])
    example = next((f"{test.keys[row]} and {train.keys[twin]}" for row, twin in found.items()), None)
    return Copies(len(compared), len(found), words, example)


def _items(table: Table, name: str, rows_N: NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
    """The observations of the rows, each with its row; those that cannot be read are left out."""
    samples = table.samples(name) if len(rows_N) else ()
    for row in map(int, rows_N):
        try:
            sample = samples[row]
        except DataError:
            continue
        for item in sample if isinstance(sample, list) else [sample]:
            if isinstance(item, Path | str | bytes | np.ndarray | tuple):
                yield row, item


def _sizes(table: Table, name: str, rows_N: NDArray[np.int64]) -> set[int]:
    """The sizes that the files of a column have; a column without files has none."""
    return {size for _, item in _items_of_files(table, name, rows_N) if (size := _size(item)) is not None}


def _items_of_files(table: Table, name: str, rows_N: NDArray[np.int64]) -> Iterator[tuple[int, Path]]:
    for row, item in _items(table, name, rows_N):
        if not isinstance(item, Path):
            return
        yield row, item


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _digests(
    table: Table, name: str, rows_N: NDArray[np.int64], sizes: Collection[int]
) -> Iterator[tuple[int, Digest]]:
    for row, item in _items(table, name, rows_N):
        digest = _digest(item, sizes)
        if digest is not None:
            yield row, digest


def _digest(item: Any, sizes: Collection[int]) -> Digest | None:
    """The digest of an observation's bytes; None of a file that no file of the other table can equal."""
    if isinstance(item, Path):
        return _file_digest(item) if _size(item) in sizes else None
    digest = hashlib.blake2b(digest_size=16)
    for part in item if isinstance(item, tuple) else (item,):
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(part if isinstance(part, bytes) else str(part).encode())
    return digest.digest()


def _file_digest(path: Path) -> Digest | None:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return None
    return digest.digest()
