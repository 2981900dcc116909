"""Helpers of the dataset importers: Parquet shards as hubs distribute them, and coordinates."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from geobind.errors import DataError
from geobind.importers.contract import Column
from geobind.importers.reading import walk_files

_NAME = re.compile(r"(train|val|validation|test)-(\d+)-of-(\d+)\.parquet$")
_ROWS = 64  # at a time; a row may have several megabytes


class PackedShard(NamedTuple):
    """One Parquet file of a split."""

    path: Path
    split: str


def find_bytes_columns(columns: Mapping[str, Column]) -> dict[str, Column]:
    """Return the columns of a dataset whose files are bytes."""
    return {
        name: column._replace(kind="bytes") if column.kind == "file" else column
        for name, column in columns.items()
    }


def list_shards(folder: Path) -> list[PackedShard]:
    """Return the shards under a folder, in order, `validation` called val; none if it holds none.

    Raises:
        DataError: Some of a split are missing.
    """
    found = {path: match for path in sorted(walk_files(folder)) if (match := _NAME.search(path.name))}
    splits: dict[str, list[re.Match[str]]] = {}
    for match in found.values():
        splits.setdefault(match[1], []).append(match)
    for split, matches in splits.items():
        if len(matches) != int(matches[0][3]):
            raise DataError(
                f"{folder}: has {len(matches)} of the {int(matches[0][3])} shards of split '{split}'; "
                "download the others, or name the files there are one by one"
            )
    return [
        PackedShard(path, "val" if match[1] == "validation" else match[1]) for path, match in found.items()
    ]


def read_rows(
    shard: PackedShard, needed: Collection[str], wanted: Collection[str]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard; of an image or sound its bytes.

    Args:
        shard: The file.
        needed: Columns that must be there.
        wanted: Further columns to read where there are.

    Raises:
        DataError: It is damaged or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(shard.path) as file:
            there = file.schema_arrow.names
            lacking = sorted(set(needed) - set(there))
            if lacking:
                raise DataError(
                    f"{shard.path}: has no column '{lacking[0]}'; its columns: {', '.join(there)}"
                )
            read = [name for name in there if name in needed or name in wanted]
            for batch in file.iter_batches(_ROWS, columns=read):
                for row in batch.to_pylist():
                    yield {name: _content(cell) for name, cell in row.items()}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shard.path}: not a Parquet file that can be read: {error}") from error


def _content(cell: Any) -> Any:
    return cell.get("bytes") if isinstance(cell, dict) else cell


Place = tuple[float, float]  # degrees north and east
Box = tuple[float, float, float, float]  # west, south, east, north; or the smallest and largest x and y
_POINT, _LINE, _POLYGON = 1, 2, 3
_PARTS = (4, 5, 6, 7)  # several points, lines, polygons, anything
_DEEPEST = 8  # geometries in geometries
_WIDEST = 180.0  # degrees; what is wider is taken for what crosses the antimeridian
_NARROW = 60.0  # degrees of a scene that does


def to_degrees(crs: Any, x: float, y: float) -> Place | None:
    """Convert a place in a CRS to degrees, or None where there are none for it.

    Args:
        crs: Of rasterio, pyproj or whatever has `to_wkt`, or text such as `EPSG:32631`.
        x: East, in the CRS.
        y: North, in the CRS.

    Raises:
        DataError: rasterio is not installed, or does not know the CRS.
    """
    from geobind.data.rasters.opening import require_rasterio

    rasterio = require_rasterio()
    from rasterio.crs import CRS
    from rasterio.warp import transform

    try:
        known = CRS.from_user_input(crs.to_wkt() if hasattr(crs, "to_wkt") else crs)
        lon_1, lat_1 = transform(known, "EPSG:4326", [x], [y])[:2]
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError, ValueError) as error:
        raise DataError(f"the CRS {str(crs)[:60]!r} cannot be used: {error}") from error
    lat, lon = float(lat_1[0]), float(lon_1[0])
    if not (abs(lat) <= 90 and abs(lon) <= 540):  # or none at all: infinite
        return None
    return lat, wrap_degrees(lon)


def read_raster_extent(path: Path) -> tuple[int, int, Place | None]:
    """Return the width and height of a GeoTIFF in pixels and the place of its middle, if it has one.

    Raises:
        DataError: It cannot be opened.
    """
    from geobind.data.rasters.opening import open_raster

    raster = open_raster(path)
    if raster.crs is None or raster.transform.is_identity:
        return raster.width, raster.height, None
    grid, column, row = raster.transform, raster.width / 2, raster.height / 2
    x, y = grid.a * column + grid.b * row + grid.c, grid.d * column + grid.e * row + grid.f
    return raster.width, raster.height, to_degrees(raster.crs, x, y)


def wrap_degrees(lon: float) -> float:
    """Return a longitude from -180 up to 180; those that are stay to the bit."""
    return lon if -180 <= lon < 180 else (lon + 180) % 360 - 180


def compute_middle(box: Box) -> Place | None:
    """Return the middle of a box in degrees, or None of one that has none.

    One whose west lies east of its east crosses the antimeridian. So does one nearly as wide as the Earth: it
    is what the smallest and largest longitude of a scene over the antimeridian make. It has a middle if it is
    then narrow, and none if it is neither.
    """
    west, south, east, north = box
    if not all(map(math.isfinite, box)) or not -90 <= south <= north <= 90:
        return None
    if not (abs(west) <= 540 and abs(east) <= 540):
        return None
    width = (east - west) % 360 if west > east else east - west
    if width > _WIDEST:
        if west > east or not 0 < 360 - width <= _NARROW:
            return None
        west, width = east, 360 - width
    return (south + north) / 2, wrap_degrees(west + width / 2)


def parse_wkb_box(content: bytes) -> Box | None:
    """Return the box around a geometry in well-known binary, of ISO or extended (EWKB) kind.

    Its parts may lie on both sides of the antimeridian, where RFC 7946 cuts them: the box is then the
    narrower one, with its west east of its east. An empty geometry has none.

    Raises:
        DataError: It is damaged, or of a kind that is not known.
    """
    reader = _Wkb(content)
    try:
        reader.geometry(0)
    except (struct.error, IndexError) as error:
        raise DataError("its geometry is cut short") from error
    if not reader.ys:
        return None
    west, east = _around(reader.parts)
    return west, min(reader.ys), east, max(reader.ys)


def _around(parts: list[tuple[float, float]]) -> tuple[float, float]:
    """Return west and east of the shortest arc around some arcs; west is above east over the seam."""
    if max(east for _, east in parts) - min(west for west, _ in parts) <= _WIDEST or len(parts) == 1:
        return min(west for west, _ in parts), max(east for _, east in parts)
    # Where the widest gap between the arcs ends, what is around all of them begins.
    ordered = sorted((west % 360, west % 360 + east - west) for west, east in parts)
    best, begin = -math.inf, 0.0
    reach = max(end for _, end in ordered) - 360
    for start, end in ordered:
        if start - reach > best:
            best, begin = start - reach, start
        reach = max(reach, end)
    if best <= 0:
        return -180.0, 180.0
    west, east = wrap_degrees(begin), wrap_degrees(begin - best)
    return west, east


class _Wkb:
    """Parser of a geometry that collects its coordinates."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at, self.order = content, 0, "<"
        self.parts: list[tuple[float, float]] = []  # smallest and largest longitude of each point or line
        self.ys: list[float] = []

    def geometry(self, depth: int) -> None:
        """Read a geometry, and those in it."""
        if depth > _DEEPEST:
            raise DataError(f"a geometry holds others more than {_DEEPEST} deep")
        self.order = "<" if self.content[self.at] == 1 else ">"
        self.at += 1
        kind = self._number()
        extended = kind >> 29  # z, m, a reference system
        if extended & 1:
            self.at += 4
        iso, kind = divmod(kind & 0x1FFFFFFF, 1000)
        axes = 2 + (2 if iso == 3 else 1 if iso else bin(extended >> 1).count("1"))
        if kind == _POINT:
            self._points(1, axes)
        elif kind == _LINE:
            self._points(self._number(), axes)
        elif kind == _POLYGON:
            for _ in range(self._number()):
                self._points(self._number(), axes)
        elif kind in _PARTS:
            for _ in range(self._number()):
                self.geometry(depth + 1)
        else:
            raise DataError(f"a geometry is of kind {kind}, which is not read")

    def _number(self) -> int:
        (value,) = struct.unpack_from(f"{self.order}I", self.content, self.at)
        self.at += 4
        return value

    def _points(self, count: int, axes: int) -> None:
        # The length is checked before anything is made of a count that may be hostile.
        if count * axes * 8 > len(self.content) - self.at:
            raise struct.error
        values = struct.unpack_from(f"{self.order}{count * axes}d", self.content, self.at)
        self.at += count * axes * 8
        xs = [value for value in values[::axes] if not math.isnan(value)]
        self.parts += [(min(xs), max(xs))] if xs else []
        self.ys += [value for value in values[1::axes] if not math.isnan(value)]
