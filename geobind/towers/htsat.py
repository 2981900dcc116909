"""HTSAT, CLAP's audio tower, from transformers (arXiv:2211.06687), and the spectrograms it was trained on."""

# B batch, C spectrograms (1, or 4 where they are fused), M mel bands, F frames
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geobind.data.readers.audio import read_audio
from geobind.errors import ExportError, PluginError, RecipeError
from geobind.extras import INSTALL
from geobind.towers.audio import SoundSpec, augment_samples, fit_length, log_mel, mask_spectrogram
from geobind.towers.mel import check_torchaudio
from geobind.towers.options import AudioAugment, HeadKind, HtsatOptions
from geobind.towers.tower import CropsTower, Tower, make_head
from geobind.towers.weights import find_weights_file, load_strictly, read_weights


def htsat_encoder(options: HtsatOptions, width: int, *, head: HeadKind, pretrained: bool) -> Tower:
    """Build CLAP's audio tower with its projection, and a head where the widths differ.

    Raises:
        PluginError: transformers is not installed.
        RecipeError: The config cannot be built.
        CheckpointError: The weights cannot be had, or are another model's.
    """
    model = _build(options)
    if pretrained and isinstance(options.pretrained, str):
        tensors = read_weights(find_weights_file(options.pretrained) or options.pretrained)
        own = {key: value for key, value in tensors.items() if key.startswith("audio_")}
        load_strictly(model, own, options.pretrained)
    trunk = HtsatTrunk(model)
    features = int(trunk.model.config.projection_dim)
    return CropsTower(trunk, make_head(head, features, width, what="this HTSAT"))


def prepare_fused(
    raw: Any,
    spec: SoundSpec,
    augment: AudioAugment | None = None,
    *,
    fuse: Literal["longer", "all"] = "longer",
) -> dict[str, Tensor]:
    """Make the four spectrograms of a fused CLAP: the whole recording squeezed, and three parts of it.

    Training draws the parts at random from its first, middle and last third, as CLAP did; otherwise they
    are taken from the middle of each third. A recording that fits the window is four times the same.

    Args:
        raw: What `read_audio` takes.
        spec: What the tower hears.
        augment: How to change it at random; None changes nothing.
        fuse: Which recordings the tower takes in parts. CLAP was trained on `longer`. transformers' extractor
            marks one recording of every call as longer if none is; called with one recording at a time,
            as by GeoCLAP (`clap_data_processor.py`), it marks `all`.

    Returns:
        `mel`, (4, M, F) in decibels, and `longer`, (1,), whether the tower takes the recording in parts.

    Raises:
        DataError: It is no sound, or has no samples.
    """
    samples_T = read_audio(raw, spec.rate, loudness=spec.loudness)
    longer = len(samples_T) > spec.samples
    samples_T = samples_T if longer else fit_length(samples_T, spec.samples)
    mel_MF = log_mel(samples_T if augment is None else augment_samples(samples_T, augment), spec)
    spare = mel_MF.shape[1] - spec.frames
    if spare > 0:
        starts = [
            _start(part, training=augment is not None) for part in torch.arange(spare + 1).tensor_split(3)
        ]
        squeezed_MF = torch.nn.functional.interpolate(
            mel_MF[None, None], size=(spec.mels, spec.frames), mode="bilinear", align_corners=False
        )[0, 0]
        mel_CMF = torch.stack([squeezed_MF, *(mel_MF[:, start : start + spec.frames] for start in starts)])
    else:
        mel_CMF = mel_MF.expand(4, -1, -1).contiguous()
    mel_CMF = mel_CMF if augment is None else mask_spectrogram(mel_CMF, augment)
    return {"mel": mel_CMF, "longer": torch.tensor([spare > 0 or fuse == "all"])}


class HtsatTrunk(nn.Module):
    """transformers' model, fed with our layout, (B, C, M, F)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.train()

    def forward(self, x: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Encode (B, 1, M, F) spectrograms, or what `prepare_fused` makes, to (B, projection)."""
        mel_BCMF, longer = (x, None) if isinstance(x, Tensor) else (x["mel"], x["longer"])
        if longer is not None and torch.compiler.is_exporting():
            raise ExportError("a fused HTSAT picks the longer recordings of a batch, which a graph cannot")
        return self.model(input_features=mel_BCMF.transpose(2, 3), is_longer=longer).audio_embeds

    def train(self, mode: bool = True) -> HtsatTrunk:
        """Switch to training or evaluation, but for the fusion's batch norms.

        They see only the long recordings of a batch, and cannot make statistics of a single one.
        """
        super().train(mode)
        fusion = getattr(self.model.audio_model.audio_encoder.patch_embed, "fusion_model", None)
        if fusion is not None:
            fusion.eval()
        return self


def _build(options: HtsatOptions) -> nn.Module:
    check_torchaudio()  # warns before loaders start, and transformers would die of a broken one
    try:
        from transformers import ClapAudioConfig, ClapAudioModelWithProjection
    except ImportError as error:
        raise PluginError(
            f"HTSAT needs transformers ({error}): {INSTALL['transformers']}, or encode with timm instead"
        ) from error
    try:
        return ClapAudioModelWithProjection(ClapAudioConfig(**options.config, enable_fusion=options.fused))
    except Exception as error:  # transformers' strict configs raise classes of their own
        raise RecipeError(f"transformers cannot build HTSAT with {options.config}: {error}") from error


def _start(starts: Tensor, *, training: bool) -> int:
    if not len(starts):  # hardly longer than the window: the last thirds are empty
        return 0
    return int(starts[torch.randint(len(starts), ()) if training else len(starts) // 2])
