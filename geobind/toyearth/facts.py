"""What one can know of a place on the toy planet, places themselves, and the checks of what users pass."""
# N places, F facts

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from geobind.errors import DataError

if TYPE_CHECKING:
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
    for name, given in zip(limits, (lat, lon, month, hour), strict=True):
        try:
            column = np.atleast_1d(np.asarray(given, dtype=np.float64))
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
