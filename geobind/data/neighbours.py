"""Neighbour batches: groups of rows near enough to look alike, too far apart to be the same."""

# N rows, K of them with a place, C groups, T steps of an epoch, B rows of a batch

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from geobind.data.options import NeighbourOptions
from geobind.utils.geo import EARTH_KM, km_to_chord, to_unit_sphere

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]

_ROUNDS = 3  # times that cells are laid over the places still in no group


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Latitudes and longitudes of rows in degrees; NaN where unknown."""

    lat_N: Floats
    lon_N: Floats

    def __len__(self) -> int:
        return len(self.lat_N)


@lru_cache(maxsize=8)  # several sources take turns
def neighbour_batches(
    places: Coordinates, options: NeighbourOptions, batch_size: int, seed: int, epoch: int
) -> Ints:
    """Return the rows of every step of an epoch, as (T, B): each row once, but those that fill no batch.

    A group has two to `options.group_size` rows, every two of them at least `min_km` and at most `max_km`
    apart. Groups are formed anew each epoch. Where places are too scattered for the share asked for, batches
    hold fewer groups and more of the other rows.
    """
    count, steps = len(places), len(places) // batch_size
    rng = np.random.default_rng([seed, epoch])
    row_N, group_N = _form_groups(places, options, rng)
    size_C = np.bincount(group_N[group_N >= 0])
    step_C = _deal_groups(size_C, steps, batch_size, min(batch_size, round(options.share * batch_size)), rng)
    in_group = group_N >= 0
    step_N = np.where(in_group, step_C[group_N] if len(step_C) else -1, -1)
    free_T = batch_size - np.bincount(step_N[step_N >= 0], minlength=steps)
    alone_N = np.flatnonzero(step_N < 0)
    filled_T = np.repeat(np.arange(steps), free_T)
    step_N[rng.permutation(alone_N)[: len(filled_T)]] = filled_T
    # Shuffled inside a batch, so that every process has rows of all kinds.
    order_N = np.lexsort((rng.random(count), step_N))
    batches_TB = row_N[order_N[count - steps * batch_size :]].reshape(steps, batch_size)
    batches_TB.flags.writeable = False  # it is cached
    return batches_TB


def compute_grouped_share(
    places: Coordinates, options: NeighbourOptions, batch_size: int, seed: int
) -> float:
    """Return which share of the first epoch's rows comes in groups."""
    rng = np.random.default_rng([seed, 0])
    _, group_N = _form_groups(places, options, rng)
    size_C, steps = np.bincount(group_N[group_N >= 0]), len(places) // batch_size
    grouped_rows = min(batch_size, round(options.share * batch_size))
    kept_C = _deal_groups(size_C, steps, batch_size, grouped_rows, rng) >= 0
    return float(size_C[kept_C].sum() / (steps * batch_size)) if len(size_C) else 0.0


def _deal_groups(
    size_C: Ints, steps: int, batch_size: int, grouped_rows: int, rng: np.random.Generator
) -> Ints:
    """Assign groups to steps evenly, up to `wanted` rows a step; -1 for groups that fit nowhere."""
    step_C = np.full(len(size_C), -1)
    order_C = rng.permutation(len(size_C))
    end_C = np.cumsum(size_C[order_C])
    order_C = order_C[end_C <= steps * grouped_rows]
    if not len(order_C):
        return step_C
    end_C = end_C[: len(order_C)]
    start_C = end_C - size_C[order_C]
    step_of_C = start_C * steps // end_C[-1]
    first_T = np.searchsorted(step_of_C, np.arange(steps))
    fits_C = end_C - start_C[first_T[step_of_C]] <= batch_size
    step_C[order_C[fits_C]] = step_of_C[fits_C]
    return step_C


