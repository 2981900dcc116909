"""Lights at night, seen from space, as a modality."""

# H, W rows and columns of a window

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

import geobind
from geobind.errors import DataError
from geobind.towers import HeadKind, ImageOptions, TileAugment, TimmOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

_BRIGHTEST = 1e6


class NightLights(geobind.Modality):
    """A window of radiance at night, such as VIIRS or a picture of it."""

    name: ClassVar[str] = "nightlights"
    role: ClassVar[Literal["trainable"]] = "trainable"
    accepts: ClassVar[str] = "a 2-D array of radiance, or an image of one band or a .npy file of it"
    widget: ClassVar[Literal["image"]] = "image"

    timm: TimmOptions = Field(
        default=TimmOptions(model="resnet10t", pretrained=False), description="the backbone"
    )
    head: HeadKind = Field(default="auto", description="what maps its features to the shared width")
    size: int = Field(default=32, ge=8, le=1024, description="pixels along each side")
    unit: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="radiance of a dim lamp: the encoder sees log(1 + radiance / unit)",
    )
    augment: TileAugment = Field(default=TileAugment(), description="random changes in training")

    @cached_property
    def tower(self) -> ImageOptions:
        """Return the options of the image tower: one channel, already on a logarithmic scale."""
        return ImageOptions(
            timm=self.timm, head=self.head, size=self.size, channels=1, mean=(1.0,), std=(1.5,)
        )

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build the backbone with a head of this width."""
        from geobind.towers import image_encoder

        return image_encoder(self.tower, width, pretrained=pretrained)

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a window into the logarithm of its radiance; what is missing (NaN) or below 0 is dark.

        Raises:
            DataError: It cannot be read, or has other than two axes.
        """
        import torch

        from geobind.towers import image_spec, prepare_image

        log_HW = np.log1p(self.read_radiance(raw) / self.unit)
        image_1HW = torch.from_numpy(log_HW[None].astype(np.float32))
        return prepare_image(image_1HW, image_spec(self.tower), self.augment if training else None)

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
