"""Recordings of the toy planet: surf, leaves, birds, traffic, machines, rain and crickets."""
# N places, T samples, E envelope points, B noise bands, K slots

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from geobind.toyearth.facts import FACTS, Places, check_number, check_places, check_seed
from geobind.toyearth.nuisance import draw, place_keys
from geobind.toyearth.sound_events import add_events
from geobind.toyearth.sound_noises import BAND_EDGES, noise_powers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Wave = NDArray[np.floating]

_CHUNK_SAMPLES = 1 << 19  # samples mixed at once: 2 MiB a buffer
_BANK_SAMPLES = 1 << 18
_ENVELOPE_RATE = 100  # envelope points a second


def render_sounds(places: Places, seed: int, seconds: float = 2.0, rate: int = 16000) -> NDArray[np.float32]:
    """Record each place: (N, seconds x rate) float32 in [-1, 1], one channel.

    Raises:
        DataError: A place, the seed, the length (0.25 to 60 s) or the rate (4,000 to 48,000 Hz) is out of
            range.
    """
    places = check_places(places)
    check_seed(seed)
    check_number("seconds", seconds, 0.25, 60.0)
    check_number("rate", rate, 4000, 48000, whole=True)
    count = round(seconds * rate)
    out_NT = np.empty((len(places.lat), count), dtype=np.float32)
    step = max(1, _CHUNK_SAMPLES // count)
    for start in range(0, len(out_NT), step):
        part = places.take(slice(start, start + step))
        out_NT[start : start + step] = _record(part, seed, count, rate)
    return out_NT


def _record(places: Places, seed: int, count: int, rate: int) -> Wave:
    """Mix a chunk of recordings: (N, T)."""
    key = place_keys(places[:4], seed, "sound")
    fact = {name: places.facts[:, i, None] for i, name in enumerate(FACTS)}
    wave_NT = np.zeros((len(key), count), dtype=np.float32)
    add_events(wave_NT, fact, key, rate)
    _echo(wave_NT, fact["relief"], rate)
    points = int(np.ceil(count / (rate // _ENVELOPE_RATE))) + 1
    _add_noise(wave_NT, noise_powers(fact, key, points, _ENVELOPE_RATE), key, rate)
    gain_N1 = 0.13 * np.exp(0.7 * (draw(key, "gain", 1) - 0.5))
    return np.clip(wave_NT * gain_N1, -1, 1)


def _echo(wave_NT: Wave, relief_N1: Wave, rate: int) -> None:
    """Slopes throw sounds back: two echoes, 0.16 and 0.27 s late, as strong as the relief."""
    dry_NT = wave_NT.copy()
    for delay, strength in ((0.16, 0.65), (0.27, 0.4)):
        late = round(delay * rate)
        wave_NT[:, late:] += strength * relief_N1 * dry_NT[:, :-late]


def _add_noise(wave_NT: Wave, power_NBE: Wave, key: NDArray[np.uint64], rate: int) -> None:
    """Add each band's noise, its loudness following the envelope (straight lines between its points)."""
    bank_BT, block = _noise_bank(rate), rate // _ENVELOPE_RATE
    count = wave_NT.shape[1]
    level_NBE = np.sqrt(power_NBE)
    start_NB = (draw(key, "noise start", bank_BT.shape[0]) * _BANK_SAMPLES).astype(np.int64)
    ramp = np.arange(block, dtype=np.float32) / np.float32(block)
    for band, noise_T in enumerate(bank_BT):
        level_NE = level_NBE[:, band]
        rise_NE = np.diff(level_NE, axis=1)
        loud_NT = (level_NE[:, :-1, None] + rise_NE[:, :, None] * ramp).reshape(len(key), -1)[:, :count]
        for i, start in enumerate(start_NB[:, band]):
            wave_NT[i] += loud_NT[i] * noise_T[start : start + count]


@lru_cache(maxsize=4)
def _noise_bank(rate: int) -> Wave:
    """Band-limited noise to cut recordings from, unit power, twice as long as its period: (B, 2 periods)."""
    random = np.random.Generator(np.random.PCG64(41))
    hertz = np.fft.rfftfreq(_BANK_SAMPLES, 1 / rate)
    bank = []
    for low, high in pairwise(BAND_EDGES):
        spectrum = np.fft.rfft(random.random(_BANK_SAMPLES, dtype=np.float32) - 0.5)
        # Skirts of an eighth of an octave: neighbouring bands blend.
        skirt = 0.09
        inside = np.clip((np.log(np.maximum(hertz, 1) / low)) / skirt + 0.5, 0, 1)
        inside = inside * np.clip((np.log(high / np.maximum(hertz, 1))) / skirt + 0.5, 0, 1)
        band_T = np.fft.irfft(spectrum * inside, _BANK_SAMPLES)
        bank.append(band_T / max(float(band_T.std()), 1e-9))
    twice = np.concatenate([np.stack(bank)] * 2, axis=1)
    return twice.astype(np.float32)
