"""Raster-window cells: their validation, and the column that reads them."""

# N rows

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from geobind.data.options import RasterOptions
from geobind.data.readers.files import FileResolver, join_names, show_value
from geobind.errors import DataError
from geobind.utils.arrow import map_arrow_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PLACE, _SIZE, _PIXELS = ("lat", "lon"), ("size_m", "gsd"), ("x", "y", "width", "height")
WINDOW = pa.struct(
    [
        ("raster", pa.string()),
        *((name, pa.float64()) for name in (*_PLACE, *_SIZE)),
        *((name, pa.int64()) for name in _PIXELS),
        ("bands", pa.list_(pa.int64())),
    ]
)
_FIELDS = tuple(field.name for field in WINDOW)


def check_window(cell: dict[str, Any]) -> dict[str, Any]:
    """Check what a cell says of a window of a raster, and return what it says.

    Raises:
        ValueError: It does not name a window.
    """
    fields = {name: value for name, value in cell.items() if value is not None}
    unknown = sorted(fields.keys() - set(_FIELDS))
    if unknown:
        raise ValueError(
            f"a window of a raster has no {show_value(unknown[0])}; it may have {', '.join(_FIELDS)}"
        )
    if not isinstance(fields.get("raster"), str) or not fields["raster"].strip():
        raise ValueError("a window of a raster must name it: `raster`")
    numbers = {name: fields[name] for name in (*_PLACE, *_SIZE, *_PIXELS) if name in fields}
    wrong = next((name for name, value in numbers.items() if not _fits(name, value)), None)
    if wrong:
        raise ValueError(f"'{wrong}' of a raster's window cannot be {show_value(numbers[wrong])}")
    for group in (_PLACE, _PIXELS):
        there = [name for name in group if name in fields]
        if 0 < len(there) < len(group):
            raise ValueError(f"a raster's window has '{there[0]}' but not all of {', '.join(group)}")
    if "x" in fields and len(numbers) > len(_PIXELS):
        raise ValueError(
            "a raster's window is given by pixels (x, y, width, height) or by place, not by both"
        )
    bands = fields.get("bands")
    if bands is not None and not (isinstance(bands, list) and bands and all(map(_is_band, bands))):
        raise ValueError(
            f"'bands' of a raster's window must be a list of numbers from 1, not {show_value(bands)}"
        )
    return fields


