"""Satellite tiles: parcels, woods and water, roads and roofs, seen from straight above."""

# N places, S pixels along a side; planes are (N, S, S) float32, facts (N, 1, 1); lengths in metres

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from geobind_toyearth.canvas import (
    Banks,
    banks,
    cell_number,
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
    from numpy.typing import NDArray

    Plane = NDArray[np.floating]


_AT_ONCE = 8  # tiles; many fields are in use at a time, so that fewer of them fit a cache than of photos
FOOTPRINT = 640.0  # metres along the side of ground over which the facts' shares hold
_GRASS = {
    "summer": (0.50, 0.56, 0.20),
    "winter": (0.48, 0.46, 0.36),
    "spring": (0.30, 0.64, 0.26),
    "autumn": (0.46, 0.44, 0.20),
    "tropic": (0.28, 0.54, 0.26),
}
_CROPS = {
    "summer": (0.92, 0.78, 0.30),
    "winter": (0.34, 0.23, 0.18),
    "spring": (0.74, 0.84, 0.24),
    "autumn": (0.78, 0.50, 0.22),
    "tropic": (0.68, 0.72, 0.32),
}
_LEAVES = {
    "summer": (0.15, 0.37, 0.10),
    "winter": (0.37, 0.29, 0.22),
    "spring": (0.30, 0.52, 0.13),
    "autumn": (0.62, 0.33, 0.09),
    "tropic": (0.09, 0.40, 0.12),
}


class View(NamedTuple):
    """A chunk of places seen from above: where each pixel is, what is true, and the random numbers."""

    x: Plane  # metres east of the place
    y: Plane  # metres north
    u: Plane  # metres along the parcels' own axes, turned and shifted at random
    v: Plane
    height: Plane  # the relief's shape, about standard normal
    sun: tuple[Plane, Plane]  # unit vector towards the sun on the ground
    gsd: float
    fact: dict[str, Plane]
    key: NDArray[np.uint64]
    bank: Banks

    def number(self, name: str) -> Plane:
        """Draw one number in [0, 1) for each place: (N, 1, 1)."""
        return draw(self.key, name, 1)[:, :, None]

    def noise(self, name: str, cell: float, x: Plane, y: Plane) -> Plane:
        """Sample smooth noise at points of the ground, with `cell` metres to a noise cell."""
        start = draw(self.key, f"{name} noise", 2)[:, :, None, None] * 256
        return smooth_noise(self.bank, x / np.float32(cell) + start[:, 0], y / np.float32(cell) + start[:, 1])


def look_down(places: Places, seed: int, size: int, gsd: float) -> View:
    """Set up the view of a chunk of places."""
    key = place_keys(places[:4], seed, "tile")
    fact = fact_planes(places)
    step = (np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)) * np.float32(gsd)
    shape = (len(key), size, size)
    x, y = np.broadcast_to(step, shape), np.broadcast_to(-step[:, None], shape)
    turn, shift = 2 * np.pi * draw(key, "turn", 1)[:, :, None], 5000 * draw(key, "shift", 2)[:, :, None, None]
    u = x * np.cos(turn) + y * np.sin(turn) + shift[:, 0]
    v = y * np.cos(turn) - x * np.sin(turn) + shift[:, 1]
    # The sun stands east in the morning and west in the evening, give or take 50 degrees.
    bearing = np.pi * (1 - fact["morning"]) + 0.9 * (2 * draw(key, "sun", 1)[:, :, None] - 1)
    view = View(x, y, u, v, x, (np.cos(bearing), np.sin(bearing)), gsd, fact, key, banks(11))
    return view._replace(height=view.noise("height", 13, x, y))


def paint_land(canvas: Plane, view: View) -> Plane:
    """Paint everything natural, and crops, onto the canvas; return how much of each pixel is water."""
    fact = view.fact
    texture = 1 + 0.10 * view.noise("texture", 3.1, view.u, view.v)
    canvas[:] = season_colour(fact["summer"], fact["spring"], at=_GRASS)
    dry = np.maximum(1 - fact["water"], 1e-3)
    woods, bare = share_woods_and_bare(view)
    _paint_crops(canvas, view, fact["crops"] / np.maximum(dry - fact["forest"] - fact["bare"], 1e-3))
    sand, rock = rgb(0.84, 0.70, 0.48), rgb(0.55, 0.51, 0.52)
    boulders = 1 + 0.16 * view.noise("boulders", 2.2, view.x, view.y)
    lay(canvas, bare, (sand + (rock - sand) * fact["relief"]) * boulders)
    canvas *= texture
    _paint_woods(canvas, view, woods)
    _paint_snow(canvas, view, woods)
    _shade_slopes(canvas, view)
    return paint_water(canvas, view)


