"""Painting tools of tiles and photos: noise, jittered cells, soft edges, seasonal colours, layers."""
# N places, H rows, W columns; fields are (N, H, W) float32, a canvas is (3, N, H, W) in 0..1

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from geobind_toyearth.planet import FACTS, Places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


_BANK = 256  # cells along a side of the periodic noise and hash tables
CHUNK = 32  # places painted at once: a field of 32 x 64 x 64 float32 fits a core's cache


class Banks(NamedTuple):
    """Periodic tables to look up: smooth fractal noise (unit variance) and independent numbers in [0, 1)."""

    smooth: NDArray[np.floating]
    cells: NDArray[np.floating]


@lru_cache(maxsize=8)
def banks(purpose: int) -> Banks:
    """Make the tables of one modality (each has its own, so that no two share random numbers)."""
    random = np.random.Generator(np.random.PCG64(purpose))
    white = random.random((_BANK, _BANK), dtype=np.float32) - 0.5
    turns = np.fft.fftfreq(_BANK)
    wavenumber = np.hypot(turns[:, None], turns[None, :])
    wavenumber[0, 0] = 1.0
    # Wavelengths of 5 to 40 cells: finer would alias under bilinear look-up, coarser would shift whole tiles.
    shape = wavenumber**-1.2 / (1 + (0.025 / wavenumber) ** 4) * (wavenumber < 0.2)
    shape[0, 0] = 0.0
    smooth = np.fft.ifft2(np.fft.fft2(white) * shape).real
    cells = random.random((_BANK, _BANK), dtype=np.float32)
    return Banks((smooth / smooth.std()).astype(np.float32).ravel(), cells.ravel())


def smooth_noise(bank: Banks, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.floating]:
    """Look up smooth noise at x, y (in cells, any shape), bilinear; it repeats after 256 cells."""
    left, top = np.floor(x), np.floor(y)
    right_share, low_share = x - left, y - top
    column, row = left.astype(np.int32) & 255, (top.astype(np.int32) & 255) << 8
    next_column, next_row = (column + 1) & 255, (row + 256) & 65535
    high = bank.smooth.take(row + column)
    high += right_share * (bank.smooth.take(row + next_column) - high)
    low = bank.smooth.take(next_row + column)
    low += right_share * (bank.smooth.take(next_row + next_column) - low)
    high += low_share * (low - high)
    return high


def cell_number(
    bank: Banks, column: NDArray[np.int32], row: NDArray[np.int32], which: int
) -> NDArray[np.floating]:
    """Look up the number in [0, 1) that belongs to a grid cell; `which` tells independent ones apart."""
    return bank.cells.take(((row * 7 + which * 101) & 255) << 8 | ((column + row * 13 + which * 57) & 255))


def soft(distance: NDArray[np.floating], width: float) -> NDArray[np.floating]:
    """Turn a signed distance into coverage: 0 below -width/2, 1 above width/2, a straight ramp between."""
    return np.clip(distance * np.float32(1 / width) + np.float32(0.5), 0, 1)


def lay(canvas: NDArray[np.floating], cover: NDArray[np.floating], colour: NDArray[np.floating]) -> None:
    """Paint a colour (3, ...) over the canvas where `cover` (N, H, W) says, in place."""
    for channel in range(3):
        canvas[channel] += cover * (colour[channel] - canvas[channel])


def rgb(red: float, green: float, blue: float) -> NDArray[np.floating]:
    """Give a colour for `lay`: (3, 1, 1, 1)."""
    return np.array([red, green, blue], dtype=np.float32).reshape(3, 1, 1, 1)


def season_colour(
    summer: NDArray[np.floating],
    spring: NDArray[np.floating],
    *,
    at: dict[str, tuple[float, float, float]],
) -> NDArray[np.floating]:
    """Blend the colours `at` summer, winter, spring, autumn and tropic: (3, N, 1, 1)."""
    warm, fresh = 2 * summer - 1, 2 * spring - 1
    weight = {
        "summer": np.maximum(warm, 0) ** 2,
        "winter": np.maximum(-warm, 0) ** 2,
        "spring": np.maximum(fresh, 0) ** 2,
        "autumn": np.maximum(-fresh, 0) ** 2,
    }
    total = weight["summer"] + weight["winter"] + weight["spring"] + weight["autumn"]
    weight["tropic"] = np.maximum(1 - total, 0)
    return sum(
        (rgb(*at[name]) * part for name, part in weight.items()), np.zeros(1, np.float32)
    ) / np.maximum(total, 1)


def compute_light(daylight: NDArray[np.floating], morning: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the light's colour and strength by sun height and time of day: (3, N, 1, 1).

    Night is blue and dim, a low sun is rosy in the morning and orange in the evening, a high sun is white.
    """
    day = np.clip((daylight - 0.08) / 0.22, 0, 1)
    low = day * np.clip(1.2 - daylight * 2.2, 0, 1)
    dawn, dusk = low * morning, low * (1 - morning)
    strength = 0.34 + day * (0.36 + 0.34 * daylight)
    night = 1 - day
    red = strength * (1 - 0.36 * night + 0.00 * dawn + 0.26 * dusk)
    green = strength * (1 - 0.16 * night - 0.12 * dawn - 0.04 * dusk)
    blue = strength * (1 + 0.26 * night + 0.16 * dawn - 0.34 * dusk)
    return np.stack([red, green, blue]).astype(np.float32)


def fact_planes(places: Places) -> dict[str, NDArray[np.floating]]:
    """Give every fact as (N, 1, 1), ready to broadcast over pixels."""
    return {name: np.ascontiguousarray(places.facts[:, i, None, None]) for i, name in enumerate(FACTS)}


def in_chunks(
    places: Places, size: int, paint: Callable[[Places], NDArray[np.floating]], at_once: int = CHUNK
) -> NDArray[np.uint8]:
    """Paint places a few at a time, so that memory stays bounded: (N, size, size, 3) uint8."""
    out = np.empty((len(places.lat), size, size, 3), dtype=np.uint8)
    for rows in chunks(len(places.lat), size, at_once):
        canvas = paint(places.take(rows))
        bytes_3NHW = np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8)
        out[rows] = np.moveaxis(bytes_3NHW, 0, -1)
    return out


def chunks(count: int, size: int, at_once: int = CHUNK) -> Iterator[slice]:
    """Cut places into slices as large as fit a cache when painted `size` pixels wide."""
    step = max(1, at_once * 64 * 64 // (size * size))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
