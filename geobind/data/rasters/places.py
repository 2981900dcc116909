"""From a place on Earth to the pixels of a raster, whatever its CRS."""

# N places; source: the raster's own pixels, (column, row) from its upper left corner

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from geobind.data.rasters.geotiff import open_raster, require_rasterio, tells_damage
from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    Map = NDArray[np.float64]

_DEGREES = "EPSG:4326"
_A, _E2 = 6378137.0, 6.69437999014e-3  # WGS 84: semi-major axis in metres, eccentricity squared
_STEP = 10.0  # metres over which the pixels a metre are measured
_SENSE = 1e12  # pixels, or pixels a metre; beyond, a raster is damaged and numbers overflow
_MAX_LAT = 89.99  # nearer to a pole, east and north mean nothing


@tells_damage
def covers_N(path: str | Path, lat_N: NDArray[np.float64], lon_N: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which places lie inside a raster; places that are NaN do not.

    Raises:
        DataError: The raster cannot be opened, or has no CRS.
    """
    dataset = open_raster(Path(path))
    inside_N = np.zeros(len(lat_N), dtype=bool)
    known = np.flatnonzero(np.isfinite(lat_N) & np.isfinite(lon_N))
    column_K, row_K = _source_pixels(dataset, lat_N[known], lon_N[known])
    inside_N[known] = (column_K >= 0) & (column_K < dataset.width) & (row_K >= 0) & (row_K < dataset.height)
    return inside_N


def pixels_by_metre(dataset: DatasetReader, lat: float, lon: float) -> Map:
    """Return the map from metres east and north of a place to source pixels, exact at the place."""
    if not (-_MAX_LAT <= lat <= _MAX_LAT and -180 <= lon <= 180):
        raise DataError(
            f"{dataset.name}: {lat:g}, {lon:g} is no place a window can be cut around: latitudes must be "
            f"within {_MAX_LAT} degrees and longitudes within 180"
        )
    sine = math.sin(math.radians(lat))
    root = math.sqrt(1 - _E2 * sine**2)
    north = math.degrees(_STEP * root**3 / (_A * (1 - _E2)))
    east = math.degrees(_STEP * root / (_A * math.cos(math.radians(lat))))
    # Steps towards the middle of the map, so that none leaves it at a pole or the antimeridian.
    south_or_north, west_or_east = -math.copysign(1, lat), -math.copysign(1, lon)
    columns, rows = _source_pixels(
        dataset,
        np.array([lat, lat, lat + south_or_north * north]),
        np.array([lon, lon + west_or_east * east, lon]),
    )
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        raise DataError(f"{dataset.name}: {lat:g}, {lon:g} lies outside of what its CRS can express")
    by_east, by_north = _STEP * west_or_east, _STEP * south_or_north
    found = affine(
        (columns[1] - columns[0]) / by_east,
        (columns[2] - columns[0]) / by_north,
        columns[0],
        (rows[1] - rows[0]) / by_east,
        (rows[2] - rows[0]) / by_north,
        rows[0],
    )
    if np.abs(found).max() > _SENSE or not 1 / _SENSE < np.abs(found[:2, :2]).max():
        raise DataError(f"{dataset.name}: its geotransform {dataset.transform[:6]} makes no sense on Earth")
    return found


def affine(a: float, b: float, c: float, d: float, e: float, f: float) -> Map:
    """Make the map (x, y) -> (ax + by + c, dx + ey + f), a 3 x 3 matrix."""
    return np.array([[a, b, c], [d, e, f], [0, 0, 1]], dtype=np.float64)


def _source_pixels(
    dataset: DatasetReader, lat_N: NDArray[np.float64], lon_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the source columns and rows of places, infinite where the CRS has none for them."""
    from rasterio.warp import transform

    rasterio = require_rasterio()
    if dataset.crs is None or dataset.transform.is_identity:
        lacks = "CRS" if dataset.crs is None else "geotransform"
        raise DataError(
            f"{dataset.name}: does not say where on Earth it lies (it has no {lacks}); write it "
            "(gdal_edit.py -a_srs EPSG:CODE -a_ullr ...; with control points, gdalwarp), or name windows by "
            "pixels: x, y, width, height"
        )
    matrix = np.array(dataset.transform).reshape(3, 3)
    with np.errstate(over="ignore"):  # what is too large makes no sense on Earth, as is told later
        flat = not np.linalg.det(matrix)
    if flat:
        raise DataError(
            f"{dataset.name}: its geotransform {dataset.transform[:6]} maps all pixels onto a line"
        )
    try:
        x_N, y_N = (np.array(axis) for axis in transform(_DEGREES, dataset.crs, lon_N, lat_N)[:2])
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError) as error:
        raise DataError(f"{dataset.name}: its CRS cannot be used: {error}") from error
    if dataset.crs.is_geographic:  # longitudes may run from 0 to 360, or past the antimeridian
        middle = (matrix @ [dataset.width / 2, dataset.height / 2, 1])[0]
        x_N = x_N - 360 * np.round((x_N - middle) / 360)
    with np.errstate(invalid="ignore"):
        column_N, row_N, _ = np.linalg.inv(matrix) @ np.stack([x_N, y_N, np.ones(len(x_N))])
    return column_N, row_N
