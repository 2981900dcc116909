"""Satellite and aerial imagery: the anchor that every other modality is bound to."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

import geobind
from geobind.modality import Modality, Role, Widget
from geobind.towers.options import ImageOptions, TileAugment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from geobind.towers.images import ImageSpec


class Satellite(ImageOptions, Modality):
    """A tile of satellite or aerial imagery, with any number of bands."""

    name: ClassVar[str] = "satellite"
    role: ClassVar[Role] = "trainable"
    accepts: ClassVar[str] = "a path, bytes, a PIL image, an array or tensor of (C, H, W)"
    widget: ClassVar[Widget] = "image"

    augment: TileAugment = Field(
        default=TileAugment(), description="Random changes to tiles that are trained on."
    )

    @cached_property
    def spec(self) -> ImageSpec:
        """Return the size and normalisation of the images that the tower takes."""
        from geobind.towers.vision import image_spec

        return image_spec(self)

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build the image tower of a CLIP, or a timm backbone."""
        from geobind.towers.vision import image_encoder

        return image_encoder(self, width, pretrained=pretrained)

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a tile into (channels, size, size)."""
        from geobind.towers.images import prepare_image

        return prepare_image(raw, self.spec, self.augment if training else None)


@geobind.hookimpl
def geobind_modalities() -> list[type[Modality]]:
    """Provide the modality of this module."""
    return [Satellite]
