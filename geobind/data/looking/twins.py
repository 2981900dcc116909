"""Find images that are nearly the same, by their difference hashes."""

# N images

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALL, LARGE = 3, 32  # bits of 64 and of 256 by which two images that are the same may differ
_BLOCK = 500_000  # pairs compared at a time
STATED = (
    f"difference hashes that differ by at most {SMALL} of 64 and {LARGE} of 256 bits: the same image saved "
    "again or resized, not one cropped or turned"
)


def twins_across(
    marks: Sequence[tuple[int, int] | None], splits: Sequence[str | None]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of images that are nearly the same and lie in different splits, each once.

    Args:
        marks: The hashes of each image, of 64 and 256 bits; None of one that has none.
        splits: The split of each image; those of None are left out.
    """
    rows = [row for row, mark in enumerate(marks) if mark is not None and splits[row] is not None]
    small_N = np.array([_mark(marks, row)[0] for row in rows], dtype=np.uint64)
    seen: set[tuple[int, int]] = set()
    # Two hashes that differ in at most 3 bits agree in one of 4 parts.
    for part in range(SMALL + 1):
        key_N = (small_N >> np.uint64(16 * part)) & np.uint64(0xFFFF)
        for bucket in _buckets(key_N):
            for one, other in _pairs(bucket, [splits[rows[i]] for i in bucket], small_N):
                pair = rows[one], rows[other]
                if pair not in seen and _differ(marks, *pair) <= LARGE:
                    seen.add(pair)
                    yield pair


def _mark(marks: Sequence[tuple[int, int] | None], row: int) -> tuple[int, int]:
    return marks[row] or (0, 0)


def _differ(marks: Sequence[tuple[int, int] | None], one: int, other: int) -> int:
    return (_mark(marks, one)[1] ^ _mark(marks, other)[1]).bit_count()


def _buckets(key_N: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    order = np.argsort(key_N, kind="stable")
    edges = np.flatnonzero(np.diff(key_N[order])) + 1
    yield from (bucket for bucket in np.split(order, edges) if len(bucket) > 1)


def _pairs(
    bucket: NDArray[np.int64], splits: Sequence[str | None], small_N: NDArray[np.uint64]
) -> Iterator[tuple[int, int]]:
    groups = {split: bucket[[s == split for s in splits]] for split in dict.fromkeys(splits)}
    for (one, first), (other, second) in product(groups.items(), repeat=2):
        if str(one) >= str(other):
            continue
        step = max(1, _BLOCK // len(second))
        for start in range(0, len(first), step):
            part = first[start : start + step]
            differing = small_N[part][:, None] ^ small_N[second][None]
            bits = np.unpackbits(differing.view(np.uint8).reshape(*differing.shape, 8), axis=-1)
            for i, j in np.argwhere(bits.sum(axis=-1) <= SMALL):
                yield int(part[i]), int(second[j])
