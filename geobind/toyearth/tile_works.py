"""What people put on the ground of a satellite tile: roads and houses with their shadows."""
# N places, S pixels along a side; planes are (N, S, S) float32, facts (N, 1, 1); lengths in metres

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geobind.toyearth.canvas import cell_number, lay, rgb, soft
from geobind.toyearth.nuisance import draw

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.toyearth.tile_land import View

    Plane = NDArray[np.floating]

_ROADS = 5
_PLOT = 38.0  # metres from house to house


def paint_roads(canvas: Plane, view: View, water: Plane) -> Plane:
    """Up to five roads, widening one after the other as roads grow; bridges over water; return the lamps."""
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
    """Tell how much of each pixel, moved by (du, dv), is under a roof, and the roof's tone in [0, 1)."""
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
