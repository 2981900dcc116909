"""The lie of the land in a ground photo: the view's geometry, mountains, and what covers the ground."""
# N places, S pixels along a side; planes are (N, S, S) float32, facts (N, 1, 1)

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from geobind.toyearth.canvas import Banks, banks, fact_planes, lay, rgb, season_colour, smooth_noise, soft
from geobind.toyearth.facts import Places
from geobind.toyearth.nuisance import draw, place_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Plane = NDArray[np.floating]

HORIZON = (0.40, 0.48)  # the horizon lies between these heights of the picture
GRASS = {
    "summer": (0.58, 0.60, 0.24),
    "winter": (0.48, 0.43, 0.36),
    "spring": (0.40, 0.74, 0.28),
    "autumn": (0.62, 0.46, 0.22),
    "tropic": (0.28, 0.56, 0.26),
}
_CROPS = {
    "summer": (0.93, 0.80, 0.38),
    "winter": (0.46, 0.34, 0.24),
    "spring": (0.55, 0.78, 0.24),
    "autumn": (0.68, 0.46, 0.22),
    "tropic": (0.72, 0.74, 0.32),
}


class Scene(NamedTuple):
    """A chunk of photos in the making: geometry, facts, random numbers, and what is painted so far."""

    x: Plane  # -1 at the left edge, 1 at the right
    y: Plane  # 0 at the top, 1 at the bottom
    down: Plane  # below the horizon, in picture heights (negative: sky)
    near: Plane  # 0 at the horizon, 1 at the bottom edge; distance goes as 1 / near
    horizon: Plane  # (N, 1, 1) height of the horizon
    pixel: float  # picture heights to a pixel
    fact: dict[str, Plane]
    key: NDArray[np.uint64]
    bank: Banks
    land: Plane  # (3, N, S, S) colours before light
    solid: Plane  # how much of each pixel hides the sky

    def number(self, name: str) -> Plane:
        """Draw one number in [0, 1) for each place: (N, 1, 1)."""
        return draw(self.key, name, 1)[:, :, None]

    def noise(self, name: str, x: Plane, y: Plane) -> Plane:
        """Sample smooth noise at x, y in noise cells, from a random start for each place."""
        start = draw(self.key, f"{name} noise", 2)[:, :, None, None] * 256
        return smooth_noise(
            self.bank, (x + start[:, 0]).astype(np.float32), (y + start[:, 1]).astype(np.float32)
        )

    def grain(self, name: str) -> Plane:
        """Give every pixel its own number in [0, 1)."""
        row, column = (np.arange(side, dtype=np.int32) for side in self.x.shape[1:])
        shift = (self.number(name) * 65536).astype(np.int32)
        return self.bank.cells.take((row[:, None] * 256 + column + shift) & 65535)

    def band(self, top: float, bottom: float) -> Scene:
        """View the rows between two heights of the picture; what is painted there is painted here."""
        size = self.x.shape[1]
        rows = slice(int(top * size), min(size, int(bottom * size) + 1))
        return self._replace(
            x=self.x[:, rows],
            y=self.y[:, rows],
            down=self.down[:, rows],
            near=self.near[:, rows],
            land=self.land[:, :, rows],
            solid=self.solid[:, rows],
        )

    def speckle(self, x: Plane, y: Plane) -> Plane:
        """Give every little square of these coordinates its own number in [0, 1)."""
        column, row = (np.floor(at * np.float32(14)).astype(np.int32) for at in (x, y))
        return self.bank.cells.take(((row & 255) << 8) | (column & 255))

    def put(self, cover: Plane, colour: Plane) -> None:
        """Paint something solid before all that is painted so far."""
        lay(self.land, cover, colour)
        np.maximum(self.solid, cover, out=self.solid)


def look_ahead(places: Places, seed: int, size: int) -> Scene:
    """Set up the view of a chunk of places."""
    key = place_keys(places[:4], seed, "photo")
    fact = fact_planes(places)
    step = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    shape = (len(key), size, size)
    x, y = np.broadcast_to(2 * step - 1, shape), np.broadcast_to(step[:, None], shape)
    horizon = HORIZON[0] + (HORIZON[1] - HORIZON[0]) * draw(key, "horizon", 1)[:, :, None]
    down = y - horizon
    near = np.clip(down / (1 - horizon), 0.004, 1)
    land, solid = np.zeros((3, *shape), np.float32), np.zeros(shape, np.float32)
    return Scene(x, y, down, near, horizon, 1 / size, fact, key, banks(23), land, solid)


