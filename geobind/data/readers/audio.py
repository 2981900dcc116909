"""Audio decoding, resampling and loudness.

How loud a sound is to a listener (ITU-R BS.1770-5), and bringing it to a given loudness.

torchaudio.functional.loudness: noise 0.04 LU lower at 48 kHz, 0.12 at 16, 0.22 at 8; a full-scale 997 Hz sine
-3.28 LUFS; silence NaN; under 0.4 s an error; 4.1 GB for an hour at 16 kHz, which takes 0.24 here.
"""

# T samples, F frequencies, H hops of 100 ms, B blocks of 400 ms, one for each hop, C channels

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from geobind.data.readers.files import describe, open_binary, show_value
from geobind.data.readers.sound_headers import state_length
from geobind.errors import DataError
from geobind.utils.arrays import as_array, is_array, is_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from soundfile import SoundFile


PEAK = 10 ** (-1 / 20)  # no sample of a sound made louder goes beyond -1 dB of full scale
_HOP = 0.1  # seconds
_HOPS = 4  # of a block
_AT_A_TIME = 100  # hops filtered together, so that an hour takes no more memory than ten seconds
_ABSOLUTE, _RELATIVE = -70.0, -10.0  # LUFS; LU below the mean: what is quieter does not count
_OFFSET = -0.691  # dB; what the filter adds at 997 Hz
_LOWEST = 4000  # Hz
_TAIL = 0.25  # seconds after which the filter's answer has died away to nothing


def measure_loudness(samples_T: Tensor, rate: int) -> float:
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


def normalize_loudness(samples_T: Tensor, rate: int, lufs: float) -> Tensor:
    """Bring a sound to a loudness in place, or as near as its peaks allow (`PEAK`); silence stays silent."""
    now = measure_loudness(samples_T, rate)
    if now == -math.inf:
        return samples_T
    low, high = map(float, torch.aminmax(samples_T))
    return samples_T.mul_(min(10 ** ((lufs - now) / 20), PEAK / max(-low, high)))


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


MAX_SECONDS = 3600.0
_MAX_SAMPLES = 500_000_000  # 2 GB, which is what the one channel read may have before and after resampling
_BLOCK = 1_000_000  # samples of all channels decoded at a time
_MISSING = 4608  # samples, four frames, that MPEG audio may lack at its end: the first frames need others
_RATES = range(100, 1_000_001)
_MAX_CHANNELS = 64  # of an array; more of them are recordings stacked
_Blocks = Callable[[int, int], Iterator["NDArray[np.float32]"]]


class Recording:
    """A sound that is open: windows of it are decoded when they are read.

    Args:
        raw: What it was opened from, which messages name.
        rate: Its own sampling rate, in Hz.
        channels: Its channels, as they are before they are averaged.
        frames: Its length, in samples of each channel.
        blocks: Yields one channel from a sample on, so many samples in all.
    """

    def __init__(self, raw: Any, rate: int, channels: int, frames: int, blocks: _Blocks) -> None:
        self.rate, self.channels, self.frames = rate, channels, frames
        self._raw, self._blocks = raw, blocks

    @property
    def seconds(self) -> float:
        """Return its length."""
        return self.frames / self.rate

    def read(
        self,
        rate: int,
        *,
        start: float = 0.0,
        seconds: float | None = None,
        loudness: float | None = None,
        max_seconds: float = MAX_SECONDS,
    ) -> Tensor:
        """Decode a window into one channel at one rate, with the arguments and errors of `read_audio`."""
        first = round(start * self.rate)
        left = max(0, self.frames - first)
        wanted = left if seconds is None else min(left, max(1, round(seconds * self.rate)))
        self._check_length(wanted, rate, max_seconds)
        heard_T = torch.from_numpy(self._resample(self._finite_blocks(first, wanted), wanted, rate))
        return heard_T if loudness is None else normalize_loudness(heard_T, rate, loudness)

    def _check_length(self, wanted: int, rate: int, max_seconds: float) -> None:
        if wanted < 1:
            raise DataError(
                f"{describe(self._raw)}: has no samples there (zero length, or the window starts past its "
                "end)"
            )
        if wanted > max_seconds * self.rate or max(wanted, wanted / self.rate * rate) > _MAX_SAMPLES:
            raise DataError(
                f"{describe(self._raw)}: {wanted / self.rate:.0f} s of {self.channels} channels at "
                f"{self.rate} Hz; at most {max_seconds:.0f} s and {_MAX_SAMPLES / 1e6:.0f} million samples "
                "are read; cut it into clips first"
            )

    def _finite_blocks(self, first: int, wanted: int) -> Iterator[NDArray[np.float32]]:
        for block_T in self._blocks(first, wanted):
            if not np.isfinite(block_T).all():
                raise DataError(f"{describe(self._raw)}: has samples that are NaN or infinite")
            yield block_T

    def _resample(self, blocks: Iterator[NDArray[np.float32]], wanted: int, rate: int) -> NDArray[np.float32]:
        """Return the blocks as one array at a rate, which is all that is held of them."""
        heard_T = np.empty(math.ceil(wanted * rate / self.rate) + 1, np.float32)
        count = there = 0
        stream = None if rate == self.rate else _resampler(self.rate, rate)
        for block_T in blocks:
            there += len(block_T)
            part_T = block_T if stream is None else stream.resample_chunk(block_T, last=there >= wanted)
            heard_T[count : count + len(part_T)] = part_T
            count += len(part_T)
        if stream is not None and there < wanted:
            part_T = stream.resample_chunk(np.empty(0, np.float32), last=True)
            heard_T[count : count + len(part_T)] = part_T
            count += len(part_T)
        if not count:
            raise DataError(
                f"{describe(self._raw)}: {there} samples at {self.rate} Hz are too few to resample to "
                f"{rate} Hz"
            )
        return heard_T[:count]


