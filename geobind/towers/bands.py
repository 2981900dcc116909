"""Rasters of measured values: options, encoder and preparation that such modalities share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from geobind.towers.options import HeadKind, ImageOptions, PhotoAugment, TimmOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn


class BandOptions(BaseModel):
    """The options of a modality that makes bands of measured values; inherit them beside `Modality`.

    A subclass reads an observation in its own unit (see `geobind.data.read_band`), scales it to values of
    about unit spread, and hands the bands to `prepare_bands`.
    """

    band_mean: ClassVar[tuple[float, ...]] = (0.0, 0.0)  # one for each band that the encoder sees
    band_std: ClassVar[tuple[float, ...]] = (1.0, 1.0)

    timm: TimmOptions = Field(
        default=TimmOptions(model="resnet10t", pretrained=False), description="the backbone"
    )
    head: HeadKind = Field(default="auto", description="what maps its features to the shared width")
    size: int = Field(default=32, ge=8, le=1024, description="pixels along each side")

    @cached_property
    def tower(self) -> ImageOptions:
        """Return the options of the image tower that sees the bands."""
        return ImageOptions(
            timm=self.timm,
            head=self.head,
            size=self.size,
            channels=len(self.band_mean),
            mean=self.band_mean,
            std=self.band_std,
        )

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build the backbone with a head of this width."""
        from geobind.towers import image_encoder

        return image_encoder(self.tower, width, pretrained=pretrained)

    def prepare_bands(self, bands: Sequence[NDArray[Any]], augment: PhotoAugment | None) -> Tensor:
        """Stack bands (H, W) to an image, scaled and cropped as the tower takes it.

        Args:
            bands: One for each of `band_mean`.
            augment: How to change the image at random; None changes nothing.

        Returns:
            (bands, size, size) float32.
        """
        import numpy as np
        import torch

        from geobind.towers import image_spec, prepare_image

        image_CHW = torch.from_numpy(np.stack(bands).astype(np.float32))
        return prepare_image(image_CHW, image_spec(self.tower), augment)
