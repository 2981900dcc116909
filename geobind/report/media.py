"""Raw inputs as media for a page: pictures, sounds, texts."""

# T samples; H height, W width, C channels; F frequencies, B blocks of samples

from __future__ import annotations

import base64
import io
import wave
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from geobind.data.readers.audio import open_recording, read_audio
from geobind.data.readers.files import describe
from geobind.data.readers.images import read_image
from geobind.data.readers.text import read_text
from geobind.errors import DataError
from geobind.modality import Place
from geobind.utils.arrays import as_array
from geobind.utils.formatting import format_number, shorten

SIDE = 176  # pixels; a picture is shrunk to fit into this square
CLIP_SECONDS = 3.0
CLIP_RATE = 12_000  # Hz of what is played; what is drawn keeps its own rate
_FILE_RATE = 32_000  # Hz at which a file, whose rate is not asked for, is drawn
MAX_LETTERS = 300
_WINDOW = 512
_SPECTROGRAM = (SIDE, 88)
_RANGE_DB = 70.0
_MIN_SIDE = 8  # an array with fewer rows or columns is numbers, not a picture


@dataclass(frozen=True)
class Media:
    """One raw input as a page shows it; pictures and sounds are data URIs."""

    picture: str = ""
    sound: str = ""
    words: str = ""
    alt: str = ""
    note: str = ""

    @property
    def bytes(self) -> int:
        """Its size in the page."""
        return len(self.picture) + len(self.sound)


class MediaBudget:
    """Byte budget for the media of a page, and a count of those left out.

    Args:
        pictures: Bytes of pictures.
        sounds: Bytes of sounds.
        parts: Parts of the page that share them; unused bytes go to later parts.
    """

    def __init__(self, pictures: int, sounds: int, parts: int) -> None:
        self._rest, self._parts = [pictures, sounds], parts
        self._share = [0, 0]
        self.left_out = 0

    def next_part(self) -> None:
        """Give the next part its share of what is left."""
        self._rest = [rest + unused for rest, unused in zip(self._rest, self._share, strict=True)]
        self._share = [rest // max(self._parts, 1) for rest in self._rest]
        self._rest = [rest - share for rest, share in zip(self._rest, self._share, strict=True)]
        self._parts -= 1

    def admit(self, item: Media) -> Media:
        """Take what fits of an item; what does not is replaced by a note."""
        if len(item.sound) > self._share[1]:
            self.left_out += 1
            item = replace(item, sound="", note=f"{item.note}; not played here, to keep the page small")
        if len(item.picture) > self._share[0]:
            self.left_out += 1
            item = replace(item, picture="", words=item.alt, note="not shown, to keep the page small")
        self._share = [self._share[0] - len(item.picture), self._share[1] - len(item.sound)]
        return item


def build_media(raw: Any) -> Media:
    """Build the media of a raw input: picture, sound or text, or else a short description."""
    try:
        if isinstance(raw, str | Place):
            return Media(words=shorten(str(raw), MAX_LETTERS))
        if isinstance(raw, DataError):
            return Media(note=f"cannot be shown: {shorten(str(raw), 160)}")
        if _is_sound(raw):
            return _sound_media(raw)
        if isinstance(raw, Tensor):
            raw = as_array(raw, "the tensor")
        if isinstance(raw, np.ndarray):
            return _array_media(cast("NDArray[Any]", raw))
        if isinstance(raw, Image.Image):
            return _picture_media(np.moveaxis(read_image(raw).numpy(), 0, -1))
        if isinstance(raw, Path | bytes | bytearray | memoryview):
            return _file_media(raw)
    except DataError as error:
        return _placeholder(raw, error)
    return Media(words=shorten(repr(raw), MAX_LETTERS))


def _is_sound(raw: Any) -> bool:
    if not isinstance(raw, tuple) or len(cast("tuple[Any, ...]", raw)) != 2:
        return False
    samples, rate = cast("tuple[Any, Any]", raw)
    return isinstance(samples, np.ndarray | Tensor) and isinstance(rate, int | np.integer)


def _placeholder(raw: Any, error: DataError) -> Media:
    reason, words = str(error), describe(raw)
    if isinstance(raw, Path):  # where a file lies is nobody's business but its name is
        reason, words = reason.replace(str(raw), raw.name), raw.name
    return Media(words=words, note=f"cannot be shown: {shorten(reason, 160)}")


def _file_media(raw: Path | bytes | bytearray | memoryview) -> Media:
    """Try a file as a picture, a sound, a text; its name may say nothing."""
    try:
        return _picture_media(np.moveaxis(read_image(raw).numpy(), 0, -1))
    except DataError as error:
        first = error
    for kind in (_sound_media, _text_media):
        try:
            return kind(raw)
        except DataError:
            continue
    return _placeholder(raw, first)


def _text_media(raw: Path | bytes | bytearray | memoryview) -> Media:
    return Media(words=shorten(read_text(raw), MAX_LETTERS))


def _array_media(array: NDArray[Any]) -> Media:
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4) and array.dtype == np.uint8:
        return _picture_media(array[..., :3] if array.shape[-1] > 1 else array.repeat(3, axis=2))
    sides = sorted(array.shape)[-2:]
    if array.ndim in (2, 3) and array.dtype.kind in "uif" and sides[0] >= _MIN_SIDE:
        return _band_media(array)
    head = (
        ", ".join(format_number(float(value)) for value in array.reshape(-1)[:6])
        if array.dtype.kind in "buif"
        else ""
    )
    more = ", …" if array.size > 6 else ""
    return Media(words=f"{array.dtype} {array.shape}: {head}{more}")


