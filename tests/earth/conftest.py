"""A small Earth of made-up rasters: every grid is drawn, no package is read."""

import numpy as np
import pytest

from geobind.utils.geo import to_unit_sphere
from geobind_earth import grids, places, towns, words
from geobind_earth.grids import Grid

HEIGHT = 90


def draw_grids():
    generator = np.random.default_rng(0)
    row, column = np.meshgrid(np.arange(HEIGHT), np.arange(2 * HEIGHT), indexing="ij")
    sea = (np.sin(column / 9) + np.cos(row / 7)) < -0.9
    climate = np.where(sea, 32, 1 + (row + column) // 12 % 31)
    cover = np.where(sea, 0, 1 + (row // 5 + column // 7) % 16)
    colour = generator.integers(0, 256, (HEIGHT, 2 * HEIGHT, 3))
    return {
        "satellite": colour,
        "heights": np.where(sea, 255, 16 + (row * 3 + column) % 100),
        "turbidity": generator.integers(20, 100, (HEIGHT, 2 * HEIGHT, 12)),
        "climate": climate,
        "land_cover": cover,
    }


def draw_towns():
    generator = np.random.default_rng(1)
    lat_T, lon_T = generator.uniform(-50, 70, 400), generator.uniform(-180, 180, 400)
    return towns.Towns(
        lat_T,
        lon_T,
        tuple(f"Town{number}" for number in range(400)),
        ("Land",) * 400,
        ("Europe",) * 400,
        generator.uniform(5e3, 2e6, 400),
        to_unit_sphere(np.stack([lat_T, lon_T], axis=1)).astype(np.float32),
    )


@pytest.fixture
def small_earth(monkeypatch, tmp_path):
    drawn = {
        name: Grid(values.astype(np.uint8).reshape(HEIGHT, 2 * HEIGHT, -1))
        for name, values in draw_grids().items()
    }
    listed = draw_towns()
    monkeypatch.setattr(places, "open_grid", drawn.__getitem__)
    for module in (places, words):
        monkeypatch.setattr(module, "list_towns", lambda: listed)
    monkeypatch.setattr(grids, "locate_source", lambda name: tmp_path)
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    places._land.cache_clear()
    yield drawn
    places._land.cache_clear()
