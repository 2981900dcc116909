"""Images to tensors of one shape, 8-bit where they were; the tower normalises them.

This module imports neither open_clip nor timm: a worker that was spawned starts seconds sooner.
"""

# C channels, H height, W width
from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from geobind.data.readers.images import decode_image
from geobind.errors import DataError
from geobind.towers.augment import augment_image, random_crop
from geobind.towers.options import PhotoAugment


class ImageSpec(NamedTuple):
    """What a tower wants to see."""

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    squash: bool  # distort the whole image to a square, instead of cropping it to one
    unit: bool  # mean and std are the model's, made for values from 0 to 1


def prepare_image(raw: Any, spec: ImageSpec, augment: PhotoAugment | None = None) -> Tensor:
    """Read an image, scale its shorter side (antialiased) and cut out the centre; augment it if asked to.

    Args:
        raw: What `read_image` takes.
        spec: What the tower wants to see.
        augment: How to change it at random, by torch's global generator; None changes nothing.

    Returns:
        (C, size, size): uint8 of a uint8 image, else float32 in the image's own units.

    Raises:
        DataError: It is not such an image, or its values cannot be what the model's mean and std are for.
    """
    image_CHW = decode_image(raw, channels=spec.channels, needed=_needed(spec, augment))
    if spec.unit and image_CHW.dtype != torch.uint8:
        low, high = image_CHW.aminmax()
        if low < -1e-3 or high > 1 + 1e-3:
            raise DataError(
                f"an image with values from {float(low):g} to {float(high):g}, where the model's mean and "
                "std are for values from 0 to 1: set mean and std in the image's own units"
            )
    how = InterpolationMode(spec.interpolation)
    size = [spec.size, spec.size]
    if augment is not None and augment.random_resized_crop is not None:
        image_CHW = random_crop(image_CHW, augment.random_resized_crop, size, how)
    elif spec.squash:
        image_CHW = transforms.resize(image_CHW, size, how, antialias=True)
    else:
        image_CHW = transforms.center_crop(
            transforms.resize(image_CHW, [spec.size], how, antialias=True), size
        )
    return image_CHW.contiguous() if augment is None else augment_image(image_CHW, augment)


def _needed(spec: ImageSpec, augment: PhotoAugment | None) -> int:
    """Return the length of the shorter side from which the image can be made without enlarging anything."""
    if augment is None or augment.random_resized_crop is None:
        return spec.size
    # The smallest part that is cut out, where its sides are as 3 to 4 and it lies along the longer one.
    return math.ceil(spec.size / math.sqrt(augment.random_resized_crop[0] * 3 / 4))
