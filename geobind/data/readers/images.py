"""Images from files, bytes, PIL images, arrays and tensors."""

# C channels, H height, W width

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np
import torch
from torch import Tensor

from geobind.data.readers.files import describe, open_binary
from geobind.data.readers.image_header import ImageHeader, read_header
from geobind.errors import DataError
from geobind.utils.arrays import as_array, is_array, is_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    Scale = Callable[[Image], Image]

Layout = Literal["HWC", "CHW", "either"]

MAX_PIXELS = 100_000_000
MAX_SIDE = 30_000
_LIMIT = (
    f"at most {MAX_SIDE} a side and {MAX_PIXELS / 1e6:.0f} million in all are read; cut it into tiles first, "
    "or windows out of a GeoTIFF with `rasters`"
)
MAX_CHIP = 1024  # pixels a side of a georeferenced file that is taken for one tile; a larger one is a scene
_LEFT = 4  # a JPEG decoded smaller still has so many times the length that is needed
# Named, because Pillow's other decoders start programs (EPS) or are little looked after.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "JPEG2000", "GIF", "BMP")
_KNOWN = "JPEG, PNG, WebP, TIFF, JPEG 2000, GIF or BMP"
_RASTERS = ("TIFF", "JPEG2000")  # formats that the reader of rasters reads
# Single bands deeper than a photo's that Pillow gives as they are: bits, numbers, format.
_EXACT = {(16, "unsigned", "PNG"), (16, "unsigned", "TIFF"), (32, "float", "TIFF")}
_ORIENTATION = 0x0112  # the EXIF tag
_SCALED_FIRST = ("RGBA", "LA", "CMYK", "YCbCr")
_RGB_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"}


def read_image(raw: Any, *, channels: int = 3, needed: int | None = None) -> Tensor:
    """Decode an image into a tensor of exactly `channels` channels.

    Files of 8 bits stay uint8 in [0, 255]. With `channels=3` every kind of photo becomes RGB: grey is
    repeated, and what the file states to be transparency is dropped. With any other number the bands must be
    there, and deeper values are kept as they are, in float32; `channels=1` of a palette image are its
    indices, as class maps need them. Arrays keep uint8 or become float32. The EXIF orientation is applied.

    The file's own header decides, not what a decoder makes of it. A georeferenced file of more than 1,024
    pixels a side is a scene, which scaled to one picture would mean nothing: it is refused. GeoTIFF and JPEG
    2000 files whose bands or types no photo has are read as `rasters` reads them; that needs rasterio and a
    file of its own.

    Args:
        raw: A path, the bytes of a file, a PIL image, an array (H, W), (H, W, C) or (C, H, W) (where
            both fit, (H, W, C)), of numpy or what numpy can read, or a tensor (H, W) or (C, H, W).
        channels: The number of channels wanted.
        needed: Length to which the shorter side will be scaled down, if it will. A JPEG is then decoded at a
            half, a quarter or an eighth of its size as long as that leaves four times what is needed, in two
            thirds of the time; what is scaled down from it differs by 0.3 of 255 grey levels on average.

    Returns:
        (C, H, W), uint8 or float32, contiguous.

    Raises:
        DataError: The input is missing, empty, damaged, too large, not an image, holds NaN or infinity, has
            another number of channels, has more than 8 bits where RGB is wanted, or is a whole scene.
    """
    return decode_image(raw, channels=channels, needed=needed).contiguous()


def decode_image(
    raw: Any, *, channels: int = 3, needed: int | None = None, scale: Scale | None = None
) -> Tensor:
    """Decode as `read_image` does, but leave the pixels in their decoded memory order.

    That is mostly pixel by pixel. Scaling such an image takes no longer, and putting its channels first,
    which takes half as long as decoding it, can wait until it is small.

    `scale` scales an image that becomes another one as RGB (transparent, CMYK, YCbCr) before it does: only
    then the hidden colours of transparent pixels do not spread into those beside them.
    """
    if isinstance(raw, str | Path) or is_bytes(raw):
        return _from_file(raw, channels, needed, scale)
    if is_array(raw):
        name, layout = ("the tensor", "CHW") if isinstance(raw, Tensor) else ("the array", "either")
        return _from_array(as_array(raw, name), channels, name, layout)
    from PIL import Image

    if isinstance(raw, Image.Image):
        header = _header_behind(raw)
        if header is not None:
            _check_header(header, channels, "the image")
        _check_size(*raw.size, "the image")
        return _from_pillow(raw, channels, "the image", scale)
    raise DataError(f"an image must be a path, bytes, a PIL image, an array or a tensor, not {describe(raw)}")


