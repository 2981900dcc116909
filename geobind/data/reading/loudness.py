"""How loud a sound is to a listener (ITU-R BS.1770-5), and bringing it to a given loudness.

torchaudio.functional.loudness: noise 0.04 LU lower at 48 kHz, 0.12 at 16, 0.22 at 8; a full-scale 997 Hz sine
-3.28 LUFS; silence NaN; under 0.4 s an error; 4.1 GB for an hour at 16 kHz, which takes 0.24 here.
"""

# T samples, F frequencies, H hops of 100 ms, B blocks of 400 ms, one for each hop

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

PEAK = 10 ** (-1 / 20)  # no sample of a sound made louder goes beyond -1 dB of full scale
_HOP = 0.1  # seconds
_HOPS = 4  # of a block
_AT_A_TIME = 100  # hops filtered together, so that an hour takes no more memory than ten seconds
_ABSOLUTE, _RELATIVE = -70.0, -10.0  # LUFS; LU below the mean: what is quieter does not count
_OFFSET = -0.691  # dB; what the filter adds at 997 Hz
_LOWEST = 4000  # Hz
_TAIL = 0.25  # seconds after which the filter's answer has died away to nothing


def loudness(samples_T: Tensor, rate: int) -> float:
    """Return the integrated loudness of one channel in LUFS, minus infinity of silence.

    A full-scale sine of 997 Hz has -3.01 LUFS. Filter: BS.1770-5, annex 1, as two biquads designed for this
    rate; blocks and both gates: annex 1, equations 3 to 7. A sound shorter than a block is one block.

    Args:
        samples_T: (T,) floating samples, full scale being 1.
        rate: Sampling rate in Hz. What lies above half of it is not there to be heard.
    """
    hop = round(_HOP * rate)
    energy_H = torch.cat([_energy_H(samples_T, start, rate, hop) for start in _starts(samples_T, hop)])
    if len(samples_T) < _HOPS * hop:
        power_B = energy_H.sum()[None] / len(samples_T)
    else:  # what is left over of a last hop counts for no block
        power_B = energy_H[: len(samples_T) // hop].unfold(0, _HOPS, 1).sum(1) / (_HOPS * hop)
    loud_B = power_B[_lufs(power_B) > _ABSOLUTE]
    if not len(loud_B):
        return -math.inf
    heard_B = loud_B[_lufs(loud_B) > float(_lufs(loud_B.mean())) + _RELATIVE]
    return float(_lufs(heard_B.mean()))


def at_loudness(samples_T: Tensor, rate: int, lufs: float) -> Tensor:
    """Bring a sound to a loudness, or as near to it as its peaks allow (`PEAK`); silence stays silence."""
    now = loudness(samples_T, rate)
    if now == -math.inf:
        return samples_T
    gain = 10 ** ((lufs - now) / 20)
    return samples_T * min(gain, PEAK / float(samples_T.abs().max()))


def _starts(samples_T: Tensor, hop: int) -> range:
    return range(0, len(samples_T), _AT_A_TIME * hop)


def _energy_H(samples_T: Tensor, start: int, rate: int, hop: int) -> Tensor:
    """Filter a stretch of a sound, with what comes before it as far as that is still heard."""
    before = min(start, math.ceil(_TAIL * rate))
    part_T = samples_T[start - before : start + _AT_A_TIME * hop].double()
    padded = (_AT_A_TIME * hop) + 2 * math.ceil(_TAIL * rate)
    spectrum_F = torch.fft.rfft(part_T, n=padded) * _weighting_F(rate, padded)
    power_T = torch.fft.irfft(spectrum_F, n=padded)[before : len(part_T)].square()
    whole_T = torch.nn.functional.pad(power_T, (0, -len(power_T) % hop))
    return whole_T.view(-1, hop).sum(1)


def _lufs(power: Tensor) -> Tensor:
    return _OFFSET + 10 * power.log10()


def biquads(rate: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the two filters of BS.1770 for a rate, each as b0, b1, b2, a1, a2 (a0 being 1).

    The standard gives them for 48 kHz alone; these are the analogue filters behind those numbers, a shelf
    (1,682 Hz, +4.0 dB, Q 0.707) and a high-pass (38.1 Hz, Q 0.500), by the bilinear transform.
    """
    if rate < _LOWEST:  # the shelf lies above what such a rate can hold
        return (1.0, 0.0, 0.0, 0.0, 0.0), _high_pass(rate)
    k, q = math.tan(math.pi * 1681.974450955533 / rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    middle = high**0.4996667741545416
    a0 = 1 + k / q + k * k
    shelf = (
        (high + middle * k / q + k * k) / a0,
        2 * (k * k - high) / a0,
        (high - middle * k / q + k * k) / a0,
        2 * (k * k - 1) / a0,
        (1 - k / q + k * k) / a0,
    )
    return shelf, _high_pass(rate)


def _high_pass(rate: int) -> tuple[float, ...]:
    k, q = math.tan(math.pi * 38.13547087602444 / rate), 0.5003270373238773
    a0 = 1 + k / q + k * k
    return 1.0, -2.0, 1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0


@lru_cache(maxsize=8)
def _weighting_F(rate: int, length: int) -> Tensor:
    """Return what the two filters make of each frequency of a spectrum of so many samples."""
    z_F = torch.exp(-2j * torch.pi * torch.arange(length // 2 + 1, dtype=torch.float64) / length)
    answer_F = torch.ones_like(z_F)
    for b0, b1, b2, a1, a2 in biquads(rate):
        answer_F = answer_F * (b0 + b1 * z_F + b2 * z_F**2) / (1 + a1 * z_F + a2 * z_F**2)
    return answer_F