def _band_media(array: NDArray[Any]) -> Media:
    """Show the first bands of an array of any depth, its values stretched to what a screen can show."""
    array_HWC = array[..., None] if array.ndim == 2 else array
    if array.ndim == 3 and array.shape[0] < min(array.shape[1:]):
        array_HWC = np.moveaxis(array, 0, -1)
    bands = array_HWC.shape[-1]
    chosen_HWC = np.nan_to_num(array_HWC[..., : 3 if bands >= 3 else 1].astype(np.float64))
    low_C, high_C = np.percentile(chosen_HWC, (2, 98), axis=(0, 1))
    stretched_HWC = np.clip((chosen_HWC - low_C) / np.maximum(high_C - low_C, 1e-12), 0, 1) * 255
    stretched_HWC = stretched_HWC.astype(np.uint8).repeat(3 // stretched_HWC.shape[-1], axis=2)
    note = f"bands 1 to 3 of {bands}, stretched" if bands >= 3 else f"band 1 of {bands}, stretched"
    return replace(_picture_media(stretched_HWC), note=note)


def _picture_media(image_HWC: NDArray[Any]) -> Media:
    if image_HWC.dtype != np.uint8:
        return _band_media(image_HWC)
    image = Image.fromarray(np.ascontiguousarray(image_HWC))
    height, width = image_HWC.shape[:2]
    image.thumbnail((SIDE, SIDE))
    return Media(picture=_jpeg(image), alt=f"picture of {width} by {height} pixels")


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, optimize=True)
    return _data_uri("image/jpeg", buffer.getvalue())


def _sound_media(raw: Any) -> Media:
    rate = int(raw[1]) if isinstance(raw, tuple) else _FILE_RATE
    with open_recording(raw, rate) as recording:
        seconds = recording.seconds
        drawn_T = recording.read(rate, seconds=CLIP_SECONDS).numpy()
    played = min(rate, CLIP_RATE)
    length = f"{seconds:.1f} s"
    return Media(
        picture=_spectrogram(drawn_T, rate),
        sound=_wav(read_audio((drawn_T, rate), played).numpy(), played),
        alt=f"spectrogram of a sound: {min(seconds, CLIP_SECONDS):.1f} s across, up to {rate / 2000:g} kHz",
        note=f"the first {CLIP_SECONDS:g} s of {length}" if seconds > CLIP_SECONDS + 0.05 else length,
    )


def _spectrogram(samples_T: NDArray[np.float32], rate: int) -> str:
    """Draw the short-time spectrum in decibels, `_RANGE_DB` below the loudest."""
    from matplotlib import colormaps

    padded_T = np.pad(samples_T, (0, max(0, _WINDOW - len(samples_T))))
    blocks_BT = np.lib.stride_tricks.sliding_window_view(padded_T, _WINDOW)[:: _WINDOW // 4]
    power_FB = np.abs(np.fft.rfft(blocks_BT * np.hanning(_WINDOW), axis=1)).T ** 2
    level_FB = 10 * np.log10(power_FB + 1e-10)
    share_FB = np.clip((level_FB - level_FB.max()) / _RANGE_DB + 1, 0, 1)
    colours = (colormaps["magma"](share_FB[::-1])[..., :3] * 255).astype(np.uint8)
    return _jpeg(Image.fromarray(colours).resize(_SPECTROGRAM, Image.Resampling.BILINEAR))


def _wav(samples_T: NDArray[np.float32], rate: int) -> str:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples_T, -1, 1) * 32767).astype("<i2").tobytes())
    return _data_uri("audio/wav", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