def _from_file(
    raw: str | Path | bytes | bytearray | memoryview, channels: int, needed: int | None, scale: Scale | None
) -> Tensor:
    name = describe(raw)
    with open_binary(raw) as file:
        header = read_header(file, name)
        if header is not None:
            _check_size(header.width, header.height, name)
            if not _check_header(header, channels, name):
                return _from_raster(raw, header, channels, name)
        try:
            return _from_photo(file, channels, needed, scale, name)
        except DataError:
            # GDAL knows compressions of TIFF and kinds of JPEG 2000 that Pillow does not.
            if header is None or header.format not in _RASTERS or header.bands != channels:
                raise
            with suppress(DataError):
                return _from_raster(raw, header, channels, name)
            raise


def _from_photo(file: BinaryIO, channels: int, needed: int | None, scale: Scale | None, name: str) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file, formats=_FORMATS)
    except (UnidentifiedImageError, SyntaxError) as error:
        file.seek(0)
        raise DataError(f"{name}: not a readable {_KNOWN} image; it begins with {file.read(16)!r}") from error
    except Image.DecompressionBombError as error:  # its size is in its message alone
        size = re.search(r"\((\d+) pixels\)", str(error))
        count = f"{int(size[1]):,}" if size else "too many"
        raise DataError(f"{name}: {count} pixels; {_LIMIT}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be opened as an image: {error}") from error
    _check_size(*image.size, name)
    if image.format == "JPEG":
        smaller = _draft_size(image.size, needed)
        if smaller:
            image.draft(None, smaller)
        elif channels == 3 and image.mode in ("RGB", "L"):
            image_CHW = _decode_jpeg(image, file)
            if image_CHW is not None:
                return image_CHW
    return _from_pillow(image, channels, name, scale)


def _check_header(header: ImageHeader, channels: int, name: str) -> bool:
    """Return whether Pillow's pixels of a file are the file's own; if not, it must be read as a raster.

    Raises:
        DataError: The file has other bands, or values that cannot be shown as the RGB that is wanted.
    """
    if header.georeferenced and max(header.width, header.height) > MAX_CHIP:
        raise DataError(
            f"{name}: is a scene of {header.width} x {header.height} pixels with a georeference, not one "
            f"tile (of at most {MAX_CHIP} a side); cut it into tiles, `geobind embed BUNDLE MODALITY "
            "--raster FILE --size-m METRES`, or into a window of each place, under `data`: "
            "`rasters: {NAME: {path: FILE, size_m: METRES}}`"
        )
    if header.pages > 1:
        raise DataError(
            f"{name}: holds {header.pages} images of one size, of which only the first would be read; write "
            "them as the bands of one image, or as files of their own"
        )
    deep = header.bits > 8 or header.numbers != "unsigned"
    tiff = header.format in _RASTERS
    if channels == 3 and deep:
        mend = (
            "give the range to show, under `data`: `rasters: {NAME: {stretch: [LOW, HIGH]}}`"
            if tiff
            else "write it with 8 bits, or as a GeoTIFF, of which `rasters` shows a range that you choose"
        )
        raise DataError(
            f"{name}: has {header.describe()}; which of their values are black and which are white it does "
            f"not say, so it is not read as RGB: {mend}"
        )
    if header.photo:
        return True
    kind = (header.bits, header.numbers, header.format)
    if header.bands == channels == 1 and kind in _EXACT and header.interleaved:
        return True
    if header.bands != channels:
        mend = ", or choose bands, under `data`: `rasters: {NAME: {bands: [1, ...]}}`" if tiff else ""
        raise DataError(
            f"{name}: has {header.bands} channels where {channels} are wanted ({header.describe()}); set the "
            f"modality's `channels`{mend}"
        )
    if not tiff:
        raise DataError(
            f"{name}: has {header.describe()}, which are not read from a {header.format} file; write it as a "
            "GeoTIFF, or with 8 bits"
        )
    return False


def _from_raster(raw: Any, header: ImageHeader, channels: int, name: str) -> Tensor:
    """Read all pixels and bands of a GeoTIFF or JPEG 2000 file, as a window of a raster is read."""
    from geobind.data.options import RasterOptions
    from geobind.data.rasters.window import read_pixels

    if not isinstance(raw, str | Path):
        raise DataError(
            f"{name}: has {header.describe()}, as rasters have; a raster must be a file of its own: write it "
            "beside the manifest, and name it there"
        )
    options = RasterOptions(bands=tuple(range(1, channels + 1)))
    array_HWB = read_pixels(raw, 0, 0, header.width, header.height, options)
    return _from_array(array_HWB, channels, name, "HWC")


