"""Shares of a batch: what all loader processes prepare of it side by side, and how they become the batch."""

# B rows of a batch, M modalities

from __future__ import annotations

import math
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from geobind.data.sources import BatchMeta
from geobind.inference import collate, to_float
from geobind.utils.system import available_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.modality import Prepared

Fault = tuple[int, str, str]  # row, key, reason
PreparedBatch = tuple[dict[str, "Prepared"], BatchMeta, list[Fault]]
Item = TypeVar("Item")

SHARE_ROWS = 256  # at most: long enough that handing a share over costs little
_LEAST_AHEAD = 2  # shares of each process: one that it prepares, one that waits
_PART_OF_MEMORY = 8  # rows in flight take at most this fraction of it
_SHARED = "/dev/shm"  # where torch's loader lays them
_UNKNOWN = 4 * 2**30  # bytes in flight where nobody tells how much memory there is


class ShareSize(NamedTuple):
    """How large the shares of a batch are, and how many each process works ahead."""

    rows: int
    ahead: int

    def bytes_in_flight(self, workers: int, row_bytes: int) -> int:
        """Return the memory of the rows that are given to processes and not in a batch yet, at most."""
        # Torch hands out the next share before it gives one back.
        return (workers * self.ahead + 1) * self.rows * row_bytes


