"""Mixtures of sources, and batches as a pure function of seed and step."""

# N rows of all sources, T steps

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from geobind.data.neighbours import Coordinates, neighbour_batches
from geobind.data.options import NeighbourOptions
from geobind.data.sources import RowMetadata, RowSource, find_missing_storage
from geobind.data.table import Row
from geobind.errors import DataError
from geobind.utils.hashing import derive_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray


MIN_BATCH_ROWS = 2  # rows of a batch: one alone has nothing to be told from


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of one step: each epoch is a new permutation without its incomplete last batch.

    Args:
        n: Rows there are.
        batch_size: Rows of a step.
        step: Counted from 0 over all epochs.
        seed: Any whole number from 0.

    Returns:
        (batch_size,) different row numbers.

    Raises:
        DataError: There are fewer rows than a batch.
    """
    if not 1 <= batch_size <= n:
        rows = "1 row" if n == 1 else f"{n} rows"
        fix = (
            f"set batch_size to {n} or less, or add rows"
            if n >= MIN_BATCH_ROWS
            else f"it takes {MIN_BATCH_ROWS} at least"
        )
        raise DataError(f"{rows} cannot fill a batch of {batch_size}; {fix}")
    epoch, batch = divmod(step, n // batch_size)
    return _permutation(n, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]


@lru_cache(maxsize=8)  # several sources take turns
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.default_rng([seed, epoch]).permutation(n)
    order.flags.writeable = False  # it is cached
    return order


def draw_replacement(
    n: int,
    batch_size: int,
    step: int,
    seed: int,
    index: int,
    attempt: int,
    batch: NDArray[np.int64] | None = None,
) -> int:
    """Return the row that replaces row `index` of a step: one not in the step, if there is any.

    The step's rows are those of `batch_indices`, unless others are given.
    """
    rng = np.random.default_rng([seed, step, index, attempt])
    batch = batch_indices(n, batch_size, step, seed) if batch is None else batch
    if n == batch_size:
        return int(rng.choice(batch[batch != index])) if n > 1 else index
    while True:
        row = int(rng.integers(n))
        if row not in batch:
            return row


_GOLDEN = (
    5**0.5 - 1
) / 2  # its multiples, modulo 1, fill an interval more evenly than those of any other number


class WeightedSource(NamedTuple):
    """A named source of a stage's rows, and its sampling weight."""

    name: str  # what messages call it
    rows: RowSource
    weight: float | None = None  # how many of the rows drawn are its own; None: as many as it has


@dataclass(frozen=True, eq=False)
class MixedDataset:
    """The rows of a stage, those of its first source first."""

    sources: tuple[WeightedSource, ...]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The number of each source's first row."""
        return tuple(accumulate((len(source.rows) for source in self.sources), initial=0))[:-1]

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of drawn rows that comes from each source."""
        weights = [len(rows) if weight is None else weight for _, rows, weight in self.sources]
        return tuple(weight / sum(weights) for weight in weights)

    def __len__(self) -> int:
        return sum(len(source.rows) for source in self.sources)

    def __getitem__(self, row: int) -> Row:
        source = find_source(self.starts, row)
        return self.sources[source].rows[row - self.starts[source]]

    def metadata(self) -> RowMetadata:
        """Return the metadata of the rows of all sources."""
        return RowMetadata.concatenate([source.rows.metadata() for source in self.sources])

    def find_missing_storage(self, row: int) -> str | None:
        """Return the message that the data of a row's source are gone, or None."""
        source = find_source(self.starts, row)
        return find_missing_storage(self.sources[source].rows, row - self.starts[source])

    def name_of(self, source: int | None) -> str:
        """Return what messages call a source; nothing of none."""
        return "" if source is None else self.sources[source].name

    def having(self, names: Collection[str]) -> int:
        """Return how many rows have all of these modalities."""
        return sum(len(source.rows.rows_with(names)) for source in self.sources)

    @cached_property
    def places(self) -> tuple[Coordinates, ...]:
        """The places of the rows of each source.

        Raises:
            DataError: None of a source's says where it is.
        """
        found: list[Coordinates] = []
        for source in self.sources:
            known = source.rows.metadata()
            if not np.isfinite(known.lat_N).any():
                raise DataError(
                    f"{source.name}: no row has a place, but batches of neighbours are asked for "
                    f"(`batches.near_km`); give it columns `lat` and `lon`, or map them with `columns`"
                )
            found.append(Coordinates(known.lat_N, known.lon_N))
        return tuple(found)

    def sampler(
        self, batch_size: int, seed: int, *, mixed: bool = False, neighbours: NeighbourOptions | None = None
    ) -> BatchSampler:
        """Build the sampler that chooses the rows of each step.

        Args:
            batch_size: Rows of a step.
            seed: Any whole number from 0.
            mixed: Whether a batch holds rows of all sources.
            neighbours: The neighbours that batches are to hold; None for rows drawn at random.

        Raises:
            DataError: A source has too few rows for its part of a batch, or no part in it, or no places.
        """
        sizes = tuple(len(source.rows) for source in self.sources)
        sampler = BatchSampler(
            sizes, batch_size, seed, self.shares, mixed, neighbours, self.places if neighbours else ()
        )
        for source, share, wanted in zip(self.sources, self.shares, sampler.row_counts, strict=True):
            if not wanted:
                raise DataError(
                    f"{source.name}: its share of {share:.2g} is less than a row of a batch of {batch_size}; "
                    f"raise its weight or batch_size, or let batches take turns (`mix: batches`)"
                )
            try:
                batch_indices(len(source.rows), wanted, 0, seed)
            except DataError as error:
                raise DataError(f"{source.name}: {error}") from error
        return sampler


