"""Columns of a table, which read raw inputs lazily from memory-mapped files."""

# N rows

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import pyarrow as pa

from geobind.data.cells import NUMBER
from geobind.data.manifest import CELL, PLACE
from geobind.data.options import ColumnChoice, DataOptions, RasterOptions
from geobind.data.rasters.column import WINDOW, RasterColumn
from geobind.data.readers.arrays import NPY, read_npy
from geobind.data.readers.files import CellText, FileResolver, join_names
from geobind.errors import DataError, did_you_mean
from geobind.modality import Place
from geobind.utils.arrow import map_arrow_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The end of a file's name: a dot, a letter, up to four letters or digits.
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")
SAMPLED_CELLS = 100  # cells that decide whether a column holds files or text


class TableColumn(Protocol):
    """One modality's cells. It is small and pickles: a worker maps the same file again."""

    def __getitem__(self, row: int) -> Any:
        """Return the raw input in this row, a list of them, or None where it is missing."""
        ...

    def present_N(self) -> NDArray[np.bool_]:
        """Return for every row whether its cell is filled."""
        ...


@lru_cache(maxsize=32)
def map_array(path: Path) -> NDArray[Any]:
    """Map a .npy file into memory, once per process."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


@dataclass(frozen=True)
class ArrowColumn:
    """Cells in a memory-mapped Arrow file: lists of strings or bytes, or any other Arrow value."""

    path: Path
    field: str
    files: FileResolver | None = None  # set where strings name files
    first: bool = False  # of several observations in a cell, use the first alone

    def __getitem__(self, row: int) -> Any:
        scalar = self._cells()[row]
        if not scalar.is_valid:
            return None
        items = scalar.as_py()
        if not isinstance(items, list):
            return _mark_text(items)
        items = cast("list[Any]", items)
        if not isinstance(items[0], str | bytes):
            return _to_float32(items)
        items = items[:1] if self.first else items
        if isinstance(items[0], bytes):
            items = [read_npy(item) if item.startswith(NPY) else item for item in items]
        elif self.files is None:
            items = [CellText(item) for item in items]
        else:
            items = [self.files.raw(item) for item in items]
        return items[0] if len(items) == 1 else items

    def present_N(self) -> NDArray[np.bool_]:
        """Return for every row whether its cell is filled."""
        return self._cells().is_valid().to_numpy()

    def file_names(self, rows_N: NDArray[np.int32], limit: int) -> Iterator[tuple[int, str]]:
        """Yield the file names in these rows, each with its row, at most `limit` of them."""
        filled_N = rows_N[self.present_N()[rows_N]][:limit]
        cells = self._cells().take(pa.array(filled_N)).to_pylist()
        return islice(
            ((int(row), name) for row, names in zip(filled_N, cells, strict=True) for name in names), limit
        )

    def _cells(self) -> pa.ChunkedArray:
        return map_arrow_table(self.path).column(self.field)


def keep_first_observations(
    columns: Mapping[str, TableColumn], first: Collection[str], names: Collection[str]
) -> dict[str, TableColumn]:
    """Make the columns of some modalities give the first of several observations alone.

    Raises:
        DataError: No such modality is wanted of the table.
    """
    unknown = next((name for name in first if name not in names), None)
    if unknown is not None:
        hint = did_you_mean(unknown, names, f"there are {', '.join(sorted(names))}")
        raise DataError(f"first: no modality '{unknown}' here; {hint}")
    return {
        name: replace(column, first=True) if name in first and isinstance(column, ArrowColumn) else column
        for name, column in columns.items()
    }


@dataclass(frozen=True)
class ArrayColumn:
    """Rows of a memory-mapped array; with a rate they are sounds, `(array, rate)`."""

    path: Path
    rate: int | None = None

    def __getitem__(self, row: int) -> Any:
        array = np.array(map_array(self.path)[row])
        return array if self.rate is None else (array, self.rate)

    def present_N(self) -> NDArray[np.bool_]:
        """Return true for every row: an array has no gaps."""
        return np.ones(len(map_array(self.path)), dtype=bool)


@dataclass(frozen=True)
class VectorColumn:
    """Several columns of numbers as one vector: NaN where a number is missing, no cell where all are."""

    parts: tuple[TableColumn, ...]
    names: tuple[str, ...]  # of the parts, for messages

    def __getitem__(self, row: int) -> NDArray[np.float32] | None:
        cells = [part[row] for part in self.parts]
        if all(cell is None for cell in cells):
            return None
        for name, cell in zip(self.names, cells, strict=True):
            if not isinstance(cell, int | float | np.number | None):
                raise DataError(f"column '{name}' does not hold a number, which a part of a vector must be")
        return _to_float32([np.nan if cell is None else cell for cell in cells])

    def present_N(self) -> NDArray[np.bool_]:
        """Return for every row whether any of its numbers is there."""
        return np.any([part.present_N() for part in self.parts], axis=0)


@dataclass(frozen=True)
class PlaceColumn:
    """The place and time of every row of an Arrow file, as `geobind.Place`."""

    path: Path

    def __getitem__(self, row: int) -> Place | None:
        return read_place(self.path, row)

    def present_N(self) -> NDArray[np.bool_]:
        """Return for every row whether its place is known."""
        return map_arrow_table(self.path).column("lat").is_valid().to_numpy()


def read_place(path: Path, row: int) -> Place | None:
    """Return the place of a row of an Arrow file, None where it is unknown; times are in UTC."""
    table = map_arrow_table(path)
    lat, lon, time = (
        table.column(field)[row].as_py() if field in table.column_names else None
        for field in ("lat", "lon", "time")
    )
    if lat is None or lon is None:
        return None
    return Place(lat, lon, time and time.replace(tzinfo=UTC))


def _mark_text(value: Any) -> Any:
    """Return a cell with its strings marked as text, those inside of structs too."""
    if isinstance(value, str):
        return CellText(value)
    if isinstance(value, dict):
        return {name: _mark_text(part) for name, part in cast("dict[str, Any]", value).items()}
    return [_mark_text(part) for part in cast("list[Any]", value)] if isinstance(value, list) else value


def _to_float32(items: list[Any]) -> NDArray[np.float32]:
    """Return numbers in 32 bits."""
    try:
        with np.errstate(over="raise"):
            return np.asarray(items, dtype=np.float32)
    except FloatingPointError:
        most = np.finfo(np.float32).max
        raise DataError(f"holds a number larger than {most:.2g}, the most in 32 bits; scale it") from None


def looks_like_file_name(cell: str) -> bool:
    """Return whether a string ends like a file name, which decides where a recipe does not."""
    return _SUFFIX.search(cell) is not None


def _holds_files(
    cells: pa.ChunkedArray, column: str, files: Sequence[str], inline: Sequence[str], where: str
) -> bool:
    """Return whether the strings of a column name files rather than being text.

    The recipe's word decides; without one, the first hundred cells must all end like file names, or none.

    Raises:
        DataError: Some do and some do not.
    """
    if column in files or column in inline:
        return column in files
    sample: list[str] = []
    for chunk in cells.chunks:
        sample += chunk.drop_null()[: SAMPLED_CELLS - len(sample)].flatten().to_pylist()
        if len(sample) >= SAMPLED_CELLS:
            break
    like_files = [cell for cell in sample if looks_like_file_name(cell)]
    if like_files and len(like_files) < len(sample):
        other = next(cell for cell in sample if not looks_like_file_name(cell))
        raise DataError(
            f"{where}: column '{column}' holds both {like_files[0]!r}, which looks like a file, and "
            f"{other[:60]!r}, which does not; under `data`, say `files: [{column}]` or `inline: [{column}]`"
        )
    return bool(like_files)


def _holds_windows(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and kind.value_type == WINDOW


def open_manifest_columns(
    path: Path, options: DataOptions, names: Collection[str], files: FileResolver, where: str
) -> dict[str, TableColumn]:
    """Return the columns of a manifest's Arrow file that the modalities read, by modality.

    Raises:
        DataError: A column holds both files and text, or windows are to be cut around places there are not.
    """
    table = map_arrow_table(path)
    columns: dict[str, TableColumn] = {}
    for name in names:
        column, rasters = options.columns.get(name, name), options.rasters.get(name)
        if not isinstance(column, str):
            columns[name] = VectorColumn(tuple(ArrowColumn(path, NUMBER + part) for part in column), column)
            continue
        field = CELL + column
        if rasters is not None and rasters.paths:
            if "lat" not in table.column_names:
                raise DataError(
                    f"{where}: '{name}' is cut out of {rasters.paths[0]} around places, but there are no "
                    "columns lat and lon; map them with `columns: {lat: COLUMN, lon: COLUMN}`"
                )
            columns[name] = RasterColumn(path, None, files, rasters)
        if column == PLACE and field not in table.column_names and name not in columns:
            columns |= _open_place(path, name, name in options.columns, where)
        if field not in table.column_names or name in columns:
            continue
        cells = table.column(field)
        if rasters is not None or _holds_windows(cells.type):
            columns[name] = RasterColumn(path, field, files, rasters or RasterOptions())
            continue
        strings = pa.types.is_list(cells.type) and pa.types.is_string(cells.type.value_type)
        named = strings and _holds_files(cells, column, options.files, options.inline, where)
        columns[name] = ArrowColumn(path, field, files if named else None)
    return columns


def _open_place(path: Path, name: str, mapped: bool, where: str) -> dict[str, TableColumn]:
    """Return the column of places for a modality, or none where there are no places and none is asked for.

    Raises:
        DataError: The recipe asks for it, and there are no places.
    """
    if "lat" in map_arrow_table(path).column_names:
        return {name: PlaceColumn(path)}
    if mapped:
        raise DataError(
            f"{where}: '{name}' is read as `place`, but there are no columns lat and lon; map them with "
            "`columns: {lat: COLUMN, lon: COLUMN}`"
        )
    return {}


def select_columns(
    path: Path,
    ready: Mapping[str, TableColumn],
    columns: Mapping[str, ColumnChoice],
    names: Collection[str],
    where: str,
) -> dict[str, TableColumn]:
    """Select from the ready columns of a dataset those that the modalities read, by modality.

    Args:
        path: The dataset's Arrow file, whose latitudes and longitudes may be part of a vector.
        ready: Its columns.
        columns: What the recipe says about columns.
        names: The modalities wanted.
        where: Its name in messages.

    Raises:
        DataError: The recipe names a column that is not there, or none of them is.
    """
    places: dict[str, TableColumn] = {}
    if "lat" in map_arrow_table(path).column_names:
        places = {PLACE: PlaceColumn(path), "lat": ArrowColumn(path, "lat"), "lon": ArrowColumn(path, "lon")}

    def find(column: str) -> TableColumn:
        # A dataset may make a column when it is looked up: no other is.
        return ready[column] if column in ready else places[column]

    selected: dict[str, TableColumn] = {}
    unknown: list[str] = []
    for name in names:
        column = columns.get(name, name)
        parts = (column,) if isinstance(column, str) else column
        absent = [part for part in parts if part not in ready and part not in places]
        if absent:
            unknown += absent if name in columns else []
        elif isinstance(column, str):
            selected[name] = find(column)
        else:
            selected[name] = VectorColumn(tuple(find(part) for part in column), column)
    if unknown or not selected:
        wanted = f"'{unknown[0]}'" if unknown else f"for {', '.join(names)}"
        raise DataError(
            f"{where}: has no column {wanted}; its columns: {join_names(ready)}; map them with `columns: "
            f"{{{next(iter(names), 'NAME')}: {next(iter(ready))}}}`"
        )
    return selected
