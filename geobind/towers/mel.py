"""Mel power spectrograms: torchaudio's where it loads, and equal ones in torch alone where it does not."""

# T samples, W samples of a window, F frequencies, M mel bands, N frames
from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

if TYPE_CHECKING:
    from geobind.towers.audio import SoundSpec

_log = logging.getLogger(__name__)


@lru_cache(maxsize=8)
def mel_spectrogram(spec: SoundSpec) -> Callable[[Tensor], Tensor]:
    """Return the function from (T,) samples to their (M, N) mel power spectrogram."""
    return torchaudio_mel(spec) if check_torchaudio() else torch_mel(spec)


def torchaudio_mel(spec: SoundSpec) -> Callable[[Tensor], Tensor]:
    """Return torchaudio's mel spectrogram."""
    from torchaudio.transforms import MelScale, Spectrogram

    spectrogram = Spectrogram(spec.n_fft, spec.window, spec.hop, power=None)
    norm = "slaney" if spec.scale == "slaney" else None
    bands = MelScale(spec.mels, spec.rate, spec.fmin, spec.fmax, spec.n_fft // 2 + 1, norm, spec.scale)
    return lambda samples_T: bands(_power(spectrogram(samples_T)))


def torch_mel(spec: SoundSpec) -> Callable[[Tensor], Tensor]:
    """Return the same mel spectrogram in torch alone: power of a centred STFT, Hann window, in bands."""
    window_W, bands_FM = torch.hann_window(spec.window), mel_bands(spec)

    def mel_MN(samples_T: Tensor) -> Tensor:
        spectrum_FN = torch.stft(
            samples_T, spec.n_fft, spec.hop, spec.window, window_W, pad_mode="reflect", return_complex=True
        )
        return (_power(spectrum_FN).T @ bands_FM).T

    return mel_MN


def _power(spectrum_FN: Tensor) -> Tensor:
    # Not abs() and its square: the root takes longer than the Fourier transform.
    return spectrum_FN.real.square().addcmul_(spectrum_FN.imag, spectrum_FN.imag)


def mel_bands(spec: SoundSpec) -> Tensor:
    """Return the (F, M) weights of each frequency in each band: triangles evenly spaced in mels.

    HTK: 2595 log10(1 + f / 700) mels (O'Shaughnessy, Speech Communication, 1987; the HTK Book, Filterbank
    Analysis), triangles one high. Slaney: 3 mels for 200 Hz up to 1 kHz, 27 for a factor of 6.4 above
    (Auditory Toolbox, 1998), triangles of one area. Conventions: `torchaudio.functional.melscale_fbanks`,
    whose rounding this keeps.
    """
    if spec.scale == "htk":
        low, high = (2595 * math.log10(1 + hz / 700) for hz in (spec.fmin, spec.fmax))
        edges = 700 * (10 ** (torch.linspace(low, high, spec.mels + 2) / 2595) - 1)
    else:
        per_mel = math.log(6.4) / 27
        low, high = (
            hz * 3 / 200 if hz < 1000 else 15 + math.log(hz / 1000) / per_mel for hz in (spec.fmin, spec.fmax)
        )
        mels = torch.linspace(low, high, spec.mels + 2)
        edges = torch.where(mels < 15, 200 / 3 * mels, 1000 * torch.exp(per_mel * (mels - 15)))
    hertz_F1 = torch.linspace(0, spec.rate // 2, spec.n_fft // 2 + 1)[:, None]
    steps = edges.diff()
    rising_FM, falling_FM = (hertz_F1 - edges[:-2]) / steps[:-1], (edges[2:] - hertz_F1) / steps[1:]
    bands_FM = torch.minimum(rising_FM, falling_FM).clamp(min=0)
    return bands_FM * (2 / (edges[2:] - edges[:-2])) if spec.scale == "slaney" else bands_FM


@lru_cache(maxsize=1)
def check_torchaudio() -> bool:
    """Return whether torchaudio computes spectrograms; warn once in a process where it does not."""
    failure = hide_broken_torchaudio()
    if failure is not None and get_worker_info() is None:  # a loader's workers would all repeat it
        _log.warning(
            "torchaudio does not load (%s: %s); torch alone computes the mel spectrograms, equal to 1e-5. "
            "To mend it, from the index that torch %s came from: %s",
            type(failure).__name__,
            str(failure).partition("\n")[0],
            torch.__version__,
            install_command(torch.__version__),
        )
    return failure is None


def install_command(torch_version: str) -> str:
    """Return the command that puts the newest torchaudio for a torch in the place of the one there is."""
    release = torch_version.partition("+")[0]
    major, minor = map(int, release.split(".")[:2])
    # Up to 2.10 a torchaudio is for the torch of its own number; since then for every later one, and some say
    # nothing of what they need. Removed first, for pip leaves a damaged one of the same number where it is.
    pin = "" if (major, minor) >= (2, 11) else f"=={release}"
    return f"pip uninstall -y torchaudio && pip install torchaudio{pin} torch=={release}"


@lru_cache(maxsize=1)
def hide_broken_torchaudio() -> Exception | None:
    """Hide a torchaudio that does not load from all libraries; return its error, None where it loads.

    It counts as not installed from then on: transformers 5, and peft through it, import a torchaudio whose
    files are there, and would die of its error.
    """
    try:
        import_module("torchaudio.transforms")
    except Exception as error:  # OSError: its library; RuntimeError: other CUDA; AttributeError: other torch
        sys.modules["torchaudio"] = None  # pyright: ignore[reportArgumentType]  # Python's mark of "not there"
        checks = sys.modules.get("transformers.utils.import_utils")
        forget = getattr(getattr(checks, "is_torchaudio_available", None), "cache_clear", None)
        if forget is not None:  # transformers saw the files before, and would go by that
            forget()
        return error
    return None
