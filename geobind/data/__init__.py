"""Tables of places, readers of files, windows of rasters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind.data.cache import build_once as build_once
    from geobind.data.cache import cache_root as cache_root
    from geobind.data.columns import ArrayColumn as ArrayColumn
    from geobind.data.columns import ArrowColumn as ArrowColumn
    from geobind.data.dataset import Dataset as Dataset
    from geobind.data.dataset import DatasetRows as DatasetRows
    from geobind.data.options import DataOptions as DataOptions
    from geobind.data.options import RasterOptions as RasterOptions
    from geobind.data.pack import pack_table as pack_table
    from geobind.data.rasters.window import read_pixels as read_pixels
    from geobind.data.rasters.window import read_window as read_window
    from geobind.data.readers import audio_seconds as audio_seconds
    from geobind.data.readers import read_audio as read_audio
    from geobind.data.readers import read_band as read_band
    from geobind.data.readers import read_image as read_image
    from geobind.data.readers import read_npy as read_npy
    from geobind.data.readers import read_numbers as read_numbers
    from geobind.data.readers import read_text as read_text
    from geobind.data.readers.audio import measure_loudness as measure_loudness
    from geobind.data.readers.files import open_binary as open_binary
    from geobind.data.sampler import batch_indices as batch_indices
    from geobind.data.table import Table as Table
    from geobind.data.table import open_table as open_table

_HOMES = {
    "ArrayColumn": "geobind.data.columns",
    "ArrowColumn": "geobind.data.columns",
    "Dataset": "geobind.data.dataset",
    "DatasetRows": "geobind.data.dataset",
    "DataOptions": "geobind.data.options",
    "RasterOptions": "geobind.data.options",
    "Table": "geobind.data.table",
    "audio_seconds": "geobind.data.readers",
    "build_once": "geobind.data.cache",
    "cache_root": "geobind.data.cache",
    "batch_indices": "geobind.data.sampler",
    "measure_loudness": "geobind.data.readers.audio",
    "open_binary": "geobind.data.readers.files",
    "open_table": "geobind.data.table",
    "pack_table": "geobind.data.pack",
    "read_audio": "geobind.data.readers",
    "read_band": "geobind.data.readers",
    "read_image": "geobind.data.readers",
    "read_npy": "geobind.data.readers",
    "read_numbers": "geobind.data.readers",
    "read_pixels": "geobind.data.rasters.window",
    "read_text": "geobind.data.readers",
    "read_window": "geobind.data.rasters.window",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
