"""Real Earth: co-located observations of real places, made from global rasters inside packages.

Tiles, heights, climate, land cover, coordinates and words of thousands of places on land, with their sources
and licences; nothing is downloaded while they are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind_earth.dataset import Earth as Earth
    from geobind_earth.grids import Grid as Grid
    from geobind_earth.grids import cut_windows as cut_windows
    from geobind_earth.grids import open_grid as open_grid

_HOMES = {
    "Earth": "geobind_earth.dataset",
    "Grid": "geobind_earth.grids",
    "cut_windows": "geobind_earth.grids",
    "open_grid": "geobind_earth.grids",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
