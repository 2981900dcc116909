"""Temperature of the surface around a place as a modality: windows of thermal infrared images."""

# H, W rows and columns of a window

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

import geobind
from geobind.errors import DataError
from geobind.modality import Role, Widget
from geobind.towers import BandOptions, TileAugment

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

COLDEST, HOTTEST = 150.0, 400.0  # kelvin: below the cold of Antarctica, above the heat of deserts
FREEZING = 273.15  # kelvin of 0 degrees Celsius
_TYPICAL, _SPREAD = 288.0, 20.0  # kelvin: the mean of the Earth's surface, and its spread over the Earth
_CONTRAST = 5.0  # kelvin: what a window spreads around its own mean
_ZERO = {"kelvin": 0.0, "celsius": FREEZING}  # kelvin of a stated 0


class Thermal(BandOptions, geobind.Modality):
    """A window of surface temperature."""

    name: ClassVar[str] = "thermal"
    role: ClassVar[Role] = "trainable"
    accepts: ClassVar[str] = "a 2-D array of temperatures, or an image of one band or a .npy file of them"
    widget: ClassVar[Widget] = "image"

    unit: Literal["kelvin", "celsius"] = Field(default="kelvin", description="the unit of a temperature")
    scale: float = Field(default=1.0, gt=0, le=1e4, description="units of one count of what is stored")
    offset: float = Field(default=0.0, ge=-1e5, le=1e5, description="units of a stored 0")
    missing: float | None = Field(
        default=None, description="the stored value that means that there is no temperature, beside NaN"
    )
    augment: TileAugment = Field(default=TileAugment(), description="random changes in training")

    @model_validator(mode="after")
    def _keep_kelvins(self) -> Self:
        if self.augment.jitter or self.augment.band_jitter or self.augment.randaugment:
            raise ValueError("a temperature is measured: augment without jitter, band_jitter and randaugment")
        return self

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a window into two channels: the temperature, and the difference from the window's mean.

        What is missing has the mean of the rest.

        Raises:
            DataError: It cannot be read, has no temperature at all, or one in another unit than `unit`.
        """
        kelvin_HW = self.read_kelvin(raw)
        mean = np.nanmean(kelvin_HW)
        whole_HW = np.where(np.isnan(kelvin_HW), mean, kelvin_HW)
        channels = [(whole_HW - _TYPICAL) / _SPREAD, (whole_HW - mean) / _CONTRAST]
        return self.prepare_bands(channels, self.augment if training else None)

    def read_kelvin(self, raw: Any) -> NDArray[np.float64]:
        """Read a window in kelvin (H, W); NaN where there is no temperature.

        Raises:
            DataError: As `prepare`.
        """
        from geobind.data import read_band

        stored_HW = read_band(raw)
        if self.missing is not None:
            stored_HW[stored_HW == self.missing] = np.nan
        values_HW = stored_HW * self.scale + self.offset
        if np.isnan(values_HW).all():
            raise DataError("a window has no temperature at all; leave the cell empty")
        low, high = float(np.nanmin(values_HW)), float(np.nanmax(values_HW))
        if not _are_temperatures(low, high, self.unit):
            raise DataError(
                f"temperatures from {low:g} to {high:g} are none in {self.unit}: {self._fix(low, high)}"
            )
        return values_HW + _ZERO[self.unit]

    def _fix(self, low: float, high: float) -> str:
        # The ranges of the two units are apart, so that what is one cannot be the other.
        other = "celsius" if self.unit == "kelvin" else "kelvin"
        if _are_temperatures(low, high, other):
            return f"set `unit: {other}`"
        return (
            f"set `scale` and `offset` (and `unit`) so that they lie between {self._limits()}, and `missing`"
        )

    def _limits(self) -> str:
        return " and ".join(f"{limit - _ZERO[self.unit]:g}" for limit in (COLDEST, HOTTEST))

    def picture(self, raw: Any) -> NDArray[np.uint8]:
        """Draw a window as grey from its coldest to its warmest point; what is missing is black."""
        kelvin_HW = self.read_kelvin(raw)
        low, high = np.nanmin(kelvin_HW), np.nanmax(kelvin_HW)
        return np.nan_to_num((kelvin_HW - low) / max(high - low, 1.0) * 255).astype(np.uint8)


def _are_temperatures(low: float, high: float, unit: str) -> bool:
    return COLDEST <= low + _ZERO[unit] and high + _ZERO[unit] <= HOTTEST


@geobind.hookimpl
def geobind_modalities() -> list[type[geobind.Modality]]:
    """Provide the modality of this package."""
    return [Thermal]
