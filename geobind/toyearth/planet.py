"""The toy planet: what is true at a latitude, longitude, month and hour, as smooth functions of a seed."""
# N places, F facts, W waves

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from geobind.toyearth.facts import FACTS, Places, check_number, check_seed, check_when_and_where
from geobind.toyearth.nuisance import draw, mix

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Vector = NDArray[np.float64]

# One wave field each.
_FIELDS = (
    *("water", "sea", "forest", "conifer", "crops", "bare", "grass"),
    *("buildings", "roads", "relief", "warmth", "wind", "rain"),
)
_WAVES = 48
_WAVENUMBERS = (3.0, 90.0)  # radians per planet radius: wavelengths of about 13,000 to 450 km on an Earth
MAX_LATITUDE = 75.0  # places are drawn this far from the equator; facts exist up to the poles


@dataclass(frozen=True)
class Planet:
    """A planet whose every fact is a pure function of its seed and of where and when one looks."""

    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def facts(self, lat: ArrayLike, lon: ArrayLike, month: ArrayLike, hour: ArrayLike) -> NDArray[np.float32]:
        """Tell what is true at these places: (N, F), columns in the order of FACTS.

        Args:
            lat: (N,) degrees north in [-90, 90].
            lon: (N,) degrees east in [-180, 180].
            month: (N,) in [1, 13): 1.0 is the first of January.
            hour: (N,) local solar time in [0, 24).

        Raises:
            DataError: A number is missing or out of range, or the lengths differ.
        """
        lat_N, lon_N, month_N, hour_N = check_when_and_where(lat, lon, month, hour)
        season_N, clock_N = month_N * (np.pi / 6), hour_N * (np.pi / 12)
        phi_N, lam_N = np.radians(lat_N), np.radians(lon_N)
        point_3N = (np.cos(phi_N) * np.cos(lam_N), np.cos(phi_N) * np.sin(lam_N), np.sin(phi_N))
        field = {name: _wave_field(self.seed, name, point_3N, season_N, clock_N) for name in _FIELDS}
        truth = {**_seasons(phi_N, month_N, clock_N), **_weather(field)}
        truth |= _land(field, phi_N)
        truth["snow"] = _snow(field["warmth"], phi_N, truth["summer"], truth["relief"])
        return np.stack([truth[name] for name in FACTS], axis=1).astype(np.float32)

    def places(self, count: int, seed: int = 0) -> Places:
        """Draw places at random, evenly over the sphere's area between 75 degrees north and south.

        Months are whole; hours run from 4 to 23, so that most places are seen by daylight.

        Raises:
            DataError: The count or the seed is not a whole number, or negative.
        """
        check_number("count", count, 0, 10**8, whole=True)
        check_seed(seed)
        key = mix(np.array([seed], dtype=np.uint64))
        top = np.sin(np.radians(MAX_LATITUDE))
        lat = np.degrees(np.arcsin((2 * draw(key, "lat", count)[0].astype(np.float64) - 1) * top))
        lon = 360 * draw(key, "lon", count)[0].astype(np.float64) - 180
        month = np.floor(12 * draw(key, "month", count)[0].astype(np.float64)) + 1
        hour = 4 + 19 * draw(key, "hour", count)[0].astype(np.float64)
        return Places(lat, lon, month, hour, self.facts(lat, lon, month, hour))


