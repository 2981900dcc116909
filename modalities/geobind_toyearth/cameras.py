"""Other cameras on the ground: the depth of a photo, and clips of a place over hours."""

# N places, F frames, S pixels along a side; planes are (N, S, S) float32

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geobind_toyearth.canvas import banks, chunks
from geobind_toyearth.photos import (
    Scene,
    look_ahead,
    paint_ground,
    paint_mountains,
    paint_photo,
    paint_things,
)
from geobind_toyearth.planet import (
    FACTS,
    Places,
    check_number,
    check_places,
    check_seed,
    draw,
    estimate_sun,
    place_keys,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def render_depths(places: Places, seed: int, size: int = 64) -> NDArray[np.float32]:
    """Measure how far away what a photo shows stands: (N, size, size) metres, NaN for the sky and gaps.

    The scene is that of `render_photos` of the same seed; the camera's scale, noise and gaps are its own.

    Raises:
        DataError: A place, the seed or the size (8 to 1,024) is out of range.
    """
    places = check_places(places)
    check_seed(seed)
    check_number("size", size, 8, 1024, whole=True)
    out = np.empty((len(places.lat), size, size), dtype=np.float32)
    for rows in chunks(len(out), size):
        part = places.take(rows)
        scene = look_ahead(part, seed, size)
        metres = np.full(scene.x.shape, np.nan, dtype=np.float32)
        scene = scene._replace(metres=metres)
        paint_mountains(scene)
        paint_ground(scene)
        paint_things(scene)
        out[rows] = _sense(metres, scene._replace(key=place_keys(part[:4], seed, "depth"), bank=banks(37)))
    return out


def _sense(metres: NDArray[np.floating], sensor: Scene) -> NDArray[np.floating]:
    """Add a camera's error of scale and noise, and gaps, more of them in rain."""
    measured = metres * (0.9 + 0.2 * sensor.number("scale")) * (0.95 + 0.1 * sensor.grain("noise"))
    gaps = sensor.grain("gaps") < 0.02 + 0.15 * sensor.fact["rain"]
    return np.where(gaps, np.nan, measured)


def render_clips(
    places: Places, seed: int, size: int = 64, frames: int = 6, hours: float = 4.0
) -> NDArray[np.uint8]:
    """Film each place for some hours from one spot: (N, frames, size, size, 3) uint8.

    The first frame is at the place's own hour. The sun moves on, clouds drift with the wind, and trees bend
    in its gusts. The spot is another one than that of `render_photos`.

    Raises:
        DataError: A place, the seed, the size (8 to 1,024), the number of frames (1 to 64) or of hours (0 to
            24) is out of range.
    """
    places = check_places(places)
    check_seed(seed)
    check_number("size", size, 8, 1024, whole=True)
    check_number("frames", frames, 1, 64, whole=True)
    check_number("hours", hours, 0, 24)
    out = np.empty((len(places.lat), frames, size, size, 3), dtype=np.uint8)
    for rows in chunks(len(out), size):
        part = places.take(rows)
        key = place_keys(part[:4], seed, "clip gusts")
        for frame, share in enumerate(np.linspace(0, 1, frames)):
            scene = look_ahead(part, seed, size, "clip")
            later = _pass_time(part, hours * share, draw(key, f"gust {frame}", 1)[:, 0])
            fact = {name: later[:, i, None, None] for i, name in enumerate(FACTS)}
            scene = scene._replace(fact=fact, drift=np.float32(12 * hours * share) * scene.fact["wind"])
            canvas = paint_photo(scene)
            out[rows, frame] = np.moveaxis(np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8), 0, -1)
    return out


def _pass_time(places: Places, hours: float, gust_N: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the facts of places some hours later (N, F): the sun has moved on, the wind comes in gusts."""
    facts_NF = places.facts.copy()
    now, later = (estimate_sun(places._replace(hour=(places.hour + passed) % 24)) for passed in (0.0, hours))
    # A change, not the sun itself: places of one land at the moment of another keep that moment's light.
    for name in now:
        column = FACTS.index(name)
        facts_NF[:, column] = np.clip(facts_NF[:, column] + (later[name] - now[name]), 0, 1)
    wind = FACTS.index("wind")
    facts_NF[:, wind] = np.clip(facts_NF[:, wind] * (0.7 + 0.6 * gust_N), 0, 1)
    return facts_NF