def paint_mountains(scene: Scene) -> None:
    """Two ranges on the horizon, as high as the relief, bare, wooded or white; then far woods."""
    scene, fact = scene.band(0, HORIZON[1] + 0.02), scene.fact
    side = scene.x[:, :1]
    green = season_colour(fact["summer"], fact["spring"], at=GRASS)
    wooded = np.clip(1.5 * fact["forest"], 0, 0.8)
    for depth, haze in ((0, 0.55), (1, 0.28)):
        ridge = scene.noise(f"ridge {depth}", side * (17 + 8 * depth), side * 3)
        peak = fact["relief"] ** 1.2 * (0.17 + 0.075 * ridge) * (1 - 0.35 * depth)
        over = peak + scene.down
        stone = (
            rgb(0.46, 0.43, 0.42)
            + (rgb(0.12, 0.28, 0.16) * 0.6 + green * 0.25 - rgb(0.46, 0.43, 0.42)) * wooded
        )
        facets = scene.noise("facets", scene.x * 60 + scene.y * 40, scene.y * 90 - scene.x * 20)
        white = (
            np.clip((0.75 * fact["snow"] + 0.5 * fact["relief"] - 0.55) * 3 - over * 6 + 0.4 * facets, 0, 1)
            * 0.95
        )
        colour = stone * (1 + 0.22 * facets)
        colour = colour + white * (rgb(0.94, 0.96, 1.0) * (1 + 0.07 * facets) - colour)
        scene.put(
            soft(over, 2 * scene.pixel) * (fact["relief"] > 0.03),
            colour + haze * (rgb(0.66, 0.74, 0.84) - colour),
        )
    trees = scene.noise("far trees", side * 75, side * 11)
    line = 0.085 * np.clip(1.4 * fact["forest"], 0, 1) * (1 + 0.25 * trees) + scene.down
    far = rgb(0.16, 0.30, 0.22) + (green * 0.55 - rgb(0.16, 0.30, 0.22)) * (
        1 - fact["conifer"] / np.maximum(fact["forest"], 1e-3)
    )
    far = far + 0.5 * fact["snow"] * (rgb(0.85, 0.88, 0.93) - far)
    scene.put(soft(line, 2 * scene.pixel) * (fact["forest"] > 0.03), far * 0.8)


def paint_ground(scene: Scene) -> None:
    """Paint grass, furrowed fields, bare ground, snow, water and the road, from the horizon to our feet."""
    scene, fact = scene.band(HORIZON[0] - 0.02, 1), scene.fact
    near = scene.near
    aside, ahead = scene.x * 15, 34 * np.log(near + 0.12)
    dry = np.maximum(1 - fact["water"], 1e-3)
    meadow = season_colour(fact["summer"], fact["spring"], at=GRASS)
    ground = np.broadcast_to(meadow, scene.land.shape).copy()
    rows = np.sin((scene.x - 0.5 * scene.number("rows") + 0.25) / near * np.float32(13))
    crops = _share(scene, "crops", aside, ahead, np.minimum(fact["crops"] / dry, 1))
    crop = season_colour(fact["summer"], fact["spring"], at=_CROPS)
    lay(ground, crops, crop * (1 + 0.28 * rows * np.clip(5 * near - 0.4, 0, 1)))
    unsown = np.maximum(dry - fact["crops"], 1e-3)
    bare = _share(scene, "bare", aside, ahead, np.minimum(fact["bare"] / unsown, 1)) * (1 - crops)
    sand, rock = rgb(0.86, 0.74, 0.52), rgb(0.56, 0.52, 0.49)
    lay(ground, bare, sand + (rock - sand) * fact["relief"])
    # Under a wood the ground is dark litter.
    litter = _share(scene, "litter", aside, ahead, np.minimum(fact["forest"] / dry, 1))
    lay(ground, 0.8 * litter * (1 - bare) * (1 - crops), meadow * rgb(0.50, 0.52, 0.48))
    blades = scene.noise("blades", scene.x / near * 5, 40 * np.log(near + 0.02))
    ground *= 1 + (0.10 + 0.12 * fact["wind"]) * blades * (1 - 0.7 * fact["snow"])
    flowers = (scene.grain("flowers") < 0.16 * np.maximum(2 * fact["spring"] - 1, 0)) * (1 - near * 0.3)
    lay(ground, flowers * (1 - bare) * 0.9, rgb(1.0, 0.86, 0.90))
    lie = np.clip(1.3 * fact["snow"] - 0.1 + 0.25 * blades * fact["snow"] * (1 - fact["snow"]) * 4, 0, 0.82)
    lay(ground, lie, rgb(1.0, 1.02, 1.06))
    _paint_water(ground, scene)
    _paint_road(ground, scene)
    scene.put(soft(scene.down, scene.pixel), ground)


