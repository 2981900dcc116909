"""A backbone plus a projection head into the shared space, for images and spectrograms.

A tower that sees spectrograms as images of one band, as ImageBind's does (arXiv:2305.05665).
"""

# B batch, C channels, H height, W width, F features of the trunk, D shared width

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geobind.errors import RecipeError
from geobind.towers.audio import sound_spec
from geobind.towers.mel import check_torchaudio
from geobind.towers.options import AudioOptions, HeadKind
from geobind.utils.vectors import unit


class Tower(nn.Module):
    """An encoder in two parts: `trunk` makes features, `head` maps them to the shared width.

    A stage can train the head alone.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, x: Any) -> Tensor:
        """Encode a prepared batch to (B, D)."""
        return self.head(self.trunk(x))


class CropsTower(Tower):
    """A tower that also takes several crops of each recording, and gives the mean of their embeddings."""

    def forward(self, x: Any) -> Tensor:
        """Encode (B, C, H, W), or (B, crops, C, H, W), or a dict of the trunk's own, to (B, D)."""
        return mean_of_crops(super().forward, x)


class NormalisingTower(Tower):
    """A tower for images whose first step normalises, so that 8-bit images can be passed between processes.

    Copying a batch from a worker costs more than decoding it; bytes are a quarter of floats.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, trunk: nn.Module, head: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(trunk, head)
        # Saved with the weights: a bundle must not change when a library changes its defaults.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Encode (B, C, H, W), uint8 (which counts from 0 to 1) or float, to (B, D)."""
        mean, std = self.mean.float(), self.std.float()
        if x.device.type == "cuda" and not torch.compiler.is_exporting():
            image_BCHW = normalise_once(x, mean, std)
        else:
            image_BCHW = x.float() / 255 if x.dtype == torch.uint8 else x.float()
            image_BCHW = channels_last((image_BCHW - mean) / std)
        # A model held in half precision gets its input so; the subtraction needs all digits.
        return self.head(self.trunk(image_BCHW.to(self.mean.dtype)))


def normalise_once(image_BCHW: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (image - mean) / std in float32 with channels last, by one multiplication and addition.

    A large batch goes through a GPU's memory once instead of five times; it differs in the last digits. Bytes
    count from 0 to 1 and are laid out before they become four times as large.
    """
    is_bytes = image_BCHW.dtype == torch.uint8
    given_BCHW = channels_last(image_BCHW if is_bytes else image_BCHW.float())
    return torch.addcmul(-mean / std, given_BCHW, 1 / (std * 255) if is_bytes else 1 / std)


def mean_of_crops(encode: Callable[[Any], Tensor], x: Any) -> Tensor:
    """Encode (B, crops, C, H, W) to the mean of the crops' unit embeddings, (B, D); all else as it comes.

    Unit, so that no crop counts for more than another because its embedding is longer.
    """
    if not isinstance(x, Tensor) or x.ndim != 5:
        return encode(x)
    embedding_BKD = encode(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return unit(embedding_BKD).mean(dim=1)


def channels_last(image_BCHW: Tensor) -> Tensor:
    """Lay an image batch out with the channels of a pixel side by side; shape and values stay.

    Convolutions follow the layout of their input: on a CPU small ones train 1.3 to 2 times as fast so. The
    weights are left as they are, because safetensors cannot save them in this layout.
    """
    _, channels, height, width = image_BCHW.shape
    if torch.compiler.is_exporting():  # graphs have no layout of their own
        return image_BCHW
    if channels > 1:
        return image_BCHW.contiguous(memory_format=torch.channels_last)
    # One channel is laid out alike both ways; only the stride tells torch which of them is meant.
    strides = (height * width, 1, width, 1)
    return image_BCHW.contiguous().as_strided(image_BCHW.shape, strides)


def make_head(kind: HeadKind, features: int, width: int, *, what: str, new_allowed: bool = True) -> nn.Module:
    """Build the map from a trunk's features to the shared width.

    Args:
        kind: identity, linear, mlp (two layers with a GELU, hidden as wide as the features), or auto:
            identity where the widths agree, else linear.
        features: Length F of what the trunk gives.
        width: Length D of the shared space.
        what: The trunk's name, for the message.
        new_allowed: False where nothing will train a new layer that auto would have to make up.

    Raises:
        RecipeError: The widths differ, and the head is identity or may not be made up.
    """
    if features == width and kind in ("auto", "identity"):
        return nn.Identity()
    if kind == "identity" or (kind == "auto" and not new_allowed):
        frozen = "" if new_allowed else ", to be trained since a frozen tower has no use for a random layer"
        raise RecipeError(
            f"{what} gives {features} numbers, the recipe's width is {width}: "
            f"set width: {features} or head: linear{frozen}"
        )
    if kind == "mlp":
        return nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.Linear(features, width))
    return nn.Linear(features, width)


# AudioSet's log-mel statistics (AST, arXiv:2104.01778: -4.27 and 4.57 in natural logarithms), in decibels.
MEAN_DB, STD_DB = -18.5, 19.8


class ListeningTower(NormalisingTower):
    """A tower that takes one spectrogram of each recording, or several crops of it."""

    def forward(self, x: Tensor) -> Tensor:
        """Encode (batch, 1, bands, frames), or (batch, crops, 1, bands, frames), to (batch, width)."""
        return mean_of_crops(super().forward, x)


def mel_encoder(options: AudioOptions, width: int, *, pretrained: bool) -> ListeningTower:
    """Build the timm backbone that sees spectrograms: (batch, 1, mel bands, frames) to (batch, width).

    Raises:
        RecipeError: The options do not fit each other, the model or the width.
        CheckpointError: The weights cannot be had, or are another model's.
    """
    chosen, spec = options.timm, sound_spec(options)
    if chosen is None:
        raise RecipeError("a tower that sees spectrograms needs the option timm")
    from geobind.towers.timm import backbone, count_features

    check_torchaudio()  # warns before loaders start
    trunk = backbone(chosen, channels=1, size=(spec.mels, spec.frames), pretrained=pretrained)
    head = make_head(options.head, count_features(trunk), width, what=chosen.model)
    return ListeningTower(trunk, head, (MEAN_DB,), (STD_DB,))
