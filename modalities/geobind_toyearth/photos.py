"""Ground photos: land, things, sprites."""

# N places, S pixels along a side; planes are (N, S, S) float32, facts (N, 1, 1)

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from geobind_toyearth.canvas import (
    Banks,
    banks,
    compute_light,
    fact_planes,
    in_chunks,
    lay,
    rgb,
    season_colour,
    smooth_noise,
    soft,
)
from geobind_toyearth.planet import Places, check_number, check_places, check_seed, draw, place_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Plane = NDArray[np.floating]


HORIZON = (0.40, 0.48)  # the horizon lies between these heights of the picture
FOOT = 2.0  # metres to the ground at the bottom edge; elsewhere FOOT / near
RANGES = (900.0, 600.0)  # metres to the two ranges of mountains
FAR_WOODS = 400.0  # metres
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
    metres: Plane | None = None  # how far away what is painted so far stands, where that is wanted
    away: Plane | float = 0.0  # how far away what is painted next stands
    drift: Plane | float = 0.0  # how far the wind has blown the clouds, in noise cells

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
            metres=None if self.metres is None else self.metres[:, rows],
        )

    def speckle(self, x: Plane, y: Plane) -> Plane:
        """Give every little square of these coordinates its own number in [0, 1)."""
        column, row = (np.floor(at * np.float32(14)).astype(np.int32) for at in (x, y))
        return self.bank.cells.take(((row & 255) << 8) | (column & 255))

    def put(self, cover: Plane, colour: Plane) -> None:
        """Paint something solid before all that is painted so far."""
        lay(self.land, cover, colour)
        np.maximum(self.solid, cover, out=self.solid)
        if self.metres is not None:
            np.copyto(self.metres, self.away, where=cover > 0.5, casting="same_kind")


def look_ahead(places: Places, seed: int, size: int, purpose: str = "photo") -> Scene:
    """Set up the view of a chunk of places; another `purpose` stands at another spot of each place."""
    key = place_keys(places[:4], seed, purpose)
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
        scene._replace(away=RANGES[depth]).put(
            soft(over, 2 * scene.pixel) * (fact["relief"] > 0.03),
            colour + haze * (rgb(0.66, 0.74, 0.84) - colour),
        )
    trees = scene.noise("far trees", side * 75, side * 11)
    line = 0.085 * np.clip(1.4 * fact["forest"], 0, 1) * (1 + 0.25 * trees) + scene.down
    far = rgb(0.16, 0.30, 0.22) + (green * 0.55 - rgb(0.16, 0.30, 0.22)) * (
        1 - fact["conifer"] / np.maximum(fact["forest"], 1e-3)
    )
    far = far + 0.5 * fact["snow"] * (rgb(0.85, 0.88, 0.93) - far)
    scene._replace(away=FAR_WOODS).put(soft(line, 2 * scene.pixel) * (fact["forest"] > 0.03), far * 0.8)


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
    scene._replace(away=FOOT / near).put(soft(scene.down, scene.pixel), ground)


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


def find_shore(scene: Scene) -> Plane:
    """Return how near the sea comes: `near` at the shore, (N, 1, 1)."""
    return np.where(scene.fact["sea"] > 0.01, 0.9 * scene.fact["sea"] ** 0.8 + 0.01, 0)


def find_river(scene: Scene, near: Plane) -> tuple[Plane, Plane]:
    """Return the river at these distances: its middle and half its width, in x."""
    side = np.sign(scene.number("river side") - np.float32(0.5))
    width = np.maximum(scene.fact["water"] - scene.fact["sea"], 0)
    middle = side * (0.15 + 0.45 * near) + 0.22 * np.sin(
        2.2 * np.log(near + 0.05) + 6.3 * scene.number("bend")
    )
    return middle, np.where(width > 0.01, width * (0.10 + 1.35 * near), -1)


