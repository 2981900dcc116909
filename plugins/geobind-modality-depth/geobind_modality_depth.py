"""Depth of a scene as a modality: distances from a camera, as lidar, stereo or a depth model gives them."""

# H, W rows and columns of a picture

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

import geobind
from geobind.errors import DataError
from geobind.modality import Role, Widget
from geobind.towers import BandOptions, PhotoAugment

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_TYPICAL = 10.0  # metres
_SPREAD = 1.5  # of the natural logarithm of metres, in a street or a landscape


class Depth(BandOptions, geobind.Modality):
    """The distance to what a picture shows, pixel by pixel."""

    name: ClassVar[str] = "depth"
    role: ClassVar[Role] = "trainable"
    accepts: ClassVar[str] = "a 2-D array of depths, or an image of one band or a .npy file of them"
    widget: ClassVar[Widget] = "image"

    size: int = Field(default=64, ge=8, le=1024, description="pixels along each side")
    unit: Literal["metres", "disparity"] = Field(
        default="metres", description="whether values are distances, or disparities of a stereo pair"
    )
    scale: float = Field(
        default=1.0,
        gt=0,
        le=1e7,
        description="metres of a stored 1; of disparity, baseline (metres) times focal length (pixels)",
    )
    near: float = Field(default=0.5, gt=0, le=1e4, description="metres; what is nearer counts as this")
    far: float = Field(default=1000.0, gt=0, le=1e6, description="metres; what is farther counts as this")
    view: Literal["log", "inverse"] = Field(
        default="log", description="whether the encoder sees the logarithm of a depth, or its inverse"
    )
    augment: PhotoAugment = Field(default=PhotoAugment(), description="random changes in training")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.near >= self.far:
            raise ValueError(f"`near` ({self.near:g} m) must be below `far` ({self.far:g} m)")
        if self.augment.jitter:
            raise ValueError("a depth is measured: augment without jitter")
        return self

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a depth map into two channels: the depth on a scale, and 1 where it is known, else 0.

        Raises:
            DataError: It cannot be read, has no depth at all, or values that are no depths in `unit`.
        """
        metres_HW = self.read_metres(raw)
        known_HW = ~np.isnan(metres_HW)
        near_HW = np.clip(metres_HW, self.near, self.far)
        # Both views are 0 at the same distance, which is also what a missing depth gets.
        scaled_HW = np.log(near_HW / _TYPICAL) / _SPREAD if self.view == "log" else _TYPICAL / near_HW - 1
        channels = [np.where(known_HW, scaled_HW, 0.0), known_HW]
        return self.prepare_bands(channels, self.augment if training else None)

    def read_metres(self, raw: Any) -> NDArray[np.float64]:
        """Read a depth map in metres (H, W); NaN where a depth is missing: NaN or 0 in what is stored.

        Raises:
            DataError: As `prepare`.
        """
        from geobind.data import read_band

        stored_HW = read_band(raw)
        if np.nanmin(stored_HW, initial=0.0) < 0:
            raise DataError(
                f"a depth of {np.nanmin(stored_HW):g} lies behind the camera; write 0 or NaN for none"
            )
        stored_HW[stored_HW == 0] = np.nan
        if np.isnan(stored_HW).all():
            raise DataError("a depth map has no depth at all (all 0 or NaN); leave the cell empty")
        metres_HW = stored_HW * self.scale if self.unit == "metres" else self.scale / stored_HW
        middle = float(np.nanmedian(metres_HW))
        if not self.near <= middle <= self.far:
            fix = "0.001 for millimetres" if self.unit == "metres" else "baseline times focal length"
            raise DataError(
                f"the median of a depth map is {middle:g} m, outside of `near` and `far` ({self.near:g} to "
                f"{self.far:g} m): set `scale` ({fix}) or `unit`, or move them"
            )
        return metres_HW

    def picture(self, raw: Any) -> NDArray[np.uint8]:
        """Draw a depth map on a logarithmic scale: near is bright, far is dark, missing is black."""
        metres_HW = np.clip(self.read_metres(raw), self.near, self.far)
        share_HW = np.log(self.far / metres_HW) / np.log(self.far / self.near)
        return np.nan_to_num(25 + 230 * share_HW).astype(np.uint8)


@geobind.hookimpl
def geobind_modalities() -> list[type[geobind.Modality]]:
    """Provide the modality of this package."""
    return [Depth]
