"""Windows of GeoTIFFs as arrays: resampling, missing pixels, values in the units that are wanted."""

# B bands, H height, W width; source: the raster's own pixels, (column, row) from its upper left corner

from __future__ import annotations

import logging
import math
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from geobind.data.options import RasterOptions
from geobind.data.rasters.opening import open_raster, report_raster_damage, require_rasterio
from geobind.data.rasters.places import find_turn, make_affine, measure_spacing, metres_to_pixels
from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    Map = NDArray[np.float64]
    Valid = NDArray[np.bool_] | None  # which values are there; None: all of them


_log = logging.getLogger(__name__)

_MAX_BLOCKS = 1_000_000  # of a raster that one window may take
_MAX_SOURCE = 100_000_000  # pixels of the raster that one window may take
_MAX_SOURCE_VALUES = 1_000_000_000  # and over all bands
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
    dataset: DatasetReader,
    bands: list[int],
    box: Box,
    *,
    smooth: bool,
    where: str,
    around: bool = False,
) -> tuple[NDArray[Any], Valid]:
    """Read a box: averaged where it is coarser than the raster, bilinear where finer, or the nearest pixels.

    With `around` it goes on at the other edge of a raster that goes around the Earth.

    Returns:
        (B, H, W) values, uint8 of 8-bit bands and else float32, and which of them are there, None where all
        are.

    Raises:
        DataError: It is too large, or the file is damaged.
    """
    _check_values(bands, box.columns, box.rows, where)
    kinds = dataset.dtypes  # looked up once: it is made anew, of all bands, whenever it is asked for
    kind = np.dtype(np.uint8 if all(kinds[band - 1] == "uint8" for band in bands) else np.float32)
    part = _clip_box(dataset, box, closed=False)
    if part == (0, box.columns, 0, box.rows):  # new memory once: it costs more than what is read into it
        return _read_part(dataset, bands, kind, box, part, smooth, where)
    turn = (find_turn(dataset) if around else None) or math.inf
    closed = dataset.width >= turn - 0.5
    values = np.zeros((len(bands), box.rows, box.columns), kind)
    valid = np.zeros(values.shape, dtype=bool)
    for shift in (0, -turn, turn) if closed else (0,):
        moved = box._replace(x=box.x + shift)
        left, right, top, bottom = _clip_box(dataset, moved, closed=closed)
        if closed:  # only those columns that are not there yet
            there = valid[:, :, left:right].any(axis=(0, 1)) if left < right else np.zeros(0, bool)
            fresh = np.flatnonzero(~there)
            left, right = (left + int(fresh[0]), left + int(fresh[-1]) + 1) if len(fresh) else (left, left)
        if left < right and top < bottom:
            part, inner = (left, right, top, bottom), np.s_[:, top:bottom, left:right]
            values[inner], known = _read_part(dataset, bands, kind, moved, part, smooth, where)
            valid[inner] = True if known is None else known
    return values, None if valid.all() else valid


def _clip_box(dataset: DatasetReader, box: Box, *, closed: bool) -> tuple[int, int, int, int]:
    """Return the first and the end of the columns and of the rows of a box that lie inside the raster.

    Where the raster goes around the Earth (`closed`), a pixel over its seam belongs to the side that holds
    more of it.
    """
    across, down = box.width / box.columns, box.height / box.rows
    return (
        *_clip_steps(box.x, across, box.columns, dataset.width, 0.5 if closed else _OVER),
        *_clip_steps(box.y, down, box.rows, dataset.height, _OVER),
    )


def _read_part(
    dataset: DatasetReader,
    bands: list[int],
    kind: np.dtype[Any],
    box: Box,
    part: tuple[int, int, int, int],
    smooth: bool,
    where: str,
) -> tuple[NDArray[Any], Valid]:
    """Read the columns and rows of a box that lie inside the raster, as `read_box` does."""
    from rasterio.enums import Resampling
    from rasterio.windows import Window

    left, right, top, bottom = part
    across, down = box.width / box.columns, box.height / box.rows
    size = (right - left) * across, (bottom - top) * down
    _check_effort(dataset, bands, size, min(across, down), where)
    x, end = (min(max(box.x + edge * across, 0), dataset.width) for edge in (left, right))
    y, foot = (min(max(box.y + edge * down, 0), dataset.height) for edge in (top, bottom))
    window = Window(x, y, end - x, foot - y)  # pyright: ignore[reportCallIssue]
    grows = max(across, down) <= 1 + 1e-6
    how = (Resampling.bilinear if grows else Resampling.average) if smooth else Resampling.nearest
    shape = len(bands), bottom - top, right - left
    return _read_pixels(
        dataset, bands, kind, {"window": window, "out_shape": shape, "resampling": how}, where
    )


