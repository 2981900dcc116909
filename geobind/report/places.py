"""Maps of a report: where queries found their right answer."""

# R ranked places, LL latitude and longitude in degrees

from __future__ import annotations

from math import ceil, cos, radians
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from geobind.report.examples import EvaluationSample, RankedPair
from geobind.report.plots import BANDS, GRID, MUTED, Panel

_SHAPES = ("o", "s", "^", "x")
_SIGNS = ("●", "■", "▲", "✕")
_WIDTH = 5.4  # inches
_WIDE = 100.0  # degrees; places spread over more than this are shown on the whole world


class Band(NamedTuple):
    """Queries with right answers of similar rank."""

    sign: str
    colour: int  # number of the page's band colour
    words: str
    queries: int
    share: float


class Map(NamedTuple):
    """A map of one pair, with its key in words."""

    query: str
    gallery: str
    panel: Panel
    bands: list[Band]


def build_rank_map(held_out: EvaluationSample, ranked: RankedPair) -> Map | None:
    """Draw the places of the queries, by the rank of their right answer; None where no place is known."""
    places_LL = held_out.table.places_LL
    if places_LL is None:
        return None
    at_R2 = places_LL[ranked.query_Q].astype(float)
    known_R = np.isfinite(at_R2).all(axis=1)
    if not known_R.any():
        return None
    edges = _edges(len(ranked.gallery_G))
    words = ["found first", f"in the first {edges[1]}", f"in the first {edges[2]}", "further down"]
    band_R = np.searchsorted(edges, ranked.rank_Q[known_R], side="left")
    bands = [
        Band(_SIGNS[band], band, words[band], int((band_R == band).sum()), float((band_R == band).mean()))
        for band in range(len(words))
    ]
    summary = "; ".join(f"{band.queries} {band.words}" for band in bands)
    alt = f"map of {int(known_R.sum())} places by the rank at which {ranked.query} finds its {ranked.gallery}"
    extent = _extent(at_R2[known_R])
    west, east, south, north = extent
    height = min(max(_WIDTH * (north - south) / (east - west) * _stretch(*extent), 1.8), _WIDTH) + 0.25
    panel = Panel(
        f"map-{ranked.query}-{ranked.gallery}",
        lambda axes: _draw_map(axes, at_R2[known_R], band_R, words, extent),
        _WIDTH,
        height,
        f"{alt}: {summary}",
        title=f"{ranked.query} → {ranked.gallery}",
        legend=True,
    )
    return Map(ranked.query, ranked.gallery, panel, bands)


def _edges(gallery: int) -> tuple[int, int, int]:
    """Return the last ranks of the first three bands: first, the first hundredth, the first tenth."""
    near = max(2, ceil(gallery / 100))
    return 1, near, max(near + 1, ceil(gallery / 10))


def _extent(at_R2: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return west, east, south and north of the map: the world, or the part with places."""
    (south, west), (north, east) = at_R2.min(axis=0), at_R2.max(axis=0)
    if east - west > _WIDE or north - south > _WIDE / 2:
        return -180.0, 180.0, -90.0, 90.0
    wide = max(east - west, (north - south) * 0.8, 0.02)
    high = max(north - south, wide * 0.4)
    middle_x, middle_y = (west + east) / 2, (south + north) / 2
    return (
        middle_x - 0.55 * wide,
        middle_x + 0.55 * wide,
        max(middle_y - 0.55 * high, -90.0),
        min(middle_y + 0.55 * high, 90.0),
    )


def _zoomed(west: float, east: float) -> bool:
    return east - west < 360


def _stretch(west: float, east: float, south: float, north: float) -> float:
    """Return the aspect ratio of a degree of latitude to one of longitude: true to scale if zoomed in."""
    return 1 / cos(radians((south + north) / 2)) if _zoomed(west, east) else 1.0


def _draw_map(
    axes: Axes,
    at_R2: NDArray[np.float64],
    band_R: NDArray[np.int64],
    words: list[str],
    extent: tuple[float, float, float, float],
) -> None:
    west, east, south, north = extent
    for band in reversed(range(len(BANDS))):  # what was found lies on top
        at_B2 = at_R2[band_R == band]
        shape = _SHAPES[band]
        points = axes.scatter(at_B2[:, 1], at_B2[:, 0], s=15, c=BANDS[band], marker=shape, label=words[band])
        points.set_linewidth(1.1 if shape == "x" else 0)
    axes.set(xlim=(west, east), ylim=(south, north))
    if _zoomed(west, east):
        axes.set_aspect(_stretch(*extent))
        axes.locator_params(nbins=5)
    else:
        axes.set_aspect("equal")
        axes.set_xticks(range(-120, 121, 60))
        axes.set_yticks(range(-60, 61, 30))
        for line in (23.44, -23.44):
            axes.axhline(line, color=GRID, lw=0.6, ls=":")
    axes.xaxis.set_major_formatter(lambda degrees, _: _degrees(degrees, "EW"))
    axes.yaxis.set_major_formatter(lambda degrees, _: _degrees(degrees, "NS"))
    axes.tick_params(labelsize=10)  # legible on a phone, where a map is shrunk
    for spine in axes.spines.values():
        spine.set(visible=True, color=MUTED, lw=0.6)


def _degrees(value: float, letters: str) -> str:
    return f"{abs(value):g}°{'' if value in (0, 180, -180) else letters[int(value < 0)]}"
