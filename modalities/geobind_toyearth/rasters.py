"""Measured rasters of a place seen from above: heights, lights at night, temperatures of the surface."""

# N places, S pixels along a side; planes are (N, S, S) float32, facts (N, 1, 1)

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geobind_toyearth.canvas import banks, chunks, soft
from geobind_toyearth.planet import (
    Places,
    check_number,
    check_places,
    check_seed,
    estimate_celsius,
    place_keys,
)
from geobind_toyearth.tiles import (
    View,
    look_down,
    paint_roads,
    paint_roofs,
    paint_water,
    share_of_ground,
    share_woods_and_bare,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Plane = NDArray[np.floating]

FREEZING = 273.15  # kelvin of 0 degrees Celsius
_LAPSE = 0.0065  # kelvin colder with each metre up


def render_heights(places: Places, seed: int, size: int = 64, gsd: float = 10.0) -> NDArray[np.float32]:
    """Measure the heights of each place's ground: (N, size, size) metres above the sea, NaN where it is sea.

    The ground lies as under `render_tiles` of the same seed; the noise of the measurement is its own.

    Raises:
        DataError: A place, the seed, the size (8 to 1,024) or the GSD (0.1 to 100 m) is out of range.
    """

    def measure(part: Places, view: View, sensor: View) -> Plane:
        metres = np.maximum(_rise(view) + _stand(view), 1)
        metres = metres * (1 + 0.04 * (sensor.number("gain") - 0.5)) + 12 * (sensor.number("datum") - 0.5)
        metres = metres + 1.5 * sensor.noise("error", 4, view.x, view.y)
        canvas = np.zeros((3, *view.x.shape), np.float32)
        return np.where((paint_water(canvas, view) > 0.5) & (view.fact["sea"] > 0.02), np.nan, metres)

    return _measure(places, seed, size, gsd, "heights", measure)


def _rise(view: View) -> Plane:
    """Return how far each pixel lies above the mean of its place, in metres."""
    return (3 + 130 * view.fact["relief"] ** 1.5) * view.height


def _stand(view: View) -> Plane:
    """Return the mean height of each place: mountains stand high, coasts low; (N, 1, 1)."""
    inland = 1 - 0.9 * soft(view.fact["sea"] - 0.03, 0.05)
    return (30 + 2200 * view.fact["relief"] ** 1.5 + 300 * view.number("plateau")) * inland


def render_lights(places: Places, seed: int, size: int = 64, gsd: float = 10.0) -> NDArray[np.float32]:
    """Measure the light of each place on moonless nights of its year: (N, size, size) in nW/cm²/sr.

    Lamps stand along the roads and houses of `render_tiles` of the same seed, whatever the hour there is;
    the optics blur them, and wilderness is dark.

    Raises:
        DataError: As `render_heights`.
    """

    def measure(part: Places, view: View, sensor: View) -> Plane:
        canvas = np.zeros((3, *view.x.shape), np.float32)
        water = paint_water(canvas, view)
        roads = paint_roads(canvas, view, water) * view.fact["roads"]
        lamps = 30 * roads + 60 * paint_roofs(canvas, view, water) * view.fact["buildings"]
        glow = _blur(lamps * (1 + 0.6 * view.fact["snow"]))  # snow throws light back
        glow = glow * np.exp(0.8 * (sensor.number("gain") - 0.5))
        noisy = glow * (1 + 0.1 * sensor.noise("shot", 5, view.x, view.y)) + 0.15 * sensor.noise(
            "dark", 7, view.x, view.y
        )
        return np.maximum(noisy, 0)

    return _measure(places, seed, size, gsd, "lights", measure)


def render_temperatures(places: Places, seed: int, size: int = 64, gsd: float = 10.0) -> NDArray[np.float32]:
    """Measure the temperature of each place's surface: (N, size, size) kelvin, NaN under clouds.

    Bare ground and roofs warm up by day, woods less, water hardly; it is colder uphill, on snow and at night.

    Raises:
        DataError: As `render_heights`.
    """

    def measure(part: Places, view: View, sensor: View) -> Plane:
        fact = view.fact
        canvas = np.zeros((3, *view.x.shape), np.float32)
        water = paint_water(canvas, view)
        roofs = paint_roofs(canvas, view, water)
        woods, bare = share_woods_and_bare(view)
        sun = np.clip((fact["daylight"] - 0.17) / 0.6, 0, 1) * (1 - 0.7 * fact["rain"])
        night = np.clip(1 - fact["daylight"] / 0.17, 0, 1)
        air = estimate_celsius(part)[:, None, None]
        land = air + sun * (5 + 14 * bare + 8 * roofs - 4 * woods) - 4 * night * (1 - roofs - 0.6 * woods)
        land = land - _LAPSE * _rise(view)
        land = land + fact["snow"] * (np.minimum(land, -1) - land)
        surface = land + water * (np.maximum(0.6 * air + 4, -1.8) - land)
        surface = surface + 4 * (sensor.number("air") - 0.5) + 0.4 * sensor.noise("grain", 3, view.x, view.y)
        clouds = share_of_ground(sensor, "clouds", 14, 0.5 * fact["rain"]) > 0.5
        clouds = clouds & ~clouds.all(axis=(1, 2), keepdims=True)
        return np.where(clouds, np.nan, surface + FREEZING)

    return _measure(places, seed, size, gsd, "temperature", measure)


def _measure(
    places: Places,
    seed: int,
    size: int,
    gsd: float,
    purpose: str,
    measure: Callable[[Places, View, View], Plane],
) -> NDArray[np.float32]:
    """Measure places a few at a time; `measure` gets a chunk, its ground and a sensor's random numbers."""
    places = check_places(places)
    check_seed(seed)
    check_number("size", size, 8, 1024, whole=True)
    check_number("gsd", gsd, 0.1, 100.0)
    out = np.empty((len(places.lat), size, size), dtype=np.float32)
    for rows in chunks(len(out), size):
        part = places.take(rows)
        view = look_down(part, seed, size, gsd)
        sensor = view._replace(key=place_keys(part[:4], seed, purpose), bank=banks(31))
        out[rows] = measure(part, view, sensor)
    return out


def _blur(plane: Plane) -> Plane:
    """Spread light over the neighbouring pixels, as optics do."""
    for axis in (1, 2, 1, 2):
        before, after = np.roll(plane, 1, axis), np.roll(plane, -1, axis)
        plane = (before + 2 * plane + after) / 4
    return plane
