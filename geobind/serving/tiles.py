"""Tiles of web maps, cut from a raster or painted from values of a grid, and pictures of a raster."""

# H, W: pixels of a tile; C: control points a side; B bands; N values; R rows of a grid

from __future__ import annotations

import io
import logging
import math
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from PIL import Image

from geobind.data.rasters.opening import open_raster, report_raster_damage, require_rasterio
from geobind.data.rasters.places import find_pixels, find_source_pixels, measure_extent
from geobind.data.rasters.window import Box, read_box
from geobind.errors import DataError, StorageError
from geobind.maps.similarity import MAX_PIXELS
from geobind.utils.files import replace_atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from geobind.archive import TileGrid
    from geobind.archive.table import ArchiveMetadata
    from geobind.data.rasters.window import Valid

    Pixels = tuple[NDArray[np.float64], NDArray[np.float64]]  # columns and rows
    Locate = Callable[[NDArray[np.float64], NDArray[np.float64]], Pixels]  # of latitudes and longitudes

_log = logging.getLogger(__name__)

SIDE = 256  # pixels of a tile
MAX_ZOOM = 22
_CONTROL = 17  # control points along a side: between them a projection is taken for straight
_WHOLE = 1024  # pixels; a raster as small as this needs no overviews
_QUALITY = 85  # of JPEG


class TileAddress(NamedTuple):
    """A tile of the web's map pyramid (EPSG:3857): zoom, column from the west, row from the north."""

    z: int
    x: int
    y: int

    def check(self) -> None:
        """Raise for a tile that is not in the pyramid.

        Raises:
            DataError: It is not.
        """
        if not (0 <= self.z <= MAX_ZOOM and 0 <= self.x < 2**self.z and 0 <= self.y < 2**self.z):
            raise DataError(f"there is no tile {self.z}/{self.x}/{self.y}")


class TilePicture(NamedTuple):
    """An encoded image, and its media type."""

    content: bytes
    kind: str


@lru_cache(maxsize=1)
def _interpolate() -> NDArray[np.float32]:
    """Return the (W, C) weights that spread control points over the pixel centres of a side."""
    at_W = (np.arange(SIDE) + 0.5) / SIDE * (_CONTROL - 1)
    low_W = np.minimum(at_W.astype(int), _CONTROL - 2)
    weights = np.zeros((SIDE, _CONTROL), np.float32)
    weights[np.arange(SIDE), low_W] = 1 - (at_W - low_W)
    weights[np.arange(SIDE), low_W + 1] = at_W - low_W
    return weights


def locate_tile(tile: TileAddress, locate: Locate) -> Pixels | None:
    """Return the source columns and rows of a tile's pixels, (H, W) each; None where a place has none."""
    column_CC, row_CC = _locate_points(tile, np.linspace(0, 1, _CONTROL), locate)
    finite_CC = np.isfinite(column_CC) & np.isfinite(row_CC)
    if finite_CC.all():
        weights = _interpolate()
        return weights @ column_CC @ weights.T, weights @ row_CC @ weights.T
    if not finite_CC.any():
        return None
    # Seen from afar, a part of the tile lies where the CRS has no coordinates: each pixel for itself.
    column_HW, row_HW = _locate_points(tile, (np.arange(SIDE) + 0.5) / SIDE, locate)
    finite_HW = np.isfinite(column_HW) & np.isfinite(row_HW)
    return np.where(finite_HW, column_HW, -1.0), np.where(finite_HW, row_HW, -1.0)


def _locate_points(tile: TileAddress, steps_C: NDArray[np.float64], locate: Locate) -> Pixels:
    """Return the source columns and rows (C, C) of points at these shares of a tile's sides."""
    lon_C = ((tile.x + steps_C) / 2**tile.z) * 360 - 180
    lat_C = np.degrees(np.arctan(np.sinh(math.pi * (1 - 2 * (tile.y + steps_C) / 2**tile.z))))
    lat_CC, lon_CC = np.meshgrid(lat_C, lon_C, indexing="ij")
    # The middle comes first: all are counted from where it is nearest.
    middle = lat_CC.size // 2
    lat_N, lon_N = (np.concatenate([axis.ravel()[[middle]], axis.ravel()]) for axis in (lat_CC, lon_CC))
    column_N, row_N = locate(lat_N, lon_N)
    columns, rows = (axis[1:].reshape(lat_CC.shape) for axis in (column_N, row_N))
    return columns, rows


