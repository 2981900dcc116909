"""Lights at night, seen from space, as a modality."""

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

_BRIGHTEST = 1e6


class NightLights(BandOptions, geobind.Modality):
    """A window of radiance at night, such as VIIRS or a picture of it."""

    name: ClassVar[str] = "nightlights"
    role: ClassVar[Literal["trainable"]] = "trainable"
    accepts: ClassVar[str] = "a 2-D array of radiance, or an image of one band or a .npy file of it"
    widget: ClassVar[Literal["image"]] = "image"

    band_mean: ClassVar[tuple[float, ...]] = (1.0,)  # of the logarithm of a lit window
    band_std: ClassVar[tuple[float, ...]] = (1.5,)

    unit: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="radiance of a dim lamp: the encoder sees log(1 + radiance / unit)",
    )
    augment: TileAugment = Field(default=TileAugment(), description="random changes in training")

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a window into the logarithm of its radiance; what is missing (NaN) or below 0 is dark.

        Raises:
            DataError: It cannot be read, or has other than two axes.
        """
        log_HW = np.log1p(self.read_radiance(raw) / self.unit)
        return self.prepare_bands([log_HW], self.augment if training else None)

    def read_radiance(self, raw: Any) -> NDArray[np.float64]:
        """Read a window as radiance (H, W) of at least 0.

        Raises:
            DataError: As `prepare`.
        """
        from geobind.data import read_band

        stored_HW = read_band(raw)
        if np.nanmax(stored_HW, initial=0.0) > _BRIGHTEST:
            raise DataError(f"a radiance of {np.nanmax(stored_HW):g} is no light of the Earth's surface")
        return np.maximum(np.nan_to_num(stored_HW), 0.0)

    def picture(self, raw: Any) -> NDArray[np.uint8]:
        """Draw a window on a logarithmic scale of grey."""
        log_HW = np.log1p(self.read_radiance(raw) / self.unit)
        return (log_HW / max(float(log_HW.max()), 1.0) * 255).astype(np.uint8)


@geobind.hookimpl
def geobind_modalities() -> list[type[geobind.Modality]]:
    """Provide the modality of this package."""
    return [NightLights]
