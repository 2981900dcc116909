"""Distances and grid cells on the Earth's surface."""

# N, M places; LL latitude and longitude in degrees

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EARTH_KM = 6371.0088  # mean radius of WGS 84
_DEGREE_KM = EARTH_KM * np.pi / 180
_A, _E2 = 6378137.0, 6.69437999014e-3  # WGS 84: semi-major axis in metres, eccentricity squared


def degrees_per_metre(lat_N: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how many degrees north and east one metre is at latitudes, on the ellipsoid of WGS 84."""
    root_N = np.sqrt(1 - _E2 * np.sin(np.radians(lat_N)) ** 2)
    north_N = np.degrees(root_N**3 / (_A * (1 - _E2)))
    return north_N, np.degrees(root_N / (_A * np.cos(np.radians(lat_N))))


def to_unit_sphere(place_NLL: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return places as points (N, 3) on the unit sphere, whose chords give haversine's distances."""
    lat_N, lon_N = np.radians(place_NLL).T
    return np.stack([np.cos(lat_N) * np.cos(lon_N), np.cos(lat_N) * np.sin(lon_N), np.sin(lat_N)], axis=1)


def km_to_chord(km: float) -> float:
    """Return the chord, on the unit sphere, of a great-circle distance; at most the diameter."""
    return 2 * np.sin(min(km / EARTH_KM, np.pi) / 2)


def chord_to_km(chord_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the great-circle distances of chords of the unit sphere, in kilometres."""
    return 2 * EARTH_KM * np.arcsin(np.minimum(chord_N / 2, 1.0))


def assign_cells(places_NLL: NDArray[np.float64], cell_km: float) -> NDArray[np.int64]:
    """Return the cell of each place on a grid of nearly equal areas.

    The Earth is cut into bands of `cell_km` from south to north, and each band into as many columns of equal
    width as come nearest to `cell_km`; a cell's number depends on the place and `cell_km` alone.
    """
    bands = max(1, round(180 * _DEGREE_KM / cell_km))
    band_N = np.clip(((places_NLL[:, 0] + 90) / 180 * bands).astype(np.int64), 0, bands - 1)
    middle_N = np.radians((band_N + 0.5) / bands * 180 - 90)
    columns_N = np.maximum(1, np.round(360 * _DEGREE_KM * np.cos(middle_N) / cell_km)).astype(np.int64)
    column_N = ((places_NLL[:, 1] + 180) / 360 * columns_N).astype(np.int64) % columns_N
    return band_N * (1 << 32) + column_N


# N places, M others, L and K groups of them


_SMALL, _LARGE = 64, 256  # places in a group of queries and of others: a comparison of two stays in cache
_MAX_SIMILARITIES = 2**22  # of pairs of places held at a time
_SLACK = 1e-12  # of bounds, in Earth radii (some micrometres): they are rounded, and must stay below


class _Groups(NamedTuple):
    """Places in groups of neighbours, each inside a ball."""

    rows: list[NDArray[np.int64]]
    centre_L3: NDArray[np.float64]
    radius_L: NDArray[np.float64]


def nearest_km(place_NLL: NDArray[np.float64], other_MLL: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the great-circle distance in kilometres from each place to the nearest other.

    It is what the haversine formula gives on a sphere of the mean radius. Both sides are cut into groups of
    neighbours; two groups are compared only if their balls are near enough to hold a nearest pair.

    Args:
        place_NLL: Latitude and longitude in degrees (N, 2), all known.
        other_MLL: The same (M, 2).

    Returns:
        Kilometres (N,); infinite where there are no others.
    """
    if not len(place_NLL) or not len(other_MLL):
        return np.full(len(place_NLL), np.inf)
    at_N3, other_M3 = to_unit_sphere(place_NLL), np.unique(to_unit_sphere(other_MLL), axis=0)
    near, far = _group_neighbours(at_N3, _SMALL), _group_neighbours(other_M3, _LARGE)
    square_N = np.full(len(at_N3), np.inf)
    for rows, centre, radius in zip(*near, strict=True):
        apart_K = np.linalg.norm(far.centre_L3 - centre, axis=1) - far.radius_L - radius
        least_K = np.maximum(apart_K - _SLACK, 0) ** 2
        for group in np.argsort(least_K):
            if least_K[group] >= square_N[rows].max():
                break  # neither this group nor those after it can hold anything nearer
            gap_NM3 = at_N3[rows, None] - other_M3[far.rows[group]]
            square_N[rows] = np.minimum(square_N[rows], np.einsum("nmx,nmx->nm", gap_NM3, gap_NM3).min(1))
    return chord_to_km(np.sqrt(square_N))


def find_nearest(at_NLL: NDArray[np.float64], other_MLL: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of the other place nearest to each, by the angle between them."""
    at_N3, other_M3 = to_unit_sphere(at_NLL), to_unit_sphere(other_MLL)
    step = max(1, _MAX_SIMILARITIES // len(other_M3))
    parts = [np.argmax(at_N3[i : i + step] @ other_M3.T, axis=1) for i in range(0, len(at_N3), step)]
    return np.concatenate(parts)


def _group_neighbours(at_N3: NDArray[np.float64], size: int) -> _Groups:
    """Split places at the median of their widest axis until groups have at most `size`."""
    waiting, rows = [np.arange(len(at_N3))], []
    while waiting:
        part = waiting.pop()
        if len(part) <= size:
            rows.append(part)
            continue
        axis = int(np.ptp(at_N3[part], axis=0).argmax())
        middle = len(part) // 2
        halved = part[np.argpartition(at_N3[part, axis], middle)]
        waiting += [halved[:middle], halved[middle:]]
    centre_L3 = np.stack([at_N3[part].mean(0) for part in rows])
    radius_L = [
        np.linalg.norm(at_N3[part] - centre, axis=1).max()
        for part, centre in zip(rows, centre_L3, strict=True)
    ]
    return _Groups(rows, centre_L3, np.array(radius_L))
