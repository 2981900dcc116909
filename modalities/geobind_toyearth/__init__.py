"""A procedural planet with ground truth: places have facts; tiles, photos, sounds and captions show them.

It stands in for the Earth where nothing may be downloaded: tutorials, tests, demonstrations. It is a toy:
a figure measured on it says nothing of the Earth.
"""

from __future__ import annotations

from geobind_toyearth.captions import write_captions
from geobind_toyearth.photos import render_photos
from geobind_toyearth.planet import FACT_NOTES, FACTS, Places, Planet
from geobind_toyearth.sounds import render_sounds
from geobind_toyearth.tiles import render_tiles

__all__ = [
    "FACTS",
    "FACT_NOTES",
    "Places",
    "Planet",
    "render_photos",
    "render_sounds",
    "render_tiles",
    "write_captions",
]