def _header_behind(image: Image) -> ImageHeader | None:
    """Return the header of the file that an image was opened from, as long as it has not been decoded."""
    file: Any = getattr(image, "fp", None)
    if not isinstance(file, BufferedIOBase) or file.closed or not file.seekable():
        return None
    at = file.tell()
    try:
        return read_header(cast(BinaryIO, file), "the image")
    finally:
        file.seek(at)


def _draft_size(size: tuple[int, int], needed: int | None) -> tuple[int, int] | None:
    """Return the size at which a JPEG is decoded if that is smaller than its own."""
    if needed is None:
        return None
    factor = next((factor for factor in (8, 4, 2) if min(size) >= factor * _LEFT * needed), 1)
    return None if factor == 1 else (-(-size[0] // factor), -(-size[1] // factor))


def _decode_jpeg(image: Image, file: BinaryIO) -> Tensor | None:
    """Decode an upright RGB or grey JPEG with torchvision, which gives Pillow's pixels in half of the time.

    None of one that is turned or damaged: Pillow turns it, or says what is wrong.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    width, height = image.size
    if file.seek(0, 2) > 8 * width * height + 2**20 or _orientation(image) != 1:
        return None
    file.seek(0)
    content_T = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    try:
        image_CHW = cast(Tensor, decode_jpeg(content_T, mode=ImageReadMode.RGB))
    except RuntimeError:
        return None
    return image_CHW if image_CHW.shape == (3, height, width) else None


def _orientation(image: Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged tags raise nearly anything
        return 0


def is_too_large(width: int, height: int) -> bool:
    """Return whether an image has more pixels than are decoded at once."""
    return max(width, height) > MAX_SIDE or width * height > MAX_PIXELS


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise DataError(f"{name}: is empty ({width} x {height} pixels)")
    if is_too_large(width, height):
        raise DataError(f"{name}: {width} x {height} pixels; {_LIMIT}")


def _from_pillow(image: Image, channels: int, name: str, scale: Scale | None = None) -> Tensor:
    from PIL import ImageOps

    try:
        if image.getexif().get(_ORIENTATION, 1) != 1:  # transposing copies even what is upright
            image = ImageOps.exif_transpose(image)
        if channels == 3:
            array = _as_rgb(scale(image) if scale and image.mode in _SCALED_FIRST else image)
        elif image.mode == "1":
            array = np.asarray(image.convert("L"))
        elif image.mode in ("P", "PA") and channels > 1:
            array = np.asarray(image.convert("RGBA"))
        else:
            array = np.asarray(image)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise DataError(f"{name}: cannot be decoded as an image: {error}") from error
    return _from_array(array, channels, name, "HWC")


def _as_rgb(image: Image) -> NDArray[Any]:
    if image.mode not in _RGB_MODES:
        raise DataError(
            f"pixels of mode '{image.mode}' have no range that could be shown as RGB; convert it to 8 bits, "
            "or read it as 1 channel"
        )
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about palettes with transparency
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _from_array(array: NDArray[Any], channels: int, name: str, layout: Layout) -> Tensor:
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"{name}: shape {tuple(array.shape)} is not that of an image")
    array_CHW = _channels_first(array, channels, name, layout)
    if array.dtype == np.uint8:
        # A copy where the memory is not ours to write, so that augmentation in place harms nobody.
        ours = array_CHW.flags.writeable and min(array_CHW.strides) > 0
        return torch.from_numpy(array_CHW if ours else array_CHW.copy("K"))
    with np.errstate(over="ignore"):  # an overflow to infinity is caught below
        values_CHW = array_CHW.astype(np.float32)
    if not np.isfinite(values_CHW).all():
        bad = int(values_CHW.size - np.isfinite(values_CHW).sum())
        raise DataError(
            f"{name}: {bad} of {values_CHW.size} values are NaN or infinite; fill or drop them first"
        )
    return torch.from_numpy(values_CHW)


def _channels_first(array: NDArray[Any], channels: int, name: str, layout: Layout) -> NDArray[Any]:
    first, last = array.shape[0], array.shape[-1]
    if array.ndim == 2:
        array_CHW = array[None]
    elif layout == "HWC" or (layout == "either" and (last == channels or first not in (channels, 1))):
        array_CHW = array.transpose(2, 0, 1)
    else:
        array_CHW = array
    if channels == 3 and array_CHW.shape[0] == 1:
        array_CHW = np.repeat(array_CHW, 3, axis=0)
    if array_CHW.shape[0] != channels:
        found = min(first, last) if layout == "either" and array.ndim == 3 else array_CHW.shape[0]
        raise DataError(
            f"{name}: has {found} channels where {channels} are wanted (shape {tuple(array.shape)})"
        )
    return array_CHW
