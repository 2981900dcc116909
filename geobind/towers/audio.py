"""Recordings to log-mel spectrograms of one shape.

The spectrogram is made here, in `prepare`, not in the encoder: that of 10 s is less than half of its samples,
and with two workers on two cores a loader then gave 2.7 times as many clips a second (1.2 times of 2 s).
"""

# T samples, M mel bands, F frames, C channels
from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from geobind.data.readers.audio import Recording, open_recording
from geobind.towers.mel import mel_spectrogram
from geobind.towers.options import AudioAugment, AudioOptions

_FLOOR = 1e-10  # power taken for silence: -100 dB


class SoundSpec(NamedTuple):
    """The length and the spectrogram of a recording as an encoder takes it."""

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
    crops: int = 1
    loudness: float | None = None


def sound_spec(options: AudioOptions) -> SoundSpec:
    """Return the input of the tower of these options: CLAP's own spectrogram, or the one they describe."""
    if options.htsat is not None:
        # CLAP's published fused models were trained on HTK's mel scale, the others on Slaney's.
        scale: Literal["htk", "slaney"] = "htk" if options.htsat.fused else "slaney"
        spec = SoundSpec(48_000, 480_000, 64, 1024, 1024, 480, 50, 14_000, scale, frames=1001)
        return spec._replace(crops=options.crops, loudness=options.loudness)
    rate, mels = options.rate or 16_000, options.mels or 64
    window, hop = (max(2, round(rate * ms / 1000)) for ms in (options.window_ms or 25, options.hop_ms or 10))
    # Padded to a power of two, and fine enough that the narrowest mel filter still holds a frequency.
    n_fft = 1 << (max(window, 8 * mels) - 1).bit_length()
    low = 20.0 if options.fmin is None else options.fmin
    samples = round(rate * (options.seconds or 10))
    # The frame on the very end is left out: 10.24 s are then 1024 frames, which patches divide.
    frames = max(1, samples // hop)
    high = options.fmax or rate / 2
    spec = SoundSpec(rate, samples, mels, n_fft, window, hop, low, high, "htk", frames)
    return spec._replace(crops=options.crops, loudness=options.loudness)


def prepare_sound(raw: Any, spec: SoundSpec, augment: AudioAugment | None = None) -> Tensor:
    """Return a recording as a (1, M, F) spectrogram in decibels, always of the same shape.

    Args:
        raw: What `read_audio` takes. Of a longer recording than the window only the middle is read, with
            `augment` a random part.
        spec: What the tower hears. With several crops, and without `augment`, there are as many windows,
            (crops, 1, M, F), evenly spaced from the beginning to the end; a recording that fits the window
            is as many times the same.
        augment: How to change it at random, by torch's global generator; None changes nothing.

    Raises:
        DataError: It is no sound, or has no samples.
    """
    with open_recording(raw, spec.rate) as recording:
        spare = max(0.0, recording.seconds - spec.samples / spec.rate)
        if augment is not None:
            start = spare * float(torch.rand(())) if spare else 0.0
            samples_T = augment_samples(_window(recording, spec, start), augment)
            return mask_spectrogram(_mel_CMF(samples_T, spec), augment)
        if spec.crops == 1:
            return _mel_CMF(_window(recording, spec, spare / 2), spec)
        starts = [spare * crop / (spec.crops - 1) for crop in range(spec.crops if spare else 1)]
        crops = [_mel_CMF(_window(recording, spec, start), spec) for start in starts]
    return torch.stack(crops).expand(spec.crops, -1, -1, -1).contiguous()


def fit_length(samples_T: Tensor, length: int) -> Tensor:
    """Cut a recording to `length` samples, or repeat it as often as it fits whole, then add silence.

    Repetition is what CLAP was trained with; silence alone would show the encoder how long a clip was.
    """
    samples_T = samples_T[:length]
    if len(samples_T) == length:
        return samples_T
    whole_T = samples_T.repeat(length // len(samples_T))
    return torch.nn.functional.pad(whole_T, (0, length - len(whole_T)))


def log_mel(samples_T: Tensor, spec: SoundSpec) -> Tensor:
    """Return the (M, F) mel spectrogram of a recording: power in decibels, silence at -100."""
    return mel_spectrogram(spec)(samples_T).clamp_(min=_FLOOR).log10_().mul_(10)


def mask_spectrogram(mel_CMF: Tensor, augment: AudioAugment) -> Tensor:
    """Hide a random range of frames and of mel bands behind the mean (SpecAugment, arXiv:1904.08779)."""
    for axis, share in ((-1, augment.mask_time), (-2, augment.mask_mels)):
        size = mel_CMF.shape[axis]
        width = int(torch.randint(int(share * size) + 1, ()))
        if width:
            start = int(torch.randint(size - width + 1, ()))
            mel_CMF = mel_CMF.clone()
            mel_CMF.narrow(axis, start, width).fill_(float(mel_CMF.mean()))
    return mel_CMF


def _window(recording: Recording, spec: SoundSpec, start: float) -> Tensor:
    length = spec.samples / spec.rate
    samples_T = recording.read(spec.rate, start=start, seconds=length, loudness=spec.loudness)
    return fit_length(samples_T, spec.samples)


def _mel_CMF(samples_T: Tensor, spec: SoundSpec) -> Tensor:
    return log_mel(samples_T, spec)[None, :, : spec.frames].contiguous()


def augment_samples(samples_T: Tensor, augment: AudioAugment) -> Tensor:
    """Rotate a recording in time, change its level and add noise, all at random."""
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
