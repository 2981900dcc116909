"""Data that have gone while they are read: a folder removed, a disk unmounted, a share out of reach."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from geobind.data.rasters.cells import RasterColumn
from geobind.data.reading.files import Files
from geobind.data.reading.tars import member_of
from geobind.data.tables.columns import ArrowColumn
from geobind.errors import DataError

if TYPE_CHECKING:
    from geobind.data.tables.table import Table

_OTHERS = 8  # files of other rows that are looked for before all are said to be gone


@runtime_checkable
class CanVanish(Protocol):
    """Rows whose files can go away."""

    def vanished(self, row: int) -> str | None:
        """Say that the data are gone if this row's file is not there, nor those of other rows."""
        ...


def vanished(rows: object, row: int) -> str | None:
    """Say that data are gone, once a row of them cannot be used; None if only this row is at fault."""
    return rows.vanished(row) if isinstance(rows, CanVanish) else None


def vanished_of(table: Table, index: int) -> str | None:
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
        own = _missing(files, _names(column, int(table.rows_N[index])))
        if own is None:
            continue
        rest = [_missing(files, names) for row in others if (names := _names(column, row))]
        if not rest or None in rest:
            continue
        folder, reason = _gone(own)
        return (
            f"{table.name}: the files of '{name}' are gone: {own} and {len(rest)} of {len(rest)} others "
            f"looked for are not there ({folder}: {reason}); mount or restore that and go on with --resume"
        )
    return None


def _names(column: ArrowColumn | RasterColumn, row: int) -> list[str]:
    return [name for _, name in column.file_names(np.array([row], dtype=np.int32), 1)]


def _missing(files: Files, names: list[str]) -> Path | None:
    """Return the file on disk that is to be read and is not there."""
    for name in names:
        try:
            member = member_of(name)
            path = files(name if member is None else member.tar)
        except DataError:
            return None  # a name that is wrong says nothing about others
        try:
            os.stat(path)
        except OSError:
            return path
    return None


def _gone(path: Path) -> tuple[Path, str]:
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