def read_turned(
    dataset: DatasetReader, bands: list[int], to_source: Map, side: int, *, smooth: bool, where: str
) -> tuple[NDArray[Any], Valid]:
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
    values, valid = read_box(dataset, bands, box, smooth=smooth, where=where, around=True)
    known = values.astype(np.float32)
    if valid is not None:
        known[_find_missing(valid, values.dtype)] = np.nan
    turned = np.full((len(bands), side, side), np.nan, np.float32)
    how = (Resampling.average if most > 1 else Resampling.bilinear) if smooth else Resampling.nearest
    reproject(
        known,
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
        turned = np.where(there, np.round(turned), 0).astype(np.uint8)
    return turned, None if there.all() else there


def _read_pixels(
    dataset: DatasetReader, bands: list[int], kind: np.dtype[Any], options: dict[str, Any], where: str
) -> tuple[NDArray[Any], Valid]:
    from rasterio.enums import ColorInterp, MaskFlags

    rasterio = require_rasterio()
    try:
        values = dataset.read(bands, out_dtype=kind.name, **options)
        all_flags, meanings = dataset.mask_flag_enums, dataset.colorinterp
        flags = [all_flags[band - 1] for band in bands]
        asked = any(meanings[band - 1] == ColorInterp.alpha for band in bands)
        # A band called alpha that is asked for is a band like others: near infrared, in many aerial images.
        if all(MaskFlags.nodata not in one and (asked or one == [MaskFlags.all_valid]) for one in flags):
            valid = None
        else:
            with warnings.catch_warnings():  # where nodata and alpha are both there, nodata is what counts
                warnings.simplefilter("ignore", rasterio.errors.NodataShadowWarning)
                valid = dataset.read_masks(bands, **options) > 0
    except (rasterio.errors.RasterioError, MemoryError) as error:
        raise DataError(f"{where} cannot be read, the file is damaged: {error}") from error
    if kind != np.uint8:
        valid = np.isfinite(values) if valid is None else valid & np.isfinite(values)
    return values, None if valid is None or valid.all() else valid


def _clip_steps(start: float, step: float, count: int, size: int, over: float) -> tuple[int, int]:
    """Return the first of `count` steps that lies within 0 and `size`, and the one after the last.

    `over` is the share of a step that may stick out.
    """
    first = max(0, math.ceil(-start / step - over))
    return first, min(count, math.floor((size - start) / step + over))


def _check_effort(
    dataset: DatasetReader, bands: list[int], size: tuple[float, float], scale: float, where: str
) -> None:
    """Raise where more pixels or blocks of the raster must be read than is in reason."""
    overview = max((factor for factor in dataset.overviews(1) if factor <= scale), default=1)
    width, height = (length / overview for length in size)
    if width * height > _MAX_SOURCE or width * height * len(bands) > _MAX_SOURCE_VALUES:
        raise DataError(
            f"{where} are {width * height / 1e6:.0f} million pixels of the raster, in {len(bands)} bands, "
            f"more than {_MAX_SOURCE // 10**6} million, or {_MAX_SOURCE_VALUES // 10**6} million values; "
            "add overviews (gdaladdo FILE.tif), read fewer bands, or lower `size_m`"
        )
    rows, columns = dataset.block_shapes[0]
    blocks = math.ceil(height / rows) * math.ceil(width / columns) * len(bands)
    if blocks > _MAX_BLOCKS:
        raise DataError(
            f"{where} lie in {blocks:,} blocks of {rows} x {columns} pixels, more than {_MAX_BLOCKS:,}; "
            "write it in tiles: gdal_translate INPUT output.tif -of COG"
        )


def _check_values(bands: list[int], width: float, height: float, where: str) -> None:
    """Raise for an image of too many values, before it is allocated."""
    if len(bands) * width * height > _MAX_VALUES:
        raise DataError(
            f"{where} are {width:.0f} x {height:.0f} pixels of {len(bands)} bands, more than "
            f"{_MAX_VALUES // 10**6} million values; give a smaller `size_m`, or a coarser `gsd`"
        )


_TURNED = math.tan(math.radians(5))  # UTM grids turn from north by up to 3 degrees, or 5 near the poles
_SAME = 0.5  # pixels by which a window may be off where pixels are taken as they are


@report_raster_damage
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
    return cut_window(path, lat, lon, options).values_HWB


class Cut(NamedTuple):
    """A window, and how much of it the raster has."""

    values_HWB: NDArray[Any]
    share: float  # of the pixels


@report_raster_damage
def cut_window(path: str | Path, lat: float, lon: float, options: RasterOptions) -> Cut:
    """Read a window as `read_window` does, and return with it the share of its pixels that are there."""
    dataset = open_raster(Path(path))
    if options.size_m is None:
        raise DataError(f"{path}: how large a window? give `size_m`, its side in metres")
    to_source = metres_to_pixels(dataset, lat, lon)
    where = f"{path}: the {options.size_m:g} m around {lat:g}, {lon:g}"
    side = max(1, round(options.size_m / (options.gsd or measure_spacing(to_source))))
    bands, smooth = _bands(dataset, options, where)
    _check_values(bands, side, side, where)
    metres = options.size_m / side
    # From the image's pixels, counted from its upper left corner, to the raster's.
    to_source = to_source @ make_affine(metres, 0, -options.size_m / 2, 0, -metres, options.size_m / 2)
    if is_upright(to_source[None, :2, :2] * _DOWN)[0]:
        box = _place_box(to_source, side)
        values, valid = read_box(dataset, bands, box, smooth=smooth, where=where, around=True)
    else:
        values, valid = read_turned(dataset, bands, to_source, side, smooth=smooth, where=where)
    values = _rescale(dataset, bands, values, options, where)
    share = 1.0 if valid is None else float(valid.any(axis=0).mean())
    return Cut(_fill_missing(values, valid, options, where), share)


_DOWN = np.array([1, -1])  # rows of an image go south


def is_upright(to_source_N22: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where a raster's own up is within 5 degrees of north.

    Args:
        to_source_N22: Maps from metres east and north to source pixels.
    """
    along_N = np.minimum(to_source_N22[:, 0, 0], -to_source_N22[:, 1, 1])
    aside_N = np.maximum(np.abs(to_source_N22[:, 0, 1]), np.abs(to_source_N22[:, 1, 0]))
    return aside_N <= _TURNED * along_N


class Squares(NamedTuple):
    """Squares of a raster's own pixels, views of one image where they overlap."""

    images: list[NDArray[Any]]  # (side, side, B), as `read_window`
    share_N: NDArray[np.float64]  # of the pixels of each that the raster has


@report_raster_damage
def read_squares(
    path: str | Path,
    x_N: NDArray[np.int64],
    y_N: NDArray[np.int64],
    side: int,
    options: RasterOptions,
    *,
    south_up: bool = False,
    nodata: float | None = None,
) -> Squares:
    """Read squares of a raster's own pixels that lie near each other, by one read of all.

    Args:
        path: A GeoTIFF or JPEG 2000 file.
        x_N: Column of each square's upper left pixel.
        y_N: Row of it.
        side: Pixels along a side.
        options: How they are read; `path`, `size_m`, `gsd` and `min_valid` are not used.
        south_up: Whether the raster's first row is its southernmost; squares have north at the top.
        nodata: A stored value that means missing, beside what the raster states.

    Raises:
        DataError: As `read_pixels`.
    """
    dataset = open_raster(Path(path))
    x, y = int(x_N.min()), int(y_N.min())
    width, height = int(x_N.max()) - x + side, int(y_N.max()) - y + side
    where = f"{path}: the {width} x {height} pixels at {x}, {y}"
    bands, smooth = _bands(dataset, options, where)
    box = Box(x, y, width, height, width, height)
    values, valid = read_box(dataset, bands, box, smooth=smooth, where=where, around=True)
    if nodata is not None:
        named = values != nodata
        valid = named if valid is None else valid & named
    options = options.model_copy(update={"min_valid": 0.0})
    image = _fill_missing(_rescale(dataset, bands, values, options, where), valid, options, where)
    # torch takes no arrays that run backwards.
    image = np.ascontiguousarray(image[::-1]) if south_up else image
    first, y = y, y + height - side if south_up else y
    row_N = y - y_N if south_up else y_N - y
    shares_N = np.ones(len(x_N))
    if valid is not None:
        shares_N = _measure_shares(np.asarray(valid.any(axis=0)), y_N - first, x_N - x, side)
    places = [np.s_[b : b + side, a : a + side] for a, b in zip(x_N - x, row_N, strict=True)]
    return Squares([image[place] for place in places], shares_N)


def _measure_shares(
    there_HW: NDArray[np.bool_], row_N: NDArray[np.int64], column_N: NDArray[np.int64], side: int
) -> NDArray[np.float64]:
    """Return the share of each square's pixels that are there, by sums over the rectangle above and left."""
    sums = np.pad(there_HW.cumsum(axis=0, dtype=np.int64).cumsum(axis=1), ((1, 0), (1, 0)))
    below_N, right_N = row_N + side, column_N + side
    count_N = sums[below_N, right_N] - sums[row_N, right_N] - sums[below_N, column_N] + sums[row_N, column_N]
    return count_N / side**2


@report_raster_damage
def list_scales(path: str | Path) -> tuple[tuple[float, float], ...]:
    """Return the scale and offset that a raster states of its bands, each pair once."""
    dataset = open_raster(Path(path))
    return tuple(dict.fromkeys(zip(dataset.scales, dataset.offsets, strict=True)))


@report_raster_damage
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
    return _fill_missing(_rescale(dataset, bands, values, options, where), valid, options, where)


@report_raster_damage
def read_raster(path: str | Path, options: RasterOptions) -> NDArray[Any]:
    """Read all of a raster at its own pixels, as `read_pixels` reads a part of it."""
    dataset = open_raster(Path(path))
    try:
        return read_pixels(path, 0, 0, dataset.width, dataset.height, options)
    except DataError as error:
        raise DataError(f"{error} (all of the raster is read, because no `size_m` is given)") from error


def _rescale(
    dataset: DatasetReader, bands: list[int], values: NDArray[Any], options: RasterOptions, where: str
) -> NDArray[Any]:
    """Apply the scale and offset that a raster states of its values, unless they are wanted as stored."""
    from rasterio.enums import ColorInterp

    scales, offsets, kinds, meanings = dataset.scales, dataset.offsets, dataset.dtypes, dataset.colorinterp
    stated = [(scales[band - 1], offsets[band - 1]) for band in bands]
    palette = any(meanings[band - 1] == ColorInterp.palette for band in bands)
    if options.scaled is False or palette or all(pair == (1, 0) for pair in stated):
        return values
    if not np.isfinite(stated).all() or any(scale == 0 for scale, _ in stated):
        raise DataError(
            f"{where}: states scales and offsets ({stated[0]}) that make no sense: `scaled: false`"
        )
    types = [np.dtype(kinds[band - 1]) for band in bands]
    spans = [abs(scale) * np.ptp(_limits(kind)) for (scale, _), kind in zip(stated, types, strict=True)]
    if options.stretch is not None and options.stretch[1] - options.stretch[0] > max(spans):
        raise DataError(
            f"{where}: `stretch` {list(options.stretch)} is wider than all values there can be, because the "
            f"raster states a scale ({stated[0][0]:g}) and an offset ({stated[0][1]:g}): give it in scaled "
            "values, or say `scaled: false`, which reads values as stored"
        )
    if options.scaled is None:
        _report_scale(*stated[0])
    scaled = np.empty(values.shape, np.float32)
    for number, (scale, offset) in enumerate(stated):
        scaled[number] = values[number].astype(np.float64) * scale + offset
    return scaled


def _limits(kind: np.dtype[Any]) -> tuple[float, float]:
    """Return the smallest and largest value of a type; of numbers with a point, none."""
    return (np.iinfo(kind).min, np.iinfo(kind).max) if kind.kind in "iu" else (0, math.inf)


@lru_cache(maxsize=64)
def _report_scale(scale: float, offset: float) -> None:
    """Log once that values are scaled, for this scale and offset."""
    _log.warning(
        "rasters state a scale of %g and an offset of %g, which are applied to their values; `scaled: true` "
        "under `rasters` confirms it, `scaled: false` reads values as stored",
        scale,
        offset,
    )


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


def _place_box(to_source: Map, side: int) -> Box:
    """Return the box with a window's middle and size, at pixel edges if its pixels are the raster's own."""
    x, y, _ = to_source @ [side / 2, side / 2, 1]
    width, height = to_source[0, 0] * side, to_source[1, 1] * side
    if max(abs(width - side), abs(height - side)) <= _SAME:
        return Box(round(x - side / 2), round(y - side / 2), side, side, side, side)
    return Box(x - width / 2, y - height / 2, width, height, side, side)


def _find_missing(valid: NDArray[np.bool_], kind: np.dtype[Any]) -> NDArray[np.bool_]:
    """Return which values are missing (B, H, W); in 8 bits all of a pixel, as (0, 0, 9) is a colour."""
    return np.broadcast_to(~valid.any(axis=0), valid.shape) if kind == np.uint8 else ~valid


def _fill_missing(values: NDArray[Any], valid: Valid, options: RasterOptions, where: str) -> NDArray[Any]:
    """Fill missing pixels, unless too many are missing, and return the bands last."""
    missing = None
    if valid is not None:
        there = valid.any(axis=0)
        if there.mean() < options.min_valid:
            raise DataError(
                f"{where}: {1 - there.mean():.0%} of the pixels are missing (nodata or outside the raster), "
                f"more than min_valid ({options.min_valid:g}) allows; drop the row, or lower it"
            )
        missing = _find_missing(valid, values.dtype)
    if options.stretch is not None:
        low, high = options.stretch
        known = (values if missing is None else np.where(missing, low, values)).astype(np.float32)
        values = np.round(np.clip((known - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    if values.dtype == np.uint8 and not 0 <= options.fill <= 255:
        raise DataError(f"{where}: `fill` must be from 0 to 255 in an 8-bit image, not {options.fill:g}")
    if missing is not None:
        values[missing] = options.fill
    return values.transpose(1, 2, 0)
