"""Places on land, drawn over the Earth, in splits of whole blocks with a buffer, and the facts of each."""

# N places, M candidates, S pixels along a side of a window, K classes of land cover

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geobind.errors import DataError
from geobind.utils.geo import assign_cells, nearest_km
from geobind_earth.dataset import Earth
from geobind_earth.grids import SEA, Grid, cut_windows, open_grid, to_metres
from geobind_earth.towns import Towns, find_nearest_towns, list_towns

SOUTH, NORTH = -56.0, 80.0  # beyond lie ice and rasters without values
COAST_KM = 20.0
_SHARES = {"land": 0.65, "coast": 0.15, "town": 0.20}  # of the places of a split
_TOWN_SPREAD_KM = 10.0  # a place drawn by a town lies about this far from it
_SPACING_KM = 15.0  # at most one place in a cell of this size
_ROUNDS = 12  # of drawing; the defaults take two or three
_HELD_OUT_BLOCKS = {"test": 0.2, "val": 0.1}  # shares of the blocks
_CHUNK = 500  # places whose windows are held in memory at a time
CLASSES = 17  # of IGBP's legend: 0 water, 1 to 16 land
_NEAR_KM = 50.0  # towns that count as a place's population
FACTS = ("height_m", "relief_m", "water", "forest", "crops", "urban", "population", "turbidity")
FOREST, CROPS, URBAN = (1, 2, 3, 4, 5), (12, 14), (13,)


class LandPlaces(NamedTuple):
    """Places on land, each with its split and what was measured in its window."""

    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    split: NDArray[np.str_]
    kind: NDArray[np.str_]  # how it was drawn: land, coast or town
    tile_NSS3: NDArray[np.uint8]
    metres_NSS: NDArray[np.float32]
    turbidity_N12: NDArray[np.float32]
    zone_N: NDArray[np.uint8]  # of Koeppen and Geiger, 1 to 31
    cover_NK: NDArray[np.float32]  # shares of the window, which sum to 1
    population_N: NDArray[np.float64]  # in towns within 50 km

    def facts(self) -> NDArray[np.float32]:
        """Return the facts of each place, in the order of FACTS: (N, 8)."""
        flat = self.metres_NSS.reshape(len(self.lat), -1)
        columns = (
            flat.mean(1),
            flat.max(1) - flat.min(1),
            self.cover_NK[:, 0],
            self.cover_NK[:, FOREST].sum(1),
            self.cover_NK[:, CROPS].sum(1),
            self.cover_NK[:, URBAN].sum(1),
            self.population_N,
            self.turbidity_N12.mean(1),
        )
        return np.stack(columns, axis=1).astype(np.float32)


def name_blocks(lat_N: NDArray[np.float64], lon_N: NDArray[np.float64], degrees: int) -> NDArray[np.str_]:
    """Return the block of each place, such as `b4_-2`: its row and column on a grid of so many degrees."""
    rows = np.floor(lat_N / degrees).astype(int)
    columns = np.floor(((lon_N + 180) % 360 - 180) / degrees).astype(int)
    return np.array([f"b{row}_{column}" for row, column in zip(rows, columns, strict=True)])


def draw_places(options: Earth) -> LandPlaces:
    """Draw places on land until every split is full, and measure their windows.

    Whole blocks are held out; a training place nearer to a held-out one than the buffer is not taken.

    Raises:
        DataError: The Earth has too few such places, or a package is missing.
    """
    generator = np.random.default_rng([options.seed, 0])
    wanted = {"train": options.places, "test": options.held_out, "val": options.validation}
    chosen: list[_Candidates] = []
    split_of_block = _assign_blocks(options)
    pool = _Candidates.none()
    for split in ("test", "val", "train"):  # training rows keep their distance from those drawn before
        far_from = _Candidates.join(chosen)
        for _ in range(_ROUNDS):
            own = pool.take(_usable(pool, split, split_of_block, options, far_from))
            if all(
                np.count_nonzero(own.kind == kind) >= count
                for kind, count in _count_kinds(wanted[split]).items()
            ):
                break
            pool = pool.join([pool, _draw_candidates(generator, 2 * max(wanted.values()) + 1000)]).thin()
        else:
            raise DataError(
                f"earth: the land has too few places for {wanted[split]:,} of split '{split}' with blocks of "
                f"{options.block_degrees} degrees and a buffer of {options.buffer_km:g} km; ask for fewer"
            )
        rows = [
            np.flatnonzero(own.kind == kind)[:count] for kind, count in _count_kinds(wanted[split]).items()
        ]
        chosen.append(own.take(np.sort(np.concatenate(rows))))
    order = ("train", "test", "val")
    by_split = dict(zip(("test", "val", "train"), chosen, strict=True))
    places = _Candidates.join([by_split[split] for split in order])
    splits = np.repeat(order, [len(by_split[split].lat) for split in order])
    return _measure(places, splits, options)


def _count_kinds(places: int) -> dict[str, int]:
    coast, town = (int(places * _SHARES[kind]) for kind in ("coast", "town"))
    return {"land": places - coast - town, "coast": coast, "town": town}


class _Candidates(NamedTuple):
    """Places that may be taken, in the order in which they were drawn."""

    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    kind: NDArray[np.str_]

    @classmethod
    def none(cls) -> _Candidates:
        return cls(np.empty(0), np.empty(0), np.empty(0, "<U5"))

    @classmethod
    def join(cls, parts: list[_Candidates]) -> _Candidates:
        return cls(*(np.concatenate(column) for column in zip(*(parts or [cls.none()]), strict=True)))

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> _Candidates:
        return _Candidates(self.lat[rows], self.lon[rows], self.kind[rows])

    def at(self) -> NDArray[np.float64]:
        return np.stack([self.lat, self.lon], axis=1)

    def thin(self) -> _Candidates:
        """Keep the first place of each cell of the spacing."""
        _, first = np.unique(assign_cells(self.at(), _SPACING_KM), return_index=True)
        return self.take(np.sort(first))


