"""Scenes of toy Earth with objects whose boxes are known, such as woods and towns, in grassland."""

# N places, O objects, pixels of 10 m

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geobind_toyearth import FACTS, Places, Planet, render_tiles

TILE, TILES = 64, 8  # pixels of a tile of the ground, tiles along a side of the scene
SIDE = TILE * TILES
PLANET = 31  # recipes train on planet 0
GSD = 10.0  # metres to a pixel
CORNER = (500_000.0, 5_000_000.0)  # of EPSG:32631, west and north
# The ground between objects, and what each kind of object has in its place; other facts are the moment's.
GRASS = {
    **{"water": 0.0, "sea": 0.0, "forest": 0.12, "conifer": 0.03, "crops": 0.05, "bare": 0.05},
    **{"buildings": 0.05, "roads": 0.12, "relief": 0.25, "snow": 0.0},
}
KINDS: dict[str, dict[str, float]] = {
    "woods": {"forest": 0.9, "conifer": 0.3, "crops": 0.0, "bare": 0.0},
    "fields": {"crops": 0.9, "forest": 0.0, "bare": 0.0, "relief": 0.1},
    "sand": {"bare": 0.95, "forest": 0.0, "crops": 0.0},
    "town": {"buildings": 0.85, "roads": 0.7, "forest": 0.05, "relief": 0.1},
    "snow": {"snow": 1.0},
    "sea": {"sea": 1.0, "water": 1.0, "forest": 0.0, "crops": 0.0, "bare": 0.0, "roads": 0.0, "relief": 0.1},
}
SIZES = (40, TILE)  # smallest and largest side of an object, in pixels
GAP = 10  # pixels between objects, at least


class ToyScene(NamedTuple):
    """A scene and its objects."""

    image_HWC: NDArray[np.uint8]
    kinds: tuple[str, ...]  # of the objects (O,)
    box_O4: NDArray[np.int64]  # left, top, right, bottom in pixels


def set_facts(places: Places, kind: str) -> Places:
    """Return places with the facts of grassland, or of a kind of object on it."""
    facts_NF = places.facts.copy()
    for name, value in (GRASS | KINDS.get(kind, {})).items():
        facts_NF[:, FACTS.index(name)] = value
    return places._replace(facts=facts_NF)


def draw_places(count: int, seed: int, planet: int) -> Places:
    """Draw places by day and in fair weather, at random moments."""
    drawn = Planet(planet).places(20 * count + 100, seed=seed)
    fact = dict(zip(FACTS, drawn.facts.T, strict=True))
    fair_N = (fact["daylight"] > 0.5) & (fact["rain"] < 0.3) & (fact["wind"] < 0.5)
    return drawn.take(np.flatnonzero(fair_N)[:count])


def render(places: Places, kind: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render a tile (H, W, 3) of a kind of ground; each has a seed, so that no two are alike."""
    return render_tiles(set_facts(places, kind), int(rng.integers(2**31)), TILE, GSD)[0]


def build_scene(seed: int, number: int) -> ToyScene:
    """Build scene `number` of a seed: grassland with one or two objects of each kind, never overlapping.

    It lies on a planet that no recipe trains on, and all of it is seen at one moment.
    """
    rng = np.random.default_rng((seed, number))
    places = draw_places(number + 1, seed, PLANET).take([number])
    ground = [render(places, "grass", rng) for _ in range(TILES**2)]
    grid_RCHWB = np.stack(ground).reshape(TILES, TILES, TILE, TILE, 3)
    image_HWC = grid_RCHWB.swapaxes(1, 2).reshape(SIDE, SIDE, 3).copy()
    kinds: list[str] = []
    boxes: list[tuple[int, int, int, int]] = []
    wanted = [kind for kind in KINDS for _ in range(int(rng.integers(1, 3)))]
    for kind in rng.permutation(wanted).tolist():
        box = _find_room(rng, boxes)
        if box is None:
            continue
        left, top, right, bottom = box
        image_HWC[top:bottom, left:right] = render(places, kind, rng)[: bottom - top, : right - left]
        kinds.append(kind)
        boxes.append(box)
    return ToyScene(image_HWC, tuple(kinds), np.array(boxes, np.int64).reshape(-1, 4))


def _find_room(
    rng: np.random.Generator, boxes: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    """Draw a box that keeps its distance from others; None where a hundred draws find none."""
    for _ in range(100):
        width = int(rng.integers(SIZES[0], SIZES[1] + 1))
        height = int(np.clip(width * rng.uniform(0.8, 1.25), *SIZES))
        left, top = (int(rng.integers(GAP, SIDE - GAP - side)) for side in (width, height))
        box = (left, top, left + width, top + height)
        apart = (
            left > other[2] + GAP
            or box[2] + GAP < other[0]
            or top > other[3] + GAP
            or box[3] + GAP < other[1]
            for other in boxes
        )
        if all(apart):
            return box
    return None


def write_scene(scene: ToyScene, path: Path) -> Path:
    """Write a scene as a GeoTIFF of UTM zone 31."""
    import rasterio

    transform = rasterio.Affine(GSD, 0, CORNER[0], 0, -GSD, CORNER[1])
    height, width, bands = scene.image_HWC.shape
    with rasterio.open(
        path, "w", "GTiff", width, height, bands, dtype="uint8", crs="EPSG:32631", transform=transform
    ) as file:
        file.write(scene.image_HWC.transpose(2, 0, 1))
    return path
