"""Inputs to check an exported encoder with, and words on how its inputs are prepared."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from geobind.errors import DataError, ExportError, GeobindError
from geobind.modality import Place
from geobind.towers.audio import SoundSpec
from geobind.towers.images import ImageSpec
from geobind.towers.options import TextOptions
from geobind.towers.transformer import PAD

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.modality import Modality

_SIZES = ((90, 120), (300, 200), (64, 64), (257, 311))  # pixels, height and width
_SECONDS = (0.5, 3.0, 25.0)
_WORDS = "a river winds through green fields past the old town where boats lie in the harbour"


def make_samples(modality: Modality) -> list[Any]:
    """Make up raw inputs of several sizes that a modality accepts.

    Raises:
        ExportError: None of the kinds that can be made up is accepted; asks for real ones.
    """
    refused: DataError | None = None
    for samples in _candidates(modality):
        try:
            for raw in samples:
                modality.prepare(raw)
        except DataError as error:
            refused = error
        except GeobindError:
            raise
        except Exception as error:  # a stranger's plugin may refuse in its own way
            refused = DataError(f"{type(error).__name__}: {error}")
        else:
            return samples
    raise ExportError(
        f"no input of '{modality.name}' can be made up to check the export with"
        f"{f' ({refused})' if refused else ''}; give two or more real ones with --sample (in Python: "
        f"samples), each {modality.accepts or 'as its prepare takes it'}"
    )


def _candidates(modality: Modality) -> Iterator[list[Any]]:
    """Yield lists of inputs of the kinds that a modality may accept, from the likeliest on."""
    random = np.random.default_rng(0)
    match modality.widget:
        case "text":
            words = _WORDS.split()
            yield ["snow", " ".join(words), " ".join(words * 3), " ".join(words * 20)]
        case "image":
            for bands in dict.fromkeys((3, getattr(modality, "channels", 3))):
                yield [_make_image(random, size, bands) for size in _SIZES]
            for level in (20.0, 290.0):  # metres, degrees, radiance; kelvin
                yield [level + 4 * random.random(size) for size in _SIZES]
        case "sound":
            yield [
                (random.normal(0, 0.1, round(seconds * 22_050)).astype(np.float32), 22_050)
                for seconds in _SECONDS
            ]
        case "place":
            time = datetime(2024, 6, 21, 12, tzinfo=UTC)
            yield [Place(48.1, 11.6, time), Place(-33.9, 151.2, time), Place(90.0, 0.0, time)]
        case _:
            pass
    size = getattr(modality, "size", None)
    if isinstance(size, int):
        yield [*random.normal(size=(4, size))]


def _make_image(random: np.random.Generator, size: tuple[int, int], bands: int) -> NDArray[np.uint8]:
    """Return an image (bands, H, W) with shapes as well as noise."""
    height, width = size
    slope_HW = np.linspace(0, 160, height)[:, None] + np.linspace(0, 60, width)
    return (slope_HW + random.integers(0, 36, (bands, height, width))).astype(np.uint8)


def describe_preparation(modality: Modality) -> str:
    """Return in words how `prepare` turns an observation into what the graph takes."""
    spec: Any = getattr(modality, "spec", None)
    if isinstance(spec, ImageSpec):
        how = (
            f"Scale the whole image to {spec.size} x {spec.size} pixels"
            if spec.squash
            else f"Scale the shorter side to {spec.size} pixels and cut out the middle square"
        )
        return (
            f"Decode the image upright. {how} ({spec.interpolation}, antialiased, as Pillow does). Values "
            "stay as they are: the graph divides 8-bit ones by 255, subtracts the mean, divides by the std."
        )
    if isinstance(spec, SoundSpec):
        return (
            f"Resample to one channel at {spec.rate} Hz; take the middle {spec.samples} samples, or repeat a "
            "shorter sound as often as it fits whole and add zeros. Then the mel power spectrogram of `spec` "
            "(Hann window, centred, reflected at the ends), in decibels: 10 log10 of at least 1e-10."
        )
    if isinstance(modality, TextOptions):
        if modality.transformer is not None:
            return (
                "Token numbers by the tokenizer.json of the model's folder, special tokens included, then "
                f"{PAD} up to the length; a long text loses its last words."
            )
        return (
            "CLIP's byte-pair encoding: 49406, the words, 49407, then zeros up to the length; a long text "
            "loses its last words, not the 49407."
        )
    return f"As `{type(modality).__name__}.prepare` does, with the options above."
