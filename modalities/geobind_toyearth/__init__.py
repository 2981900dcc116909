"""A procedural planet with ground truth: places have facts, which tiles, photos, sounds and more show.

It stands in for the Earth where nothing may be downloaded: tutorials, tests, demonstrations. It is a toy:
a figure measured on it says nothing of the Earth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind_toyearth.cameras import render_clips as render_clips
    from geobind_toyearth.cameras import render_depths as render_depths
    from geobind_toyearth.captions import write_captions as write_captions
    from geobind_toyearth.dataset import ToyEarth as ToyEarth
    from geobind_toyearth.motion import render_motions as render_motions
    from geobind_toyearth.photos import render_photos as render_photos
    from geobind_toyearth.planet import FACT_NOTES as FACT_NOTES
    from geobind_toyearth.planet import FACTS as FACTS
    from geobind_toyearth.planet import Places as Places
    from geobind_toyearth.planet import Planet as Planet
    from geobind_toyearth.rasters import render_heights as render_heights
    from geobind_toyearth.rasters import render_lights as render_lights
    from geobind_toyearth.rasters import render_temperatures as render_temperatures
    from geobind_toyearth.sounds import render_sounds as render_sounds
    from geobind_toyearth.tiles import render_tiles as render_tiles
    from geobind_toyearth.vectors import COVARIATES as COVARIATES
    from geobind_toyearth.vectors import embed_places as embed_places
    from geobind_toyearth.vectors import measure_covariates as measure_covariates

_HOMES = {
    "COVARIATES": "geobind_toyearth.vectors",
    "FACTS": "geobind_toyearth.planet",
    "FACT_NOTES": "geobind_toyearth.planet",
    "Places": "geobind_toyearth.planet",
    "Planet": "geobind_toyearth.planet",
    "ToyEarth": "geobind_toyearth.dataset",
    "embed_places": "geobind_toyearth.vectors",
    "measure_covariates": "geobind_toyearth.vectors",
    "render_clips": "geobind_toyearth.cameras",
    "render_depths": "geobind_toyearth.cameras",
    "render_heights": "geobind_toyearth.rasters",
    "render_lights": "geobind_toyearth.rasters",
    "render_motions": "geobind_toyearth.motion",
    "render_photos": "geobind_toyearth.photos",
    "render_sounds": "geobind_toyearth.sounds",
    "render_temperatures": "geobind_toyearth.rasters",
    "render_tiles": "geobind_toyearth.tiles",
    "write_captions": "geobind_toyearth.captions",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
