"""The rows of the cache that stand for a side of a stage: found by content, made where they are missing."""

# N pairs, M observations (a pair may have several), K views of each, B pairs of a batch, F numbers of a row

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from geobind.data.sources import vanished
from geobind.errors import DataError, StorageError
from geobind.frozen.contents import MISSING, FileHashes, Uncacheable, as_words, contents_of, view_of
from geobind.frozen.entry import Rows
from geobind.frozen.fill import Filling, Wanted
from geobind.utils.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

Words = tuple[int, int]  # a content
_SHOWN = 5  # broken inputs listed in a message


class Observations(NamedTuple):
    """What the pairs of a side hold, by content."""

    first_N: NDArray[np.int64]  # (N + 1,) where the observations of each pair begin
    listed_N: NDArray[np.bool_]  # whether the pair has a list of them, of which one is drawn
    contents_M: list[bytes | DataError]


class Ranks(NamedTuple):
    """The processes that train together."""

    rank: int
    world: int
    agree: Callable[[bool], bool]  # whether it is true on every rank; all ranks wait for each other here


ALONE = Ranks(0, 1, bool)


@dataclass(frozen=True, eq=False)
class Picks:
    """Which rows of the cache stand for each pair; small enough to go to the processes that load data."""

    first_N: NDArray[np.int64]
    listed_N: NDArray[np.bool_]
    row_MK: NDArray[np.int64]  # rows of the cache, -1 where there is none
    faults: Mapping[int, str]  # why, by observation

    def cell(self, pair: int) -> int | list[int] | None:
        """Return what stands for a pair's input: the number of its observation, or a list of them."""
        start, end = int(self.first_N[pair]), int(self.first_N[pair + 1])
        if self.listed_N[pair]:
            return list(range(start, end))
        return None if self.faults.get(start) == str(MISSING) else start

    def row(self, item: int, draw: Callable[[int], int]) -> int:
        """Return the row of an observation, of one of its views.

        Raises:
            DataError: It cannot be used.
        """
        views = self.row_MK.shape[1]
        row = int(self.row_MK[item, draw(views) if views > 1 else 0])
        if row < 0:
            raise DataError(self.faults[item])
        return row

    def pick(self, pair: int, draw: Callable[[int], int]) -> int:
        """Return the row of a pair: of one observation, drawn as the loader draws it, and of one view.

        Raises:
            DataError: The observation cannot be used.
        """
        start, end = int(self.first_N[pair]), int(self.first_N[pair + 1])
        return self.row(start + (draw(end - start) if self.listed_N[pair] else 0), draw)

    @property
    def fixed_N(self) -> NDArray[np.int64]:
        """The row of each pair that leaves no choice and is there, -1 for the others (N,)."""
        if self.row_MK.shape[1] > 1:
            return np.full(len(self.listed_N), -1, dtype=np.int64)
        return np.where(self.listed_N, -1, self.row_MK[self.first_N[:-1], 0])


class Stored(NamedTuple):
    """One side of a stage as it is read from the cache."""

    picks: Picks
    rows: Rows
    made: int  # rows that this process made for it

    def read(self, row_B: NDArray[np.int64]) -> Tensor:
        """Return rows as float32 (B, F)."""
        return self.rows.read(row_B)


def observe(raws: Sequence[Any], files: FileHashes, title: str) -> Observations:
    """Tell the content of everything a side holds; files that are known are not read again.

    Raises:
        Uncacheable: An input is of a kind whose content cannot be told.
    """
    counts: list[int] = []
    listed: list[bool] = []
    contents: list[bytes | DataError] = []

    def cells() -> Iterator[Any]:
        for cell in track(_cells(raws), title, len(raws)):
            listed.append(isinstance(cell, list) and len(cell) > 0)
            yield cell

    for found in contents_of(cells(), files):
        counts.append(len(found))
        contents += found
    return Observations(np.cumsum([0, *counts]), np.array(listed, dtype=bool), contents)


