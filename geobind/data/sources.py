"""Sources of training rows: tables, pairs of plugins, and the detection of missing storage."""

# N rows

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, overload, runtime_checkable

import numpy as np

from geobind.data.columns import ArrowColumn
from geobind.data.rasters.column import RasterColumn
from geobind.data.readers.files import FileResolver
from geobind.data.readers.tar import parse_member
from geobind.data.table import Row
from geobind.errors import DataError
from geobind.modality import Pair, Place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.data.columns import TableColumn
    from geobind.data.table import Table


_OTHERS = 8  # files of other rows that are looked for before all are said to be gone


@runtime_checkable
class DetectsMissingStorage(Protocol):
    """Rows whose files can go away."""

    def find_missing_storage(self, row: int) -> str | None:
        """Return the message that this row's file and those of other rows are missing, or None."""
        ...


def find_missing_storage(rows: object, row: int) -> str | None:
    """Return the message that storage is missing, after a row failed; None if only this row is at fault."""
    return rows.find_missing_storage(row) if isinstance(rows, DetectsMissingStorage) else None


def find_missing_files(table: Table, index: int) -> str | None:
    """Return the message that a table's files are missing: this row's, and those of all other rows checked.

    Args:
        table: The rows.
        index: A row of it that cannot be used.
    """
    spread_B = np.linspace(0, len(table) - 1, _OTHERS + 1).astype(int)
    others = [int(row) for row in table.rows_N[np.unique(spread_B)] if row != table.rows_N[index]]
    for name, column in table.columns.items():
        if not isinstance(column, ArrowColumn | RasterColumn) or column.files is None:
            continue
        files = column.files
        own_file = _find_missing_file(files, _list_file_names(column, int(table.rows_N[index])))
        if own_file is None:
            continue
        missing_others = [
            _find_missing_file(files, names) for row in others if (names := _list_file_names(column, row))
        ]
        if not missing_others or None in missing_others:
            continue
        folder, reason = _find_missing_folder(own_file)
        return (
            f"{table.name}: the files of '{name}' are gone: {own_file} and "
            f"{len(missing_others)} of {len(missing_others)} others "
            f"looked for are not there ({folder}: {reason}); mount or restore that and go on with --resume"
        )
    return None


def _list_file_names(column: ArrowColumn | RasterColumn, row: int) -> list[str]:
    return [name for _, name in column.file_names(np.array([row], dtype=np.int32), 1)]


def _find_missing_file(files: FileResolver, names: list[str]) -> Path | None:
    """Return the file on disk that is to be read and is not there."""
    for name in names:
        try:
            member = parse_member(name)
            path = files(name if member is None else member.tar)
        except DataError:
            return None  # a name that is wrong says nothing about others
        try:
            os.stat(path)
        except OSError:
            return path
    return None


def _find_missing_folder(path: Path) -> tuple[Path, str]:
    """Find the topmost folder that is missing, out of reach, or an empty mount point; say which it is."""
    topmost = path, "no such file"
    for folder in path.parents:
        try:
            with os.scandir(folder) as entries:
                if next(entries, None) is not None:
                    break
                topmost = folder, "it is empty"
        except OSError as error:
            topmost = folder, error.strerror or str(error)
    return topmost


_HOUR = 3600 * 1_000_000  # microseconds


class BatchMeta(NamedTuple):
    """Keys, places, times and labels of the rows of a batch, in its order."""

    keys: Sequence[str]
    lat: NDArray[np.float64] | None  # (B,) degrees, NaN where unknown; None if no row has a place
    lon: NDArray[np.float64] | None
    labels: list[str | None] | None  # None if no row has one
    present_BM: NDArray[np.bool_] | None = None  # None if every row has every modality
    hours: NDArray[np.float64] | None = None  # (B,) since 1970 in UTC, NaN where unknown; None if of no row


class RowMetadata(NamedTuple):
    """Places, times and labels of rows as arrays (N,): NaN, or None for labels, where unknown."""

    lat_N: NDArray[np.float64]
    lon_N: NDArray[np.float64]
    hour_N: NDArray[np.float64]  # since 1970, in UTC; of rows with a place
    label_N: NDArray[np.object_]

    @classmethod
    def concatenate(cls, parts: Sequence[RowMetadata]) -> RowMetadata:
        """Join the metadata of several sources, in their order."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def batch(self, row_B: NDArray[np.int64], keys: Sequence[str]) -> BatchMeta:
        """Return the metadata of some rows as a batch has it; `keys` are theirs."""
        lat_B, lon_B, hour_B = self.lat_N[row_B], self.lon_N[row_B], self.hour_N[row_B]
        label_B = self.label_N[row_B]
        has_place, has_time = not np.isnan(lat_B).all(), not np.isnan(hour_B).all()
        has_label = any(label is not None for label in label_B)
        return BatchMeta(
            keys,
            lat_B if has_place else None,
            lon_B if has_place else None,
            label_B.tolist() if has_label else None,
            hours=hour_B if has_time else None,
        )


class SourceColumn(Protocol):
    """The raw inputs of one modality in the rows of a source, None where a row lacks it."""

    def __getitem__(self, row: int, /) -> Any: ...

    def describe(self, row: int) -> Any:
        """Return what a window of a raster is cut out of, without reading it; else as `[row]`."""
        ...


class RowSource(Protocol):
    """Rows of one source. They pickle small: every process that loads data has them."""

    @property
    def table(self) -> Table | None:
        """The table that the rows are from, if they are from one."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that the rows are read with."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...

    def rows_with(self, names: Collection[str]) -> NDArray[np.int64]:
        """Return the numbers of the rows that have all of these modalities."""
        ...

    def metadata(self) -> RowMetadata:
        """Return the metadata of all rows."""
        ...

    def column(self, name: str) -> SourceColumn:
        """Return the raw inputs of one modality, read when asked for."""
        ...

    def take(self, index_N: NDArray[np.int64]) -> Self:
        """Return the rows with these numbers, in this order."""
        ...

    def drop(self, names: Collection[str]) -> Self:
        """Return the same rows without some modalities, if those are read for themselves."""
        ...


