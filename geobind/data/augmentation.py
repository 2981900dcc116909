"""Geometric changes of a row: drawn once, and alike for all of its co-registered rasters.

This module imports no torch: recipes are checked without it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

from geobind.utils.hashing import derive_seed

# own: each input draws its changes; shared: those of its row; none: beside an input that is not augmented
Geometry = Literal["own", "shared", "none"]
_OBLONG = 4 / 3  # a crop's longer side by its shorter one, at most; torchvision's default


class CropBox(NamedTuple):
    """A part of an image, as shares of its height and width."""

    top: float
    left: float
    height: float
    width: float

    def to_pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, height and width in whole pixels of an image; at least one pixel each."""
        rows, columns = max(1, round(self.height * height)), max(1, round(self.width * width))
        top, left = round(self.top * height), round(self.left * width)
        return min(top, height - rows), min(left, width - columns), rows, columns


WHOLE = CropBox(0.0, 0.0, 1.0, 1.0)


class RowGeometry(NamedTuple):
    """The random geometric changes of one row, of which a modality's options apply some."""

    hflip: bool = False
    vflip: bool = False
    quarter_turns: int = 0
    area: float | None = None  # in [0, 1), as are the next three: what a crop is made of; None: no crop
    shape: float = 0.0
    top: float = 0.0
    left: float = 0.0

    def crop(self, scale: tuple[float, float]) -> CropBox:
        """Return the part to cut out, of between `scale` of the area and the same for images of any size."""
        if self.area is None:
            return WHOLE
        area = scale[0] + (scale[1] - scale[0]) * self.area
        longest = min(math.log(_OBLONG), -math.log(area))  # of the logarithm of width by height: it fits
        ratio = math.exp(longest * (2 * self.shape - 1))
        height, width = min(1.0, math.sqrt(area / ratio)), min(1.0, math.sqrt(area * ratio))
        return CropBox((1 - height) * self.top, (1 - width) * self.left, height, width)


UNCHANGED = RowGeometry()


def draw_geometry(*numbers: int) -> RowGeometry:
    """Draw the geometric changes of a row from a generator of their own, seeded by these numbers."""
    rng = random.Random(derive_seed(numbers[0], "geometry", *numbers[1:]))
    flips = rng.random() < 0.5, rng.random() < 0.5
    return RowGeometry(*flips, rng.randrange(4), *(rng.random() for _ in range(4)))


class _Sharing:
    """A geometry that inputs share, and whether any has applied it."""

    def __init__(self, geometry: RowGeometry) -> None:
        self.geometry, self.applied = geometry, False


_sharing: ContextVar[_Sharing | None] = ContextVar("geometry", default=None)


@contextmanager
def share_geometry(kind: Geometry, drawn: RowGeometry) -> Generator[_Sharing | None]:
    """Make preparation inside the block change inputs by `drawn`, by nothing, or by draws of its own."""
    sharing = None if kind == "own" else _Sharing(drawn if kind == "shared" else UNCHANGED)
    token = _sharing.set(sharing)
    try:
        yield sharing
    finally:
        _sharing.reset(token)


def read_shared_geometry() -> RowGeometry | None:
    """Return the geometry that the input in preparation shares with its row, None if it draws its own."""
    sharing = _sharing.get()
    if sharing is None:
        return None
    sharing.applied = True
    return sharing.geometry
