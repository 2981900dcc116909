"""A tower that sees spectrograms as images of one band, as ImageBind's does (arXiv:2305.05665)."""

from __future__ import annotations

from torch import Tensor

from geobind.errors import RecipeError
from geobind.towers.audio_options import AudioOptions
from geobind.towers.backbones import backbone, features_of
from geobind.towers.mel import check_torchaudio
from geobind.towers.sound import sound_spec
from geobind.towers.tower import NormalisingTower, make_head, mean_of_crops

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
    check_torchaudio()  # warns before loaders start
    trunk = backbone(chosen, channels=1, size=(spec.mels, spec.frames), pretrained=pretrained)
    head = make_head(options.head, features_of(trunk), width, what=chosen.model)
    return ListeningTower(trunk, head, (MEAN_DB,), (STD_DB,))