def share_woods_and_bare(view: View) -> tuple[Plane, Plane]:
    """Mark the woods, and the sand or rock between them."""
    fact = view.fact
    dry = np.maximum(1 - fact["water"], 1e-3)
    woods = share_of_ground(view, "woods", 12, fact["forest"] / dry)
    open_ground = np.maximum(1 - fact["forest"] / dry, 1e-3)
    return woods, share_of_ground(view, "bare", 16, fact["bare"] / dry / open_ground)


def share_of_ground(view: View, name: str, cell: float, share: Plane) -> Plane:
    """Mark the part of the ground where smooth noise is highest, as large as `share` over the footprint."""
    steps = (np.arange(12, dtype=np.float32) + 0.5) / 12 * FOOTPRINT - FOOTPRINT / 2
    probe_x = np.broadcast_to(steps, (len(view.key), 12, 12))
    probe = np.sort(
        view.noise(name, cell, probe_x, np.swapaxes(probe_x, 1, 2)).reshape(len(view.key), -1), axis=1
    )
    rank = np.clip((1 - share[:, :, 0]) * probe.shape[1] - 0.5, 0, probe.shape[1] - 1)
    below = np.floor(rank).astype(np.int64)
    low = np.take_along_axis(probe, below, axis=1)
    high = np.take_along_axis(probe, np.minimum(below + 1, probe.shape[1] - 1), axis=1)
    level = (low + (rank - below).astype(np.float32) * (high - low))[:, :, None]
    # A share of nearly nothing or everything must not leave the probe's last point behind.
    level = level + np.float32(9) * ((share < 0.01) * np.float32(1) - (share > 0.99))
    return soft(
        (view.noise(name, cell, view.x, view.y) - level).astype(np.float32), 0.12 * view.gsd / cell + 0.03
    )


def _paint_crops(canvas: Plane, view: View, share: Plane) -> None:
    """Paint parcels of about 70 by 105 m: each a crop of its own shade, with furrows one way or the other."""
    row_at = view.v / 70
    row = np.floor(row_at)
    column_at = view.u / 105 + 0.37 * row
    column = np.floor(column_at)
    row_id, column_id = row.astype(np.int32), column.astype(np.int32)
    number = [cell_number(view.bank, column_id, row_id, which) for which in range(3)]
    hedge = np.minimum(
        np.minimum(row_at - row, 1 - row_at + row) * 70,
        np.minimum(column_at - column, 1 - column_at + column) * 105,
    )
    furrow = np.sin(np.where(number[2] < 0.5, view.u, view.v) * np.float32(2 * np.pi / 30))
    shade = (0.74 + 0.42 * number[1] + 0.24 * furrow) * (1 + (number[2] - 0.5) * rgb(0.25, -0.10, -0.5))
    planted = number[0] < share
    lay(
        canvas,
        planted * (0.35 + 0.65 * soft(hedge - 5, view.gsd)),
        season_colour(view.fact["summer"], view.fact["spring"], at=_CROPS) * shade,
    )


def _paint_woods(canvas: Plane, view: View, woods: Plane) -> None:
    """Paint crowns of about 12 m; needle trees are blue-green all year, leaves follow the season."""
    column_at, row_at = view.u / 12, view.v / 12
    column, row = np.floor(column_at), np.floor(row_at)
    column_id, row_id = column.astype(np.int32), row.astype(np.int32)
    kind, tone = (cell_number(view.bank, column_id, row_id, which) for which in (3, 4))
    edge = (column_at - column - 0.5) ** 2 + (row_at - row - 0.5) ** 2
    # Kinds mix tree by tree, and stand by stand.
    stand = 0.5 + 0.28 * view.noise("stand", 17, view.x, view.y)
    needles = 0.4 * kind + 0.6 * stand < view.fact["conifer"] / np.maximum(view.fact["forest"], 1e-3)
    leaves = season_colour(view.fact["summer"], view.fact["spring"], at=_LEAVES)
    crown = 0.78 + 0.5 * tone - 0.8 * edge
    lay(canvas, woods, np.where(needles, rgb(0.05, 0.20, 0.17), leaves) * crown)


