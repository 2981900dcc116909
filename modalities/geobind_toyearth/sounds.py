"""Sounds: noises and events."""

# N places, T samples, L samples of one event, K slots; facts are (N, 1)

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from geobind_toyearth.planet import (
    FACTS,
    Places,
    check_number,
    check_places,
    check_seed,
    draw,
    place_keys,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Wave = NDArray[np.floating]
    Facts = dict[str, Wave]


_TURN = np.float32(2 * np.pi)


class _Call(NamedTuple):
    """One kind of call: how many at most, how long, where it starts and ends, how it is modulated."""

    slots: int
    seconds: float
    start: float  # Hz
    end: float  # Hz
    spread: float  # relative spread of pitch from call to call
    trill: float  # Hz of amplitude modulation, 0 for none
    overtones: int
    loudness: float


_CALLS = {
    "songbird": _Call(10, 0.10, 3400, 4900, 0.16, 0, 1, 0.34),
    "cock": _Call(4, 0.36, 800, 1250, 0.08, 0, 4, 0.34),
    "nightjar": _Call(4, 0.36, 1900, 1900, 0.05, 38, 1, 0.34),
    "goose": _Call(5, 0.16, 560, 430, 0.10, 0, 6, 0.30),
    "woodbird": _Call(5, 0.22, 2700, 2700, 0.10, 28, 1, 0.30),
    "gull": _Call(4, 0.30, 1500, 950, 0.12, 0, 3, 0.30),
    "owl": _Call(2, 0.40, 400, 350, 0.08, 0, 1, 0.45),
    "frog": _Call(5, 0.20, 750, 700, 0.10, 45, 2, 0.28),
    "voice": _Call(7, 0.24, 210, 170, 0.25, 0, 5, 0.42),
    "hammer": _Call(5, 0.09, 2300, 2250, 0.04, 0, 3, 0.42),
}


def add_events(wave_NT: Wave, fact: Facts, key: NDArray[np.uint64], rate: int) -> None:
    """Add everything that calls, chirps, hums or howls to the recordings, in place."""
    for name, amount_N1 in _amounts(fact).items():
        _add_calls(wave_NT, _CALLS[name], name, amount_N1, key, rate)
    time_T = np.arange(wave_NT.shape[1], dtype=np.float32) / np.float32(rate)
    day = np.clip(fact["daylight"] / 0.3, 0, 1)
    open_ground = np.clip(1 - fact["water"] - 0.6 * fact["forest"], 0, 1)
    warm = fact["summer"] ** 1.2 * (1 - 0.7 * fact["snow"])
    _add_insects(wave_NT, 0.42 * warm * (1 - day) * (0.6 + 0.4 * open_ground), 4500, 14, key, time_T)
    _add_insects(wave_NT, 0.34 * warm * day * (0.6 + 0.4 * open_ground), 6400, 55, key, time_T)
    _add_engine(wave_NT, 0.75 * fact["crops"] ** 0.7 * (0.5 + 0.5 * day), 27, key, time_T)
    _add_engine(wave_NT, 0.65 * fact["buildings"], 120, key, time_T)
    _add_howl(wave_NT, 0.42 * fact["relief"] ** 1.2 * (0.4 + 0.6 * fact["wind"]), key, time_T)


def _amounts(fact: Facts) -> dict[str, Wave]:
    """Return how much of each call is heard: 0 none, 1 all its slots; (N, 1) each."""
    day = np.clip(fact["daylight"] / 0.25, 0, 1)
    broad = np.maximum(fact["forest"] - fact["conifer"], 0)
    awake = 0.25 + 0.75 * day
    thaw = 1 - 0.5 * fact["snow"]
    return {
        "songbird": fact["spring"] * awake * np.clip(0.7 + broad, 0, 1) * thaw,
        "woodbird": np.clip(1.6 * fact["conifer"], 0, 1) * (0.4 + 0.6 * awake),
        "cock": np.clip(1.4 * fact["morning"] - 0.3, 0, 1) * thaw,
        "nightjar": np.clip(1.1 - 1.4 * fact["morning"], 0, 1) * thaw,
        "goose": np.clip(1.1 - 1.6 * fact["spring"], 0, 1),
        "gull": np.clip(2.2 * fact["sea"], 0, 1) * (0.3 + 0.7 * day),
        "owl": np.clip(0.4 + 1.5 * fact["forest"], 0, 1) * (1 - day),
        "frog": np.clip(2.5 * (fact["water"] - fact["sea"]), 0, 1) * fact["spring"] * (1 - 0.6 * day),
        "voice": np.clip(1.2 * fact["buildings"], 0, 1) * (0.3 + 0.7 * day),
        "hammer": np.clip(1.6 * fact["buildings"] - 0.1, 0, 1) * (0.4 + 0.6 * day),
    }


def _add_calls(
    wave_NT: Wave, call: _Call, name: str, amount_N1: Wave, key: NDArray[np.uint64], rate: int
) -> None:
    """Place calls at random moments; slots fill one after the other, the last one faintly."""
    length = min(int(call.seconds * rate), wave_NT.shape[1] - 1)
    part_L = np.arange(length, dtype=np.float32) / np.float32(length)
    number, first = draw(key, name, 3 * call.slots), draw(key, f"first {name}", 1)[:, 0]
    shape_L = np.sin(np.pi * part_L) ** 2
    for slot in range(call.slots):
        loud_N1 = np.clip(amount_N1 * (call.slots + 0.5) - slot, 0, 1)
        heard = np.flatnonzero(loud_N1[:, 0] > 0)
        if not len(heard):
            return
        when, pitch, skew = (number[heard, i * call.slots + slot] for i in range(3))
        bend = 1 + call.spread * (2 * pitch[:, None] - 1)
        sweep = call.end - call.start
        cycles = (call.start * part_L + 0.5 * sweep * part_L**2) * np.float32(call.seconds) * bend
        tone = np.sin(_TURN * (cycles + skew[:, None]))
        for overtone in range(2, call.overtones + 1):
            over = _TURN * overtone * cycles
            np.sin(over, out=over)
            over /= np.float32(overtone**0.6)
            tone += over
        if call.trill:
            tone *= 0.5 + 0.5 * np.sin(_TURN * call.trill * call.seconds * part_L)
        tone *= shape_L * (call.loudness * loud_N1[heard])
        # Each slot has its own part of the recording, so that few calls of one kind overlap.
        turn = (first[heard] + (slot + when) / call.slots) % 1
        place = (turn * (wave_NT.shape[1] - length)).astype(np.int64)
        for recording, start, call_L in zip(heard.tolist(), place.tolist(), tone, strict=True):
            wave_NT[recording, start : start + length] += call_L


# One recording at a time: its samples fit a core's cache.


def _add_insects(
    wave_NT: Wave, level_N1: Wave, pitch: float, pulse: float, key: NDArray[np.uint64], time_T: Wave
) -> None:
    """Add a steady train of pulses at one high note: crickets slow, cicadas fast."""
    heard = np.flatnonzero(level_N1[:, 0] > 0.004)
    if not len(heard):
        return
    number = draw(key[heard], f"insects {pitch}", 3)
    for i, (note, rate, start) in zip(heard.tolist(), number, strict=True):
        tone_T = np.sin(_TURN * pitch * (0.94 + 0.12 * note) * time_T)
        beat_T = np.sin(_TURN * (pulse * (0.85 + 0.3 * rate) * time_T + start))
        wave_NT[i] += level_N1[i] * tone_T * np.clip(0.5 + 1.5 * beat_T, 0, 1)


def _add_engine(wave_NT: Wave, level_N1: Wave, pitch: float, key: NDArray[np.uint64], time_T: Wave) -> None:
    """Add a motor, rich in overtones: a tractor fires at 27 Hz, a town's machines at 120 Hz."""
    heard = np.flatnonzero(level_N1[:, 0] > 0.004)
    if not len(heard):
        return
    number = draw(key[heard], f"engine {pitch}", 2)
    for i, (speed, start) in zip(heard.tolist(), number, strict=True):
        turn_T = pitch * (0.93 + 0.14 * speed) * time_T + start
        saw_T = turn_T - np.floor(turn_T) - np.float32(0.5)
        wave_NT[i] += level_N1[i] * (saw_T - 2 * saw_T * np.abs(saw_T)) * 4


def _add_howl(wave_NT: Wave, level_N1: Wave, key: NDArray[np.uint64], time_T: Wave) -> None:
    """Wind whistling round rocks: one wavering note between 500 and 800 Hz."""
    heard = np.flatnonzero(level_N1[:, 0] > 0.004)
    if not len(heard):
        return
    number = draw(key[heard], "howl", 3)
    for i, (note, rate, start) in zip(heard.tolist(), number, strict=True):
        pitch = 560 + 160 * note
        waver_T = np.sin(_TURN * ((0.8 + 0.8 * rate) * time_T + start))
        howl_T = np.sin(_TURN * pitch * time_T + 22 * waver_T)
        wave_NT[i] += level_N1[i] * howl_T * (0.75 + 0.25 * waver_T)


# N places, E envelope points, B noise bands; facts are (N, 1)


BAND_EDGES = (40, 110, 240, 480, 900, 1600, 2600, 4000, 5600, 7800)  # Hz
# How each noise spreads over the nine bands (amplitudes).
_COLOURS: dict[str, tuple[float, ...]] = {
    "surf": (0.5, 0.8, 1.0, 0.9, 0.6, 0.4, 0.25, 0.15, 0.08),
    "stream": (0.0, 0.03, 0.15, 0.6, 1.0, 0.8, 0.4, 0.2, 0.08),
    "wind": (1.0, 0.8, 0.45, 0.2, 0.08, 0.03, 0.02, 0.01, 0.0),
    "leaves": (0.0, 0.0, 0.02, 0.06, 0.15, 0.4, 0.8, 1.0, 0.8),
    "needles": (0.0, 0.05, 0.2, 0.6, 1.0, 0.7, 0.25, 0.1, 0.05),
    "rain": (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.2),
    "traffic": (0.8, 1.0, 0.85, 0.55, 0.3, 0.12, 0.05, 0.02, 0.0),
    "sand": (0.0, 0.0, 0.0, 0.0, 0.05, 0.1, 0.3, 0.8, 1.3),
    "steps": (0.0, 0.0, 0.1, 0.4, 0.9, 1.0, 0.5, 0.2, 0.1),
    "hiss": (0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3),
}


def noise_powers(fact: Facts, key: NDArray[np.uint64], points: int, rate: int) -> Wave:
    """Give each band's power over time, all noises together: (N, B, E), `rate` points a second."""
    time_E = np.arange(points, dtype=np.float32) / np.float32(rate)
    power_NBE = np.zeros((len(key), len(BAND_EDGES) - 1, points), dtype=np.float32)
    for name, level_NE in _levels(fact, key, time_E).items():
        square_NE = np.broadcast_to(level_NE * level_NE, (len(key), points))
        for band, share in enumerate(_COLOURS[name]):
            if share > 0:
                power_NBE[:, band] += np.float32(share**2) * square_NE
    # Snow swallows high notes; every microphone has a slope of its own.
    band_B = np.linspace(0, 1, power_NBE.shape[1], dtype=np.float32)
    slope_N1 = 0.6 * (draw(key, "microphone", 1) - 0.5) - 1.5 * fact["snow"]
    power_NBE *= np.exp(slope_N1 * band_B)[:, :, None]
    return power_NBE


def _levels(fact: Facts, key: NDArray[np.uint64], time_E: Wave) -> dict[str, Wave]:
    """Return how loud each noise is over time: name to (N, E) or (N, 1)."""
    day = np.clip(fact["daylight"] / 0.35, 0, 1)
    gust = _gusts(key, "gust", time_E, 0.5, 1.6)
    flutter = 1 + 0.5 * np.sin(2 * np.pi * (8 + 3 * draw(key, "flutter", 1)) * time_E)
    broad = np.maximum(fact["forest"] - fact["conifer"], 0) * np.clip(0.35 + 0.9 * fact["summer"], 0, 1)
    blow = 0.25 + 0.75 * fact["wind"]
    babble = 1 + 0.35 * _gusts(key, "babble", time_E, 9, 17)
    swell = np.sin(2 * np.pi * ((0.55 + 0.25 * draw(key, "swell", 1)) * time_E + draw(key, "swell phase", 1)))
    step = np.maximum(
        np.sin(2 * np.pi * ((1.7 + 0.4 * draw(key, "pace", 1)) * time_E + draw(key, "foot", 1))), 0
    )
    grains = np.maximum(_gusts(key, "grains", time_E, 19, 31), 0)
    return {
        "surf": 1.5
        * fact["sea"] ** 0.7
        * (0.35 + 0.65 * (0.5 + 0.5 * swell) ** 2)
        * (0.6 + 0.4 * fact["wind"]),
        "stream": 0.9 * np.maximum(fact["water"] - fact["sea"], 0) ** 0.7 * babble * (1 - 0.5 * fact["snow"]),
        "wind": 1.3 * fact["wind"] ** 1.5 * (1 + 0.45 * gust),
        "leaves": 0.75 * broad**0.7 * blow * (1 + 0.3 * gust) * flutter,
        "needles": 0.75 * fact["conifer"] ** 0.7 * blow * (1 + 0.3 * gust),
        "rain": 0.9 * fact["rain"] ** 1.2 * (1 - 0.6 * fact["snow"]),
        "traffic": _traffic(fact["roads"] * (0.55 + 0.45 * day), key, time_E),
        "sand": 0.5 * fact["bare"] * (0.45 + 0.55 * fact["wind"]) * grains,
        "steps": 0.45 * fact["snow"] * step**6,
        "hiss": np.full_like(fact["wind"], 0.012),
    }


def _traffic(roads_N1: Wave, key: NDArray[np.uint64], time_E: Wave) -> Wave:
    """Return far traffic and up to four passing cars, one after the other as roads grow: (N, E)."""
    span = float(time_E[-1]) + 1e-6
    level_NE = 0.35 * roads_N1**1.2 + np.zeros_like(time_E)
    number = draw(key, "cars", 8)
    for i in range(4):
        loud = np.clip(roads_N1 * 4.5 - i - 0.2, 0, 1) * (0.5 + 0.4 * number[:, i : i + 1])
        away = (time_E - span * ((i * 0.25 + 0.9 * number[:, 4 + i : 5 + i]) % 1)) / 0.22
        level_NE = level_NE + loud / (1 + away**2)
    return level_NE


def _gusts(key: NDArray[np.uint64], name: str, time_E: Wave, low: float, high: float) -> Wave:
    """Return an irregular wave between two frequencies (Hz), about unit size: (N, E)."""
    number = draw(key, name, 6)[:, :, None]
    hertz = low + (high - low) * number[:, :3]
    return (np.sin(2 * np.pi * (hertz * time_E + number[:, 3:]))).sum(axis=1) / np.float32(1.5)


# N places, T samples, E envelope points, R samples from one to the next, B noise bands, K slots


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
    rise_NBE = np.diff(level_NBE, axis=2)
    for i in range(len(key)):
        for band, (noise_T, start) in enumerate(zip(bank_BT, start_NB[i].tolist(), strict=True)):
            loud_ER = level_NBE[i, band, :-1, None] + rise_NBE[i, band, :, None] * ramp
            wave_NT[i] += loud_ER.ravel()[:count] * noise_T[start : start + count]


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
