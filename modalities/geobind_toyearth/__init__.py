"""A procedural planet with ground truth: places have facts; tiles, photos, sounds and captions show them.

It stands in for the Earth where nothing may be downloaded: tutorials, tests, demonstrations. It is a toy:
a figure measured on it says nothing of the Earth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind_toyearth.captions import write_captions as write_captions
    from geobind_toyearth.dataset import ToyEarth as ToyEarth
    from geobind_toyearth.photos import render_photos as render_photos
    from geobind_toyearth.planet import FACT_NOTES as FACT_NOTES
    from geobind_toyearth.planet import FACTS as FACTS
    from geobind_toyearth.planet import Places as Places
    from geobind_toyearth.planet import Planet as Planet
    from geobind_toyearth.sounds import render_sounds as render_sounds
    from geobind_toyearth.tiles import render_tiles as render_tiles

_HOMES = {
    "FACTS": "geobind_toyearth.planet",
    "FACT_NOTES": "geobind_toyearth.planet",
    "Places": "geobind_toyearth.planet",
    "Planet": "geobind_toyearth.planet",
    "ToyEarth": "geobind_toyearth.dataset",
    "render_photos": "geobind_toyearth.photos",
    "render_sounds": "geobind_toyearth.sounds",
    "render_tiles": "geobind_toyearth.tiles",
    "write_captions": "geobind_toyearth.captions",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
