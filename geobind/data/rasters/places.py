"""Places on rasters: longitude and latitude to source pixels, and what a raster covers."""

# N places; source: the raster's own pixels, (column, row) from its upper left corner

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from geobind.data.rasters.opening import open_raster, report_raster_damage, require_rasterio
from geobind.errors import DataError
from geobind.utils.geo import degrees_per_metre

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    Map = NDArray[np.float64]

_DEGREES = "EPSG:4326"
_MAX_CALLS = 4096  # of PROJ for one list of places
_STEP = 10.0  # metres over which the pixels a metre are measured
_SENSE = 1e12  # pixels, or pixels a metre; beyond, a raster is damaged and numbers overflow
_MAX_LAT = 89.99  # nearer to a pole, east and north mean nothing


@report_raster_damage
def find_covered_places(
    path: str | Path, lat_N: NDArray[np.float64], lon_N: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Find the places inside a raster; NaN places are outside.

    Raises:
        DataError: The raster cannot be opened, or has no CRS.
    """
    dataset = open_raster(Path(path))
    inside_N = np.zeros(len(lat_N), dtype=bool)
    known = np.flatnonzero(np.isfinite(lat_N) & np.isfinite(lon_N))
    column_K, row_K = find_source_pixels(dataset, lat_N[known], lon_N[known])
    # What lies on an edge lies inside: at a seam either edge may be the place's.
    inside_N[known] = (column_K >= 0) & (column_K <= dataset.width) & (row_K >= 0) & (row_K <= dataset.height)
    return inside_N


def metres_to_pixels(dataset: DatasetReader, lat: float, lon: float) -> Map:
    """Return the map from metres east and north of a place to source pixels, exact at the place."""
    if not (-_MAX_LAT <= lat <= _MAX_LAT and -180 <= lon <= 180):
        raise DataError(
            f"{dataset.name}: {lat:g}, {lon:g} is no place a window can be cut around: latitudes must be "
            f"within {_MAX_LAT} degrees and longitudes within 180"
        )
    north, east = (_STEP * float(degrees[0]) for degrees in degrees_per_metre(np.array([lat])))
    # Steps towards the middle of the map, so that none leaves it at a pole or the antimeridian.
    south_or_north, west_or_east = -math.copysign(1, lat), -math.copysign(1, lon)
    columns, rows = find_source_pixels(
        dataset,
        np.array([lat, lat, lat + south_or_north * north]),
        np.array([lon, lon + west_or_east * east, lon]),
        together=True,
    )
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        raise DataError(f"{dataset.name}: {lat:g}, {lon:g} lies outside of what its CRS can express")
    by_east, by_north = _STEP * west_or_east, _STEP * south_or_north
    found = make_affine(
        (columns[1] - columns[0]) / by_east,
        (columns[2] - columns[0]) / by_north,
        columns[0],
        (rows[1] - rows[0]) / by_east,
        (rows[2] - rows[0]) / by_north,
        rows[0],
    )
    makes_sense = np.abs(found).max() <= _SENSE  # not if one is NaN
    if not (makes_sense and np.linalg.svd(found[:2, :2], compute_uv=False).min() > 1 / _SENSE):
        raise DataError(f"{dataset.name}: its geotransform {dataset.transform[:6]} makes no sense on Earth")
    return found


def make_affine(a: float, b: float, c: float, d: float, e: float, f: float) -> Map:
    """Make the map (x, y) -> (ax + by + c, dx + ey + f), a 3 x 3 matrix."""
    return np.array([[a, b, c], [d, e, f], [0, 0, 1]], dtype=np.float64)


def find_source_pixels(
    dataset: DatasetReader, lat_N: NDArray[np.float64], lon_N: NDArray[np.float64], *, together: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the source columns and rows of places, infinite where the CRS has none for them.

    A raster may start at any longitude, as those from 0 to 360 do. Each place is counted from where it is
    nearest to the raster's middle; `together` counts all where they are nearest to the first, so that places
    on both sides of a seam are neighbours.
    """
    rasterio = require_rasterio()
    if dataset.crs is None or dataset.transform.is_identity:
        lacks = "CRS" if dataset.crs is None else "geotransform"
        raise DataError(
            f"{dataset.name}: does not say where on Earth it lies (it has no {lacks}); write it "
            "(gdal_edit.py -a_srs EPSG:CODE -a_ullr ...; with control points, gdalwarp), or name windows by "
            "pixels: x, y, width, height"
        )
    matrix = np.array(dataset.transform).reshape(3, 3)
    with np.errstate(over="ignore", invalid="ignore"):
        determinant = np.linalg.det(matrix)
    if not np.isfinite(determinant):
        raise DataError(f"{dataset.name}: its geotransform {dataset.transform[:6]} makes no sense on Earth")
    if not determinant:
        raise DataError(
            f"{dataset.name}: its geotransform {dataset.transform[:6]} maps all pixels onto a line"
        )
    size = dataset.width, dataset.height
    try:
        return find_pixels(dataset.crs.to_wkt(), matrix, size, lat_N, lon_N, together=together)
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError) as error:
        raise DataError(f"{dataset.name}: its CRS cannot be used: {error}") from error


