"""Find observations that two tables share: byte for byte, and images that are nearly the same."""

# N rows

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from geobind.data.inspect import inspect_raw, twins_across
from geobind.data.table import Table
from geobind.errors import DataError
from geobind.utils.progress import track

Digest: TypeAlias = bytes
Marked: TypeAlias = tuple[int, tuple[int, int] | None]
Looked: TypeAlias = dict[tuple[str, str, bytes], list[Marked]]

MOST_IMAGES = 20_000
_CHUNK = 2**20
_TOGETHER = 64  # images decoded together


@dataclass(frozen=True)
class Copies:
    """Test rows that have an observation of a training row, byte for byte or nearly."""

    compared: int  # test rows whose observations could be read
    rows: int
    words: bool  # observations are strings: two places may well be described alike
    example: str | None  # keys of two such rows
    near: int | None = None  # rows with an image nearly a training row's; None where none was looked for
    near_example: str | None = None
    near_unseen: str | None = None  # why none was looked for


def copies(train: Table, test: Table, name: str, looked: Looked, most: int | None = MOST_IMAGES) -> Copies:
    """Looks for the test rows of one modality whose observations a training row has too.

    Files are compared by content, so that copies under other names are found and only files of equal size
    are read; lists (of captions) by each of their items. Images are compared by their difference hashes as
    well, which finds one saved again or resized, not one cropped. What cannot be read is passed over here:
    whoever loads it will say so.

    Args:
        train: Rows trained on.
        test: Rows held out.
        name: The modality.
        looked: Hashes of what was looked at before; pass one dict to all calls.
        most: With more images than this nearly equal ones are not looked for: all have to be decoded.
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
    same = Copies(len(compared), len(found), words, example)
    if not _are_images(test, name, rows_test) or not _are_images(train, name, rows_train):
        return same
    if most is not None and len(rows_train) + len(rows_test) > most:
        many = f"{len(rows_train) + len(rows_test):,} images to decode, more than {most:,}"
        return replace(same, near_unseen=many)
    twins = _twins(_marks(train, name, rows_train, looked), _marks(test, name, rows_test, looked))
    twins = {row: twin for row, twin in twins.items() if row not in found}
    example = next((f"{test.keys[row]} and {train.keys[twin]}" for row, twin in twins.items()), None)
    return replace(same, near=len(twins), near_example=example)


def _are_images(table: Table, name: str, rows_N: NDArray[np.int64]) -> bool:
    first = next((item for _, item in _items(table, name, rows_N[:1])), None)
    return first is not None and not isinstance(first, tuple) and inspect_raw(first).kind == "image"


def _marks(table: Table, name: str, rows_N: NDArray[np.int64], looked: Looked) -> list[Marked]:
    """The difference hashes of a modality's images, each with its row."""
    key = str(table.path), name, table.rows_N[rows_N].tobytes()
    if key not in looked:
        items = track(_items(table, name, rows_N), f"looking at {name}", len(rows_N))
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # decoders let other threads run
            looked[key] = [
                (row, marks)
                for part in _parts(items)
                for row, marks in pool.map(lambda one: (one[0], inspect_raw(one[1]).marks), part)
            ]
    return looked[key]


def _parts(items: Iterable[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    held = iter(items)
    while part := list(islice(held, _TOGETHER)):
        yield part


def _twins(train: list[Marked], test: list[Marked]) -> dict[int, int]:
    """For each test row that has one, a training row with nearly the same image."""
    marked = [*train, *test]
    side = ["a"] * len(train) + ["b"] * len(test)
    pairs = twins_across([marks for _, marks in marked], side)
    return {marked[two][0]: marked[one][0] for one, two in pairs}


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