def _fits(name: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # No float holds 10 ** 400.
    if (isinstance(value, int) and abs(value) > 2**62) or not math.isfinite(value):
        return False
    if name in _PLACE:
        return abs(value) <= (90 if name == "lat" else 180)
    if name in _SIZE:
        return 0 < value <= 1e6
    return value == int(value) and abs(value) < 2**31 and (value >= 1 or name in ("x", "y"))


def _is_band(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**16


@dataclass(frozen=True)
class RasterColumn:
    """Windows of rasters, which are cut out when a cell is asked for: around its row's place, or as it says.

    It pickles small; each process opens the rasters for itself.
    """

    path: Path  # the Arrow file with the rows' places
    field: str | None  # the cells: windows, or the names of rasters; None cuts around every place
    files: FileResolver
    options: RasterOptions

    def __getitem__(self, row: int) -> Any:
        """Return this row's window as an (H, W, B) array, a list of them, or None where it is missing."""
        if self.field is None:
            names = self._list_covering(row)
            return self._best(names, row) if names else None
        windows = [self._read(window, row) for window in self._windows(row)]
        return windows[0] if len(windows) == 1 else windows or None

    def describe_window(self, row: int) -> Any:
        """Return the files and options that this row's window is cut with, without reading it.

        Returns:
            A tuple of files and facts for each window: those of two windows are equal only if the windows
            are. A virtual raster is read, since its file does not say what is in those it is made of.
        """
        if self.field is None:
            there = self._list_covering(row)
            cut = [({}, [self.files(name) for name in self.options.paths])] if there else []
        else:
            windows = self._windows(row)
            cut = [({**window, "raster": None}, [self.files(window["raster"])]) for window in windows]
        if any(file.suffix.lower() == ".vrt" for _, files in cut for file in files):
            return self[row]
        facts = self.options.model_dump_json(), _lat_lon(self.path, row)
        described = [((*map(_list_sidecars, files),), window, *facts) for window, files in cut]
        return described[0] if len(described) == 1 else described or None

    def present_N(self) -> NDArray[np.bool_]:
        """Return whether each row has a window or, without cells, whether a raster covers its place."""
        if self.field is None:
            return np.any(_covered(self), axis=0)
        return map_arrow_table(self.path).column(self.field).is_valid().to_numpy()

    def file_names(self, rows_N: NDArray[np.int32], limit: int) -> Iterator[tuple[int, str]]:
        """Yield the rasters that these rows name, each with its first row, at most `limit` of them."""
        seen: set[str] = set()
        for row in rows_N:
            windows = [{"raster": name} for name in self.options.paths] or self._windows(int(row))
            fresh = [window["raster"] for window in windows if window["raster"] not in seen]
            seen.update(fresh)
            yield from islice(((int(row), name) for name in fresh), limit)
            if self.field is None or len(seen) >= limit:
                return

    def _windows(self, row: int) -> list[dict[str, Any]]:
        scalar = map_arrow_table(self.path).column(cast(str, self.field))[row]
        items = cast("list[Any]", scalar.as_py() or [])
        return [{"raster": item} if isinstance(item, str) else item for item in items]

    def _read(self, window: dict[str, Any], row: int) -> NDArray[Any]:
        from geobind.data.rasters.window import read_pixels, read_raster, read_window

        fields = {name: value for name, value in window.items() if value is not None}
        raster = self.files(fields["raster"])
        chosen = {name: fields[name] for name in _SIZE if name in fields}
        chosen |= {"bands": tuple(fields["bands"])} if "bands" in fields else {}
        options = self.options.model_copy(update=chosen)
        if "x" in fields:
            return read_pixels(raster, fields["x"], fields["y"], fields["width"], fields["height"], options)
        if options.size_m is None and options.gsd is None and "lat" not in fields:
            return read_raster(raster, options)
        lat, lon = (fields["lat"], fields["lon"]) if "lat" in fields else _place(self.path, row)
        return read_window(raster, lat, lon, options)

    def _list_covering(self, row: int) -> list[str]:
        """List the rasters that cover a row's place."""
        inside = zip(self.options.paths, _covered(self), strict=True)
        return [name for name, inside_N in inside if inside_N[row]]

    def _best(self, names: list[str], row: int) -> NDArray[Any]:
        """Cut the window out of the raster that has most of it.

        Of rasters that have equally much, it is the one whose pixels are nearest to `gsd`, then the first.
        Those that cover the place are looked at in this order, up to the first that has all of it.
        """
        from geobind.data.rasters.window import cut_window

        lat, lon = _place(self.path, row)
        best, faults = None, list[DataError]()
        for name in self._by_gsd(names, lat, lon):
            try:
                cut = cut_window(self.files(name), lat, lon, self.options)
            except DataError as error:
                faults.append(error)
                continue
            best = cut if best is None or cut.share > best.share else best
            if best.share == 1:
                break
        if best is None:
            raise faults[0] if len(faults) == 1 else DataError("; ".join(map(str, faults)))
        return best.values_HWB

    def _by_gsd(self, names: list[str], lat: float, lon: float) -> list[str]:
        """Sort rasters by how near their pixels are to the size that is wanted, the nearest first."""
        from geobind.data.rasters.places import measure_gsd

        wanted = self.options.gsd
        if wanted is None or len(names) < 2:
            return names
        distances: dict[str, float] = {}
        for name in names:
            try:
                distances[name] = round(abs(math.log(measure_gsd(self.files(name), lat, lon) / wanted)), 2)
            except DataError:  # reading it says why
                distances[name] = math.inf
        return sorted(names, key=lambda name: distances[name])


@lru_cache(maxsize=4096)
def _list_sidecars(raster: Path) -> tuple[Path, ...]:
    """List a raster and the files beside it that change how it is read."""
    beside = [raster.with_name(raster.name + suffix) for suffix in (".aux.xml", ".ovr", ".msk")]
    beside += [raster.with_suffix(suffix) for suffix in (".tfw", ".wld", ".hdr", ".prj")]
    return (raster, *(file for file in beside if file.is_file()))


def _lat_lon(path: Path, row: int) -> tuple[float | None, float | None]:
    table = map_arrow_table(path)
    lat, lon = (table.column(name)[row].as_py() if name in table.column_names else None for name in _PLACE)
    return lat, lon


def _place(path: Path, row: int) -> tuple[float, float]:
    lat, lon = _lat_lon(path, row)
    if lat is None or lon is None:
        raise DataError(
            "a raster's window has no place: fill the row's lat and lon, or those of the cell, or give "
            "pixels: x, y, width, height"
        )
    return lat, lon


@lru_cache(maxsize=8)
def _covered(column: RasterColumn) -> tuple[NDArray[np.bool_], ...]:
    """Find, for each raster, the rows whose places it covers.

    Raises:
        DataError: No raster covers any place: the scene is of somewhere else, or lat and lon are swapped.
    """
    from geobind.data.rasters.places import find_covered_places

    table = map_arrow_table(column.path)
    lat_N, lon_N = (table.column(name).to_numpy() for name in _PLACE)
    inside = tuple(find_covered_places(column.files(name), lat_N, lon_N) for name in column.options.paths)
    if not np.any(inside):
        known_N = np.isfinite(lat_N) & np.isfinite(lon_N)
        raise DataError(_describe_miss(column, lat_N[known_N], lon_N[known_N]))
    return inside


def _describe_miss(column: RasterColumn, lat_N: NDArray[np.float64], lon_N: NDArray[np.float64]) -> str:
    """Describe where the places are and where the rasters, of which none covers one."""
    from geobind.data.rasters.places import find_covered_places, measure_extent

    names = column.options.paths
    listed = join_names(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if not len(lat_N):
        return f"no row has a place (lat and lon), around which a window could be cut out of {listed}"
    extents = [extent for name in names if (extent := measure_extent(column.files(name))) is not None]
    spans = [_describe_extent(extent) for extent in extents[:3]]
    places = _describe_extent((lon_N.min(), lat_N.min(), lon_N.max(), lat_N.max()))
    hint = "take a scene of these places"
    possible = np.abs(lon_N) <= 90
    files = [column.files(name) for name in names]
    swapped = [find_covered_places(file, lon_N[possible], lat_N[possible]) for file in files]
    if np.any(swapped):
        count = int(np.any(swapped, axis=0).sum())
        hint = f"with lat and lon swapped, {count} would: map them the other way with `columns`"
    return f"0 of {len(lat_N)} places lie in {listed} ({'; '.join(spans)}), they lie in {places}: {hint}"


def _describe_extent(extent: tuple[float, float, float, float]) -> str:
    west, south, east, north = extent
    return f"latitudes {south:.4g} to {north:.4g}, longitudes {west:.4g} to {east:.4g}"
