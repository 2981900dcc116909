"""Heights of the ground around a place as a modality: windows of a digital elevation model, in metres."""

# H, W rows and columns of a window

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

import geobind
from geobind.errors import DataError
from geobind.towers import BandOptions, TileAugment

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

LOWEST, HIGHEST = -12_000.0, 9_000.0  # metres: deeper than the Mariana Trench, higher than Everest
_HEIGHT_UNIT = 40.0  # the square root of 1,600 m, a typical height of mountains
_RELIEF_UNIT = 300.0  # metres


class Elevation(BandOptions, geobind.Modality):
    """A window of heights above the sea."""

    name: ClassVar[str] = "elevation"
    role: ClassVar[Literal["trainable"]] = "trainable"
    accepts: ClassVar[str] = "a 2-D array of metres, or an image of one band or a .npy file of them"
    widget: ClassVar[Literal["image"]] = "image"

    scale: float = Field(default=1.0, gt=0, le=1e4, description="metres of one unit of what is stored")
    offset: float = Field(default=0.0, ge=-1e5, le=1e5, description="metres of a stored 0")
    missing: float = Field(
        default=0.0,
        ge=LOWEST,
        le=HIGHEST,
        description="metres where there is no height (NaN), such as the sea",
    )
    augment: TileAugment = Field(default=TileAugment(), description="random changes in training")

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a window into two channels: the root of the height, and the height above the window's mean.

        Raises:
            DataError: It cannot be read, has other than two axes, or holds what is no height in metres.
        """
        metres_HW = self.read_metres(raw)
        relief_HW = (metres_HW - metres_HW.mean()) / _RELIEF_UNIT
        height_HW = np.sign(metres_HW) * np.sqrt(np.abs(metres_HW)) / _HEIGHT_UNIT
        return self.prepare_bands([height_HW, relief_HW], self.augment if training else None)

    def read_metres(self, raw: Any) -> NDArray[np.float64]:
        """Read a window as metres (H, W) without gaps.

        Raises:
            DataError: As `prepare`.
        """
        from geobind.data import read_band

        stored_HW = read_band(raw)
        metres_HW = np.where(np.isnan(stored_HW), self.missing, stored_HW * self.scale + self.offset)
        low, high = float(metres_HW.min()), float(metres_HW.max())
        if not LOWEST <= low <= high <= HIGHEST:
            raise DataError(
                f"heights from {low:g} to {high:g} are no metres: set `scale` and `offset`, or NaN where "
                "a value means that there is none"
            )
        return metres_HW

    def picture(self, raw: Any) -> NDArray[np.uint8]:
        """Draw a window as grey from its lowest to its highest point."""
        metres_HW = self.read_metres(raw)
        low, high = metres_HW.min(), metres_HW.max()
        return ((metres_HW - low) / max(high - low, 1.0) * 255).astype(np.uint8)


@geobind.hookimpl
def geobind_modalities() -> list[type[geobind.Modality]]:
    """Provide the modality of this package."""
    return [Elevation]