@dataclass(frozen=True, eq=False)
class _TableColumn:
    column: TableColumn | None
    rows_N: NDArray[np.int32]

    def __getitem__(self, row: int) -> Any:
        return None if self.column is None else self.column[int(self.rows_N[row])]

    def describe(self, row: int) -> Any:
        if isinstance(self.column, RasterColumn):
            return self.column.describe_window(int(self.rows_N[row]))
        return self[row]


@dataclass(frozen=True, eq=False)
class TableRows:
    """Rows of a table with the raw inputs of some modalities."""

    table: Table
    names: tuple[str, ...]  # those that the table has a column for

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Row:
        return self.table.read_row(index, self.names)

    def find_missing_storage(self, row: int) -> str | None:
        """Return that the data are gone if this row's file is missing and those of other rows too."""
        return find_missing_files(self.table, row)

    def rows_with(self, names: Collection[str]) -> NDArray[np.int64]:
        """Return the numbers of the rows that have all of these modalities."""
        return self.table.rows_with(names)

    def metadata(self) -> RowMetadata:
        """Return the metadata of all rows."""
        count, table = len(self), self.table
        lat_N, lon_N = (np.full(count, np.nan) if part is None else part for part in (table.lat, table.lon))
        hour_N = np.full(count, np.nan)
        if table.time is not None:
            since_N = (table.time - np.datetime64(0, "us")).astype("timedelta64[us]")
            timed_N = ~np.isnat(since_N) & np.isfinite(lat_N)
            hour_N[timed_N] = since_N[timed_N].astype(np.int64) / _HOUR
        return RowMetadata(lat_N, lon_N, hour_N, np.array(table.labels or [None] * count, dtype=object))

    def column(self, name: str) -> SourceColumn:
        """Return the cells of one modality."""
        column = self.table.columns[name] if name in self.names else None
        return _TableColumn(column, self.table.rows_N)

    def take(self, index_N: NDArray[np.int64]) -> TableRows:
        """Return the rows with these numbers, in this order."""
        return replace(self, table=self.table.take(index_N))

    def drop(self, names: Collection[str]) -> TableRows:
        """Return the same rows without the cells of some modalities."""
        return replace(self, names=tuple(name for name in self.names if name not in names))


@dataclass(frozen=True, eq=False)
class _SelectedPairs(Sequence[Pair]):
    """Some of a plugin's pairs, which are made when asked for."""

    pairs: Sequence[Pair]
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(index, slice):
            return _SelectedPairs(self.pairs, self.rows[index])
        return self.pairs[self.rows[index]]


@dataclass(frozen=True, eq=False)
class _PairColumn:
    rows: PluginPairs
    name: str

    def __getitem__(self, row: int) -> Any:
        return self.rows[row].raws.get(self.name)

    def describe(self, row: int) -> Any:
        return self[row]


@dataclass(frozen=True, eq=False)
class PluginPairs:
    """The pairs that a plugin brings, as rows."""

    pairs: Sequence[Pair]
    anchor: str
    other: str

    @property
    def table(self) -> None:
        """None: a plugin's pairs are from no table."""

    @property
    def names(self) -> tuple[str, str]:
        """The two modalities."""
        return self.anchor, self.other

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Row:
        pair = self.pairs[index]
        raws = {self.anchor: pair.anchor, self.other: pair.other}
        return Row(raws, pair.key, pair.place, pair.label)

    def rows_with(self, names: Collection[str]) -> NDArray[np.int64]:
        """Return all rows, or none: each has the two modalities and no other."""
        return np.arange(len(self.pairs) if set(names) <= {self.anchor, self.other} else 0)

    def metadata(self) -> RowMetadata:
        """Return the metadata of all rows."""
        pairs = [self.pairs[row] for row in range(len(self))]
        places = [pair.place or Place(np.nan, np.nan) for pair in pairs]
        values_N3 = np.array([(at.lat, at.lon, hours_since_1970(at)) for at in places], dtype=np.float64)
        lat_N, lon_N, hour_N = values_N3.reshape(len(pairs), 3).T
        return RowMetadata(lat_N, lon_N, hour_N, np.array([pair.label for pair in pairs], dtype=object))

    def column(self, name: str) -> SourceColumn:
        """Return one side of each pair."""
        return _PairColumn(self, name)

    def take(self, index_N: NDArray[np.int64]) -> PluginPairs:
        """Return the pairs with these numbers, in this order."""
        return replace(self, pairs=_SelectedPairs(self.pairs, index_N.tolist()))

    def drop(self, names: Collection[str]) -> PluginPairs:
        """Return these rows: a plugin makes both sides of a pair at once."""
        del names
        return self


def hours_since_1970(place: Place | None) -> float:
    """Return when something was observed, in hours since 1970; NaN if that is unknown.

    A time that names no zone is UTC, as in tables.
    """
    if place is None or place.time is None:
        return np.nan
    time = place.time if place.time.tzinfo else place.time.replace(tzinfo=UTC)
    return round((time - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000) / _HOUR
