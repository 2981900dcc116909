"""Opening of GeoTIFF and JPEG 2000 files: by drivers that read nothing else, within limits of cost."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from geobind.data.readers.files import open_binary
from geobind.data.readers.image_header import ImageHeader, read_header
from geobind.errors import DataError
from geobind.extras import INSTALL
from geobind.utils.files import file_stamp

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

P = ParamSpec("P")
R = TypeVar("R")

# GDAL's drivers of the formats that are opened; others, such as VRT, read whatever file or address they name.
_DRIVERS = {"TIFF": "GTiff", "JPEG2000": "JP2OpenJPEG"}
# No look at neighbours: a .ovr or .aux.xml can be a VRT, or name any other file.
_ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
_CACHE_BYTES = 256 * 1024**2  # GDAL would keep a twentieth of the memory, in every worker
_MAX_BLOCK_BYTES = 1024**3
MAX_BANDS = 1024  # as many as a modality of images can have
_OPEN = 32  # rasters kept open in a process


def require_rasterio() -> ModuleType:
    """Return rasterio.

    Raises:
        DataError: It is not installed.
    """
    try:
        import rasterio
    except ImportError as error:
        raise DataError(f"rasters need rasterio ({error}): {INSTALL['rasterio']}") from error
    return rasterio


def report_raster_damage(
    read: Callable[Concatenate[str | Path, P], R],
) -> Callable[Concatenate[str | Path, P], R]:
    """Convert any GDAL error of a damaged raster to a DataError that names the file.

    Its errors have no public base class, and some are raised by attributes, which read parts of a file late.
    """

    @wraps(read)
    def told(path: str | Path, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return read(path, *args, **kwargs)
        except Exception as error:
            # A name in the file that is not UTF-8 is rasterio's to decode.
            if not (isinstance(error, UnicodeDecodeError) or type(error).__module__.startswith("rasterio.")):
                raise
            raise DataError(f"{path}: damaged raster: {error}") from error

    return told


@report_raster_damage
def open_raster(path: str | Path) -> DatasetReader:
    """Return an open GeoTIFF or JPEG 2000; do not close it, it is kept for the next call.

    Raises:
        DataError: It is missing, no such file, damaged, or refers to other files.
    """
    require_rasterio()
    try:
        stamp = file_stamp(os.stat(path))
    except OSError:
        stamp = None  # opening says what is wrong
    # A handle is of use to one thread of one process alone: after a fork two would share its file position.
    return _open_cached(Path(os.path.abspath(path)), stamp, os.getpid(), threading.get_ident())


@lru_cache(maxsize=_OPEN)
def _open_cached(path: Path, stamp: object, process: int, thread: int) -> DatasetReader:
    rasterio = require_rasterio()
    with open_binary(path) as file:
        header, head = read_header(file, str(path)), file.read(8)
    driver = None if header is None else _DRIVERS.get(header.format)
    if header is None or driver is None:
        raise DataError(
            f"{path}: is no GeoTIFF or JPEG 2000 file (it begins with {head!r}); convert it: "
            "gdal_translate INPUT output.tif -of COG"
        )
    _check_header(header, path)
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES, **_ALONE):
        try:
            with warnings.catch_warnings():  # windows by pixels need no place
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                dataset = rasterio.open(path, driver=driver)
        except rasterio.errors.RasterioError as error:
            raise DataError(f"{path}: cannot be opened as a raster: {error}") from error
        _check(dataset, path)
    return dataset


def _check_header(header: ImageHeader, path: Path) -> None:
    """Raise for a raster that takes memory or time without bound, before GDAL reads its header."""
    if header.bands > MAX_BANDS:
        raise DataError(
            f"{path}: claims {header.bands:,} bands, and at most {MAX_BANDS:,} are read; choose some: "
            "gdal_translate -b 1 -b 2 ... INPUT output.tif -of COG"
        )
    if header.pages > 1:
        raise DataError(
            f"{path}: holds {header.pages} images of one size, of which only the first would be read; write "
            "them as the bands of one image (gdal_merge.py -separate), or as files of their own"
        )
    height, width = header.block
    together = header.bands if header.interleaved else 1
    if height * width * together * header.bits / 8 > _MAX_BLOCK_BYTES:
        raise DataError(
            f"{path}: is stored in blocks of {height} x {width} pixels of {together} bands, and one must be "
            "read whole; write it in tiles: gdal_translate INPUT output.tif -of COG"
        )


def _check(dataset: DatasetReader, path: Path) -> None:
    """Raise for a raster that could reach beyond its file or fill the memory, before reading it."""
    if dataset.tags(ns="OVERVIEWS"):  # names another file that GDAL would open by whatever driver fits
        raise DataError(f"{path}: refers to overviews in another file; write it anew with gdal_translate")
    if not dataset.count:
        raise DataError(f"{path}: has no bands")
    if any(kind.startswith("complex") for kind in dataset.dtypes):
        raise DataError(f"{path}: holds complex numbers; write their magnitude first")
    dataset.overviews(1)  # found now, while neighbours are out of sight