@lru_cache(maxsize=256)
def _waves(seed: int, name: str) -> tuple[Vector, ...]:
    """Draw one field's waves: wave vectors (3, W), phase, yearly and daily harmonics, amplitude."""
    key = mix(np.array([(seed * 1_000_003 + 17) & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    u_5W = [draw(key, f"{name} wave {i}", _WAVES)[0].astype(np.float64) for i in range(6)]
    low, high = _WAVENUMBERS
    number_W = low * (high / low) ** u_5W[0]
    up_W, turn_W = 2 * u_5W[1] - 1, 2 * np.pi * u_5W[2]
    flat_W = np.sqrt(1 - up_W**2)
    vector_3W = number_W * np.stack([flat_W * np.cos(turn_W), flat_W * np.sin(turn_W), up_W])
    amplitude_W = number_W**-0.3
    amplitude_W = amplitude_W / np.sqrt((amplitude_W**2).sum() / 2)  # unit variance
    moves = float(name in ("wind", "rain"))  # weather changes over the day and the year; land does not
    return (
        vector_3W,
        2 * np.pi * u_5W[3],
        moves * np.floor(5 * u_5W[4] - 2),
        moves * np.floor(5 * u_5W[5] - 2),
        amplitude_W,
    )


def _wave_field(
    seed: int, name: str, point_3N: tuple[Vector, ...], season_N: Vector, clock_N: Vector
) -> Vector:
    """Sum a field's waves at points of the unit sphere: (N,), about standard normal, without seam or pole."""
    vector_3W, phase_W, yearly_W, daily_W, amplitude_W = _waves(seed, name)
    angle_NW = phase_W + season_N[:, None] * yearly_W + clock_N[:, None] * daily_W
    for axis_N, vector_W in zip(point_3N, vector_3W, strict=True):
        angle_NW = angle_NW + axis_N[:, None] * vector_W
    return (np.sin(angle_NW) * amplitude_W).sum(axis=1)


def _level(normal_N: Vector) -> Vector:
    """Spread standard normal numbers evenly over (0, 1) (the logistic approximation of their CDF)."""
    return 1 / (1 + np.exp(-1.702 * normal_N))


def _seasons(phi_N: Vector, month_N: Vector, clock_N: Vector) -> dict[str, Vector]:
    """Season and sun; seasons are opposite in the hemispheres and fade out at the equator: nothing jumps."""
    strength_N = np.tanh(np.degrees(phi_N) / 12)
    tilt_N = np.radians(23.44) * np.sin((month_N - 3.7) * np.pi / 6)
    height_N = np.sin(phi_N) * np.sin(tilt_N) - np.cos(phi_N) * np.cos(tilt_N) * np.cos(clock_N)
    return {
        "summer": 0.5 + 0.5 * strength_N * np.cos((month_N - 7.2) * np.pi / 6),
        "spring": 0.5 + 0.5 * strength_N * np.cos((month_N - 4.2) * np.pi / 6),
        "daylight": np.clip((height_N + 0.2) / 1.2, 0, 1),
        "morning": 0.5 + 0.5 * np.sin(clock_N),
    }


def _weather(field: dict[str, Vector]) -> dict[str, Vector]:
    return {"wind": _level(field["wind"]), "rain": np.clip((_level(field["rain"]) - 0.3) / 0.7, 0, 1)}


def _land(field: dict[str, Vector], phi_N: Vector) -> dict[str, Vector]:
    """Share the ground among covers (a softmax of wave fields and climate), then settle it."""
    poleward_N = np.sin(phi_N) ** 2
    desert_N = np.exp(-(((np.abs(np.degrees(phi_N)) - 24) / 10) ** 2))
    relief_N = _level(field["relief"])
    score = {
        "water": 1.6 * field["water"] - 0.1,
        "forest": 1.5 * field["forest"] + 0.5 - 0.9 * desert_N,
        "crops": 1.5 * field["crops"] + 0.3 - 1.0 * poleward_N - 0.4 * relief_N,
        "bare": 1.5 * field["bare"] - 0.8 + 1.2 * desert_N + 0.9 * relief_N,
        "grass": 0.8 * field["grass"] - 0.2,
    }
    weight = {name: np.exp(value) for name, value in score.items()}
    total_N = sum(weight.values(), np.zeros_like(phi_N))
    # Below 6 % a place is dry; the land shares the rest.
    water_N = np.maximum(weight["water"] / total_N - 0.06, 0) / 0.94
    land_N = (1 - water_N) / (total_N - weight["water"])
    forest_N, crops_N, bare_N = (weight[name] * land_N for name in ("forest", "crops", "bare"))
    settled_N = (1 - 0.7 * water_N) * (1 - 0.3 * relief_N) * (1 - 0.3 * forest_N)
    return {
        "water": water_N,
        "sea": water_N * _level(2 * field["sea"]),
        "forest": forest_N,
        "conifer": forest_N * _level(0.9 * field["conifer"] + 2.6 * poleward_N - 0.9),
        "crops": crops_N,
        "bare": bare_N,
        "buildings": _level(field["buildings"]) ** 1.3 * settled_N,
        "roads": _level(0.6 * field["buildings"] + 0.8 * field["roads"]) * (1 - 0.6 * water_N),
        "relief": relief_N,
    }


def _snow(warmth_N: Vector, phi_N: Vector, summer_N: Vector, relief_N: Vector) -> Vector:
    """Snow lies below 5 degrees Celsius, deep below -5; it is colder polewards, uphill and in winter."""
    poleward_N = np.sin(phi_N) ** 2
    swing_N = 26 * np.abs(np.sin(phi_N)) * (summer_N - 0.5)
    celsius_N = 29 - 38 * poleward_N + swing_N - 14 * relief_N + 3 * warmth_N
    return np.clip(0.5 - celsius_N / 10, 0, 1)