def find_pixels(
    crs: str,
    matrix: Map,
    size: tuple[int, int],
    lat_N: NDArray[np.float64],
    lon_N: NDArray[np.float64],
    *,
    together: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return columns and rows of places on a georeferenced grid, infinite where its CRS has none for them.

    Args:
        crs: The grid's coordinate reference system, as WKT or EPSG:CODE.
        matrix: (3, 3), from (column, row, 1) to its coordinates.
        size: Its columns and rows.
        lat_N: Degrees north.
        lon_N: Degrees east.
        together: Count all places where they are nearest to the first, not to the grid's middle.

    Raises:
        RasterioError: The CRS cannot be used.
    """
    x_N, y_N = _project(crs, lat_N, lon_N)
    around = _measure_circumference(crs)
    with np.errstate(invalid="ignore", over="ignore"):
        if around and len(x_N):
            middle = (matrix @ [size[0] / 2, size[1] / 2, 1])[0]
            x_N = x_N - around * np.floor((x_N - middle) / around + 0.5)
            if together:
                x_N = x_N - around * np.round((x_N - x_N[0]) / around)
        column_N, row_N, _ = np.linalg.inv(matrix) @ np.stack([x_N, y_N, np.ones(len(x_N))])
    return column_N, row_N


def _project(
    crs: str, lat_N: NDArray[np.float64], lon_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coordinates of places, infinite where a CRS has none.

    For most such places PROJ gives infinity. For some, as those 90 degrees east of a transverse Mercator's
    meridian, GDAL refuses all that are asked with them: halves are then asked for themselves.
    """
    from rasterio.warp import transform

    x_N, y_N = np.full((2, len(lon_N)), np.inf)
    waiting = [slice(0, len(lon_N))]
    for _ in range(_MAX_CALLS):
        if not waiting:
            return x_N, y_N
        part = waiting.pop()
        try:
            x_N[part], y_N[part] = transform(_DEGREES, crs, lon_N[part], lat_N[part])[:2]
        except Exception as error:
            if type(error).__module__ != "rasterio._err":  # GDAL's own, which have no public base class
                raise
            middle = (part.start + part.stop) // 2
            if part.stop - part.start > 1:
                waiting += [slice(part.start, middle), slice(middle, part.stop)]
    return x_N, y_N


@lru_cache(maxsize=256)
def _measure_circumference(crs: str) -> float | None:
    """Return how far apart in a CRS, in its units, the same meridian comes again; None if it does not.

    It does where meridians are straight, parallel and equally spaced, as in degrees and in Mercator's map.
    """
    from rasterio.crs import CRS
    from rasterio.warp import transform

    known = CRS.from_user_input(crs)
    if known.is_geographic:
        return 2 * math.pi / known.units_factor[1]  # radians per degree, or per gon
    # The seam of the CRS itself may lie between two of these meridians, but not between both pairs.
    lon_N, lat_N = [0.0, 1.0, 0.0, 1.0, 90.0, 91.0, 90.0, 91.0], [0.0, 0.0, 45.0, 45.0] * 2
    try:
        x_N, y_N = (np.array(axis) for axis in transform(_DEGREES, crs, lon_N, lat_N)[:2])
    except Exception:  # a CRS that has no such places has no such circle
        return None
    pairs = x_N.reshape(2, 4), y_N.reshape(2, 4)
    x_4, y_4 = min(zip(*pairs, strict=True), key=lambda pair: abs(pair[0][1] - pair[0][0]))
    degree = abs(x_4[1] - x_4[0])
    bends = np.array([x_4[2] - x_4[0], x_4[3] - x_4[1], y_4[1] - y_4[0], y_4[3] - y_4[2]])
    if not (np.isfinite(bends).all() and 0 < degree < np.inf):
        return None
    return float(360 * degree) if np.abs(bends).max() < 1e-6 * degree else None


def find_turn(dataset: DatasetReader) -> float | None:
    """Return the source columns of one turn around the Earth, or None of a raster whose rows do not go so."""
    grid = dataset.transform
    if dataset.crs is None or grid.is_identity or not grid.a or grid.b or grid.d:
        return None
    around = _measure_circumference(dataset.crs.to_wkt())
    turn = around and abs(around / grid.a)
    return turn if turn and np.isfinite(turn) else None


def measure_spacing(to_source: Map) -> float:
    """Return the metres of a source pixel, along the finer axis."""
    return float(1 / np.hypot(*to_source[:2, :2]).max())


@report_raster_damage
def measure_gsd(path: str | Path, lat: float, lon: float) -> float:
    """Return the metres of a raster's own pixels at a place.

    Raises:
        DataError: The raster cannot be opened, or has no pixels there.
    """
    return measure_spacing(metres_to_pixels(open_raster(Path(path)), lat, lon))


@report_raster_damage
def measure_extent(path: str | Path) -> tuple[float, float, float, float] | None:
    """Return the west, south, east and north of a raster in degrees; None if its CRS cannot say."""
    from rasterio.warp import transform_bounds

    dataset = open_raster(Path(path))
    try:
        west, south, east, north = transform_bounds(dataset.crs, _DEGREES, *dataset.bounds)
    except Exception:  # PROJ knows many reasons, and this is part of a message
        return None
    return west, min(south, north), east, max(south, north)  # rows may go from south to north
