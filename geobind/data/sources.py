"""Sources of training rows: tables, pairs of plugins, and the detection of missing storage."""

# N rows

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

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

    from geobind.data.table import Table


_OTHERS = 8  # files of other rows that are looked for before all are said to be gone


@runtime_checkable
class DetectsMissingStorage(Protocol):
    """Rows whose files can go away."""

    def find_missing_storage(self, row: int) -> str | None:
        """Say that the data are gone if this row's file is not there, nor those of other rows."""
        ...


def find_missing_storage(rows: object, row: int) -> str | None:
    """Say that data are gone, once a row of them cannot be used; None if only this row is at fault."""
    return rows.find_missing_storage(row) if isinstance(rows, DetectsMissingStorage) else None


def find_missing_files(table: Table, index: int) -> str | None:
    """Say that the files of a table are gone: that of a row, and those of all other rows looked at.

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
        own = _find_missing_file(files, _list_file_names(column, int(table.rows_N[index])))
        if own is None:
            continue
        rest = [
            _find_missing_file(files, names) for row in others if (names := _list_file_names(column, row))
        ]
        if not rest or None in rest:
            continue
        folder, reason = _find_missing_folder(own)
        return (
            f"{table.name}: the files of '{name}' are gone: {own} and {len(rest)} of {len(rest)} others "
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
    found = path, "no such file"
    for folder in path.parents:
        try:
            with os.scandir(folder) as entries:
                if next(entries, None) is not None:
                    break
                found = folder, "it is empty"
        except OSError as error:
            found = folder, error.strerror or str(error)
    return found


_HOUR = 3600 * 1_000_000  # microseconds


class RowSource(Protocol):
    """Rows of one source. They pickle small: every process that loads data has them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...

    def rows_with(self, names: Collection[str]) -> NDArray[np.int64]:
        """Return the numbers of the rows that have all of these modalities."""
        ...

    def metadata(self) -> RowMetadata:
        """Return what is known about all rows."""
        ...


class RowMetadata(NamedTuple):
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

    def __getitem__(self, index: int) -> Row:
        return self.table.read_row(index, self.names)

    def find_missing_storage(self, row: int) -> str | None:
        """Say that the data are gone if this row's file is not there, nor those of other rows."""
        return find_missing_files(self.table, row)

    def rows_with(self, names: Collection[str]) -> NDArray[np.int64]:
        """Return the numbers of the rows that have all of these modalities."""
        return self.table.rows_with(names)

    def metadata(self) -> RowMetadata:
        """Return what is known about all rows."""
        count, table = len(self), self.table
        lat_N, lon_N = (np.full(count, np.nan) if part is None else part for part in (table.lat, table.lon))
        hour_N = np.full(count, np.nan)
        if table.time is not None:
            since_N = (table.time - np.datetime64(0, "us")).astype("timedelta64[us]")
            there_N = ~np.isnat(since_N) & np.isfinite(lat_N)
            hour_N[there_N] = since_N[there_N].astype(np.int64) / _HOUR
        return RowMetadata(lat_N, lon_N, hour_N, np.array(table.labels or [None] * count, dtype=object))


@dataclass(frozen=True, eq=False)
class PluginPairs:
    """The pairs that a plugin brings, as rows."""

    pairs: Sequence[Pair]
    anchor: str
    other: str

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
        """Return what is known about all rows."""
        pairs = [self.pairs[row] for row in range(len(self))]
        places = [pair.place or Place(np.nan, np.nan) for pair in pairs]
        found_N3 = np.array([(at.lat, at.lon, hours_since_1970(at)) for at in places], dtype=np.float64)
        lat_N, lon_N, hour_N = found_N3.reshape(len(pairs), 3).T
        return RowMetadata(lat_N, lon_N, hour_N, np.array([pair.label for pair in pairs], dtype=object))


def hours_since_1970(place: Place | None) -> float:
    """Return when something was observed, in hours since 1970; NaN if that is unknown.

    A time that names no zone is UTC, as in tables.
    """
    if place is None or place.time is None:
        return np.nan
    time = place.time if place.time.tzinfo else place.time.replace(tzinfo=UTC)
    return round((time - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000) / _HOUR
