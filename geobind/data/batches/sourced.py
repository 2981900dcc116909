"""Rows of one source: a table's, or the pairs that a plugin brings; and what is known about all of them."""

# N rows

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from geobind.data.batches.vanishing import vanished_of
from geobind.data.tables.views import Observed
from geobind.modality import Pair, Place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.data.tables.table import Table

_HOUR = 3600 * 1_000_000  # microseconds


class Rows(Protocol):
    """Rows of one source. They pickle small: every process that loads data has them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Observed: ...

    def rows_with(self, names: Collection[str]) -> NDArray[np.int64]:
        """Return the numbers of the rows that have all of these modalities."""
        ...

    def known(self) -> Known:
        """Return what is known about all rows."""
        ...


class Known(NamedTuple):
    """What is known about rows, as arrays (N,): NaN, or None, where it is not."""

    lat_N: NDArray[np.float64]
    lon_N: NDArray[np.float64]
    hour_N: NDArray[np.float64]  # since 1970, in UTC; of rows with a place
    label_N: NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class TableRows:
    """Rows of a table with the raw inputs of some modalities."""

    table: Table
    names: tuple[str, ...]  # those that the table has a column for

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Observed:
        return self.table.observed(index, self.names)

    def vanished(self, row: int) -> str | None:
        """Say that the data are gone if this row's file is not there, nor those of other rows."""
        return vanished_of(self.table, row)

    def rows_with(self, names: Collection[str]) -> NDArray[np.int64]:
        """Return the numbers of the rows that have all of these modalities."""
        return self.table.rows_with(names)

    def known(self) -> Known:
        """Return what is known about all rows."""
        count, table = len(self), self.table
        lat_N, lon_N = (np.full(count, np.nan) if part is None else part for part in (table.lat, table.lon))
        hour_N = np.full(count, np.nan)
        if table.time is not None:
            since_N = (table.time - np.datetime64(0, "us")).astype("timedelta64[us]")
            there_N = ~np.isnat(since_N) & np.isfinite(lat_N)
            hour_N[there_N] = since_N[there_N].astype(np.int64) / _HOUR
        return Known(lat_N, lon_N, hour_N, np.array(table.labels or [None] * count, dtype=object))


@dataclass(frozen=True, eq=False)
class OwnRows:
    """The pairs that a plugin brings, as rows."""

    pairs: Sequence[Pair]
    anchor: str
    other: str

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Observed:
        pair = self.pairs[index]
        raws = {self.anchor: pair.anchor, self.other: pair.other}
        return Observed(raws, pair.key, pair.place, pair.label)

    def rows_with(self, names: Collection[str]) -> NDArray[np.int64]:
        """Return all rows, or none: each has the two modalities and no other."""
        return np.arange(len(self.pairs) if set(names) <= {self.anchor, self.other} else 0)

    def known(self) -> Known:
        """Return what is known about all rows."""
        pairs = [self.pairs[row] for row in range(len(self))]
        places = [pair.place or Place(np.nan, np.nan) for pair in pairs]
        found_N3 = np.array([(at.lat, at.lon, hours_of(at)) for at in places], dtype=np.float64)
        lat_N, lon_N, hour_N = found_N3.reshape(len(pairs), 3).T
        return Known(lat_N, lon_N, hour_N, np.array([pair.label for pair in pairs], dtype=object))


def hours_of(place: Place | None) -> float:
    """Return when something was observed, in hours since 1970; NaN if that is unknown.

    A time that names no zone is UTC, as in tables.
    """
    if place is None or place.time is None:
        return np.nan
    time = place.time if place.time.tzinfo else place.time.replace(tzinfo=UTC)
    return round((time - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000) / _HOUR
