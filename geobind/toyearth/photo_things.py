"""What stands in a ground photo: where trees, houses and cars go, and which pixels each may cover."""
# N photos of a chunk, or those of them that have the thing at hand; S pixels along a side
# planes are (N, S, S) or, in a window, (N, P, Q) float32; facts and spots (N, 1, 1)

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from geobind.toyearth.nuisance import draw
from geobind.toyearth.photo_land import river_at, road_at, shore_of
from geobind.toyearth.photo_sprites import Spot, draw_car, draw_house, draw_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from geobind.toyearth.photo_land import Scene

    Plane = NDArray[np.floating]


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
    pixels = _window(spot, kind.reach, scene.x.shape[2])
    row, column = np.divmod(pixels, scene.x.shape[2])
    at = rows[:, None, None] * scene.x.shape[2] ** 2 + pixels
    part = some._replace(
        x=scene.x[0, 0][column],
        y=scene.y[0, :, 0][row],
        land=scene.land.reshape(3, -1)[:, at],
        solid=scene.solid.reshape(-1)[at],
    )
    glow = lamps.reshape(-1)[at]
    kind.paint(part, glow, spot, number[:, 2:])
    scene.land.reshape(3, -1)[:, at] = part.land
    scene.solid.reshape(-1)[at] = part.solid
    lamps.reshape(-1)[at] = glow


def _stand(scene: Scene, near: float, number: Plane, *, on_road: bool) -> Spot:
    """Find a spot at about this distance: on the road for cars, else clear of sea, river and road."""
    spot = np.clip(np.maximum(near * (0.9 + 0.2 * number[:, 0]), shore_of(scene) + 0.04), 0, 0.98)
    x = 2.1 * number[:, 1] - 1.05
    if on_road:
        middle, half = road_at(scene, spot)
        x = middle + np.copysign(half / 2, x)
    else:
        for middle, half in (road_at(scene, spot), river_at(scene, spot)):
            margin = half + 0.22 * spot + 0.04
            aside = middle + np.copysign(margin, x - middle)
            x = np.where((half > 0) & (np.abs(x - middle) < margin), aside, x)
    scale = spot * (1 - scene.horizon)
    return Spot(x.astype(np.float32), (scene.horizon + scale).astype(np.float32), scale.astype(np.float32))


def _window(spot: Spot, reach: tuple[float, float, float], size: int) -> NDArray[np.intp]:
    """List the pixels (row x size + column) of a window that holds the thing, as far as the picture does."""
    left, right, up = reach
    largest = float(spot.scale.max()) * size
    # x runs over 2 where y runs over 1: a reach of 1 is half as many pixels across as up.
    wide, high = (min(size, int(extent * largest) + 4) for extent in ((left + right) / 2, up))
    column = np.floor((spot.x - left * spot.scale + 1) / 2 * size - 1).astype(np.intp)
    row = np.floor(spot.foot * size + 2).astype(np.intp) - high
    rows = np.clip(row, 0, size - high) + np.arange(high)[:, None]
    return rows * size + np.clip(column, 0, size - wide) + np.arange(wide)
