"""Photographs taken on the ground, in the space of a CLIP that is not trained further."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

import geobind
from geobind.modality import Modality, Role, Widget
from geobind.towers.options import ImageOptions, PhotoAugment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from geobind.towers.images import ImageSpec


class GroundImage(ImageOptions, Modality):
    """A photograph of a place, taken on the ground."""

    name: ClassVar[str] = "ground_image"
    role: ClassVar[Role] = "frozen"
    accepts: ClassVar[str] = "a path, bytes, a PIL image, an array or tensor of (C, H, W)"
    widget: ClassVar[Widget] = "image"

    augment: PhotoAugment = Field(
        default=PhotoAugment(), description="Random changes to photographs that are trained on."
    )

    @cached_property
    def spec(self) -> ImageSpec:
        """Return the size and normalisation of the images that the tower takes."""
        from geobind.towers.vision import image_spec

        return image_spec(self)

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build the image tower of a CLIP, or a timm backbone."""
        from geobind.towers.vision import image_encoder

        return image_encoder(self, width, pretrained=pretrained, new_head=False)

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a photograph into (3, size, size)."""
        from geobind.towers.images import prepare_image

        return prepare_image(raw, self.spec, self.augment if training else None)


@geobind.hookimpl
def geobind_modalities() -> list[type[Modality]]:
    """Provide the modality of this module."""
    return [GroundImage]
