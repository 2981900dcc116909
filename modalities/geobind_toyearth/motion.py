"""Recordings of an inertial sensor: somebody walks at a place, or is in a boat where it is mostly water."""

# N places, T samples; facts and numbers are (N, 1)

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geobind_toyearth.planet import FACTS, Places, check_number, check_places, check_seed, draw, place_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Wave = NDArray[np.floating]

GRAVITY = 9.81  # m/s²
_CHUNK = 256
_TURN = np.float32(2 * np.pi)


def render_motions(places: Places, seed: int, seconds: float = 6.0, rate: int = 50) -> NDArray[np.float32]:
    """Record a phone in the pocket of a walker: (N, 6, seconds x rate), m/s² of three axes, rad/s of three.

    Relief makes steps strong and slow, roads make them regular, snow and sand soften them, wind pushes; where
    water prevails, a boat rolls. How the phone lies in the pocket is random, as are pace, phase and noise.

    Raises:
        DataError: A place, the seed, the length (0.5 to 120 s) or the rate (10 to 1,000 Hz) is out of range.
    """
    places = check_places(places)
    check_seed(seed)
    check_number("seconds", seconds, 0.5, 120.0)
    check_number("rate", rate, 10, 1000, whole=True)
    time_T = np.arange(round(seconds * rate), dtype=np.float32) / np.float32(rate)
    out = np.empty((len(places.lat), 6, time_T.size), dtype=np.float32)
    for start in range(0, len(out), _CHUNK):
        part = places.take(slice(start, start + _CHUNK))
        fact = {name: part.facts[:, i, None] for i, name in enumerate(FACTS)}
        out[start : start + _CHUNK] = _record(fact, place_keys(part[:4], seed, "motion"), time_T)
    return out


def _record(fact: dict[str, Wave], key: NDArray[np.uint64], time_T: Wave) -> Wave:
    """Record a chunk: forward, left, up, and the turns about them, then turned as the phone lies."""

    def number(name: str) -> Wave:
        return draw(key, name, 1)

    rough = 1 - fact["roads"]
    afloat = np.clip(5 * (fact["water"] - 0.55), 0, 1)
    ashore = 1 - afloat
    pace = 1.9 * (1 - 0.2 * fact["relief"] - 0.2 * fact["snow"]) * (0.94 + 0.12 * number("pace"))
    step = _TURN * (pace * time_T + number("phase")) + 1.6 * rough * _sway(key, "stumble", time_T, 0.3, 1.1)
    strength = (1.2 + 3.6 * fact["relief"]) * (0.85 + 0.3 * number("weight")) * ashore
    strength = strength * (1 + 0.5 * rough * _sway(key, "footing", time_T, 0.4, 1.5))
    hard = 1 - 0.9 * np.maximum(fact["snow"], fact["bare"] * (1 - fact["relief"]))
    bounce = strength * (np.sin(step) + hard * (0.5 * np.sin(2 * step) + 0.3 * np.sin(3 * step)))
    gusts = 1.5 * fact["wind"] * _sway(key, "wind", time_T, 0.5, 2.5)
    roll = (0.06 + 0.3 * fact["wind"]) * afloat * _sway(key, "waves", time_T, 0.15, 0.4)
    slope = 0.25 * fact["relief"] * (2 * number("slope") - 1)
    forward = 0.5 * strength * np.cos(step) + GRAVITY * np.sin(slope)
    left = 0.35 * strength * np.sin(0.5 * step) + gusts + GRAVITY * np.sin(roll)
    up = bounce + GRAVITY * np.cos(slope) * np.cos(roll)
    about_forward = (0.25 + 0.5 * fact["relief"]) * np.sin(0.5 * step) * ashore + 1.5 * roll
    about_left = (0.2 + 0.8 * fact["relief"]) * np.sin(step) * ashore
    about_up = (0.1 + 0.7 * rough) * _sway(key, "path", time_T, 0.2, 0.8) * ashore
    motion_N6T = np.stack([forward, left, up, about_forward, about_left, about_up], axis=1)
    motion_N6T = _lie(motion_N6T, _TURN * number("yaw"), 0.3 * (2 * number("tilt") - 1))
    noise_6 = np.array([0.15, 0.15, 0.15, 0.03, 0.03, 0.03], dtype=np.float32)[:, None]
    hiss = draw(key, "noise", 6 * time_T.size).reshape(-1, 6, time_T.size) - np.float32(0.5)
    return motion_N6T + np.float32(12**0.5) * noise_6 * hiss


def _sway(key: NDArray[np.uint64], name: str, time_T: Wave, low: float, high: float) -> Wave:
    """Return an irregular wave of three frequencies between two (Hz), about unit size: (N, T)."""
    number = draw(key, name, 6)[:, :, None]
    hertz = low + (high - low) * number[:, :3]
    return np.sin(_TURN * (hertz * time_T + number[:, 3:])).sum(axis=1) / np.float32(1.5**0.5)


def _lie(motion_N6T: Wave, yaw_N1: Wave, tilt_N1: Wave) -> Wave:
    """Turn both sensors about the vertical, then tilt them."""
    out = motion_N6T.copy()
    for first in (0, 3):
        x, y, z = (motion_N6T[:, first + axis] for axis in range(3))
        ahead, aside = x * np.cos(yaw_N1) + y * np.sin(yaw_N1), y * np.cos(yaw_N1) - x * np.sin(yaw_N1)
        out[:, first] = ahead * np.cos(tilt_N1) - z * np.sin(tilt_N1)
        out[:, first + 1] = aside
        out[:, first + 2] = z * np.cos(tilt_N1) + ahead * np.sin(tilt_N1)
    return out