def read_audio(
    raw: Any,
    rate: int,
    *,
    start: float = 0.0,
    seconds: float | None = None,
    loudness: float | None = None,
    max_seconds: float = MAX_SECONDS,
) -> Tensor:
    """Decode a sound into one channel at one sampling rate.

    Channels are averaged; the rate is changed by soxr's HQ resampler. Integers become fractions of full
    scale, floats are kept. Only the window asked for is decoded, by seeking.

    Args:
        raw: A path, the bytes of a file, an `(array, rate)` tuple, or an array or tensor already at `rate`;
            arrays, of numpy or what numpy can read, are (T,), (T, C) or (C, T), the shorter axis being the
            channels.
        rate: Sampling rate wanted, in Hz.
        start: Where the window begins, in seconds.
        seconds: Length of the window; None reads to the end. A window past the end is shorter.
        loudness: Bring what is read to this loudness in LUFS (ITU-R BS.1770), such as -23, unless it is
            silent; less where peaks would go beyond -1 dB of full scale. None leaves it as it is.
        max_seconds: Longer inputs are refused unless a window is given.

    Returns:
        (T,) float32.

    Raises:
        DataError: The input is missing, damaged, silent in the sense of having no samples, too long, of an
            unknown format, or holds NaN or infinity.
    """
    if rate not in _RATES or start < 0 or (seconds is not None and seconds <= 0):
        raise DataError(f"cannot read {seconds} seconds from {start} at {rate} Hz: no such window or rate")
    with open_recording(raw, rate) as recording:
        return recording.read(rate, start=start, seconds=seconds, loudness=loudness, max_seconds=max_seconds)


def audio_seconds(raw: Any, rate: int) -> float:
    """Return the length of a sound without decoding it, to choose a window; `raw` as for `read_audio`."""
    with open_recording(raw, rate) as recording:
        return recording.seconds


@contextmanager
def open_recording(raw: Any, rate: int) -> Generator[Recording]:
    """Open a sound without decoding it, to see its length and to read windows of it.

    Args:
        raw: As for `read_audio`.
        rate: The rate of an array that comes without one.

    Raises:
        DataError: It is missing, or not a sound that can be decoded.
    """
    if not (isinstance(raw, str | Path) or is_bytes(raw)):
        samples_T, source, channels = _from_array(raw, rate)
        yield Recording(raw, source, channels, len(samples_T), partial(_slice_blocks, samples_T))
        return
    with open_binary(raw) as stream, _open_sound(raw, stream) as file:
        yield Recording(raw, file.samplerate, file.channels, file.frames, partial(_decode_blocks, raw, file))


