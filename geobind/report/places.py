"""Maps of a report: where queries found their right answer."""

# R ranked places, LL latitude and longitude in degrees

from __future__ import annotations

import json
from functools import cache
from math import ceil, cos, radians
from pathlib import Path as FilePath
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from geobind.report.examples import EvaluationSample, RankedPair
from geobind.report.plots import BANDS, GRID, LAND, MUTED, Panel

_SHAPES = ("o", "s", "^", "x")
_SIGNS = ("●", "■", "▲", "✕")
_WIDTH = 5.4  # inches
_WIDE = 100.0  # degrees; places spread over more than this are shown on the whole world
_COARSE = 5.0  # degrees; in a narrower map the coastlines, drawn for 1:110 million, would be wrong
_DETAIL = 500  # steps across a map below which a bend of a coast is left out


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


def build_rank_map(held_out: EvaluationSample, ranked: RankedPair, *, on_earth: bool = True) -> Map | None:
    """Draw the places of the queries, by the rank of their right answer; None where no place is known.

    Args:
        held_out: The rows.
        ranked: The ranks.
        on_earth: Whether to draw the land of Earth below them.
    """
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
        lambda axes: _draw_map(axes, at_R2[known_R], band_R, words, extent, on_earth),
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
    on_earth: bool,
) -> None:
    west, east, south, north = extent
    for outline in trace_land(extent) if on_earth else []:
        axes.add_patch(PathPatch(outline, facecolor=LAND, edgecolor=MUTED, linewidth=0.4, zorder=0.5))
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


def trace_land(extent: tuple[float, float, float, float]) -> list[Path]:
    """Return the outlines of the land within a map: longitude and latitude in degrees.

    There are none in a map too narrow for their detail.

    Args:
        extent: West, east, south and north of the map, in degrees.
    """
    west, east, south, north = extent
    if east - west < _COARSE:
        return []
    box = Bbox([[west, south], [east, north]])
    shown: list[Path] = []
    for outline in _read_land():
        if outline.get_extents().overlaps(box):
            thin = [
                _thin(np.asarray(ring, dtype=np.float64), (east - west) / _DETAIL)
                for ring in outline.to_polygons()
            ]
            rings = [Path(ring, closed=True) for ring in thin if len(ring) > 3]
            clipped = Path.make_compound_path(*rings).clip_to_bbox(box) if rings else Path(np.empty((0, 2)))
            shown += [clipped] if len(clipped) else []
    return shown


@cache
def _read_land() -> tuple[Path, ...]:
    """Read the land of Natural Earth at 1:110 million (public domain), a path per continent or island."""
    feature = json.loads((FilePath(__file__).parent / "land.geojson").read_text(encoding="utf-8"))
    polygons = feature["geometry"]["coordinates"]
    return tuple(
        Path.make_compound_path(*(Path(np.array(ring), closed=True) for ring in rings)) for rings in polygons
    )


def _thin(ring_N2: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Return a closed ring without the points that lie nearer than `step` to the last one kept."""
    kept = [ring_N2[0]]
    for point in ring_N2[1:-1]:
        if np.abs(point - kept[-1]).max() >= step:
            kept.append(point)
    return np.array([*kept, ring_N2[-1]])


def _degrees(value: float, letters: str) -> str:
    return f"{abs(value):g}°{'' if value in (0, 180, -180) else letters[int(value < 0)]}"