def store(
    seen: Observations, filling: Filling, *, views: int, max_broken: float, ranks: Ranks = ALONE
) -> Stored | None:
    """Find the rows of a side, after making those that are missing, each rank its share.

    Args:
        seen: What the side holds.
        filling: Makes rows.
        views: How many augmented views of each observation there are; 0: each is taken as it is.
        max_broken: Share of the observations that may be unusable.
        ranks: The processes that share the work.

    Returns:
        The side; None if a rank could not make its rows and another has said so, or will.

    Raises:
        Uncacheable: The rows cannot be kept, or another process takes them away.
        StorageError: The disk is full.
        DataError: Too many observations are broken.
    """
    content_MK2 = _contents(seen, views)
    faults: dict[Words, str] = {}
    made = 0
    # The second time is for what another machine has made on a disk of its own, and for shards lost since.
    for step in (ranks.world, 1):
        missing = _missing(seen, content_MK2, filling.entry.rows(), faults)
        mine = missing[ranks.rank :: step] if step > 1 else missing
        trouble: Exception | None = None
        try:
            found = filling.fill(mine) if mine else {}
            faults |= {mine[number].content: reason for number, reason in found.items()}
            made += len(mine) - len(found)
        except (Uncacheable, StorageError) as error:
            trouble = error
        if not ranks.agree(trouble is None):
            if trouble:
                raise trouble
            return None
    if ranks.rank == 0:
        filling.entry.merge()
    ranks.agree(True)  # nobody looks before it is merged
    rows = filling.entry.rows()
    lost = _missing(seen, content_MK2, rows, faults)
    if not ranks.agree(not lost):
        raise Uncacheable(f"another process takes its rows away ({len(lost)} of them)")
    picks = _picks(seen, content_MK2, rows, faults)
    _judge(filling, seen, picks, max_broken)
    return Stored(picks, rows, made)


def _contents(seen: Observations, views: int) -> NDArray[np.uint64]:
    """Return the content of each view of each observation (M, K, 2); zeros where it cannot be told."""
    unknown = bytes(16)
    told = (unknown if isinstance(one, DataError) else one for one in seen.contents_M)
    if views:
        told = (one if one == unknown else view_of(one, view) for one in told for view in range(views))
    return as_words(told).reshape(len(seen.contents_M), max(views, 1), 2)


def _missing(
    seen: Observations, content_MK2: NDArray[np.uint64], rows: Rows, faults: Mapping[Words, str]
) -> list[Wanted]:
    """List what has no row yet, each content once; what cannot be used is left out."""
    row_L = rows.find(content_MK2.reshape(-1, 2))
    views = content_MK2.shape[1]
    found: dict[Words, Wanted] = {}
    for place in np.flatnonzero(row_L < 0):
        item, view = divmod(int(place), views)
        first, second = content_MK2[item, view].tolist()
        content = first, second
        if content in found or content in faults or isinstance(seen.contents_M[item], DataError):
            continue
        pair = int(np.searchsorted(seen.first_N, item, side="right")) - 1
        found[content] = Wanted(pair, item - int(seen.first_N[pair]), view, content)
    return list(found.values())


def _picks(
    seen: Observations, content_MK2: NDArray[np.uint64], rows: Rows, faults: Mapping[Words, str]
) -> Picks:
    row_MK = rows.find(content_MK2.reshape(-1, 2)).reshape(content_MK2.shape[:2])
    said: dict[int, str] = {}
    for item in np.flatnonzero((row_MK < 0).any(axis=1)).tolist():
        error = seen.contents_M[item]
        known = (faults[words] for view in content_MK2[item].tolist() if (words := tuple(view)) in faults)
        said[item] = str(error) if isinstance(error, DataError) else next(known)
    return Picks(seen.first_N, seen.listed_N, row_MK, said)


def _judge(filling: Filling, seen: Observations, picks: Picks, most: float) -> None:
    broken = {item: said for item, said in picks.faults.items() if seen.contents_M[item] is not MISSING}
    count = len(picks.row_MK)
    if len(broken) > most * count:
        first = int(np.searchsorted(seen.first_N, next(iter(broken)), side="right")) - 1
        if gone := vanished(filling.raws, first):
            raise DataError(gone)
        listed = "".join(f"\n  {reason}" for reason in [*broken.values()][:_SHOWN])
        raise DataError(
            f"{filling.modality.name}: {len(broken)} of {count} inputs cannot be used, more than max_broken "
            f"({most:g}) allows; mend or drop them, or raise it:{listed}"
        )


def _cells(raws: Sequence[Any]) -> Iterator[Any]:
    """Yield every cell, or the error that reading it raised."""
    for number in range(len(raws)):
        try:
            yield raws[number]
        except DataError as error:
            yield error