def _paint_water(ground: Plane, scene: Scene) -> None:
    fact, near = scene.fact, scene.near
    ripple = scene.noise("ripple", scene.x / near * 1.6, 60 * np.log(near + 0.03))
    middle, half = find_river(scene, near)
    in_river = half - np.abs(scene.x - middle)
    in_sea = (
        find_shore(scene)
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


def find_road(scene: Scene, near: Plane) -> tuple[Plane, Plane]:
    """Return the road at these distances: its middle and half its width, in x."""
    middle = (1.1 * scene.number("road end") - 0.55) + (0.9 * scene.number("road foot") - 0.45) * near
    roads = scene.fact["roads"]
    return middle, np.where(roads > 0.06, (0.06 + 0.62 * roads) * near, -1)


def _paint_road(ground: Plane, scene: Scene) -> None:
    """Paint a track of earth, then tarmac with dashes, then a highway, as the roads grow."""
    middle, half = find_road(scene, scene.near)
    inside = half - np.abs(scene.x - middle)
    tarmac = np.clip(3 * scene.fact["roads"] - 0.6, 0, 1)
    road = soft(inside, 2 * scene.pixel) * (scene.near > find_shore(scene) + 0.02)
    lay(ground, road, rgb(0.62, 0.50, 0.36) + tarmac * (rgb(0.34, 0.34, 0.36) - rgb(0.62, 0.50, 0.36)))
    dash = soft(0.025 * scene.near - np.abs(scene.x - middle), scene.pixel) * (
        np.sin(2.6 / scene.near) > -0.2
    )
    edge = soft(0.03 * scene.near - np.abs(inside - 0.06 * scene.near), scene.pixel)
    lay(ground, np.maximum(dash, edge) * road * tarmac * 0.9, rgb(0.95, 0.93, 0.85))


# N photos, P pixels along a patch's side; planes are (N, P, P) float32, facts and numbers (N, 1, 1)


_LEAVES = {
    "summer": (0.17, 0.40, 0.12),
    "winter": (0.40, 0.31, 0.25),
    "spring": (0.38, 0.60, 0.18),
    "autumn": (0.72, 0.38, 0.10),
    "tropic": (0.10, 0.46, 0.14),
}
_SNOW = rgb(0.94, 0.96, 1.0)


class Spot(NamedTuple):
    """The position of one thing in each photo that has it."""

    x: Plane  # as in Scene
    foot: Plane  # how far down the picture its foot is
    scale: Plane  # picture heights to the camera's height above ground, there


def draw_tree(scene: Scene, lamps: Plane, spot: Spot, number: Plane) -> None:
    """Draw a round crown on a trunk, or a spire of needles; the wind bends it, winter thins it."""
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
    """Draw a body, a cabin and two lights."""
    scale, tone, edge = spot.scale, number[:, 0], 2 * scene.pixel
    up, across = spot.foot - scene.y, np.abs(scene.x - spot.x)
    cabin = np.minimum(0.20 * scale - across, np.minimum(up, 0.38 * scale - up))
    body = np.minimum(0.30 * scale - across, np.minimum(up, 0.24 * scale - up))
    bright = np.where(tone < 0.66, rgb(0.92, 0.92, 0.94), rgb(0.12, 0.22, 0.55))
    scene.put(soft(cabin, edge), rgb(0.18, 0.22, 0.28))
    scene.put(soft(body, edge), np.where(tone < 0.33, rgb(0.80, 0.12, 0.10), bright))
    light = np.minimum(0.08 * scale - np.abs(across - 0.2 * scale), 0.07 * scale - np.abs(up - 0.14 * scale))
    np.maximum(lamps, soft(light, edge), out=lamps)


# N photos of a chunk, or those of them that have the thing at hand; S pixels along a side
# planes are (N, S, S) or, in a window, (N, P, Q) float32; facts and spots (N, 1, 1)


class _Kind(NamedTuple):
    """A kind of thing: how it is drawn, where it may stand, and how many there are by the facts."""

    name: str
    paint: Callable[[Scene, Plane, Spot, Plane], None]
    slots: int
    nearest: float  # `near` of the first and the last slot
    furthest: float
    fact: str
    slope: float  # share of slots filled: slope x fact + start
    start: float
    reach: tuple[float, float, float]  # left, right and up of its foot, in its scale
    on_road: bool = False


_KINDS = (
    _Kind("tree", draw_tree, 13, 0.58, 0.09, "forest", 1.35, -0.02, (0.8, 2.7, 1.8)),
    _Kind("house", draw_house, 11, 0.46, 0.11, "buildings", 1.25, -0.02, (1.2, 1.2, 2.4)),
    _Kind("car", draw_car, 4, 0.62, 0.14, "roads", 1.5, -0.35, (0.4, 0.4, 0.5), on_road=True),
)


def paint_things(scene: Scene) -> Plane:
    """Paint trees, houses and cars from far to near; return how much of each pixel is a lamp or a window."""
    lamps = np.zeros(scene.x.shape, dtype=np.float32)
    slots = [(kind, i, _distance(kind, i)) for kind in _KINDS for i in range(kind.slots)]
    for kind, i, near in sorted(slots, key=lambda slot: slot[2]):
        number = draw(scene.key, f"{kind.name} {i}", 5)
        # Slots fill in a shuffled order, so that near and far ones come alike; their count follows the fact.
        order = (i * 5 % kind.slots + number[:, 0]) / kind.slots
        rows = np.flatnonzero(order < kind.slope * scene.fact[kind.fact][:, 0, 0] + kind.start)
        if len(rows):
            _paint_one(scene, lamps, kind, rows, near, number[rows, 1:, None, None])
    return lamps


def _distance(kind: _Kind, i: int) -> float:
    return kind.furthest + (kind.nearest - kind.furthest) * ((i + 0.5) / kind.slots) ** 1.6


def _paint_one(
    scene: Scene, lamps: Plane, kind: _Kind, rows: NDArray[np.intp], near: float, number: Plane
) -> None:
    """Paint one thing into each of these photos (row numbers), in a window cut out around it."""
    some = scene._replace(
        fact={name: plane[rows] for name, plane in scene.fact.items()},
        key=scene.key[rows],
        horizon=scene.horizon[rows],
    )
    spot = _stand(some, near, number, on_road=kind.on_road)
    top_N, left_N, high, wide = _window(spot, kind.reach, scene.x.shape[2])
    windows = [
        (photo, slice(top, top + high), slice(left, left + wide))
        for photo, top, left in zip(rows.tolist(), top_N.tolist(), left_N.tolist(), strict=True)
    ]
    part = some._replace(
        x=scene.x[0, 0][left_N[:, None, None] + np.arange(wide)],
        y=scene.y[0, :, 0][top_N[:, None, None] + np.arange(high)[:, None]],
        land=np.stack([scene.land[:, *window] for window in windows], axis=1),
        solid=np.stack([scene.solid[window] for window in windows]),
        metres=None if scene.metres is None else np.stack([scene.metres[window] for window in windows]),
        away=FOOT * (1 - some.horizon) / spot.scale,
    )
    glow = np.stack([lamps[window] for window in windows])
    kind.paint(part, glow, spot, number[:, 2:])
    for i, window in enumerate(windows):
        scene.land[:, *window] = part.land[:, i]
        scene.solid[window] = part.solid[i]
        lamps[window] = glow[i]
        if scene.metres is not None and part.metres is not None:
            scene.metres[window] = part.metres[i]


def _stand(scene: Scene, near: float, number: Plane, *, on_road: bool) -> Spot:
    """Find a spot at about this distance: on the road for cars, else clear of sea, river and road."""
    spot = np.clip(np.maximum(near * (0.9 + 0.2 * number[:, 0]), find_shore(scene) + 0.04), 0, 0.98)
    x = 2.1 * number[:, 1] - 1.05
    if on_road:
        middle, half = find_road(scene, spot)
        x = middle + np.copysign(half / 2, x)
    else:
        for middle, half in (find_road(scene, spot), find_river(scene, spot)):
            margin = half + 0.22 * spot + 0.04
            aside = middle + np.copysign(margin, x - middle)
            x = np.where((half > 0) & (np.abs(x - middle) < margin), aside, x)
    scale = spot * (1 - scene.horizon)
    return Spot(x.astype(np.float32), (scene.horizon + scale).astype(np.float32), scale.astype(np.float32))


def _window(
    spot: Spot, reach: tuple[float, float, float], size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], int, int]:
    """Return windows that hold the thing, as far as the picture does: top row, left column, height, width."""
    left, right, up = reach
    largest = float(spot.scale.max()) * size
    # x runs over 2 where y runs over 1: a reach of 1 is half as many pixels across as up.
    wide, high = (min(size, int(extent * largest) + 4) for extent in ((left + right) / 2, up))
    column = np.floor((spot.x - left * spot.scale + 1) / 2 * size - 1).astype(np.intp)
    row = np.floor(spot.foot * size + 2).astype(np.intp) - high
    return np.clip(row, 0, size - high)[:, 0, 0], np.clip(column, 0, size - wide)[:, 0, 0], high, wide


