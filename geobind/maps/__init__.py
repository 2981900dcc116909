"""Maps of queries over archives: similarity, classes and changes as cloud-optimized GeoTIFFs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind.maps.cog import paint_map as paint_map
    from geobind.maps.cog import write_map as write_map
    from geobind.maps.similarity import ClassMap as ClassMap
    from geobind.maps.similarity import QueryMap as QueryMap
    from geobind.maps.similarity import find_regions as find_regions
    from geobind.maps.similarity import map_change as map_change
    from geobind.maps.similarity import map_classes as map_classes
    from geobind.maps.similarity import map_query as map_query

_HOMES = {
    "ClassMap": "geobind.maps.similarity",
    "QueryMap": "geobind.maps.similarity",
    "find_regions": "geobind.maps.similarity",
    "map_change": "geobind.maps.similarity",
    "map_classes": "geobind.maps.similarity",
    "map_query": "geobind.maps.similarity",
    "paint_map": "geobind.maps.cog",
    "write_map": "geobind.maps.cog",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
