"""Towns of the Earth with their countries, and the nearest of each place."""

# T towns, N places

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geobind.utils.geo import chord_to_km, km_to_chord, to_unit_sphere
from geobind_earth.grids import locate_source

_CHUNK = 250  # places compared with all towns at a time
_CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}


class Towns(NamedTuple):
    """Towns of at least 5,000 people."""

    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    name: tuple[str, ...]
    country: tuple[str, ...]  # its English name
    continent: tuple[str, ...]
    people: NDArray[np.float64]
    sphere_T3: NDArray[np.float32]


@lru_cache(maxsize=1)
def list_towns() -> Towns:
    """Read the towns of GeoNames, in the order of their numbers.

    Raises:
        DataError: The package that holds them is not installed.
    """
    countries = json.loads(locate_source("countries").read_text(encoding="utf-8"))
    rows = json.loads(locate_source("towns").read_text(encoding="utf-8"))
    rows = [rows[number] for number in sorted(rows, key=int) if rows[number]["countrycode"] in countries]
    lat_T, lon_T, people_T = (
        np.array([float(row[key]) for row in rows]) for key in ("latitude", "longitude", "population")
    )
    owners = [countries[row["countrycode"]] for row in rows]
    return Towns(
        lat_T,
        lon_T,
        tuple(row["name"] for row in rows),
        tuple(owner["name"] for owner in owners),
        tuple(_CONTINENTS[owner["continentcode"]] for owner in owners),
        people_T,
        to_unit_sphere(np.stack([lat_T, lon_T], axis=1)).astype(np.float32),
    )


class NearTowns(NamedTuple):
    """The similarity of places to all towns, computed when asked."""

    sphere_N3: NDArray[np.float32]
    towns: Towns

    def count_people(self, within_km: float) -> NDArray[np.float64]:
        """Return the people of all towns within so many kilometres of each place."""
        least = 1 - km_to_chord(within_km) ** 2 / 2
        parts = [(chunk >= least) @ self.towns.people for chunk in self._cosines()]
        return np.concatenate([np.empty(0), *parts])

    def find_nearest(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the row of the nearest town of each place, and its distance in kilometres."""
        row_N = np.concatenate([np.empty(0, np.int64), *(chunk.argmax(1) for chunk in self._cosines())])
        chord_N = np.linalg.norm(self.sphere_N3 - self.towns.sphere_T3[row_N], axis=1).astype(np.float64)
        return row_N, chord_to_km(chord_N)

    def _cosines(self) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(self.sphere_N3), _CHUNK):
            yield self.sphere_N3[start : start + _CHUNK] @ self.towns.sphere_T3.T


def find_nearest_towns(lat_N: NDArray[np.float64], lon_N: NDArray[np.float64], towns: Towns) -> NearTowns:
    """Compare places with towns."""
    return NearTowns(to_unit_sphere(np.stack([lat_N, lon_N], axis=1)).astype(np.float32), towns)
