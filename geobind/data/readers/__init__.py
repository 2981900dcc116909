"""Readers of one observation from a file of unknown origin: images, arrays, sounds, texts, tar members."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geobind.data.readers.arrays import read_band as read_band
    from geobind.data.readers.arrays import read_npy as read_npy
    from geobind.data.readers.arrays import read_numbers as read_numbers
    from geobind.data.readers.audio import audio_seconds as audio_seconds
    from geobind.data.readers.audio import read_audio as read_audio
    from geobind.data.readers.images import read_image as read_image
    from geobind.data.readers.text import read_text as read_text

_HOMES = {
    "audio_seconds": "geobind.data.readers.audio",
    "read_audio": "geobind.data.readers.audio",
    "read_band": "geobind.data.readers.arrays",
    "read_image": "geobind.data.readers.images",
    "read_npy": "geobind.data.readers.arrays",
    "read_numbers": "geobind.data.readers.arrays",
    "read_text": "geobind.data.readers.text",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    # Resolved on first use, so that reading a file's bytes does not import torch.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
