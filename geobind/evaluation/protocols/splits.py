"""The splits that published figures on SoundingEarth rest on; the first two leak geography."""

# N rows in the order of the publication's table; C cells, in the order in which shuffled rows meet them

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geobind.errors import DataError

Words = NDArray[np.str_]

FEWEST = 25  # rows of a cell that may be held out
HELD_OUT = {"10km": 0.35, "degree": 0.10}  # share of those cells that is
VALIDATION = 0.40  # share of the held-out cells
SEED = 42  # of both random splits, in the published code


def soundingearth_split(keys: ArrayLike) -> Words:
    """SoundingEarth's split: by a recording's number modulo 10, 2 and 5 test, 7 validation, the rest train.

    Source: khdlr/SoundingEarth, data_loading.py. It goes by the recordings' own numbers, not by the order of
    rows; `numpy.arange(n)` stands in where rows have no number. Takes whole numbers (N,) and gives (N,) of
    "train", "val", "test".
    """
    digit_N = np.asarray(keys) % 10
    return np.select([np.isin(digit_N, (2, 5)), digit_N == 7], ["test", "val"], "train")


def geoclap_split(n: int, seed: int = SEED) -> Words:
    """GeoCLAP's split of `n` rows: shuffled, then cut at 70 and 80 %.

    Source: mvrl/geoclap, data_prep/data_split.py; `n` = 50,792 gives 35,554/5,079/10,159. The seed is the
    published one, and the shuffle is pandas' (numpy's legacy generator): the rows are GeoCLAP's if, and only
    if, they come in the order of its metadata table, which was not published.
    """
    word_N = np.empty(n, dtype="<U5")
    order_N = np.random.RandomState(seed).permutation(n)
    for word, part_P in zip(
        ("train", "val", "test"), np.split(order_N, [int(0.70 * n), int(0.8 * n)]), strict=True
    ):
        word_N[part_P] = word
    return word_N


def psm_split(
    lat: ArrayLike, lon: ArrayLike, seed: int = SEED, cells: Literal["10km", "degree"] = "10km"
) -> Words:
    """PSM's split by cells: of those with 25 rows or more some are held out, the same share at each density.

    Source: mvrl/PSM, geoclap/data_prep/data_split_soundingEarth.py ("10km": SoundingEarth, 35 % of the cells)
    and data_split.py ("degree": GeoSound, 10 %, before rows are sampled to match the sources' shares, which
    is left out here). Two quirks of the 10 km cells are kept: a cell's width follows each row's own latitude,
    and one cell number stands for several places on Earth, since 360 columns are counted where there are
    thousands. As with `geoclap_split`, the cells held out are PSM's only for rows in its order.

    Args:
        lat: Degrees north (N,).
        lon: Degrees east (N,).
        seed: Shuffles the rows and draws the cells; the published one by default.
        cells: Which of the two.

    Returns:
        "train", "val" or "test" for each row (N,).

    Raises:
        DataError: A row without a place.
    """
    lat_N, lon_N = np.asarray(lat, dtype=np.float64), np.asarray(lon, dtype=np.float64)
    unknown_N = ~(np.isfinite(lat_N) & np.isfinite(lon_N))
    if unknown_N.any():
        raise DataError(f"psm_split: row {int(np.argmax(unknown_N))} has no place; leave such rows out")
    cell_N = _cells(lat_N, lon_N, cells)
    shuffled_N = cell_N[np.random.RandomState(seed).permutation(len(cell_N))]
    sorted_C, first_C, count_C = np.unique(shuffled_N, return_index=True, return_counts=True)
    met_C = np.argsort(first_C)
    held_out, validation = _drawn(sorted_C[met_C], count_C[met_C], HELD_OUT[cells], seed)
    return np.select([np.isin(cell_N, validation), np.isin(cell_N, held_out)], ["val", "test"], "train")


def _cells(lat_N: NDArray[np.float64], lon_N: NDArray[np.float64], cells: str) -> NDArray[np.int64]:
    if cells == "degree":
        return (lat_N + 90).astype(np.int64) * 360 + (lon_N + 180).astype(np.int64)
    km_per_degree = 111.0
    row_N = (lat_N + 90) // (10.0 / km_per_degree)
    column_N = (lon_N + 180) // (10.0 / (km_per_degree * np.cos(np.radians(lat_N))))
    return row_N.astype(np.int64) * 360 + column_N.astype(np.int64)


def _drawn(
    cell_C: NDArray[np.int64], count_C: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cells held out, and those of them for validation."""
    large = count_C >= FEWEST
    cell_C, count_C = cell_C[large], count_C[large]
    if not len(cell_C):
        return cell_C, cell_C
    few, many = np.quantile(count_C, 0.33), np.quantile(count_C, 0.66)
    random = np.random.RandomState(seed)
    held_out: list[NDArray[np.int64]] = []
    validation: list[NDArray[np.int64]] = []
    for density in (count_C <= few, (count_C > few) & (count_C <= many), count_C > many):
        there = cell_C[density]
        if len(there):
            held_out.append(random.choice(there, int(share * len(there)), replace=False))
        if len(there) and len(held_out[-1]):
            validation.append(random.choice(held_out[-1], int(VALIDATION * len(held_out[-1])), replace=False))
    nothing = np.zeros(0, dtype=np.int64)
    return np.concatenate([nothing, *held_out]), np.concatenate([nothing, *validation])