def render_photos(places: Places, seed: int, size: int = 64) -> NDArray[np.uint8]:
    """Show each place as someone standing there would photograph it: (N, size, size, 3) uint8.

    Raises:
        DataError: A place, the seed or the size (8 to 1,024) is out of range.
    """
    places = check_places(places)
    check_seed(seed)
    check_number("size", size, 8, 1024, whole=True)
    return in_chunks(places, size, lambda part: paint_photo(look_ahead(part, seed, size)))


def paint_photo(scene: Scene) -> Plane:
    """Paint a chunk of photos from back to front: (3, N, S, S) in 0..1."""
    paint_mountains(scene)
    paint_ground(scene)
    lamps = paint_things(scene)
    fact = scene.fact
    grey = scene.land.mean(axis=0)
    lay(scene.land, np.broadcast_to(0.4 * fact["rain"], grey.shape), grey[None] * rgb(0.9, 0.95, 1.05))
    scene.land[:] *= compute_light(fact["daylight"], fact["morning"]) * (1 - 0.25 * fact["rain"])
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
    cloud = scene.noise(
        "clouds", scene.x * 26 / stretch + scene.drift, scene.y * 60 - scene.x * 14 * fact["wind"]
    )
    cover = np.clip((cloud - 1.5 + 3.2 * fact["rain"] ** 0.8) / 1.2, 0, 1) * 0.92
    white = (rgb(0.95, 0.95, 0.97) - 0.42 * fact["rain"]) * compute_light(fact["daylight"], fact["morning"])
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
        leaf * compute_light(fact["daylight"], fact["morning"]),
    )
    dawn = np.clip(2.2 * fact["morning"] - 1.3, 0, 1)
    mist = 0.55 * dawn * np.clip(1 - np.abs(scene.down) / 0.16, 0, 1)
    lay(canvas, mist, rgb(0.92, 0.93, 0.97) * compute_light(fact["daylight"], fact["morning"]))
    lay(canvas, np.broadcast_to(0.08 * scene.number("haze"), mist.shape), rgb(0.7, 0.72, 0.75))
    canvas *= 0.90 + 0.2 * scene.number("exposure")
    canvas += 0.04 * (scene.grain("grain") - 0.5)
