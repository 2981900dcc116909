"""Draw one observation by what it is: an image, a sound as its spectrogram, a text, numbers."""

# C channels, H height, W width, T samples, M mel bands, F frames

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from geobind.data.looking.inspecting import kind_of
from geobind.data.reading.files import open_binary
from geobind.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

Kind = Literal["image", "sound", "words", "numbers"]
Limits = tuple[float, float]  # the values that are shown black and white

_RATE = 16_000
_SHORTEST = 1024  # samples that make a spectrogram
_DECIBELS = 70  # shown below the loudest
_LETTERS = 160
_MOST_TOKENS = 60


def kind_of_raw(raw: Any) -> Kind:
    """Tell what a raw input is an observation of.

    Raises:
        DataError: It is a file that cannot be read.
    """
    if isinstance(raw, str):
        return "words"
    if isinstance(raw, Path | bytes):
        with open_binary(raw) as file:
            kind = kind_of(file.read(16))
        return kind if kind != "unknown" else "words"
    if isinstance(raw, tuple):
        return "sound"  # samples, and their rate
    return "image" if getattr(raw, "ndim", 3) in (2, 3) else "numbers"


def draw_raw(axis: Axes, raw: Any) -> None:
    """Draw a raw input; what is missing or broken is written out."""
    try:
        if raw is None or isinstance(raw, DataError):
            return write(axis, "missing" if raw is None else str(raw))
        kind = kind_of_raw(raw)
        if kind == "words":
            write(axis, _text(raw))
        elif kind == "sound":
            _draw_sound(axis, raw)
        elif isinstance(raw, Path | bytes):
            from geobind.data.reading.readers import read_image

            draw_array(axis, read_image(raw).numpy(), last=False)
        else:
            draw_array(axis, np.asarray(raw), last=isinstance(raw, np.ndarray))
    except DataError as error:
        write(axis, str(error))


def draw_prepared(axis: Axes, prepared: Any, raw: Any, limits: Limits | None = None) -> None:
    """Draw what `prepare` made of a raw input.

    Args:
        axis: Where to draw.
        prepared: A tensor or a mapping of tensors, of which the largest is drawn.
        raw: What it was made of: a sound's picture is a spectrogram, a text's tokens stand below its words.
        limits: What to show black and white, if the values are not of 8 bits; by default the image's own,
            which would hide a change of brightness.
    """
    if isinstance(prepared, DataError):
        return write(axis, str(prepared))
    if isinstance(prepared, Mapping):
        prepared = max(cast("Mapping[str, Any]", prepared).values(), key=lambda tensor: tensor.numel())
    array, kind = np.asarray(prepared), kind_of_raw(raw)
    if kind == "sound" and array.ndim >= 2:
        draw_spectrograms(axis, array)
    elif kind == "words" and array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
        tokens = np.trim_zeros(array, "b")
        write(axis, f"{_text(raw)} [{len(tokens)} tokens: {_some(tokens)}]")
    else:
        draw_array(axis, array, last=False, limits=limits)


def limits_of(prepared: Any) -> Limits | None:
    """The values between which most of an image's lie, as satellite images are shown; None for 8 bits."""
    array = np.asarray(prepared) if not isinstance(prepared, Mapping | DataError) else np.zeros(0)
    if array.ndim < 2 or array.dtype == np.uint8:
        return None
    low, high = np.percentile(array, (2, 98))
    return float(low), float(high)


def draw_spectrograms(axis: Axes, array: NDArray[Any]) -> None:
    """Draw one spectrogram (M, F) or several (..., M, F), the first on top, low notes below high ones."""
    mel_KMF = array.reshape(-1, *array.shape[-2:])
    gap_1F = np.full((max(1, mel_KMF.shape[1] // 16), mel_KMF.shape[2]), np.nan)
    rows = [row for mel_MF in mel_KMF[::-1] for row in (mel_MF, gap_1F)][:-1]
    axis.imshow(np.concatenate(rows), origin="lower", aspect="auto", cmap="magma", interpolation="nearest")


def draw_array(axis: Axes, array: NDArray[Any], *, last: bool, limits: Limits | None = None) -> None:
    """Draw numbers by their shape alone: pictures of any number of bands, planes, curves, tokens.

    Args:
        axis: Where to draw.
        array: (C, H, W), (H, W) or (T,); of more than three bands the first three are shown.
        last: The channels of three axes come last, as in arrays of images; they come first in tensors.
        limits: What to show black and white.
    """
    array = array[0] if array.ndim > 3 else array
    if array.ndim == 3:
        array = array if last else array.transpose(1, 2, 0)
        image = array[..., :3] if array.shape[2] >= 3 else array[..., 0]
        axis.imshow(
            _visible(image, limits), cmap="gray", vmin=None if image.ndim == 3 else 0, vmax=_top(image)
        )
    elif array.ndim == 2:
        axis.imshow(array, origin="lower", aspect="auto", cmap="magma")
    elif np.issubdtype(array.dtype, np.integer):
        write(axis, _some(np.trim_zeros(array.ravel(), "b")))
    else:
        axis.plot(np.arange(array.size), array.ravel(), linewidth=0.6)


def write(axis: Axes, text: str) -> None:
    """Write a text into a cell, cut where it would not fit."""
    short = text if len(text) <= _LETTERS else text[:_LETTERS] + " ..."
    axis.text(
        0, 1, textwrap.fill(short, 28), fontsize=6, va="top", transform=axis.transAxes, parse_math=False
    )


def _draw_sound(axis: Axes, raw: Any) -> None:
    from geobind.data.reading.readers import read_audio
    from geobind.toyearth.sheet import spectrogram

    samples_T = read_audio(raw, _RATE).numpy()
    loud_FW = spectrogram(np.pad(samples_T, (0, max(0, _SHORTEST - len(samples_T)))))
    axis.imshow(loud_FW, origin="lower", aspect="auto", cmap="magma", vmin=float(loud_FW.max()) - _DECIBELS)


def _text(raw: Any) -> str:
    from geobind.data.reading.readers import read_text

    return raw if isinstance(raw, str) else read_text(raw)


def _some(tokens: NDArray[Any]) -> str:
    more = " ..." if len(tokens) > _MOST_TOKENS else ""
    return " ".join(map(str, tokens[:_MOST_TOKENS])) + more


def _visible(image: NDArray[Any], limits: Limits | None) -> NDArray[Any]:
    if image.dtype == np.uint8:
        return image
    low, high = limits or np.percentile(image, (2, 98))
    return np.clip((image - low) / max(float(high - low), 1e-9), 0, 1)


def _top(image: NDArray[Any]) -> float | None:
    """What is white of one band: matplotlib would stretch each by its own values."""
    return None if image.ndim == 3 else 255 if image.dtype == np.uint8 else 1
