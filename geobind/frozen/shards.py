"""Shards: files of float16 rows with the content each belongs to, in the layout of safetensors."""

# M rows of a shard, F numbers of a row

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from geobind.utils import files

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIX = ".safetensors"
_MAX_HEADER = 100_000  # bytes
_TYPES = {"content": ("U64", np.uint64), "scale": ("F32", np.float32), "row": ("F16", np.float16)}


class Damaged(Exception):
    """A shard cannot be read; the message says what is wrong with it."""


class Shard(NamedTuple):
    """Rows in a memory-mapped file."""

    path: Path
    content_M2: NDArray[np.uint64]
    scale_M: NDArray[np.float32]  # what a row was divided by
    row_MF: NDArray[np.float16]  # of any shape from the second axis on
    sum: str  # SHA-256 of the rows' bytes, as it should be


def write_shard(folder: Path, content_M2: NDArray[np.uint64], value_MF: NDArray[np.float32]) -> Path:
    """Write rows under a name of their own; they are there whole or not at all.

    Each row is divided by a power of two that brings its largest number between a half and one, so that
    half precision keeps 11 bits of it whatever the scale of the features.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    scale_M = _scales(value_MF.reshape(len(value_MF), -1))
    with np.errstate(over="ignore"):  # a row that holds an infinity
        row_MF = (value_MF / spread(scale_M, value_MF)).astype(np.float16)
    tensors = {"content": content_M2, "scale": scale_M, "row": row_MF}
    sums = {"index": _sum(content_M2, scale_M), "rows": _sum(row_MF)}
    path = folder / f"{uuid.uuid4().hex}{SUFFIX}"
    files.write(path, save(tensors, metadata=sums))
    return path


def open_shard(path: Path) -> Shard:
    """Map a shard into memory; its size, header and index are checked, its rows are not.

    Raises:
        Damaged: It is cut short, or not such a file.
        FileNotFoundError: Another process has dropped or merged it.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER:
                raise Damaged("it has no header")
            header = json.loads(file.read(length))
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        sums = header["__metadata__"]
        content_M2, scale_M, row_MF = (_mapped(content, header, name, 8 + length, size) for name in _TYPES)
        end = 8 + length + max(header[name]["data_offsets"][1] for name in _TYPES)
        if not end == size or not len(content_M2) == len(scale_M) == len(row_MF):
            raise Damaged("it is cut short")
        if _sum(content_M2, scale_M) != sums["index"]:
            raise Damaged("its index is not what was written")
        rows = str(sums["rows"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise Damaged(f"it has no header that can be read ({type(error).__name__})") from error
    if hasattr(mmap, "MADV_RANDOM"):
        # Batches are drawn at random: what the system would read ahead is not what comes next.
        content.madvise(mmap.MADV_RANDOM)
    return Shard(path, content_M2, scale_M, row_MF, rows)


def check_rows(shard: Shard) -> None:
    """Read every row and compare with what was written.

    Raises:
        Damaged: A bit is not what it was.
    """
    if _sum(shard.row_MF) != shard.sum:
        raise Damaged("its rows are not what was written")


def spread(scale_M: NDArray[np.float32], row_MF: NDArray[Any]) -> NDArray[np.float32]:
    """Give scales the axes of the rows they belong to."""
    return scale_M.reshape(-1, *[1] * (row_MF.ndim - 1))


def _mapped(content: mmap.mmap, header: dict[str, Any], name: str, base: int, size: int) -> NDArray[Any]:
    written, kind = _TYPES[name]
    begin, end = header[name]["data_offsets"]
    shape = tuple(header[name]["shape"])
    if header[name]["dtype"] != written or not 0 <= begin <= end or base + end > size:
        raise Damaged("it is cut short")
    count = math.prod(shape)
    if any(length < 0 for length in shape) or count * np.dtype(kind).itemsize != end - begin:
        raise Damaged("its header contradicts itself")
    return np.frombuffer(content, kind, count, base + begin).reshape(shape)


def _scales(value_MF: NDArray[np.float32]) -> NDArray[np.float32]:
    largest_M = np.abs(value_MF).max(axis=1, initial=0.0)
    exponent_M = np.frexp(np.where(np.isfinite(largest_M), largest_M, 0))[1]
    return np.ldexp(np.float32(1), exponent_M.clip(-126, 127)).astype(np.float32)


def _sum(*arrays: NDArray[np.generic]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()
