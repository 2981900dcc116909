"""The toy planet: facts of its places as smooth functions of a seed, and random numbers of each place."""

# N places, F facts, K numbers, W waves

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import numpy as np

from geobind.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Vector = NDArray[np.float64]


FACT_NOTES: dict[str, str] = {
    "water": "share of the ground under water, sea and inland together",
    "sea": "share of the ground under sea; water minus sea is river or lake",
    "forest": "share of the ground under trees",
    "conifer": "share of the ground under needle trees; forest minus conifer is broadleaved",
    "crops": "share of the ground under crops",
    "bare": "share of the ground that is sand or rock; what no cover claims is grass",
    "buildings": "how densely built: 0 wilderness, 0.3 a village, 1 a city",
    "roads": "how many roads: 0 none, 1 a web of highways",
    "relief": "how steep: 0 a plain, 0.5 hills, 1 high mountains",
    "snow": "how much snow lies: 0 none, 1 deep everywhere",
    "summer": "1 in local midsummer, 0 in midwinter, 0.5 between and at the equator",
    "spring": "1 in local mid-spring, 0 in mid-autumn, 0.5 between and at the equator",
    "daylight": "sun height: 0 night, 0.17 sunrise or sunset, 1 sun overhead",
    "morning": "1 at 6 h, 0 at 18 h, 0.5 at noon and midnight",
    "wind": "0 calm, 1 gale",
    "rain": "0 dry, 1 downpour (snowfall where snow lies)",
}
FACTS: tuple[str, ...] = tuple(FACT_NOTES)


class Places(NamedTuple):
    """Places and what is true there: lat, lon in degrees, month in [1, 13), hour in [0, 24), facts (N, F)."""

    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    month: NDArray[np.float64]
    hour: NDArray[np.float64]
    facts: NDArray[np.float32]

    def take(self, rows: Any) -> Places:
        """Return the places at these row numbers, in this slice or where this mask is true."""
        index = np.arange(len(self.lat))[rows]
        return Places(
            self.lat[index], self.lon[index], self.month[index], self.hour[index], self.facts[index]
        )