@dataclass(frozen=True)
class BatchSampler:
    """The rows of each step, a pure function of the seed and the step.

    Each source is gone through in epochs of its own, in a new order each time. Steps alternate between the
    sources as evenly as their shares allow, or every batch holds rows of all of them.
    """

    sizes: tuple[int, ...]  # rows of each source
    batch_size: int
    seed: int
    shares: tuple[float, ...] = (1.0,)  # of the rows drawn, summing to 1
    mixed: bool = False  # whether a batch holds rows of all sources
    neighbours: NeighbourOptions | None = None  # groups of near rows that batches hold
    places: tuple[Coordinates, ...] = ()  # of the rows of each source, if there are neighbours

    @property
    def row_counts(self) -> tuple[int, ...]:
        """Rows of each source in a batch: the whole numbers nearest to its share."""
        if not self.mixed:
            return (self.batch_size,) * len(self.sizes)
        exact = np.array(self.shares) * self.batch_size
        counts = np.floor(exact + 1e-9).astype(int)
        short = self.batch_size - counts.sum()
        counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
        return tuple(int(count) for count in counts)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that draw as many rows as there are, less an incomplete last batch."""
        if self.mixed:
            return sum(self.sizes) // self.batch_size
        return sum(size // self.batch_size for size in self.sizes)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the rows of one step, counted through all sources: (batch_size,)."""
        parts = [self._start(source) + self._batch(source, *rest) for source, *rest in self._parts(step)]
        if len(parts) == 1:
            return parts[0]
        # Shuffled, so that every process has rows of all sources.
        return np.random.default_rng([self.seed, step]).permutation(np.concatenate(parts))

    def source(self, step: int) -> int | None:
        """Return the source of a step's rows; None if there is only one, or if batches are mixed."""
        return None if self.mixed or len(self.sizes) == 1 else self._parts(step)[0][0]

    def replacement(self, step: int, row: int, attempt: int) -> int:
        """Return a row that replaces a broken one: from its source and, if possible, not in the step."""
        source = find_source(tuple(map(self._start, range(len(self.sizes)))), row)
        count, turn = next((count, turn) for part, count, turn in self._parts(step) if part == source)
        start = self._start(source)
        size, seed = self.sizes[source], self._seed(source)
        batch = self._batch(source, count, turn)
        return start + draw_replacement(size, count, turn, seed, row - start, attempt, batch)

    def _batch(self, source: int, count: int, turn: int) -> NDArray[np.int64]:
        """Return the rows that the `turn`-th step of a source takes, numbered within it."""
        size, seed = self.sizes[source], self._seed(source)
        if self.neighbours is None:
            return batch_indices(size, count, turn, seed)
        epoch, batch = divmod(turn, size // count)
        return neighbour_batches(self.places[source], self.neighbours, count, seed, epoch)[batch]

    def _parts(self, step: int) -> list[tuple[int, int, int]]:
        """Return the sources of a step: number, rows of it, and its earlier steps."""
        if len(self.sizes) == 1:
            return [(0, self.batch_size, step)]
        if self.mixed:
            return [(source, count, step) for source, count in enumerate(self.row_counts)]
        source_T, turn_T = _alternate_sources(self.shares, self.seed, 1 << max(10, (step + 1).bit_length()))
        return [(int(source_T[step]), self.batch_size, int(turn_T[step]))]

    def _start(self, source: int) -> int:
        return sum(self.sizes[:source])

    def _seed(self, source: int) -> int:
        return self.seed if len(self.sizes) == 1 else derive_seed(self.seed, "source", source)


def find_source(starts: Sequence[int], row: int) -> int:
    """Return the source of a row."""
    return bisect_right(starts, row) - 1


@lru_cache(maxsize=4)
def _alternate_sources(
    shares: tuple[float, ...], seed: int, steps: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the source of each step, and how many earlier steps used it."""
    first = derive_seed(seed, "mixture") / 2**63
    edges = np.cumsum(shares)[:-1]
    source_T = np.searchsorted(edges, (first + _GOLDEN * np.arange(steps)) % 1.0, side="right")
    turn_T = np.zeros(steps, dtype=np.int64)
    for source in range(len(shares)):
        uses_T = source_T == source
        turn_T[uses_T] = np.arange(np.count_nonzero(uses_T))
    return source_T, turn_T