def _shade_slopes(canvas: Plane, view: View) -> None:
    """Brighten the slopes that face the sun and darken those that turn away."""
    east, north = 16 * view.sun[0], 16 * view.sun[1]
    rise = view.noise("height", 13, view.x - east, view.y - north) - view.noise(
        "height", 13, view.x + east, view.y + north
    )
    canvas *= 1 + view.fact["relief"] * np.clip(1.1 * rise, -0.66, 0.46 - 0.3 * view.fact["snow"])
    crags = np.clip(view.height - 2.4 + 2.1 * view.fact["relief"], 0, 1) * 0.6
    lay(
        canvas,
        crags * (1 - 0.6 * view.fact["snow"]),
        rgb(0.50, 0.46, 0.46) * (1 + 0.5 * np.clip(rise, -1, 1)),
    )


def _paint_snow(canvas: Plane, view: View, woods: Plane) -> None:
    """Snow lies first on the heights, thins out under trees."""
    snow = view.fact["snow"]
    depth = 1.3 * snow - 0.12 + 0.9 * snow * (1 - snow) * view.height * (0.3 + view.fact["relief"])
    shade = 0.93 + 0.06 * np.clip(view.height, -1, 1)
    lay(canvas, np.clip(depth, 0, 0.84) * (1 - 0.55 * woods), rgb(0.96, 0.98, 1.03) * shade)


def paint_water(canvas: Plane, view: View) -> Plane:
    """Paint a coast and a river with banks, as wide as their shares; return the water in each pixel."""
    fact, turn = view.fact, 2 * np.pi * view.number("water bearing")
    seaward = view.x * np.cos(turn) + view.y * np.sin(turn)
    along_shore = view.y * np.cos(turn) - view.x * np.sin(turn)
    bays = 22 * view.noise("shore", 13, view.x, view.y)
    sea = seaward + bays - _coast_distance(fact["sea"], turn) - 90 * soft(0.015 - fact["sea"], 0.02)
    width = FOOTPRINT * (fact["water"] - fact["sea"])
    bend = 45 * np.sin(seaward / 110 + 6.3 * view.number("bend")) + (2 * view.number("river") - 1) * 120
    river = width / 2 - np.abs(along_shore - bend + 0.4 * bays)
    river = np.where(width > 6, river, -1e3)
    inside = np.maximum(sea, river)
    lay(canvas, soft(inside + 10, 14 + view.gsd) * 0.7, rgb(0.83, 0.76, 0.58))
    water = soft(inside, view.gsd)
    # Warm water is turquoise, cold water slate; algae bloom in spring.
    deep = np.clip(inside / 160, 0, 1)
    shallow = (
        rgb(0.22, 0.36, 0.44)
        + fact["summer"] * rgb(-0.12, 0.14, 0.10)
        + fact["spring"] * rgb(-0.02, 0.06, -0.08)
    )
    colour = shallow + (shallow * rgb(0.35, 0.5, 0.8) - shallow) * deep
    is_river = soft(river - sea, 30)
    colour = colour + is_river * (rgb(0.20, 0.36, 0.33) - colour) * 0.7
    colour = colour + 0.45 * fact["snow"] * (rgb(0.72, 0.82, 0.88) - colour)
    lay(canvas, water, colour)
    surf = (
        soft(9 - np.abs(sea - 6 + 4 * np.sin(along_shore / 23)), view.gsd)
        * (sea > -60)
        * (0.25 + 0.6 * fact["wind"])
    )
    caps = np.clip(view.noise("caps", 2.3, view.x, view.y) - 2.3 + 1.7 * fact["wind"], 0, 1) * water
    lay(canvas, np.maximum(surf * (1 - is_river), 0.75 * caps), rgb(0.92, 0.96, 0.97))
    return water


def _coast_distance(share: Plane, turn: Plane) -> Plane:
    """Return how far off a straight coast runs when the sea is this share of the footprint (metres).

    A square cut by a slanting line: the share grows as a triangle up to the first corner, then evenly.
    """
    long = np.maximum(np.abs(np.cos(turn)), np.abs(np.sin(turn)))
    short = np.minimum(np.abs(np.cos(turn)), np.abs(np.sin(turn)))
    less = np.minimum(share, 1 - share)
    corner = np.sqrt(2 * long * short * less)
    depth = np.where(less < short / (2 * long), corner, short / 2 + long * less)
    return np.copysign(FOOTPRINT * ((long + short) / 2 - depth), 0.5 - share)


