"""Recordings to log-mel spectrograms of one shape.

The spectrogram is made here, in `prepare`, not in the encoder: that of 10 s is less than half of its samples,
and with two workers on two cores a loader then gave 2.7 times as many clips a second (1.2 times of 2 s).
"""

# T samples, M mel bands, F frames, C channels
from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from geobind.data.readers import audio_seconds, read_audio
from geobind.errors import PluginError
from geobind.towers.audio_options import AudioAugment, AudioOptions

if TYPE_CHECKING:
    from torch import nn

_FLOOR = 1e-10  # power taken for silence: -100 dB


class SoundSpec(NamedTuple):
    """What is heard, and how it is turned into a picture."""

    rate: int
    samples: int
    mels: int
    n_fft: int
    window: int
    hop: int
    fmin: float
    fmax: float
    scale: Literal["htk", "slaney"]
    frames: int


def sound_spec(options: AudioOptions) -> SoundSpec:
    """Tell what the tower of these options hears: CLAP's own spectrogram, or the one the options describe."""
    if options.htsat is not None:
        # CLAP's published fused models were trained on HTK's mel scale, the others on Slaney's.
        scale: Literal["htk", "slaney"] = "htk" if options.htsat.fused else "slaney"
        return SoundSpec(48_000, 480_000, 64, 1024, 1024, 480, 50, 14_000, scale, frames=1001)
    rate, mels = options.rate or 16_000, options.mels or 64
    window, hop = (max(2, round(rate * ms / 1000)) for ms in (options.window_ms or 25, options.hop_ms or 10))
    # Padded to a power of two, and fine enough that the narrowest mel filter still holds a frequency.
    n_fft = 1 << (max(window, 8 * mels) - 1).bit_length()
    low = 20.0 if options.fmin is None else options.fmin
    samples = round(rate * (options.seconds or 10))
    # The frame on the very end is left out: 10.24 s are then 1024 frames, which patches divide.
    frames = max(1, samples // hop)
    return SoundSpec(rate, samples, mels, n_fft, window, hop, low, options.fmax or rate / 2, "htk", frames)


def prepare_sound(raw: Any, spec: SoundSpec, augment: AudioAugment | None = None) -> Tensor:
    """Read a recording and make a (1, M, F) spectrogram in decibels, always of the same shape.

    Args:
        raw: What `read_audio` takes. Of a longer recording than the window only the middle is read, with
            `augment` a random part.
        spec: What the tower hears.
        augment: How to change it at random, by torch's global generator; None changes nothing.

    Raises:
        DataError: It is no sound, or has no samples.
    """
    samples_T = fit(_read_window(raw, spec, anywhere=augment is not None), spec.samples)
    if augment is not None:
        samples_T = _augment(samples_T, augment)
    mel_CMF = log_mel(samples_T, spec)[None, :, : spec.frames].contiguous()
    return mel_CMF if augment is None else mask(mel_CMF, augment)


def fit(samples_T: Tensor, length: int) -> Tensor:
    """Cut a recording to `length` samples, or repeat it as often as it fits whole, then add silence.

    Repetition is what CLAP was trained with; silence alone would show the encoder how long a clip was.
    """
    samples_T = samples_T[:length]
    whole_T = samples_T.repeat(length // len(samples_T))
    return torch.nn.functional.pad(whole_T, (0, length - len(whole_T)))


def log_mel(samples_T: Tensor, spec: SoundSpec) -> Tensor:
    """Return the (M, F) mel spectrogram of a recording: power in decibels, silence at -100."""
    return 10 * _mel(spec)(samples_T).clamp(min=_FLOOR).log10()


def mask(mel_CMF: Tensor, augment: AudioAugment) -> Tensor:
    """Hide a random range of frames and of mel bands behind the mean (SpecAugment, arXiv:1904.08779)."""
    for axis, share in ((-1, augment.mask_time), (-2, augment.mask_mels)):
        size = mel_CMF.shape[axis]
        width = int(torch.randint(int(share * size) + 1, ()))
        if width:
            start = int(torch.randint(size - width + 1, ()))
            mel_CMF = mel_CMF.clone()
            mel_CMF.narrow(axis, start, width).fill_(float(mel_CMF.mean()))
    return mel_CMF


def _read_window(raw: Any, spec: SoundSpec, *, anywhere: bool) -> Tensor:
    length = spec.samples / spec.rate
    spare = audio_seconds(raw, spec.rate) - length
    if spare <= 0:
        return read_audio(raw, spec.rate)
    start = spare * (float(torch.rand(())) if anywhere else 0.5)
    return read_audio(raw, spec.rate, start=start, seconds=length)


def _augment(samples_T: Tensor, augment: AudioAugment) -> Tensor:
    if augment.shift:
        samples_T = samples_T.roll(int(torch.randint(len(samples_T), ())))
    if augment.gain_db:
        samples_T = samples_T * 10 ** (augment.gain_db * (2 * torch.rand(()) - 1) / 20)
    if augment.noise_snr_db is not None:
        low, high = augment.noise_snr_db
        snr_db = low + (high - low) * torch.rand(())
        noise = samples_T.square().mean().sqrt() * 10 ** (-snr_db / 20)
        samples_T = samples_T + noise * torch.randn(len(samples_T))
    return samples_T


@lru_cache(maxsize=8)
def _mel(spec: SoundSpec) -> nn.Module:
    try:
        from torchaudio.transforms import MelSpectrogram
    except (ImportError, OSError, RuntimeError) as error:
        raise PluginError(
            f"audio needs torchaudio, which cannot be imported ({error}); install the one made for this torch"
        ) from error
    return MelSpectrogram(
        spec.rate,
        n_fft=spec.n_fft,
        win_length=spec.window,
        hop_length=spec.hop,
        f_min=spec.fmin,
        f_max=spec.fmax,
        n_mels=spec.mels,
        norm="slaney" if spec.scale == "slaney" else None,
        mel_scale=spec.scale,
    )
