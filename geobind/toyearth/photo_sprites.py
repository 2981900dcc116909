"""How a tree, a house and a car look in a ground photo."""
# N photos, P pixels along a patch's side; planes are (N, P, P) float32, facts and numbers (N, 1, 1)

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from geobind.toyearth.canvas import rgb, season_colour, soft

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.toyearth.photo_land import Scene

    Plane = NDArray[np.floating]

_LEAVES = {
    "summer": (0.17, 0.40, 0.12),
    "winter": (0.40, 0.31, 0.25),
    "spring": (0.38, 0.60, 0.18),
    "autumn": (0.72, 0.38, 0.10),
    "tropic": (0.10, 0.46, 0.14),
}
_SNOW = rgb(0.94, 0.96, 1.0)


class Spot(NamedTuple):
    """Where one thing stands in each photo that has it."""

    x: Plane  # as in Scene
    foot: Plane  # how far down the picture its foot is
    scale: Plane  # picture heights to the camera's height above ground, there


def draw_tree(scene: Scene, lamps: Plane, spot: Spot, number: Plane) -> None:
    """A round crown on a trunk, or a spire of needles; the wind bends it, winter thins it."""
    fact, kind, tone = scene.fact, number[:, 0], number[:, 1]
    tall = spot.scale * (1.15 + 0.5 * tone)
    up = (spot.foot - scene.y) / tall
    lean = 0.9 * tall * fact["wind"] ** 1.5 * np.clip(up, 0, 1.3) ** 2
    across = (scene.x - spot.x - lean) / tall
    edge = 2 * scene.pixel / tall
    needles = kind < fact["conifer"] / np.maximum(fact["forest"], 1e-3)
    spire = np.minimum((1.08 - up) * 0.42 - np.abs(across), up - 0.12)
    crown = 0.40 - np.sqrt((across * 0.85) ** 2 + (up - 0.68) ** 2)
    trunk = np.minimum(0.06 - np.abs(across), np.minimum(up, 0.7 - up))
    scene.put(np.clip(trunk / edge + 0.5, 0, 1), rgb(0.30, 0.21, 0.15))
    leaves = season_colour(fact["summer"], fact["spring"], at=_LEAVES)
    colour = np.where(needles, rgb(0.08, 0.24, 0.18), leaves) * (0.8 + 0.3 * tone) * (0.75 + 0.45 * up)
    blossom = np.maximum(2 * fact["spring"] - 1, 0) * (scene.speckle(up, across) < 0.35) * (1 - needles)
    colour = colour + 0.8 * blossom * (rgb(0.98, 0.82, 0.88) - colour)
    colour = colour + 0.45 * fact["snow"] * np.clip(up, 0, 1) * (_SNOW - colour)
    winter = np.clip(1 - 2 * fact["summer"], 0, 1)
    thin = np.where(needles, np.float32(1), 1 - 0.45 * winter)
    scene.put(np.clip(np.where(needles, spire, crown) / edge + 0.5, 0, 1) * thin, colour)


def draw_house(scene: Scene, lamps: Plane, spot: Spot, number: Plane) -> None:
    """Walls, a roof and rows of windows; houses grow tall in a city."""
    fact, tone, storeys = scene.fact, number[:, 0], number[:, 1]
    scale, edge = spot.scale, 2 * scene.pixel
    high = scale * (0.55 + 1.9 * storeys * np.clip(fact["buildings"] - 0.3, 0, 1))
    up, across = spot.foot - scene.y, np.abs(scene.x - spot.x)
    walls = soft(np.minimum(np.minimum(scale - across, up), high - up), edge)
    paint = np.where(tone > 0.6, rgb(0.72, 0.58, 0.48), rgb(0.90, 0.86, 0.78))
    scene.put(walls, paint * np.where(scene.x < spot.x, np.float32(1.0), np.float32(0.82)))
    ridge = 0.5 * scale
    roof = soft(np.minimum(up - high, (1.15 * scale - across) * (ridge / (1.15 * scale)) - up + high), edge)
    tiles = np.where(tone < 0.55, rgb(0.66, 0.24, 0.17), rgb(0.40, 0.38, 0.42))
    scene.put(roof, tiles + 0.75 * fact["snow"] * (_SNOW - tiles))
    storey = 0.55 * scale
    level = np.abs(up / storey - np.floor(up / storey) - 0.5) * storey
    panes = soft(np.minimum(0.16 * scale - np.abs(across - 0.48 * scale), 0.13 * scale - level), edge) * walls
    scene.put(panes, rgb(0.22, 0.26, 0.33))
    lamps *= 1 - np.maximum(walls, roof)
    np.maximum(lamps, panes, out=lamps)


def draw_car(scene: Scene, lamps: Plane, spot: Spot, number: Plane) -> None:
    """A body, a cabin and two lights."""
    scale, tone, edge = spot.scale, number[:, 0], 2 * scene.pixel
    up, across = spot.foot - scene.y, np.abs(scene.x - spot.x)
    cabin = np.minimum(0.20 * scale - across, np.minimum(up, 0.38 * scale - up))
    body = np.minimum(0.30 * scale - across, np.minimum(up, 0.24 * scale - up))
    bright = np.where(tone < 0.66, rgb(0.92, 0.92, 0.94), rgb(0.12, 0.22, 0.55))
    scene.put(soft(cabin, edge), rgb(0.18, 0.22, 0.28))
    scene.put(soft(body, edge), np.where(tone < 0.33, rgb(0.80, 0.12, 0.10), bright))
    light = np.minimum(0.08 * scale - np.abs(across - 0.2 * scale), 0.07 * scale - np.abs(up - 0.14 * scale))
    np.maximum(lamps, soft(light, edge), out=lamps)
