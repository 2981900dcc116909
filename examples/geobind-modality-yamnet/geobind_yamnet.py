"""Sounds embedded by YAMNet, a small network pretrained on AudioSet: a modality as anyone may publish one.

YAMNet is MobileNet-v1 on a log-mel spectrogram (Howard et al. 2017, arXiv:1704.04861, on the front end of
Hershey et al. 2017, arXiv:1609.09430). Here its batch-norms are folded into the convolutions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

import geobind
from geobind.errors import RecipeError
from geobind.towers import HeadKind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from geobind import Role

RATE = 16_000  # samples a second
WINDOW_SECONDS = 0.975  # YAMNet sees so much at once


class AudioYamnet(geobind.Modality):
    """Soundscapes: a frozen-able YAMNet trunk and a small head."""

    name: ClassVar[str] = "audio_yamnet"
    role: ClassVar[Role] = "trainable"
    accepts: ClassVar[str] = "path or bytes of WAV, FLAC, OGG or MP3; (array, rate); mono array at 16 kHz"

    # A safetensors file with conv0.weight, conv0.bias ... conv26.bias.
    weights: Path | None = None
    # Longer sounds are cut, shorter ones repeated.
    seconds: float = Field(default=5.0, ge=WINDOW_SECONDS, le=60)
    # Root mean square below full scale, because recorders differ in gain; null keeps the recorded one.
    loudness_db: float | None = Field(default=-26.0, le=0)
    # A control: if a low-passed run scores the same, the model did not learn the bandwidth of the recordings.
    lowpass_hz: float | None = Field(default=None, gt=0, lt=RATE / 2)
    head: HeadKind = "mlp"

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build YAMNet's trunk and a head from its 1,024 features to `width`.

        Raises:
            RecipeError: Weights are wanted and the option `weights` is missing.
            CheckpointError: `weights` cannot be read or does not hold YAMNet.
        """
        from geobind_yamnet_network import ClipTrunk, build_head, load_weights

        from geobind.towers import Tower

        trunk = ClipTrunk()
        if pretrained:
            if self.weights is None:
                raise RecipeError("audio_yamnet: give `weights`, the path of YAMNet's safetensors file")
            load_weights(trunk.yamnet, self.weights)
        return Tower(trunk, build_head(self.head, width))

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Decode a sound to (S,) mono float32 at 16 kHz, cut or repeated to `seconds`, at an even loudness.

        Training starts the clip at a random sample and wraps around its end; otherwise the middle is taken.

        Raises:
            DataError: The sound cannot be decoded or has no samples.
        """
        from geobind_yamnet_network import cut, level, lowpass

        from geobind.data import read_audio

        wave_S = read_audio(raw, RATE)
        wave_S = cut(wave_S, round(self.seconds * RATE), training=training)
        if self.lowpass_hz is not None:
            wave_S = lowpass(wave_S, self.lowpass_hz)
        return wave_S if self.loudness_db is None else level(wave_S, self.loudness_db)


@geobind.hookimpl
def geobind_modalities() -> list[type[geobind.Modality]]:
    """Return the one modality of this file."""
    return [AudioYamnet]