_ROADS = 5
_PLOT = 38.0  # metres from house to house


def paint_roads(canvas: Plane, view: View, water: Plane) -> Plane:
    """Paint up to five roads, widening one after the other as roads grow; return the lamps."""
    turn = draw(view.key, "road", 2 * _ROADS)[:, :, None, None]
    distance = np.full(view.x.shape, -1e3, dtype=np.float32)
    for i in range(_ROADS):
        # Every other road crosses: along u, then along v. Offsets spread over the footprint.
        ahead, aside = (view.x, view.y) if i % 2 else (view.y, view.x)
        slant = (0.7 * turn[:, i] - 0.35) if i else (1.6 * turn[:, i] - 0.8)
        offset = 250 * (2 * turn[:, _ROADS + i] - 1) * (0.4 if i == 0 else 1)
        bent = aside - offset - slant * ahead - 14 * np.sin(ahead / 90 + 6.3 * turn[:, i])
        width = 25 * np.clip(view.fact["roads"] * (_ROADS + 0.5) - i - 0.15, 0, 1)
        distance = np.maximum(distance, np.where(width > 0.5, width / 2 - np.abs(bent), -1e3))
    road = soft(distance, view.gsd) * (1 - 0.35 * water)
    # Pale on green, dark on snow: ploughed tarmac.
    lay(canvas, 0.55 * soft(distance + 9, view.gsd + 4) * (road > 0), rgb(0.16, 0.15, 0.15))
    lay(canvas, road, rgb(0.78, 0.74, 0.70) - view.fact["snow"] * rgb(0.48, 0.44, 0.38))
    return road * 0.45


def paint_roofs(canvas: Plane, view: View, water: Plane) -> Plane:
    """Houses on plots around a village centre, more and larger with density, shadows away from the sun."""
    sine = np.clip(1.2 * view.fact["daylight"] - 0.2, 0.28, 1)
    length = 9 * np.sqrt(1 - sine**2) / sine
    turn = 2 * np.pi * draw(view.key, "turn", 1)[:, :, None]
    sun_u = view.sun[0] * np.cos(turn) + view.sun[1] * np.sin(turn)
    sun_v = view.sun[1] * np.cos(turn) - view.sun[0] * np.sin(turn)
    shadow = np.maximum(
        *(_roofs(view, length * part * sun_u, length * part * sun_v)[0] for part in (0.5, 1.0))
    )
    dry = 1 - water
    lay(canvas, 0.62 * shadow * dry, rgb(0.05, 0.06, 0.10))
    roof, tone = _roofs(view, 0, 0)
    colour = np.where(tone < 0.55, rgb(0.72, 0.30, 0.22), rgb(0.62, 0.62, 0.66)) * (0.85 + 0.3 * tone)
    colour = colour + 0.55 * view.fact["snow"] * (rgb(0.95, 0.97, 1.0) - colour)
    lay(canvas, roof * dry, colour)
    return roof * dry * 0.85


def _roofs(view: View, du: Plane | float, dv: Plane | float) -> tuple[Plane, Plane]:
    """Return how much of each pixel, moved by (du, dv), is under a roof, and the roof's tone in [0, 1)."""
    u_at, v_at = (view.u + du) / _PLOT, (view.v + dv) / _PLOT
    column, row = np.floor(u_at), np.floor(v_at)
    column_id, row_id = column.astype(np.int32), row.astype(np.int32)
    rank, size, tone = (cell_number(view.bank, column_id, row_id, which) for which in (5, 6, 7))
    centre = draw(view.key, "village", 2)[:, :, None, None] * 300 - 150
    away = np.sqrt((view.x - centre[:, 0]) ** 2 + (view.y - centre[:, 1]) ** 2) / 330
    built = 0.62 * rank + 0.38 * np.minimum(away, 1) < 1.05 * view.fact["buildings"] + 0.04
    built = built & (view.fact["buildings"] > 0.02)
    half = 7.5 + 4.5 * size + 4 * view.fact["buildings"]
    inside_u = half - np.abs(u_at - column - 0.5) * np.float32(_PLOT)
    inside_v = half * 0.78 - np.abs(v_at - row - 0.5) * np.float32(_PLOT)
    return soft(np.minimum(inside_u, inside_v), view.gsd) * built, tone