def encode_image(pixels_HW: NDArray[np.uint32]) -> TilePicture:
    """Encode pixels as `pack_pixels` gives them as JPEG, or as PNG where some are transparent."""
    file = io.BytesIO()
    bytes_HW4 = pixels_HW[..., None].view(np.uint8)
    if bytes_HW4[..., 3].all():
        height, width = pixels_HW.shape
        Image.frombuffer("RGBX", (width, height), pixels_HW, "raw", "RGBX", 0, 1).save(
            file, "JPEG", quality=_QUALITY
        )
        return TilePicture(file.getvalue(), "image/jpeg")
    # Runs alone: pictures of the ground hold few longer matches, and looking for them takes as long again.
    Image.fromarray(bytes_HW4).save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return TilePicture(file.getvalue(), "image/png")


def pack_pixels(bands: NDArray[np.uint8], there_HW: Valid = None) -> NDArray[np.uint32]:
    """Return three bands, or one for all three, as a number a pixel: red, green, blue, alpha; 0 for none."""
    bytes_HW4 = np.empty((*bands.shape[1:], 4), np.uint8)
    for place in range(3):
        bytes_HW4[..., place] = bands[place if len(bands) > 2 else 0]
    bytes_HW4[..., 3] = 255
    pixels_HW = bytes_HW4.view(np.uint32)[..., 0]
    return pixels_HW if there_HW is None else np.where(there_HW, pixels_HW, np.uint32(0))


