"""Image preparation and augmentation; images of 8 bits stay so, and the tower normalises them.

This module imports neither open_clip nor timm: a worker that was spawned starts seconds sooner.
"""

# C channels, H height, W width

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as transforms

from geobind.data.augmentation import RowGeometry, read_shared_geometry
from geobind.data.readers.files import describe
from geobind.data.readers.images import decode_image
from geobind.errors import DataError
from geobind.towers.options import PhotoAugment, TileAugment

if TYPE_CHECKING:
    from PIL.Image import Image


def random_crop(
    image_CHW: Tensor, scale: tuple[float, float], size: list[int], how: InterpolationMode
) -> Tensor:
    """Cut out a random part of between `scale` of the area, and scale it (antialiased) to `size`."""
    if (shared := read_shared_geometry()) is not None:
        box = shared.crop(scale).to_pixels(*image_CHW.shape[-2:])
        return transforms.resized_crop(image_CHW, *box, size, how, antialias=True)
    return v2.RandomResizedCrop(size, scale=scale, interpolation=how, antialias=True)(image_CHW)


def augment_image(image_CHW: Tensor, augment: PhotoAugment) -> Tensor:
    """Mirror, turn and recolour a square image at random; dtype and shape stay.

    It is mirrored and turned by torch's global generator, or as the other co-registered rasters of its row.

    Raises:
        DataError: RandAugment is asked for an image that is not 8-bit RGB.
    """
    shared = read_shared_geometry()
    if augment.hflip and (_coin() if shared is None else shared.hflip):
        image_CHW = image_CHW.flip(-1)
    if isinstance(augment, TileAugment):
        image_CHW = _augment_tile(image_CHW, augment, shared)
    if augment.jitter:
        image_CHW = _jitter(image_CHW, augment.jitter)
    return image_CHW.contiguous()


def _augment_tile(image_CHW: Tensor, augment: TileAugment, shared: RowGeometry | None) -> Tensor:
    if augment.vflip and (_coin() if shared is None else shared.vflip):
        image_CHW = image_CHW.flip(-2)
    if augment.rotations:
        turns = int(torch.randint(4, ())) if shared is None else shared.quarter_turns
        image_CHW = image_CHW.rot90(turns, (-2, -1))
    if augment.randaugment:
        if image_CHW.dtype != torch.uint8 or image_CHW.shape[0] != 3:
            raise DataError(
                f"randaugment works on 8-bit RGB, not on {image_CHW.shape[0]} bands of {image_CHW.dtype}: "
                "use jitter and band_jitter"
            )
        operations = v2.RandAugment(augment.randaugment, interpolation=InterpolationMode.BILINEAR)
        image_CHW = operations(image_CHW)
    if augment.band_jitter:
        gain_C11 = 1 + augment.band_jitter * _plus_minus(image_CHW.shape[0], 1, 1)
        image_CHW = _as(image_CHW.float() * gain_C11, image_CHW.dtype)
    return image_CHW


def _jitter(image_CHW: Tensor, strength: float) -> Tensor:
    """Change brightness, contrast and saturation; torchvision's refuses any but 1 or 3 bands."""
    brightness, contrast, saturation = (1 + strength * _plus_minus(3)).tolist()
    values_CHW = image_CHW.float() * brightness
    mean = values_CHW.mean()
    values_CHW = mean + contrast * (values_CHW - mean)
    grey_1HW = values_CHW.mean(0, keepdim=True)
    return _as(grey_1HW + saturation * (values_CHW - grey_1HW), image_CHW.dtype)


def _as(values_CHW: Tensor, dtype: torch.dtype) -> Tensor:
    return values_CHW.round().clamp(0, 255).to(torch.uint8) if dtype == torch.uint8 else values_CHW.to(dtype)


def _coin() -> bool:
    return bool(torch.rand(()) < 0.5)


def _plus_minus(*shape: int) -> Tensor:
    return 2 * torch.rand(shape) - 1


_MOST_SCALED = 2**24  # pixels of a scaled image, most of which are cut off; no photo comes near


class ImageSpec(NamedTuple):
    """The image that a tower expects."""

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    squash: bool  # distort the whole image to a square, instead of cropping it to one
    unit: bool  # mean and std are the model's, made for values from 0 to 1


