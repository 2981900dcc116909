"""Read a box of a raster, resampled, with a mask of what is there; perhaps partly outside, perhaps turned."""

# B bands, H height, W width; source: the raster's own pixels, (column, row) from its upper left corner

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from geobind.data.rasters.geotiff import require_rasterio
from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from geobind.data.rasters.places import Map

_MAX_SOURCE = 100_000_000  # pixels of the raster that one window may take
_OVER = 0.1  # share of a pixel that may stick out of the raster; what is there then stands for all of it
_MAX_VALUES = 100_000_000  # values of a window, over all bands


class Box(NamedTuple):
    """A rectangle of source pixels, to be read as so many pixels."""

    x: float
    y: float
    width: float
    height: float
    columns: int
    rows: int


def read_box(
    dataset: DatasetReader, bands: list[int], box: Box, *, smooth: bool, where: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read a box: averaged where it is coarser than the raster, bilinear where finer, or the nearest pixels.

    Returns:
        (B, H, W) values, uint8 of 8-bit bands and else float32, and which of them are there.

    Raises:
        DataError: It is too large, or the file is damaged.
    """
    from rasterio.enums import Resampling
    from rasterio.windows import Window

    if len(bands) * box.rows * box.columns > _MAX_VALUES:
        raise DataError(
            f"{where} are {box.columns} x {box.rows} pixels of {len(bands)} bands, more than "
            f"{_MAX_VALUES // 10**6} million values; make it smaller, or `gsd` coarser"
        )
    in_bytes = all(dataset.dtypes[band - 1] == "uint8" for band in bands)
    values = np.zeros((len(bands), box.rows, box.columns), np.uint8 if in_bytes else np.float32)
    valid = np.zeros(values.shape, dtype=bool)
    across, down = box.width / box.columns, box.height / box.rows
    left, right = _inside(box.x, across, box.columns, dataset.width)
    top, bottom = _inside(box.y, down, box.rows, dataset.height)
    if left >= right or top >= bottom:
        return values, valid
    _check_effort(dataset, (right - left) * across, (bottom - top) * down, min(across, down), where)
    x, end = (np.clip(box.x + edge * across, 0, dataset.width) for edge in (left, right))
    y, foot = (np.clip(box.y + edge * down, 0, dataset.height) for edge in (top, bottom))
    window = Window(x, y, end - x, foot - y)  # pyright: ignore[reportCallIssue]
    grows = max(across, down) <= 1 + 1e-6
    how = (Resampling.bilinear if grows else Resampling.average) if smooth else Resampling.nearest
    inner = np.s_[:, top:bottom, left:right]
    options = {"window": window, "out_shape": values[inner].shape, "resampling": how}
    values[inner], valid[inner] = _pixels(dataset, bands, values.dtype, options, where)
    return values, valid


def read_turned(
    dataset: DatasetReader, bands: list[int], to_source: Map, side: int, *, smooth: bool, where: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read a square whose pixels `to_source` maps to those of the raster, which may be turned or mirrored.

    The box around it is read first, not quite as coarse as the square if that is coarse, then turned.

    Returns:
        (B, side, side) values and which of them are there, as `read_box`.

    Raises:
        DataError: As `read_box`.
    """
    from affine import Affine
    from rasterio.enums import Resampling
    from rasterio.warp import reproject

    corners = to_source[:2] @ [[0, side, 0, side], [0, 0, side, side], [1, 1, 1, 1]]
    most, least = np.linalg.svd(to_source[:2, :2], compute_uv=False)  # source pixels per pixel of the square
    step = max(1.0, math.floor(least / 2)) if smooth else 1.0
    low, high = np.floor(corners.min(axis=1)) - 2 * step, np.ceil(corners.max(axis=1)) + 2 * step
    columns, rows = (math.ceil(length / step) for length in high - low)
    box = Box(low[0], low[1], columns * step, rows * step, columns, rows)
    values, valid = read_box(dataset, bands, box, smooth=smooth, where=where)
    if values.dtype == np.uint8:  # where a band alone has the nodata value, it is a colour
        valid = np.broadcast_to(valid.any(axis=0), valid.shape)
    turned = np.full((len(bands), side, side), np.nan, np.float32)
    how = (Resampling.average if most > 1 else Resampling.bilinear) if smooth else Resampling.nearest
    reproject(
        np.where(valid, values, np.nan).astype(np.float32),
        turned,
        # Both in source pixels; a metric CRS, because GDAL would take pixels for degrees of a geographic one.
        src_transform=Affine(step, 0, low[0], 0, step, low[1]),
        src_crs="EPSG:3857",
        dst_transform=Affine(*to_source[:2].ravel()),
        dst_crs="EPSG:3857",
        src_nodata=np.nan,
        dst_nodata=np.nan,
        resampling=how,
    )
    there = np.isfinite(turned)
    if values.dtype == np.uint8:
        return np.where(there, np.round(turned), 0).astype(np.uint8), there
    return turned, there


def _pixels(
    dataset: DatasetReader, bands: list[int], kind: np.dtype[Any], options: dict[str, Any], where: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    from rasterio.enums import MaskFlags

    rasterio = require_rasterio()
    try:
        values = dataset.read(bands, out_dtype=kind.name, **options)
        if all(flags == [MaskFlags.all_valid] for flags in dataset.mask_flag_enums):
            valid = np.ones(values.shape, dtype=bool)
        else:
            with warnings.catch_warnings():  # where nodata and alpha are both there, nodata is what counts
                warnings.simplefilter("ignore", rasterio.errors.NodataShadowWarning)
                valid = dataset.read_masks(bands, **options) > 0
    except (rasterio.errors.RasterioError, MemoryError) as error:
        raise DataError(f"{where} cannot be read, the file is damaged: {error}") from error
    return values, valid if kind == np.uint8 else valid & np.isfinite(values)


def _inside(start: float, step: float, count: int, size: int) -> tuple[int, int]:
    """Return the first of `count` steps that lies within 0 and `size`, and the one after the last."""
    first = max(0, math.ceil(-start / step - _OVER))
    return first, min(count, math.floor((size - start) / step + _OVER))


def _check_effort(dataset: DatasetReader, width: float, height: float, scale: float, where: str) -> None:
    overview = max((factor for factor in dataset.overviews(1) if factor <= scale), default=1)
    pixels = width * height / overview**2
    if pixels > _MAX_SOURCE:
        raise DataError(
            f"{where} are {pixels / 1e6:.0f} million pixels of the raster, more than {_MAX_SOURCE // 10**6} "
            "million; add overviews (gdaladdo FILE.tif), or lower `size_m`"
        )
