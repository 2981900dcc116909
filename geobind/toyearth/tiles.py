"""Satellite tiles of the toy planet: parcels, woods, water, roads and roofs seen from straight above."""
# N places, S pixels along a side; planes are (N, S, S) float32

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geobind.toyearth.canvas import in_chunks, lay, light_of, rgb, smooth_noise
from geobind.toyearth.facts import Places, check_number, check_places, check_seed
from geobind.toyearth.tile_land import View, look_down, paint_land
from geobind.toyearth.tile_works import paint_roads, paint_roofs

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    return in_chunks(places, size, lambda part: _paint(look_down(part, seed, size, gsd)))


def _paint(view: View) -> NDArray[np.floating]:
    """Paint a chunk of tiles: (3, N, S, S) in 0..1."""
    canvas = np.empty((3, *view.x.shape), dtype=np.float32)
    water = paint_land(canvas, view)
    lamps = paint_roads(canvas, view, water)
    lamps = np.maximum(lamps, paint_roofs(canvas, view, water))
    _wet(canvas, view)
    canvas *= light_of(view.fact["daylight"], view.fact["morning"])
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
    bright = light_of(view.fact["daylight"], view.fact["morning"]) * 0.97
    wisps = np.clip((noise - 2.1 + 2.1 * view.fact["rain"]) / 1.6, 0, 0.8)
    lay(canvas, wisps, bright)
    mist = np.clip(2.2 * view.fact["morning"] - 1.3, 0, 1) * np.clip(0.45 - 0.3 * view.height, 0, 0.6)
    lay(canvas, mist, bright * rgb(0.90, 0.95, 1.0))


def _sensor(canvas: NDArray[np.floating], view: View) -> None:
    """The camera's own doing: haze, gain and grain."""
    lay(canvas, np.broadcast_to(0.12 * view.number("haze"), canvas.shape[1:]), rgb(0.66, 0.70, 0.76))
    canvas *= 0.92 + 0.16 * view.number("gain")
    column, row = np.arange(canvas.shape[3], dtype=np.int32), np.arange(canvas.shape[2], dtype=np.int32)
    shift = (view.number("grain") * 65536).astype(np.int32)
    canvas += 0.05 * (view.bank.cells.take((row[:, None] * 256 + column + shift) & 65535) - 0.5)