def prepare_image(raw: Any, spec: ImageSpec, augment: PhotoAugment | None = None) -> Tensor:
    """Read an image, scale its shorter side (antialiased) and cut out the centre; augment it if asked to.

    Photos of 8 bits are scaled by Pillow, before transparency is dropped, as open_clip does: both prepare the
    same image to the bit. Images of other types and numbers of bands are scaled as tensors, in their own
    units. What is trained on may be decoded from a JPEG at a fraction of its size, see `read_image`.

    Args:
        raw: What `read_image` takes.
        spec: What the tower wants to see.
        augment: How to change it at random, by torch's global generator; None changes nothing. Mirroring,
            turning and cropping are those of the row where it shares them with other rasters of its place.

    Returns:
        (C, size, size): uint8 of a uint8 image, else float32 in the image's own units.

    Raises:
        DataError: It is not such an image, or its values cannot be what mean and std are for.
    """
    crop = None if augment is None else _random_crop(augment)
    needed = None if augment is None else _needed(spec, crop)
    scale = partial(_scale, spec) if crop is None else None
    image_CHW = decode_image(raw, channels=spec.channels, needed=needed, scale=scale)
    _check_units(image_CHW, spec, describe(raw) if isinstance(raw, str | Path) else "the image")
    size = [spec.size, spec.size]
    if crop is not None:
        image_CHW = random_crop(image_CHW, crop, size, InterpolationMode(spec.interpolation))
    elif list(image_CHW.shape[1:]) == size:  # as it is: both ways of scaling would copy it
        pass
    elif image_CHW.dtype == torch.uint8 and image_CHW.shape[0] in (1, 3):
        image_CHW = transforms.pil_to_tensor(_scale(spec, _as_pillow(image_CHW)))
    else:
        image_CHW = _scale(spec, image_CHW)
    return image_CHW.contiguous() if augment is None else augment_image(image_CHW, augment)


def _scale(spec: ImageSpec, image: Any) -> Any:
    """Scale a tensor or a PIL image to the size of a spec: squashed to a square, or its centre."""
    how, size = InterpolationMode(spec.interpolation), [spec.size, spec.size]
    if spec.squash:
        return transforms.resize(image, size, how, antialias=True)
    image = _crop_oblong(image, spec.size)
    return transforms.center_crop(transforms.resize(image, [spec.size], how, antialias=True), size)


def _as_pillow(image_CHW: Tensor) -> Image:
    from PIL import Image

    pixels_HWC = image_CHW.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)


def _check_units(image_CHW: Tensor, spec: ImageSpec, name: str) -> None:
    """Raise for an image whose values are not in the units of mean and std."""
    if image_CHW.dtype == torch.uint8:
        if max(map(abs, spec.mean)) > 1:
            raise DataError(
                f"{name}: is an image of 8 bits, whose values count from 0 to 1, where the mean is "
                f"{max(spec.mean):g}: set mean and std for 0 to 1 (divide by 255), or, if other images of "
                "this modality are deeper, bring all to one type (rasters by `stretch`)"
            )
    elif spec.unit:
        low, high = image_CHW.aminmax()
        if low < -1e-3 or high > 1 + 1e-3:
            raise DataError(
                f"{name}: is an image with values from {float(low):g} to {float(high):g}, where the model's "
                "mean and std are for values from 0 to 1: set mean and std in the image's own units"
            )


def _crop_oblong(image: Any, size: int) -> Any:
    """Cut the middle out of a very long tensor or PIL image, which would take any memory to be scaled."""
    height, width = transforms.get_size(image)
    longest = max(2, _MOST_SCALED // size**2) * min(height, width)
    if max(height, width) <= longest:
        return image
    return transforms.center_crop(image, [min(height, longest), min(width, longest)])


def _random_crop(augment: PhotoAugment) -> tuple[float, float] | None:
    """Return the shares of the area that a random crop keeps, None where nothing is cropped."""
    shared = read_shared_geometry()
    return None if shared is not None and shared.area is None else augment.random_resized_crop


def _needed(spec: ImageSpec, crop: tuple[float, float] | None) -> int:
    """Return the length of the shorter side from which an augmented image needs no enlarging.

    An image that is not augmented is decoded whole, since a smaller one differs a little.
    """
    if crop is None:
        return spec.size
    # The smallest part that is cut out, where its sides are as 3 to 4 and it lies along the longer one.
    return math.ceil(spec.size / math.sqrt(crop[0] * 3 / 4))