def check_when_and_where(
    lat: ArrayLike, lon: ArrayLike, month: ArrayLike, hour: ArrayLike
) -> tuple[Vector, ...]:
    """Return the four as float64 vectors of one length, or say which value is wrong."""
    limits = {"lat": (-90.0, 90.0), "lon": (-180.0, 180.0), "month": (1.0, 13.0), "hour": (0.0, 24.0)}
    columns: dict[str, Vector] = {}
    for name, values in zip(limits, (lat, lon, month, hour), strict=True):
        try:
            column = np.atleast_1d(np.asarray(values, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise DataError(f"{name} must be numbers: {error}") from error
        low, high = limits[name]
        top_is_out = name in ("month", "hour")
        wrong = ~((column >= low) & ((column < high) if top_is_out else (column <= high)))
        if column.ndim != 1 or wrong.any():
            where = (
                f"{name}[{int(np.argmax(wrong))}] = {column.flat[int(np.argmax(wrong))]}"
                if wrong.any()
                else name
            )
            raise DataError(f"{where} is not usable: give one value in {low:g} to {high:g} for each place")
        columns[name] = column
    if len({column.size for column in columns.values()}) > 1:
        sizes = ", ".join(f"{name} {column.size}" for name, column in columns.items())
        raise DataError(f"the columns differ in length ({sizes}): give one value of each for every place")
    return tuple(columns.values())


def check_places(places: Places) -> Places:
    """Return the places as arrays fit for rendering, or raise DataError with what is wrong."""
    lat_N, lon_N, month_N, hour_N = check_when_and_where(places.lat, places.lon, places.month, places.hour)
    facts = np.asarray(places.facts, dtype=np.float32)
    if facts.shape != (lat_N.size, len(FACTS)):
        raise DataError(
            f"facts have shape {facts.shape}: expected {(lat_N.size, len(FACTS))}, a row for each place"
        )
    wrong = ~((facts >= 0) & (facts <= 1))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(f"place {row}: {FACTS[column]} is {facts[row, column]}: give a fact between 0 and 1")
    return Places(lat_N, lon_N, month_N, hour_N, facts)


def check_number(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    """Raise DataError unless a rendering option is a number in range."""
    kind = "a whole number" if whole else "a number"
    right = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, right) or not low <= float(value) <= high:
        raise DataError(f"{name} is {value!r}: give {kind} from {low:g} to {high:g}")


def check_seed(seed: int) -> None:
    """Raise DataError unless the seed is a whole number that fits 63 bits."""
    check_number("seed", seed, 0, 2**63 - 1, whole=True)


_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 0xFFFFFFFFFFFFFFFF


def mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words so that neighbouring inputs share nothing.

    Source: the SplitMix64 finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", 2014).
    """
    mixed = words + np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def place_keys(columns: Sequence[NDArray[np.float64]], seed: int, purpose: str) -> NDArray[np.uint64]:
    """Give each place its own 64-bit key (N,) from its numbers, the seed and what the key is for."""
    start = np.array([(seed * _GOLDEN + crc32(purpose.encode())) & _WORD], dtype=np.uint64)
    key_N = np.broadcast_to(mix(start), columns[0].shape)
    for column_N in columns:
        # Adding 0.0 turns -0.0 into 0.0: equal places must get equal keys.
        key_N = mix(key_N ^ np.ascontiguousarray(column_N + 0.0, dtype=np.float64).view(np.uint64))
    return key_N


def draw(key_N: NDArray[np.uint64], name: str, count: int) -> NDArray[np.float32]:
    """Draw the numbers called `name` for each key: (N, count), uniform in [0, 1)."""
    offset_K = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    word_NK = mix(key_N[:, None] ^ np.uint64(crc32(name.encode()) << 20)) + offset_K
    return (mix(word_NK) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


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
        """Return the facts of these places: (N, F), columns in the order of FACTS.

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


def estimate_sun(places: Places) -> dict[str, Vector]:
    """Return the facts `daylight` and `morning` of places by their latitude, month and hour: (N,) each."""
    truth = _seasons(np.radians(places.lat), places.month, places.hour * (np.pi / 12))
    return {name: truth[name] for name in ("daylight", "morning")}


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


def _climate(
    phi_N: NDArray[np.floating], summer_N: NDArray[np.floating], relief_N: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Return the temperature that a place's season has by its latitude and relief: degrees Celsius."""
    poleward_N = np.sin(phi_N) ** 2
    swing_N = 26 * np.abs(np.sin(phi_N)) * (summer_N - 0.5)
    return 29 - 38 * poleward_N + swing_N - 14 * relief_N


def _snow(warmth_N: Vector, phi_N: Vector, summer_N: Vector, relief_N: Vector) -> Vector:
    """Snow lies below 5 degrees Celsius, deep below -5; it is colder polewards, uphill and in winter."""
    celsius_N = _climate(phi_N, summer_N, relief_N) + 3 * warmth_N
    return np.clip(0.5 - celsius_N / 10, 0, 1)


def estimate_celsius(places: Places) -> NDArray[np.float32]:
    """Return the air's temperature at each place in degrees Celsius: (N,).

    It is that of the climate, as the snow allows: some snow tells it, no snow and deep snow bound it.
    """
    fact = dict(zip(FACTS, places.facts.T, strict=True))
    celsius_N = _climate(np.radians(places.lat), fact["summer"], fact["relief"])
    shown_N = 5 - 10 * fact["snow"]
    lowest_N = np.where(fact["snow"] < 1, shown_N, -90)
    highest_N = np.where(fact["snow"] > 0, shown_N, 60)
    return np.clip(celsius_N, lowest_N, highest_N).astype(np.float32)
