"""Look at one observation, whatever holds it: what kind it is, its size, and marks to find its like again."""

# C channels, H height, W width

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from geobind.data.reading.files import describe, open_binary
from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Kind = Literal["image", "sound", "words", "numbers", "unknown"]

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", *_TIFF, *_JPEG_2000)
_SOUNDS = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"FORM", b".snd", b"RF64")
_FLAT = 2.0  # grey levels of 255; below, an image's hash is noise
_SILENT = 1e-4  # of full scale
_HEAD, _PART = 16, 2**20  # bytes


@dataclass(frozen=True)
class Facts:
    """What is known of one observation; a `fault` says why it cannot be used."""

    kind: Kind = "unknown"
    fault: str | None = None
    digest: bytes = b""  # of the content; empty if it was not read
    size: tuple[int, int] | None = None  # width and height of an image
    channels: int | None = None
    rate: int | None = None
    seconds: float | None = None
    silent: bool = False
    length: int | None = None  # characters of a text, numbers of a vector
    marks: tuple[int, int] | None = None  # difference hashes of 64 and 256 bits; None of a flat image


def inspect_raw(raw: Any) -> Facts:
    """Decode an observation and tell what it is; what is wrong with it is told, not raised.

    Args:
        raw: A path, bytes, a string, an array of an image (H, W, C) or of numbers, as columns give them.
    """
    try:
        if isinstance(raw, str):
            return Facts("words", digest=_digest_of(raw.encode("utf-8", "replace")), length=len(raw))
        if isinstance(raw, np.ndarray):
            return _of_array(raw)
        with open_binary(raw) as file:
            head = file.read(_HEAD)
            digest = _digest(file, head)
        return _of_content(raw, head, digest)
    except (DataError, OSError) as error:
        return Facts(fault=str(error))


def kind_of(content: bytes) -> Kind:
    """Tell by how it begins what an encoded observation is; `unknown` may be text."""
    if content.startswith(b"RIFF"):
        return "image" if content[8:12] == b"WEBP" else "sound"
    if content.startswith(_IMAGES):
        return "image"
    return "sound" if content.startswith(_SOUNDS) else "unknown"


def _of_content(raw: Path | bytes, head: bytes, digest: bytes) -> Facts:
    from geobind.data.reading.readers import read_text  # imports torch

    kind = kind_of(head)
    try:
        if kind == "image":
            return _of_image(raw, head, digest)
        if kind == "sound":
            return _of_sound(raw, digest)
        return Facts("words", digest=digest, length=len(read_text(raw)))
    except DataError as error:
        if kind == "unknown" and isinstance(error.__cause__, UnicodeDecodeError):
            fault = f"{describe(raw)}: is no image, sound or text known here; it begins with {head[:8]!r}"
            return Facts(fault=fault)
        return Facts(kind, str(error), digest)


def _of_array(array: NDArray[Any]) -> Facts:
    digest = _digest_of(np.ascontiguousarray(array).data)
    if array.ndim != 3:
        fault = None if np.isfinite(array).all() else "holds numbers that are NaN or infinite"
        return Facts("numbers", fault, digest, length=array.size)
    height, width, channels = array.shape
    return Facts("image", None, digest, (width, height), channels, marks=_marks(array.transpose(2, 0, 1)))


def _of_image(raw: Path | bytes, head: bytes, digest: bytes) -> Facts:
    from geobind.data.reading.images import read_image

    try:
        image_CHW: Tensor = read_image(raw, channels=3)
    except DataError as photo_fault:
        try:  # what cannot be shown as a photo may be one band of values
            image_CHW = read_image(raw, channels=1)
        except DataError:
            if head.startswith(_TIFF + _JPEG_2000) and isinstance(raw, Path):
                return _of_raster(raw, digest)
            return Facts("image", str(photo_fault), digest)
    channels, height, width = image_CHW.shape
    return Facts("image", None, digest, (width, height), channels, marks=_marks(image_CHW.numpy()))


def _of_raster(path: Path, digest: bytes) -> Facts:
    from geobind.data.rasters.geotiff import open_raster

    dataset = open_raster(path)
    return Facts("image", None, digest, (dataset.width, dataset.height), dataset.count)


def _of_sound(raw: Path | bytes, digest: bytes) -> Facts:
    from geobind.data.reading.sounds import open_sound, read_audio

    with open_sound(raw) as file:
        rate, channels = file.samplerate, file.channels
    samples_T = read_audio(raw, rate)
    return Facts(
        "sound",
        None,
        digest,
        channels=channels,
        rate=rate,
        seconds=len(samples_T) / rate,
        silent=float(samples_T.abs().max()) < _SILENT,
    )


def _marks(image_CHW: NDArray[Any]) -> tuple[int, int] | None:
    """Return the difference hashes of an image: is each patch brighter than the one to its left?"""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    grey_11HW = torch.from_numpy(image_CHW.mean(axis=0, dtype=np.float64))[None, None]
    coarse, fine = (adaptive_avg_pool2d(grey_11HW, (n, n + 1))[0, 0].numpy() for n in (8, 16))
    scale = (
        1.0
        if image_CHW.dtype == np.uint8
        else 255 / max(1e-9, float(image_CHW.max()) - float(image_CHW.min()))
    )
    if coarse.std() * scale < _FLAT:
        return None
    small, large = (
        int.from_bytes(np.packbits(np.diff(patches, axis=1) > 0).tobytes(), "big")
        for patches in (coarse, fine)
    )
    return small, large


def _digest(file: BinaryIO, head: bytes) -> bytes:
    digest = hashlib.blake2b(head, digest_size=16)
    while part := file.read(_PART):  # a raster may be larger than memory
        digest.update(part)
    return digest.digest()


def _digest_of(content: Any) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
