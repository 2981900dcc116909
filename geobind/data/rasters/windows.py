"""Cut windows out of GeoTIFFs: so many metres around a place, north up, whatever the CRS; or plain pixels."""

# N places; B bands, H height, W width; source: the raster's own pixels, (column, row) from its upper left

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geobind.data.options import RasterOptions
from geobind.data.rasters.geotiff import open_raster, tells_damage
from geobind.data.rasters.pixels import Box, read_box, read_turned
from geobind.data.rasters.places import affine, covers_N, pixels_by_metre
from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from geobind.data.rasters.places import Map

__all__ = ["covers_N", "read_pixels", "read_window"]

_TURNED = math.tan(math.radians(5))  # UTM grids turn from north by up to 3 degrees, or 5 near the poles
_SAME = 0.5  # pixels by which a window may be off where pixels are taken as they are


@tells_damage
def read_window(path: str | Path, lat: float, lon: float, options: RasterOptions) -> NDArray[Any]:
    """Read the square of `options.size_m` metres around a place as an image with north at the top.

    The image is resampled to `options.gsd`: averaged where that is coarser than the raster, bilinear where it
    is finer. Where the raster's pixels are already those asked for, they are cut out unchanged, moved by half
    a pixel at most. Up is the raster's own up if that is within 5 degrees of north, as in UTM; the image is
    turned otherwise.

    Args:
        path: A GeoTIFF or JPEG 2000 file.
        lat: Degrees north (WGS 84).
        lon: Degrees east.
        options: The window's size, and how it is read; `path` is not used.

    Returns:
        (H, W, B) uint8 of 8-bit rasters and with `stretch`, else float32. What is missing (nodata,
        transparent, NaN, outside the raster) is `options.fill`.

    Raises:
        DataError: The raster cannot be read, has no CRS or not these bands; too much of the window is
            missing; or it would be too large.
    """
    dataset = open_raster(Path(path))
    if options.size_m is None:
        raise DataError(f"{path}: how large a window? give `size_m`, its side in metres")
    to_source = pixels_by_metre(dataset, lat, lon)
    where = f"{path}: the {options.size_m:g} m around {lat:g}, {lon:g}"
    spacing = 1 / np.hypot(*to_source[:2, :2]).max()  # metres per pixel, along the finer axis
    side = max(1, round(options.size_m / (options.gsd or spacing)))
    metres = options.size_m / side
    # From the image's pixels, counted from its upper left corner, to the raster's.
    to_source = to_source @ affine(metres, 0, -options.size_m / 2, 0, -metres, options.size_m / 2)
    bands, smooth = _bands(dataset, options, where)
    (a, b), (d, e) = to_source[:2, :2]
    if max(abs(b), abs(d)) <= _TURNED * min(a, e):
        values, valid = read_box(dataset, bands, _upright(to_source, side), smooth=smooth, where=where)
    else:
        values, valid = read_turned(dataset, bands, to_source, side, smooth=smooth, where=where)
    return _finished(values, valid, options, where)


@tells_damage
def read_pixels(
    path: str | Path, x: int, y: int, width: int, height: int, options: RasterOptions | None = None
) -> NDArray[Any]:
    """Read a rectangle of a raster's own pixels; no CRS is needed.

    Args:
        path: A GeoTIFF or JPEG 2000 file.
        x: Column of the rectangle's upper left pixel, from 0.
        y: Row of it.
        width: Columns.
        height: Rows.
        options: How it is read; `path`, `size_m` and `gsd` are not used.

    Returns:
        (H, W, B), as `read_window`.

    Raises:
        DataError: As `read_window`.
    """
    options = options or RasterOptions()
    dataset = open_raster(Path(path))
    where = f"{path}: the {width} x {height} pixels at {x}, {y}"
    if width < 1 or height < 1:
        raise DataError(f"{where}: are none; width and height must be 1 or more")
    bands, smooth = _bands(dataset, options, where)
    box = Box(x, y, width, height, width, height)
    values, valid = read_box(dataset, bands, box, smooth=smooth, where=where)
    return _finished(values, valid, options, where)


def _bands(dataset: DatasetReader, options: RasterOptions, where: str) -> tuple[list[int], bool]:
    """Return the bands to read, and whether their pixels may be averaged."""
    from rasterio.enums import ColorInterp, MaskFlags

    kinds = dataset.colorinterp
    # A band called alpha may yet be a fourth colour; it is transparency if the others' mask says so.
    masked = MaskFlags.alpha in dataset.mask_flag_enums[0]
    seen = [band for band in dataset.indexes if not (masked and kinds[band - 1] == ColorInterp.alpha)]
    bands = list(options.bands or seen)
    if not bands or max(bands) > dataset.count:
        raise DataError(f"{where}: wants bands {bands}, but the raster has bands 1 to {dataset.count}")
    palette = any(kinds[band - 1] == ColorInterp.palette for band in bands)  # its values are names of colours
    return bands, not (options.nearest or palette)


def _upright(to_source: Map, side: int) -> Box:
    """Return the box with a window's middle and size, at pixel edges if its pixels are the raster's own."""
    x, y, _ = to_source @ [side / 2, side / 2, 1]
    width, height = to_source[0, 0] * side, to_source[1, 1] * side
    if max(abs(width - side), abs(height - side)) <= _SAME:
        return Box(round(x - side / 2), round(y - side / 2), side, side, side, side)
    return Box(x - width / 2, y - height / 2, width, height, side, side)


def _finished(
    values: NDArray[Any], valid: NDArray[np.bool_], options: RasterOptions, where: str
) -> NDArray[Any]:
    """Judge what is missing, fill it, and put the bands last."""
    there = valid.any(axis=0)
    if there.mean() < options.min_valid:
        raise DataError(
            f"{where}: {1 - there.mean():.0%} of the pixels are missing (nodata or outside the raster), more "
            f"than min_valid ({options.min_valid:g}) allows; drop the row, or lower it"
        )
    # In 8 bits a band that has the nodata value while others have not is a colour, as in (0, 0, 9).
    missing = np.broadcast_to(~there, valid.shape) if values.dtype == np.uint8 else ~valid
    if options.stretch is not None:
        low, high = options.stretch
        known = np.where(missing, low, values).astype(np.float32)
        values = np.round(np.clip((known - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    if values.dtype == np.uint8 and not 0 <= options.fill <= 255:
        raise DataError(f"{where}: `fill` must be from 0 to 255 in an 8-bit image, not {options.fill:g}")
    values[missing] = options.fill
    return values.transpose(1, 2, 0)
