"""Ground photos of the toy planet: sky, mountains, fields, water, a road, trees and houses."""
# N places, S pixels along a side; planes are (N, S, S) float32, facts (N, 1, 1)

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geobind.toyearth.canvas import in_chunks, lay, light_of, rgb, soft
from geobind.toyearth.facts import Places, check_number, check_places, check_seed
from geobind.toyearth.photo_land import HORIZON, Scene, look_ahead, paint_ground, paint_mountains
from geobind.toyearth.photo_things import paint_things

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Plane = NDArray[np.floating]


def render_photos(places: Places, seed: int, size: int = 64) -> NDArray[np.uint8]:
    """Show each place as someone standing there would photograph it: (N, size, size, 3) uint8.

    Raises:
        DataError: A place, the seed or the size (8 to 1,024) is out of range.
    """
    places = check_places(places)
    check_seed(seed)
    check_number("size", size, 8, 1024, whole=True)
    return in_chunks(places, size, lambda part: _paint(look_ahead(part, seed, size)))


def _paint(scene: Scene) -> Plane:
    """Paint a chunk of photos from back to front: (3, N, S, S) in 0..1."""
    paint_mountains(scene)
    paint_ground(scene)
    lamps = paint_things(scene)
    fact = scene.fact
    grey = scene.land.mean(axis=0)
    lay(scene.land, np.broadcast_to(0.4 * fact["rain"], grey.shape), grey[None] * rgb(0.9, 0.95, 1.05))
    scene.land[:] *= light_of(fact["daylight"], fact["morning"]) * (1 - 0.25 * fact["rain"])
    canvas = np.zeros_like(scene.land)
    sky = scene.band(0, HORIZON[1] + 0.02)
    canvas[:, :, : sky.x.shape[1]] = _sky(sky)
    lay(canvas, scene.solid, scene.land)
    lay(canvas, lamps * np.clip(1.25 - fact["daylight"] / 0.17, 0, 1), rgb(1.0, 0.85, 0.5))
    _paint_weather(canvas, scene)
    return canvas


def _sky(scene: Scene) -> Plane:
    """Blue above, pale below, rosy or golden at a low sun, starry at night; clouds by rain, torn by wind."""
    fact = scene.fact
    day = np.clip((fact["daylight"] - 0.05) / 0.25, 0, 1)
    low = day * np.clip(1.25 - 2.4 * fact["daylight"], 0, 1)
    glow = rgb(1.0, 0.55, 0.25) + (rgb(1.0, 0.68, 0.72) - rgb(1.0, 0.55, 0.25)) * fact["morning"]
    zenith = rgb(0.03, 0.04, 0.13) + (rgb(0.22, 0.47, 0.86) - rgb(0.03, 0.04, 0.13)) * day
    rim = rgb(0.08, 0.10, 0.22) + (rgb(0.74, 0.86, 0.97) - rgb(0.08, 0.10, 0.22)) * day
    rim = rim + (glow - rim) * low
    height = np.clip(-scene.down / 0.45, 0, 1)
    canvas = rim + (zenith - rim) * height ** np.float32(0.7)
    sun_x, sun_y = 1.6 * scene.number("sun x") - 0.8, scene.horizon - 0.05 - 0.4 * fact["daylight"]
    away = np.sqrt((scene.x - sun_x) ** 2 + 4 * (scene.y - sun_y) ** 2)
    shown = np.clip(1.2 - 1.5 * fact["rain"], 0, 1)
    lay(canvas, np.clip(1 - away / 0.5, 0, 1) ** 2 * 0.6 * shown * day, rgb(1.0, 0.95, 0.8))
    lay(canvas, soft(0.11 - away, 0.05) * shown, rgb(1.0, 0.97, 0.86) * (0.8 + 0.2 * day))
    stars = (scene.grain("stars") > 0.992) * (1 - day) ** 2 * shown
    lay(canvas, stars * 0.8, rgb(1, 1, 1))
    stretch = 1 + 3 * fact["wind"]
    cloud = scene.noise("clouds", scene.x * 26 / stretch, scene.y * 60 - scene.x * 14 * fact["wind"])
    cover = np.clip((cloud - 1.5 + 3.2 * fact["rain"] ** 0.8) / 1.2, 0, 1) * 0.92
    white = (rgb(0.95, 0.95, 0.97) - 0.42 * fact["rain"]) * light_of(fact["daylight"], fact["morning"])
    lay(canvas, cover, white * (1 + 0.08 * cloud))
    return canvas


def _paint_weather(canvas: Plane, scene: Scene) -> None:
    """Streaks of rain or flakes of snow, morning mist, and the camera's own haze, exposure and grain."""
    fact = scene.fact
    tilt = 0.1 + 0.8 * fact["wind"]
    streak = scene.noise("streaks", (scene.x + tilt * scene.y) * 130, scene.y * 9)
    falling = np.clip(streak - 2.3 + 1.5 * fact["rain"], 0, 1) * fact["rain"]
    lay(canvas, 0.55 * falling * (1 - fact["snow"]), rgb(0.80, 0.84, 0.90))
    lay(canvas, (scene.grain("flakes") < 0.10 * fact["rain"]) * fact["snow"] * 0.9, rgb(0.95, 0.96, 1.0))
    # Wind drives dust, leaves or snow along the ground.
    drift = scene.noise("drift", scene.x * 7 - scene.y * 10, scene.y * 105)
    low = np.clip(1 - np.abs(scene.down - 0.12) / 0.4, 0, 1)
    leaf = rgb(0.84, 0.72, 0.50) + fact["snow"] * rgb(0.10, 0.22, 0.45)
    lay(
        canvas,
        np.clip(0.8 * drift - 1.9 + 2.4 * fact["wind"], 0, 0.65) * low,
        leaf * light_of(fact["daylight"], fact["morning"]),
    )
    dawn = np.clip(2.2 * fact["morning"] - 1.3, 0, 1)
    mist = 0.55 * dawn * np.clip(1 - np.abs(scene.down) / 0.16, 0, 1)
    lay(canvas, mist, rgb(0.92, 0.93, 0.97) * light_of(fact["daylight"], fact["morning"]))
    lay(canvas, np.broadcast_to(0.08 * scene.number("haze"), mist.shape), rgb(0.7, 0.72, 0.75))
    canvas *= 0.90 + 0.2 * scene.number("exposure")
    canvas += 0.04 * (scene.grain("grain") - 0.5)