def _share(scene: Scene, name: str, aside: Plane, ahead: Plane, share: Plane) -> Plane:
    """Mark where smooth noise is highest, on `share` of the ground in view."""
    step = (np.arange(12, dtype=np.float32) + 0.5) / 12
    shape = (len(scene.key), 12, 12)
    at_x, at_y = (
        np.broadcast_to((2 * step - 1) * 15, shape),
        np.broadcast_to(34 * np.log(step + 0.12)[:, None], shape),
    )
    probe = np.sort(scene.noise(name, at_x, at_y).reshape(shape[0], -1), axis=1)
    rank = np.clip(((1 - share[:, :, 0]) * 144).astype(np.int64), 0, 143)
    level = np.take_along_axis(probe, rank, axis=1)[:, :, None] + np.float32(9) * (
        (share < 0.01) * np.float32(1) - (share > 0.99)
    )
    return soft((scene.noise(name, aside, ahead) - level).astype(np.float32), 0.2)


def shore_of(scene: Scene) -> Plane:
    """How near the sea comes: `near` at the shore, (N, 1, 1)."""
    return np.where(scene.fact["sea"] > 0.01, 0.9 * scene.fact["sea"] ** 0.8 + 0.01, 0)


def river_at(scene: Scene, near: Plane) -> tuple[Plane, Plane]:
    """Where the river runs at these distances: its middle and half its width, in x."""
    side = np.sign(scene.number("river side") - np.float32(0.5))
    width = np.maximum(scene.fact["water"] - scene.fact["sea"], 0)
    middle = side * (0.15 + 0.45 * near) + 0.22 * np.sin(
        2.2 * np.log(near + 0.05) + 6.3 * scene.number("bend")
    )
    return middle, np.where(width > 0.01, width * (0.10 + 1.35 * near), -1)


def _paint_water(ground: Plane, scene: Scene) -> None:
    fact, near = scene.fact, scene.near
    ripple = scene.noise("ripple", scene.x / near * 1.6, 60 * np.log(near + 0.03))
    middle, half = river_at(scene, near)
    in_river = half - np.abs(scene.x - middle)
    in_sea = (
        shore_of(scene)
        - near
        + 0.03 * scene.noise("shore", scene.x[:, :1] * 9, scene.x[:, :1]) * (near < 0.9)
    )
    in_sea = np.where(fact["sea"] > 0.01, in_sea, -1)
    bank = np.maximum(soft(in_river + 0.05, 0.05), soft(in_sea + 0.05, 0.06))
    lay(ground, bank * 0.8, rgb(0.80, 0.73, 0.56))
    day = np.clip(1.5 * fact["daylight"], 0, 1)
    sea_blue = rgb(0.08, 0.26, 0.46) + (rgb(0.12, 0.38, 0.58) - rgb(0.08, 0.26, 0.46)) * day
    water = np.maximum(soft(in_river, 2 * scene.pixel), soft(in_sea, scene.pixel))
    is_sea = soft(in_sea, 0.02)
    blue = rgb(0.34, 0.50, 0.54) + is_sea * (sea_blue - rgb(0.34, 0.50, 0.54))
    blue = blue + (0.45 * fact["snow"] + 0.15 * (1 - near)) * (rgb(0.74, 0.84, 0.92) - blue)
    lay(ground, water, blue * (1 + (0.06 + 0.14 * fact["wind"]) * ripple))
    caps = np.clip(ripple - 2.2 + 1.7 * fact["wind"], 0, 0.9) * water
    foam = soft(0.022 - np.abs(in_sea - 0.02), 0.02) * (0.4 + 0.6 * fact["wind"])
    lay(ground, np.maximum(caps, foam), rgb(0.96, 0.98, 1.0))


def road_at(scene: Scene, near: Plane) -> tuple[Plane, Plane]:
    """Where the road runs at these distances: its middle and half its width, in x."""
    middle = (1.1 * scene.number("road end") - 0.55) + (0.9 * scene.number("road foot") - 0.45) * near
    roads = scene.fact["roads"]
    return middle, np.where(roads > 0.06, (0.06 + 0.62 * roads) * near, -1)


def _paint_road(ground: Plane, scene: Scene) -> None:
    """A track of earth, then tarmac with dashes, then a highway, as the roads grow."""
    middle, half = road_at(scene, scene.near)
    inside = half - np.abs(scene.x - middle)
    tarmac = np.clip(3 * scene.fact["roads"] - 0.6, 0, 1)
    road = soft(inside, 2 * scene.pixel) * (scene.near > shore_of(scene) + 0.02)
    lay(ground, road, rgb(0.62, 0.50, 0.36) + tarmac * (rgb(0.34, 0.34, 0.36) - rgb(0.62, 0.50, 0.36)))
    dash = soft(0.025 * scene.near - np.abs(scene.x - middle), scene.pixel) * (
        np.sin(2.6 / scene.near) > -0.2
    )
    edge = soft(0.03 * scene.near - np.abs(inside - 0.06 * scene.near), scene.pixel)
    lay(ground, np.maximum(dash, edge) * road * tarmac * 0.9, rgb(0.95, 0.93, 0.85))