class SceneRaster:
    """A raster as people look at it: three bands of 8 bits.

    Args:
        path: A GeoTIFF or JPEG 2000 file.
        bands: The bands shown; default: the first three, or the first of fewer.
        stretch: Values that become black and white; default: of 8-bit bands 0 and 255, of others the 2nd and
            98th percentile of each.
        folder: Where a copy with overviews is written if the raster has none; None: it must have some.

    Raises:
        DataError: The raster cannot be read, does not say where it lies, or has no overviews.
    """

    def __init__(
        self,
        path: Path,
        *,
        bands: tuple[int, ...] | None = None,
        stretch: tuple[float, float] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.path = path
        dataset = open_raster(path)
        extent = measure_extent(path)
        if extent is None or dataset.transform.is_identity:
            raise DataError(f"{path}: does not say where on Earth it lies; it cannot be shown on a map")
        self.extent = extent
        self.bands = [*(bands or _choose_bands(dataset))][:3]
        if max(self.bands) > dataset.count:
            raise DataError(f"{path}: has no band {max(self.bands)}; it has {dataset.count}")
        self.view = path if _has_overviews(dataset) else build_view(path, folder)
        self.max_zoom = _native_zoom(dataset, extent)
        in_bytes = all(dataset.dtypes[band - 1] == "uint8" for band in self.bands)
        self._stretch_B2 = (
            np.array([stretch] * len(self.bands), dtype=np.float64)
            if stretch
            else None
            if in_bytes
            else self._measure_stretch()
        )

    @classmethod
    def of_archive(cls, path: Path, metadata: ArchiveMetadata, folder: Path | None = None) -> Self:
        """Open the raster of an archive, to be shown in the bands and the stretch that the model saw."""
        bands, stretch = metadata.reading.get("bands"), metadata.reading.get("stretch")
        known = isinstance(bands, list) and all(isinstance(band, int) and band > 0 for band in bands)
        limits = (
            (float(stretch[0]), float(stretch[1]))
            if isinstance(stretch, list) and len(stretch) == 2
            else None
        )
        return cls(
            path,
            bands=tuple(bands) if known and bands else None,
            stretch=limits,
            folder=folder,
        )

    def _measure_stretch(self) -> NDArray[np.float64]:
        """Return the 2nd and 98th percentile of each band (B, 2), from a coarse look at all of it."""
        dataset = open_raster(self.view)
        scale = max(1.0, max(dataset.width, dataset.height) / 512)
        size = max(1, round(dataset.width / scale)), max(1, round(dataset.height / scale))
        values, valid = self._read(Box(0, 0, dataset.width, dataset.height, *size))
        limits: list[tuple[float, float]] = []
        for number, band in enumerate(values):
            known = band if valid is None else band[valid[number]]
            low, high = np.percentile(known, [2, 98]) if known.size else (0.0, 1.0)
            limits.append((float(low), float(high) if high > low else float(low) + 1))
        return np.array(limits)

    def _read(self, box: Box) -> tuple[NDArray[Any], Valid]:
        return _read_view(self.view, self.bands, box)

    def _paint(self, values: NDArray[Any], valid: Valid) -> NDArray[np.uint32]:
        """Return pixels as `pack_pixels` gives them."""
        if self._stretch_B2 is not None:
            low, high = self._stretch_B2.T[:, :, None, None]
            known = (values if valid is None else np.where(valid, values, low)).astype(np.float32)
            values = np.round(np.clip((known - low) / (high - low), 0, 1) * 255)
        there_HW = None if valid is None else np.any(valid, axis=0)
        return pack_pixels(values.astype(np.uint8, copy=False), there_HW)

    def draw_tile(self, tile: TileAddress) -> TilePicture | None:
        """Draw a tile; None where the raster is not.

        Raises:
            DataError: There is no such tile, or the file is damaged.
        """
        tile.check()
        pixels = locate_tile(tile, self._locate)
        if pixels is None:
            return None
        column_HW, row_HW = pixels
        dataset = open_raster(self.view)
        size = dataset.width, dataset.height
        inside_HW = (column_HW >= 0) & (column_HW < size[0]) & (row_HW >= 0) & (row_HW < size[1])
        if not inside_HW.any():
            return None
        whole = bool(inside_HW.all())
        column_K, row_K = (axis.ravel() if whole else axis[inside_HW] for axis in pixels)
        # What is read: the box around the pixels that lie inside, about as coarse as the tile.
        low = np.floor([column_K.min(), row_K.min()])
        high = np.ceil([column_K.max(), row_K.max()]) + 1
        high = np.minimum(np.maximum(high, low + 1), size)
        across = _measure_step(column_HW, row_HW)
        count = np.maximum(1, np.ceil((high - low) / max(1.0, across))).astype(int)
        step = (high - low) / count
        values, valid = self._read(Box(*low.tolist(), *(high - low).tolist(), *count.tolist()))
        at_column = ((column_K - low[0]) * (1 / step[0])).astype(np.int32)
        at_row = ((row_K - low[1]) * (1 / step[1])).astype(np.int32)
        np.minimum(at_column, count[0] - 1, out=at_column)
        seen_K = self._paint(values, valid).ravel().take(at_row * count[0] + at_column, mode="clip")
        if not seen_K.any():
            return None
        if whole:
            return encode_image(seen_K.reshape(SIDE, SIDE))
        pixels_HW = np.zeros((SIDE, SIDE), np.uint32)
        pixels_HW[inside_HW] = seen_K
        return encode_image(pixels_HW)

    def _locate(self, lat_N: NDArray[np.float64], lon_N: NDArray[np.float64]) -> Pixels:
        return find_source_pixels(open_raster(self.view), lat_N, lon_N, together=True)

    def draw_around(self, lat: float, lon: float, share: float, side: int) -> TilePicture:
        """Draw the square around a place that a model saw, `side` pixels wide, north at the top.

        Args:
            lat: Degrees north of its middle.
            lon: Degrees east.
            share: Its side, in pixels of the raster.
            side: The picture's side.

        Raises:
            DataError: The raster is not there.
        """
        dataset = open_raster(self.view)
        columns, rows = self._locate(np.array([lat]), np.array([lon]))
        box = Box(float(columns[0]) - share / 2, float(rows[0]) - share / 2, share, share, side, side)
        values, valid = self._read(box)
        pixels_HW = self._paint(values, valid)
        return encode_image(np.ascontiguousarray(pixels_HW[::-1]) if dataset.transform.e > 0 else pixels_HW)

    def count_pixels(self, grid: TileGrid) -> float:
        """Return the side of a grid's tiles in pixels of the raster."""
        own = open_raster(self.view).transform
        stride = math.hypot(grid.transform[0], grid.transform[3]) / math.hypot(own.a, own.d)
        return stride * grid.size_m / grid.stride_m

    def measure_box(self, west: float, south: float, east: float, north: float) -> float:
        """Return the height of a box of degrees in pixels of the raster."""
        lon = west if west == east else west + (east - west) % 360 / 2
        columns, rows = self._locate(np.array([south, north]), np.array([lon, lon]))
        return float(math.hypot(columns[1] - columns[0], rows[1] - rows[0]))


@report_raster_damage
def _read_view(path: str | Path, bands: list[int], box: Box) -> tuple[NDArray[Any], Valid]:
    return read_box(open_raster(path), bands, box, smooth=True, where=str(path), around=True)


def _choose_bands(dataset: DatasetReader) -> tuple[int, ...]:
    return (1, 2, 3) if dataset.count >= 3 else (1,)


def _has_overviews(dataset: DatasetReader) -> bool:
    return max(dataset.width, dataset.height) <= _WHOLE or bool(dataset.overviews(1))


def _native_zoom(dataset: DatasetReader, extent: tuple[float, float, float, float]) -> int:
    """Return the zoom at which a tile's pixel is about as large as the raster's."""
    west, _, east, _ = extent
    turns = ((east - west) % 360 or 360) / 360
    across = dataset.width / turns / SIDE
    return int(np.clip(math.ceil(math.log2(max(1.0, across))), 0, MAX_ZOOM))


def _measure_step(column_HW: NDArray[np.float64], row_HW: NDArray[np.float64]) -> float:
    """Return how many source pixels a tile's pixel is wide, where it is narrowest."""
    middle = SIDE // 2
    over = np.hypot(np.diff(column_HW[middle, [0, -1]]), np.diff(row_HW[middle, [0, -1]]))
    down = np.hypot(np.diff(column_HW[[0, -1], middle]), np.diff(row_HW[[0, -1], middle]))
    return float(min(over[0], down[0]) / (SIDE - 1))


def build_view(path: Path, folder: Path | None) -> Path:
    """Return a copy of a raster with overviews, which is written unless it is there.

    Raises:
        DataError: It may be written nowhere.
        StorageError: The disk is full.
    """
    if folder is None:
        raise DataError(f"{path}: has no overviews, so that a map of it is slow; gdaladdo {path} adds them")
    rasterio = require_rasterio()
    from rasterio.shutil import copy

    view = folder / f"{path.stem}.view.tif"
    if view.is_file() and view.stat().st_mtime >= path.stat().st_mtime:
        return view
    _log.info("%s has no overviews; writing a copy with them: %s", path.name, view)
    try:
        with replace_atomic(view) as temporary:
            copy(open_raster(path), temporary, driver="COG", COMPRESS="DEFLATE", BIGTIFF="IF_SAFER")
    except (rasterio.errors.RasterioError, OSError) as error:
        raise StorageError(f"{view}: cannot be written: {error}") from error
    return view


# Values of a grid -------------------------------------------------------------------------------------


class GridTiles:
    """Tiles of values that lie on a grid: which value a pixel shows is found once for each tile.

    Args:
        grid: The grid.
        row_N: The grid's row of each value.
        column_N: The grid's column of each value.

    Raises:
        DataError: The grid is too large to be held, or a value lies outside of it.
    """

    def __init__(self, grid: TileGrid, row_N: NDArray[Any], column_N: NDArray[Any]) -> None:
        if grid.rows * grid.columns > MAX_PIXELS:
            raise DataError(f"a grid of {grid.rows:,} x {grid.columns:,} tiles is too large to be served")
        outside_N = (row_N < 0) | (row_N >= grid.rows) | (column_N < 0) | (column_N >= grid.columns)
        if outside_N.any():
            raise DataError(f"row {int(outside_N.argmax())} of the archive lies outside of its grid: damaged")
        self._grid = grid
        self._matrix = np.array([*grid.transform, 0, 0, 1], dtype=np.float64).reshape(3, 3)
        self.value_RC = np.full((grid.rows, grid.columns), -1, np.int32)
        self.value_RC[row_N, column_N] = np.arange(len(row_N), dtype=np.int32)
        self.index_tile = lru_cache(maxsize=128)(self._index_tile)

    def locate(self, lat_N: NDArray[np.float64], lon_N: NDArray[np.float64]) -> Pixels:
        """Return the grid's columns and rows of places, not rounded."""
        size = self._grid.columns, self._grid.rows
        return find_pixels(self._grid.crs, self._matrix, size, lat_N, lon_N, together=True)

    def find_value(self, lat: float, lon: float) -> int | None:
        """Return the number of the value at a place; None where there is none."""
        column, row = (axis[0] for axis in self.locate(np.array([lat]), np.array([lon])))
        if not (0 <= column < self._grid.columns and 0 <= row < self._grid.rows):
            return None
        value = int(self.value_RC[int(row), int(column)])
        return value if value >= 0 else None

    def _index_tile(self, tile: TileAddress) -> NDArray[np.int32] | None:
        """Return which value each pixel shows (H, W), -1 for none; None where the grid is not."""
        pixels = locate_tile(tile, self.locate)
        if pixels is None:
            return None
        column_HW, row_HW = pixels
        inside_HW = (column_HW >= 0) & (column_HW < self._grid.columns)
        inside_HW &= (row_HW >= 0) & (row_HW < self._grid.rows)
        if not inside_HW.any():
            return None
        value_HW = np.full((SIDE, SIDE), -1, np.int32)
        at_row, at_column = (axis[inside_HW].astype(np.intp) for axis in (row_HW, column_HW))
        value_HW[inside_HW] = self.value_RC[at_row, at_column]
        return value_HW

    def paint_tile(
        self, tile: TileAddress, value_N: NDArray[np.uint8], colours_K3: NDArray[np.uint8]
    ) -> TilePicture | None:
        """Paint a tile.

        Args:
            tile: The tile.
            value_N: Colour of each value, below 255.
            colours_K3: The colours.

        Raises:
            DataError: There is no such tile.
        """
        tile.check()
        value_HW = self.index_tile(tile)
        if value_HW is None:
            return None
        # A palette image: one byte a pixel, the last colour transparent.
        padded = np.concatenate([value_N, np.array([255], np.uint8)])
        image = Image.fromarray(padded[value_HW])
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(colours_K3)] = colours_K3
        image.putpalette(palette.tobytes())
        file = io.BytesIO()
        image.save(file, "PNG", transparency=255, compress_level=1)
        return TilePicture(file.getvalue(), "image/png")