def _usable(
    pool: _Candidates, split: str, split_of_block: dict[str, str], options: Earth, held_out: _Candidates
) -> NDArray[np.bool_]:
    blocks = name_blocks(pool.lat, pool.lon, options.block_degrees)
    own = np.array([split_of_block.get(block) == split for block in blocks], bool)
    if split == "train" and len(held_out.lat) and options.buffer_km and own.any():
        own[own] = nearest_km(pool.at()[own], held_out.at()) >= options.buffer_km
    return own


def _assign_blocks(options: Earth) -> dict[str, str]:
    degrees = options.block_degrees
    rows = range(int(np.floor(SOUTH / degrees)), int(np.ceil(NORTH / degrees)))
    columns = range(int(np.floor(-180 / degrees)), int(np.ceil(180 / degrees)))
    names = [f"b{row}_{column}" for row in rows for column in columns]
    drawn = np.random.default_rng([options.seed, 1]).random(len(names))
    test, val = _HELD_OUT_BLOCKS["test"], _HELD_OUT_BLOCKS["test"] + _HELD_OUT_BLOCKS["val"]
    return {
        name: "test" if value < test else "val" if value < val else "train"
        for name, value in zip(names, drawn, strict=True)
    }


def _draw_candidates(generator: np.random.Generator, count: int) -> _Candidates:
    """Draw places on land: over its area, on coasts, and beside towns."""
    low, high = np.sin(np.radians([SOUTH, NORTH]))
    lat_M = np.degrees(np.arcsin(generator.uniform(low, high, count)))
    lon_M = generator.uniform(-180, 180, count)
    coast_M = _is_coast(lat_M, lon_M)
    over_area = _Candidates(lat_M, lon_M, np.where(coast_M, "coast", "land"))
    towns = list_towns()
    row_M = generator.integers(0, len(towns.lat), count // 4)
    spread_km = generator.normal(0, _TOWN_SPREAD_KM, (2, len(row_M)))
    lat_M = towns.lat[row_M] + spread_km[0] / 111.2
    lon_M = towns.lon[row_M] + spread_km[1] / 111.2 / np.cos(np.radians(np.clip(towns.lat[row_M], -80, 80)))
    beside = _Candidates(lat_M, (lon_M + 180) % 360 - 180, np.full(len(row_M), "town"))
    drawn = _Candidates.join([over_area, beside])
    return drawn.take((drawn.lat >= SOUTH) & (drawn.lat < NORTH) & _is_land(drawn.lat, drawn.lon))


@lru_cache(maxsize=1)
def _land() -> Grid:
    """Return where there is land: 1 in every pixel of the climate raster that is not sea."""
    return Grid((open_grid("climate").values_HWC != SEA).astype(np.uint8))


def _is_land(lat_M: NDArray[np.float64], lon_M: NDArray[np.float64]) -> NDArray[np.bool_]:
    return _land().nearest(lat_M, lon_M)[..., 0] == 1


def _is_coast(lat_M: NDArray[np.float64], lon_M: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether the sea lies within 20 km in one of eight directions."""
    lat_MSS, lon_MSS = cut_windows(lat_M, lon_M, 3, COAST_KM * 3)
    return _land().nearest(lat_MSS, lon_MSS).reshape(len(lat_M), 9).min(1) == 0


def _measure(places: _Candidates, split_N: NDArray[np.str_], options: Earth) -> LandPlaces:
    """Cut every raster at every place."""
    towns = list_towns()
    parts = [
        _measure_chunk(places.take(np.arange(start, min(start + _CHUNK, len(places.lat)))), options, towns)
        for start in range(0, len(places.lat), _CHUNK)
    ]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return LandPlaces(places.lat, places.lon, split_N, places.kind, *columns)


def _measure_chunk(places: _Candidates, options: Earth, towns: Towns) -> tuple[NDArray[np.generic], ...]:
    lat_N, lon_N = places.lat, places.lon
    tile_NSS3 = open_grid("satellite").bilinear(
        *cut_windows(lat_N, lon_N, options.tile_size, options.side_km)
    )
    metres_NSS = open_grid("heights").bilinear(
        *cut_windows(lat_N, lon_N, options.height_size, options.side_km), to_metres
    )[..., 0]
    # 0.05 degrees are at most 5.6 km: no class of a pixel is missed.
    pixels = int(np.ceil(options.side_km / 4))
    class_NSS = open_grid("land_cover").nearest(*cut_windows(lat_N, lon_N, pixels, options.side_km))[..., 0]
    class_NP = np.where(class_NSS < CLASSES, class_NSS, 0).reshape(len(lat_N), -1)
    cover_NK = np.stack([(class_NP == k).mean(1) for k in range(CLASSES)], axis=1).astype(np.float32)
    turbidity_N12 = open_grid("turbidity").bilinear(lat_N, lon_N) / 20
    zone_N = open_grid("climate").nearest(lat_N, lon_N)[..., 0]
    population_N = find_nearest_towns(lat_N, lon_N, towns).count_people(_NEAR_KM)
    return np.rint(tile_NSS3).astype(np.uint8), metres_NSS, turbidity_N12, zone_N, cover_NK, population_N
