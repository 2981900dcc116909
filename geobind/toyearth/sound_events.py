"""The voices of the toy planet's recordings: birds, people, insects, machines, howling wind."""
# N places, T samples, L samples of one event, K slots; facts are (N, 1)

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from geobind.toyearth.nuisance import draw

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
    """Tell how much of each call is heard: 0 none, 1 all its slots; (N, 1) each."""
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
            tone += np.sin(_TURN * overtone * cycles) / np.float32(overtone**0.6)
        if call.trill:
            tone *= 0.5 + 0.5 * np.sin(_TURN * call.trill * call.seconds * part_L)
        tone *= shape_L * (call.loudness * loud_N1[heard])
        # Each slot has its own part of the recording, so that few calls of one kind overlap.
        turn = (first[heard] + (slot + when) / call.slots) % 1
        place = (turn * (wave_NT.shape[1] - length)).astype(np.int64)
        wave_NT[heard[:, None], place[:, None] + np.arange(length)] += tone


def _add_insects(
    wave_NT: Wave, level_N1: Wave, pitch: float, pulse: float, key: NDArray[np.uint64], time_T: Wave
) -> None:
    """A steady train of pulses at one high note: crickets slow, cicadas fast."""
    heard = np.flatnonzero(level_N1[:, 0] > 0.004)
    if not len(heard):
        return
    number = draw(key[heard], f"insects {pitch}", 3)[:, :, None]
    tone = np.sin(_TURN * pitch * (0.94 + 0.12 * number[:, 0]) * time_T)
    beat = np.sin(_TURN * (pulse * (0.85 + 0.3 * number[:, 1]) * time_T + number[:, 2]))
    wave_NT[heard] += level_N1[heard] * tone * np.clip(0.5 + 1.5 * beat, 0, 1)


def _add_engine(wave_NT: Wave, level_N1: Wave, pitch: float, key: NDArray[np.uint64], time_T: Wave) -> None:
    """A motor, rich in overtones: a tractor fires at 27 Hz, a town's machines at 120 Hz."""
    heard = np.flatnonzero(level_N1[:, 0] > 0.004)
    if not len(heard):
        return
    number = draw(key[heard], f"engine {pitch}", 2)[:, :, None]
    turn = pitch * (0.93 + 0.14 * number[:, 0]) * time_T + number[:, 1]
    saw = turn - np.floor(turn) - np.float32(0.5)
    wave_NT[heard] += level_N1[heard] * (saw - 2 * saw * np.abs(saw)) * 4


def _add_howl(wave_NT: Wave, level_N1: Wave, key: NDArray[np.uint64], time_T: Wave) -> None:
    """Wind whistling round rocks: one wavering note between 500 and 800 Hz."""
    heard = np.flatnonzero(level_N1[:, 0] > 0.004)
    if not len(heard):
        return
    number = draw(key[heard], "howl", 3)[:, :, None]
    pitch = 560 + 160 * number[:, 0]
    waver = np.sin(_TURN * ((0.8 + 0.8 * number[:, 1]) * time_T + number[:, 2]))
    wave_NT[heard] += level_N1[heard] * np.sin(_TURN * pitch * time_T + 22 * waver) * (0.75 + 0.25 * waver)