# N places, S pixels along a side; planes are (N, S, S) float32


def render_tiles(places: Places, seed: int, size: int = 64, gsd: float = 10.0) -> NDArray[np.uint8]:
    """Show each place from above, north up: (N, size, size, 3) uint8, `gsd` metres to a pixel.

    The facts' shares hold over the 640 m around the place; a finer GSD shows less ground in more detail.

    Raises:
        DataError: A place, the seed, the size (8 to 1,024) or the GSD (0.1 to 100 m) is out of range.
    """
    places = check_places(places)
    check_seed(seed)
    check_number("size", size, 8, 1024, whole=True)
    check_number("gsd", gsd, 0.1, 100.0)
    return in_chunks(places, size, lambda part: _paint(look_down(part, seed, size, gsd)), _AT_ONCE)


def _paint(view: View) -> NDArray[np.floating]:
    """Paint a chunk of tiles: (3, N, S, S) in 0..1."""
    canvas = np.empty((3, *view.x.shape), dtype=np.float32)
    water = paint_land(canvas, view)
    lamps = paint_roads(canvas, view, water)
    lamps = np.maximum(lamps, paint_roofs(canvas, view, water))
    _wet(canvas, view)
    canvas *= compute_light(view.fact["daylight"], view.fact["morning"])
    night = np.clip(1 - view.fact["daylight"] / 0.17, 0, 1)
    lay(canvas, lamps * night, rgb(1.0, 0.82, 0.45))
    _clouds(canvas, view)
    _sensor(canvas, view)
    return canvas


def _wet(canvas: NDArray[np.floating], view: View) -> None:
    """Rain darkens and greys the ground; wind combs it into streaks."""
    grey = canvas.mean(axis=0)
    rain = view.fact["rain"]
    lay(canvas, np.broadcast_to(0.45 * rain, grey.shape), grey[None] * rgb(0.92, 0.96, 1.06))
    turn = 2 * np.pi * view.number("wind bearing")
    along = view.x * np.cos(turn) + view.y * np.sin(turn)
    across = view.y * np.cos(turn) - view.x * np.sin(turn)
    streaks = np.sin(along * np.float32(2 * np.pi / 58) + 0.8 * np.sin(across / 120))
    canvas *= (1 - 0.28 * rain) * (1 + 0.15 * view.fact["wind"] * streaks)
    # Dust and spray ride the same streaks: they show on the darkest woods too.
    canvas += 0.085 * view.fact["wind"] * (1 + streaks)


def _clouds(canvas: NDArray[np.floating], view: View) -> None:
    """Wisps of cloud by rain, drawn out by wind; mist on mornings."""
    turn = 2 * np.pi * view.number("cloud bearing")
    stretch = 1 + 2.5 * view.fact["wind"]
    along = (view.x * np.cos(turn) + view.y * np.sin(turn)) / stretch
    across = view.y * np.cos(turn) - view.x * np.sin(turn)
    noise = smooth_noise(
        view.bank, along / 14 + 256 * view.number("cloud u"), across / 14 + 256 * view.number("cloud v")
    )
    bright = compute_light(view.fact["daylight"], view.fact["morning"]) * 0.97
    wisps = np.clip((noise - 2.1 + 2.1 * view.fact["rain"]) / 1.6, 0, 0.8)
    lay(canvas, wisps, bright)
    mist = np.clip(2.2 * view.fact["morning"] - 1.3, 0, 1) * np.clip(0.45 - 0.3 * view.height, 0, 0.6)
    lay(canvas, mist, bright * rgb(0.90, 0.95, 1.0))


def _sensor(canvas: NDArray[np.floating], view: View) -> None:
    """Add the haze, gain and grain of the camera."""
    lay(canvas, np.broadcast_to(0.12 * view.number("haze"), canvas.shape[1:]), rgb(0.66, 0.70, 0.76))
    canvas *= 0.92 + 0.16 * view.number("gain")
    column, row = np.arange(canvas.shape[3], dtype=np.int32), np.arange(canvas.shape[2], dtype=np.int32)
    shift = (view.number("grain") * 65536).astype(np.int32)
    canvas += 0.05 * (view.bank.cells.take((row[:, None] * 256 + column + shift) & 65535) - 0.5)