def _form_groups(
    places: Coordinates, options: NeighbourOptions, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return rows in random order with the group of each, -1 for rows in no group.

    What is cut apart by the edges of cells is tried again with cells that lie elsewhere.
    """
    row_N = rng.permutation(len(places))
    group_N = np.full(len(places), -1)
    known_N = np.isfinite(places.lat_N[row_N]) & np.isfinite(places.lon_N[row_N])
    for _ in range(_ROUNDS):
        open_K = np.flatnonzero(known_N & (group_N < 0))
        if len(open_K) < 2:
            break
        group_K = _group_by_cells(places.lat_N[row_N[open_K]], places.lon_N[row_N[open_K]], options, rng)
        group_N[open_K[group_K >= 0]] = group_K[group_K >= 0] + group_N.max() + 1
    return row_N, group_N


def _group_by_cells(
    lat_K: Floats, lon_K: Floats, options: NeighbourOptions, rng: np.random.Generator
) -> Ints:
    """Return the group of each place, formed by cells; -1 for places in no group.

    Places of one large cell are near enough. Small cells are coloured like a chessboard of four colours: two
    places in different small cells of one colour have a whole cell between them. So places of one large cell
    and one colour, at most one from each small cell, are also far enough from each other.
    """
    lat_K, lon_K = _rotate_sphere(lat_K, lon_K, rng)
    chord = km_to_chord(options.max_km)
    large_K = _number_combinations(*_near_cells(lat_K, lon_K, chord / np.sqrt(2)))
    turn_K = colour_K = np.zeros(len(lat_K), dtype=np.int64)
    if options.min_km:
        band_K, column_K = _distant_cells(lat_K, lon_K, options.min_km / EARTH_KM)
        colour_K = band_K % 2 * 2 + column_K % 2
        turn_K = _rank_in_class(_number_combinations(large_K, band_K, column_K))
    class_K = _number_combinations(large_K, colour_K, turn_K)
    size_C = np.bincount(class_K)
    parts_C = -(-size_C // options.group_size)  # of equal size, but for one
    first_C = np.cumsum(parts_C) - parts_C
    part_K = first_C[class_K] + _rank_in_class(class_K) * parts_C[class_K] // size_C[class_K]
    several_K = np.bincount(part_K)[part_K] > 1
    group_K = np.full(len(lat_K), -1)
    group_K[several_K] = _number_combinations(part_K[several_K])
    return group_K


def _rotate_sphere(lat_K: Floats, lon_K: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Rotate the sphere at random, so that cells differ each time; in radians, longitudes from 0."""
    at_K3 = to_unit_sphere(np.stack([lat_K, lon_K], axis=1))
    x_K, y_K, z_K = (at_K3 @ np.linalg.qr(rng.normal(size=(3, 3)))[0]).T
    return np.arcsin(np.clip(z_K, -1, 1)), np.arctan2(y_K, x_K) + np.pi


def _near_cells(lat_K: Floats, lon_K: Floats, side: float) -> tuple[Ints, Ints]:
    """Assign cells, as band and column, at most `side` high and wide, measured as chords."""
    bands = int(np.ceil(np.pi / side))
    band_K, south_K, north_K = _assign_bands(lat_K, bands)
    widest_K = np.cos(np.where(south_K * north_K < 0, 0, np.minimum(np.abs(south_K), np.abs(north_K))))
    half_K = np.arcsin(np.minimum(1, side / (2 * np.maximum(widest_K, 1e-9))))
    return band_K, _assign_columns(lon_K, np.ceil(np.pi / half_K).astype(np.int64))


def _distant_cells(lat_K: Floats, lon_K: Floats, angle: float) -> tuple[Ints, Ints]:
    """Assign cells, as band and column, at least `angle` high and wide; bands have even columns."""
    bands = max(1, int(np.pi / angle))
    band_K, south_K, north_K = _assign_bands(lat_K, bands)
    narrowest_K = np.cos(np.maximum(np.abs(south_K), np.abs(north_K)))
    half_K = np.arcsin(np.minimum(1, np.sin(min(angle, np.pi) / 2) / np.maximum(narrowest_K, 1e-9)))
    count_K = np.maximum(2, (np.pi / half_K).astype(np.int64) // 2 * 2)
    return band_K, _assign_columns(lon_K, count_K)


def _assign_bands(lat_K: Floats, bands: int) -> tuple[Ints, Floats, Floats]:
    """Assign each latitude to a band; return it with the band's limits."""
    band_K = np.clip(((lat_K / np.pi + 0.5) * bands).astype(np.int64), 0, bands - 1)
    return band_K, (band_K / bands - 0.5) * np.pi, ((band_K + 1) / bands - 0.5) * np.pi


def _assign_columns(lon_K: Floats, count_K: Ints) -> Ints:
    return (lon_K / (2 * np.pi) * count_K).astype(np.int64) % count_K


def _number_combinations(*keys_K: Ints) -> Ints:
    """Assign numbers from 0 to the distinct combinations of keys."""
    order_K = np.lexsort(keys_K)
    new_K = np.zeros(len(order_K), dtype=bool)
    for key_K in keys_K:
        new_K[1:] |= np.diff(key_K[order_K]) != 0
    number_K = np.empty(len(order_K), dtype=np.int64)
    number_K[order_K] = np.cumsum(new_K)
    return number_K


def _rank_in_class(class_K: Ints) -> Ints:
    """Count, for each row, the earlier rows of its class."""
    order_K = np.argsort(class_K, kind="stable")
    size_C = np.bincount(class_K)
    place_K = np.empty(len(class_K), dtype=np.int64)
    place_K[order_K] = np.arange(len(class_K)) - np.repeat(np.cumsum(size_C) - size_C, size_C)
    return place_K