def _open_sound(raw: Any, stream: BinaryIO) -> SoundFile:
    import soundfile

    try:
        file = soundfile.SoundFile(state_length(stream))
        # Sound Designer's second file would be looked for in the working folder.
        if file.format == "SD2" or not file.seekable():
            raise ValueError(f"{file.format} {file.subtype}")
    except DataError as error:
        raise DataError(f"{describe(raw)}: {error}") from error
    except (soundfile.SoundFileError, TypeError, ValueError, OSError) as error:
        raise DataError(
            f"{describe(raw)}: not a sound that can be decoded (WAV, FLAC, OGG, Opus and MP3 can); if it "
            "plays elsewhere, convert it: ffmpeg -i INPUT output.flac"
        ) from error
    if file.samplerate not in _RATES:
        raise DataError(f"{describe(raw)}: claims {file.samplerate} samples a second; the file is damaged")
    return file


def _decode_blocks(raw: Any, file: SoundFile, first: int, wanted: int) -> Iterator[NDArray[np.float32]]:
    most, stated = max(1, _BLOCK // file.channels), wanted
    try:
        file.seek(first)
        asked = there = 0
        while (
            wanted > 0 and there == asked
        ):  # fewer are the end, or a hole, beyond which some would be repeated
            asked = min(wanted, most)
            block_TC = file.read(asked, dtype="float32", always_2d=True)
            there = len(block_TC)
            if there:
                yield block_TC.mean(axis=1, dtype=np.float32)
            wanted -= there
    except (RuntimeError, OSError, ValueError) as error:  # soundfile's own errors are RuntimeErrors
        raise DataError(f"{describe(raw)}: damaged sound: {error}") from error
    if wanted > (_MISSING if file.format == "MP3" and wanted < stated else 0):
        raise DataError(
            f"{describe(raw)}: {stated - wanted} of {stated} samples can be decoded; the file is damaged or "
            "cut short"
        )


def _slice_blocks(samples_T: NDArray[np.float32], first: int, wanted: int) -> Iterator[NDArray[np.float32]]:
    for start in range(first, first + wanted, _BLOCK):
        yield samples_T[start : min(start + _BLOCK, first + wanted)]


def _resampler(source: int, rate: int) -> Any:
    import soxr

    return soxr.ResampleStream(source, rate, 1, dtype="float32", quality="HQ")


def _from_array(raw: Any, rate: int) -> tuple[NDArray[np.float32], int, int]:
    """Return one channel of an array, its rate, and how many channels it had."""
    source, given = rate, raw
    if isinstance(raw, tuple) and len(cast("tuple[Any, ...]", raw)) == 2:
        given, source = cast("tuple[Any, Any]", raw)
        if not isinstance(source, int | np.integer) or source not in _RATES:
            turned = ": (array, rate), not (rate, array)" if is_array(source) else ""
            raise DataError(
                f"a sound's sampling rate must be a whole number of Hz, not {show_value(source)}{turned}"
            )
    if not is_array(given):
        raise DataError(f"a sound must be a path, bytes, (array, rate) or an array, not {describe(given)}")
    array = as_array(given, "the sound")
    if array.ndim not in (1, 2):
        raise DataError(f"a sound must be (T,), (T, C) or (C, T), not of shape {array.shape}")
    if array.ndim == 2 and min(array.shape) > _MAX_CHANNELS:
        raise DataError(
            f"a sound of shape {array.shape} has {min(array.shape)} channels, more than {_MAX_CHANNELS}"
        )
    samples = _as_float(array)
    if samples.ndim == 1:
        return samples, int(source), 1
    axis = int(np.argmin(samples.shape))
    return samples.mean(axis=axis, dtype=np.float32), int(source), array.shape[axis]


def _as_float(array: NDArray[Any]) -> NDArray[np.float32]:
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.str[1:] in ("i2", "i4"):  # to a power of two, so that nothing but the first is rounded
        return array.astype(np.float32) * np.float32(-1.0 / np.iinfo(array.dtype).min)
    if array.dtype == np.uint8:  # 8-bit WAV is unsigned around 128
        return (array.astype(np.float32) - np.float32(128)) / np.float32(128)
    raise DataError(f"samples of type {array.dtype} have no full scale; give floats, int16, int32 or uint8")