def choose_share_size(
    batch_rows: int, workers: int, row_bytes: int | None, allowed: int | None = None
) -> ShareSize:
    """Choose shares so that one batch is prepared ahead, where that fits into the memory for it.

    Args:
        batch_rows: Rows of a batch on this rank.
        workers: Processes, at least 1.
        row_bytes: Memory of one prepared row; None where it is unknown.
        allowed: Memory for rows in flight; default: `allowed_bytes()`.
    """
    allowed = allowed_bytes() if allowed is None else allowed
    largest = min(batch_rows, SHARE_ROWS)
    if row_bytes:
        largest = max(1, min(largest, allowed // row_bytes // (_LEAST_AHEAD * workers + 1)))
    rows = math.ceil(batch_rows / math.ceil(batch_rows / largest))  # of one size, so that none waits for one
    if rows == batch_rows:
        return ShareSize(rows, _LEAST_AHEAD)
    ahead = math.ceil(batch_rows / rows / workers) + 1  # a batch, and a share of each process
    if row_bytes:
        ahead = min(ahead, (allowed // row_bytes // rows - 1) // workers)
    return ShareSize(rows, max(_LEAST_AHEAD, ahead))


def allowed_bytes() -> int:
    """Return the memory that rows in flight may take in one process of this machine."""
    limits: list[int] = []
    known = available_memory()
    if known is not None:
        limits.append(known.bytes // _PART_OF_MEMORY)
    if os.path.isdir(_SHARED):
        limits.append(shutil.disk_usage(_SHARED).free // 2)
    return min(limits, default=_UNKNOWN) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def count_bytes(prepared: Prepared) -> int:
    """Return the memory of a prepared input, or of a batch of them."""
    parts = prepared.values() if isinstance(prepared, Mapping) else [prepared]
    return sum(part.numel() * part.element_size() for part in parts)


@dataclass
class Shares:
    """Cuts batches into shares and joins what was made of them; keeps count of the rows in between.

    Args:
        rows: Rows of a share, at most.
        names: The modalities, in the order of `BatchMeta.present_BM`.
        pin: Whether the tensors of a joined batch lie in pinned memory.
    """

    rows: int
    names: tuple[str, ...]
    pin: bool = False
    in_flight: int = 0  # rows handed out and not back yet
    most_in_flight: int = 0
    _sizes: deque[tuple[int, ...]] = field(default_factory=deque[tuple[int, ...]])

    def cut(self, batches: Iterable[Sequence[Item]]) -> Iterator[Sequence[Item]]:
        """Yield the shares of each batch, in order."""
        for batch in batches:
            shares = [batch[start : start + self.rows] for start in range(0, len(batch), self.rows)]
            self._sizes.append(tuple(len(share) for share in shares))
            for share in shares:
                self.in_flight += len(share)
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                yield share

    def join(self, prepared: Iterator[PreparedBatch]) -> Iterator[PreparedBatch]:
        """Yield each batch as if it had been prepared at once.

        A share is copied when it comes, so that no more than those in flight are held beside the batch.

        Raises:
            DataError: The inputs of a batch are prepared differently.
        """
        for share in prepared:
            sizes = self._sizes.popleft()
            self.in_flight -= sizes[0]
            if len(sizes) == 1:
                yield share
                continue
            joined = _JoinedBatch(sum(sizes), self.names, self.pin)
            joined.add(share)
            for size in sizes[1:]:
                joined.add(next(prepared))
                self.in_flight -= size
            yield joined.finish()


class _JoinedBatch:
    """A batch that grows share by share."""

    def __init__(self, rows: int, names: tuple[str, ...], pin: bool) -> None:
        self._rows, self._names, self._pin = rows, names, pin
        self._inputs: dict[str, _JoinedInputs] = {}
        self._metas: list[BatchMeta] = []
        self._faults: list[Fault] = []

    def add(self, share: PreparedBatch) -> None:
        inputs, meta, faults = share
        for name, part in inputs.items():
            there = self._inputs.setdefault(name, _JoinedInputs(self._rows, self._pin))
            there.add(part, self._first_key(name, meta))
        self._metas.append(meta)
        self._faults += faults

    def finish(self) -> PreparedBatch:
        inputs = {name: self._inputs[name].finish() for name in self._names if name in self._inputs}
        return inputs, join_meta(self._metas, len(self._names)), self._faults

    def _first_key(self, name: str, meta: BatchMeta) -> str:
        if meta.present_BM is None:
            return meta.keys[0]
        return meta.keys[int(np.argmax(meta.present_BM[:, self._names.index(name)]))]


class _JoinedInputs:
    """The inputs of one modality, tensors or dicts of tensors, in buffers of the length of the batch."""

    def __init__(self, rows: int, pin: bool) -> None:
        self._rows, self._pin, self._count = rows, pin, 0
        self._buffers: dict[str | None, Tensor] = {}
        self._first: tuple[str, Prepared] | None = None

    def add(self, share: Prepared, key: str) -> None:
        row = _take_first(share)
        first_key, first = self._first or (key, row)
        # Refuses what a batch cannot hold; of images that are uint8 here and float there it makes floats.
        alike, parts = collate([first, row], [first_key, key]), _list_parts(share)
        self._first = first_key, _take_first(alike)
        for name, example in _list_parts(alike).items():
            part = parts[name]
            buffer = self._buffers.get(name)
            if buffer is None or buffer.dtype != example.dtype:
                shape, before = (self._rows, *example.shape[1:]), buffer
                buffer = torch.empty(shape, dtype=example.dtype, pin_memory=self._pin)
                if before is not None:
                    buffer[: self._count] = to_float(before[: self._count])
                self._buffers[name] = buffer
            buffer[self._count : self._count + len(part)] = (
                part if part.dtype == buffer.dtype else to_float(part)
            )
        self._count += len(next(iter(parts.values())))

    def finish(self) -> Prepared:
        whole = {name: buffer[: self._count] for name, buffer in self._buffers.items()}
        if None in whole:
            return whole[None]
        return {name: tensor for name, tensor in whole.items() if name is not None}


def _take_first(batch: Prepared) -> Prepared:
    return {name: part[0] for name, part in batch.items()} if isinstance(batch, Mapping) else batch[0]


def _list_parts(prepared: Prepared) -> dict[str | None, Tensor]:
    return {**prepared} if isinstance(prepared, Mapping) else {None: prepared}


def join_meta(metas: Sequence[BatchMeta], modalities: int) -> BatchMeta:
    """Return what is known of the rows of several shares, as if it had been gathered at once.

    Args:
        metas: What is known of each share.
        modalities: The number of columns of `present_BM`.
    """
    sizes = [len(meta.keys) for meta in metas]

    def join(
        columns: Sequence[NDArray[Any] | None], unknown: float | bool, *shape: int
    ) -> NDArray[Any] | None:
        if all(column is None for column in columns):
            return None
        each = zip(columns, sizes, strict=True)
        return np.concatenate([np.full((n, *shape), unknown) if c is None else c for c, n in each])

    labels = None
    if any(meta.labels is not None for meta in metas):
        each = zip(metas, sizes, strict=True)
        labels = [label for meta, size in each for label in (meta.labels or [None] * size)]
    return BatchMeta(
        [key for meta in metas for key in meta.keys],
        join([meta.lat for meta in metas], np.nan),
        join([meta.lon for meta in metas], np.nan),
        labels,
        join([meta.present_BM for meta in metas], True, modalities),
        join([meta.hours for meta in metas], np.nan),
    )
