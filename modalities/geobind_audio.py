"""Sounds recorded at a place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

import geobind
from geobind.modality import Modality, Role, Widget
from geobind.towers.options import AudioAugment, AudioOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from geobind.towers.audio import SoundSpec


class Audio(AudioOptions, Modality):
    """A sound recorded at a place."""

    name: ClassVar[str] = "audio"
    role: ClassVar[Role] = "trainable"
    accepts: ClassVar[str] = "a path, bytes, (array, rate), or an array or tensor already at the rate"
    widget: ClassVar[Widget] = "sound"

    augment: AudioAugment = Field(
        default=AudioAugment(), description="Random changes to recordings that are trained on."
    )

    @cached_property
    def spec(self) -> SoundSpec:
        """Return the shape and scale of the spectrograms that the tower takes."""
        from geobind.towers.audio import sound_spec

        return sound_spec(self)

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build CLAP's audio tower, or a timm backbone that sees the spectrogram."""
        from geobind.towers.htsat import htsat_encoder
        from geobind.towers.tower import mel_encoder

        if self.htsat is not None:
            return htsat_encoder(self.htsat, width, head=self.head, pretrained=pretrained)
        return mel_encoder(self, width, pretrained=pretrained)

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor | Mapping[str, Tensor]:
        """Turn a recording into a log-mel spectrogram, (1, mels, frames).

        Several `crops` are (crops, 1, mels, frames) where nothing is trained; a fused HTSAT gets a dict.
        """
        from geobind.towers.audio import prepare_sound
        from geobind.towers.htsat import prepare_fused

        augment = self.augment if training else None
        if self.htsat is not None and self.htsat.fused:
            return prepare_fused(raw, self.spec, augment, fuse=self.htsat.fuse)
        return prepare_sound(raw, self.spec, augment)


@geobind.hookimpl
def geobind_modalities() -> list[type[Modality]]:
    """Provide the modality of this module."""
    return [Audio]
