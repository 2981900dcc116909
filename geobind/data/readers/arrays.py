"""Measured values from files: arrays of .npy files, and rasters of one band."""

# H rows, W columns

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from geobind.data.readers.files import describe, open_binary
from geobind.data.readers.image_header import read_header
from geobind.errors import DataError
from geobind.utils.arrays import as_array, is_array, is_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

NPY = b"\x93NUMPY"  # the first bytes of a .npy file
_MOST_PIXELS = 100_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
# Pixels of one band that Pillow gives as the file states them: bits and numbers.
_EXACT = {(16, "unsigned"), (16, "signed"), (32, "signed"), (32, "float")}
_MODES = {"1", "L", "P", "I;16", "I;16B", "I;16L", "I;16N", "I", "F"}
_NODATA = 42113  # the TIFF tag in which GDAL states the value that means that there is none
_WAYS = "write it as a TIFF of one band (16-bit integers or 32-bit floats), a 16-bit PNG or a .npy file"


def read_npy(raw: Any) -> NDArray[Any]:
    """Read the array of a .npy file; no larger one than its bytes hold is made room for.

    Args:
        raw: A path, or the bytes of the file.

    Returns:
        An array of numbers or booleans.

    Raises:
        DataError: It is missing, damaged, cut short, or holds Python objects, records or texts.
    """
    with open_binary(raw) as file:
        return _load_npy(file, describe(raw))


def read_numbers(raw: Any) -> NDArray[np.float64]:
    """Read numbers of any shape; NaN where one is missing.

    Args:
        raw: A path or the bytes of a .npy file, an array of numpy or what numpy can read, a tensor, or
            (nested) lists of numbers.

    Returns:
        float64, a copy.

    Raises:
        DataError: It is missing or damaged, hides values behind a mask, or holds what is no real number.
    """
    if isinstance(raw, str | Path) or is_bytes(raw):
        return read_npy(raw).astype(np.float64)
    if is_array(raw):
        return as_array(raw, describe(raw)).astype(np.float64)
    return _read_rows(raw, describe(raw))


def read_band(raw: Any) -> NDArray[np.float64]:
    """Read a raster of one band as measured values; NaN where there is none.

    Pixels are kept as they are stored. What GDAL's tag of a TIFF states to be no data becomes NaN.

    Args:
        raw: A path or the bytes of an image of one band or of a .npy file, a PIL image, a 2-D array of numpy
            or what numpy can read, a tensor, or rows of numbers. A third axis of length 1, first or last,
            is dropped.

    Returns:
        (H, W) float64, a copy.

    Raises:
        DataError: It is missing, damaged, too large, empty or infinite, has several bands, or pixels of a
            type that is not read exactly.
    """
    from PIL import Image

    name = describe(raw)
    if isinstance(raw, str | Path) or is_bytes(raw):
        with open_binary(raw) as file:
            npy = file.read(len(NPY)) == NPY
            file.seek(0)
            stored = _load_npy(file, name) if npy else _decode(file, name)
    elif isinstance(raw, Image.Image):
        stored = _read_pixels(raw, name)
    elif is_array(raw):
        stored = as_array(raw, name)
    elif isinstance(raw, list | tuple):
        stored = _read_rows(raw, name)
    else:
        raise DataError(f"a raster of one band must be a path, bytes, an image or a 2-D array, not {name}")
    return _check_band(stored, name)


def _check_band(stored: NDArray[Any], name: str) -> NDArray[np.float64]:
    if stored.ndim == 3 and 1 in (stored.shape[0], stored.shape[-1]):
        stored = stored[0] if stored.shape[0] == 1 else stored[..., 0]
    if stored.ndim != 2:
        raise DataError(
            f"{name}: has the shape {stored.shape}, where a band has two axes (rows, columns); choose one"
        )
    if stored.size == 0:
        raise DataError(f"{name}: is empty, of shape {stored.shape}")
    band_HW = stored.astype(np.float64)
    if np.isinf(band_HW).any():
        row, column = (int(at) for at in np.argwhere(np.isinf(band_HW))[0])
        raise DataError(
            f"{name}: is infinite at row {row}, column {column}; write NaN where there is no value"
        )
    return band_HW


def _read_rows(rows: Any, name: str) -> NDArray[np.float64]:
    try:
        return np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DataError(f"{name}: cannot be read as numbers: {str(error)[:200]}") from error


def _load_npy(file: BinaryIO, name: str) -> NDArray[Any]:
    at, end = file.tell(), file.seek(0, 2)
    file.seek(at)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, kind = read(file)
        if kind.kind not in "buif":
            raise DataError(f"{name}: holds values of type {str(kind)[:60]}, where numbers are read")
        # Python's integers, since a shape that is made up overflows those of numpy.
        size, left = math.prod(shape) * kind.itemsize, end - file.tell()
        if min(shape, default=0) < 0 or size > left:
            raise DataError(
                f"{name}: is cut short: states the shape {str(shape)[:80]}, {size} bytes, and has {left}"
            )
        file.seek(at)
        return cast("NDArray[Any]", np.load(file, allow_pickle=False))
    except DataError:
        raise
    except Exception as error:  # a header is a Python literal, and a damaged one raises nearly anything
        raise DataError(f"{name}: is a damaged .npy file: {str(error)[:200]}") from error


def _decode(file: BinaryIO, name: str) -> NDArray[Any]:
    from PIL import Image

    header = read_header(file, name)
    if header is not None:
        if header.width * header.height > _MOST_PIXELS:
            raise DataError(
                f"{name}: {header.width} x {header.height} pixels; at most {_MOST_PIXELS:,} are read; cut "
                "windows out of it with `rasters`"
            )
        if header.pages > 1:
            raise DataError(f"{name}: holds {header.pages} images of one size; write each as a file")
        if header.bands != 1:
            raise DataError(f"{name}: has {header.bands} bands where one is read; choose one: {_WAYS}")
        exact = header.bits <= 8 or (header.bits, header.numbers) in _EXACT
        if not exact or header.format == "JPEG2000":
            raise DataError(
                f"{name}: has {header.describe()}, which are not read from a {header.format} file here: "
                f"{_WAYS}, or read it under `data` with `rasters`"
            )
    try:
        with Image.open(file, formats=_FORMATS) as image:
            return _read_pixels(image, name)
    except DataError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise DataError(
            f"{name}: cannot be read as a raster of one band ({str(error)[:200]}): {_WAYS}"
        ) from (error)


def _read_pixels(image: Any, name: str) -> NDArray[Any]:
    if image.width * image.height > _MOST_PIXELS:
        raise DataError(f"{name}: {image.width} x {image.height} pixels; at most {_MOST_PIXELS:,} are read")
    if image.mode not in _MODES:
        raise DataError(f"{name}: has pixels of mode '{image.mode}', which are not one band: {_WAYS}")
    stored_HW = np.asarray(image)
    stated = getattr(image, "tag_v2", {}).get(_NODATA)
    try:
        nodata = None if stated is None else float(str(stated).strip("\0 "))
    except ValueError:
        raise DataError(
            f"{name}: states the no-data value {str(stated)[:40]!r}, which is no number"
        ) from None
    if nodata is None or math.isnan(nodata):
        return stored_HW
    with np.errstate(over="ignore"):  # a value beyond those of the type is nowhere
        absent_HW = stored_HW == (np.float32(nodata) if stored_HW.dtype == np.float32 else nodata)
    return np.where(absent_HW, np.nan, stored_HW)
