"""The page: an archive of embeddings explored in a browser, by one process on one port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind.serving.app import build_app as build_app
    from geobind.serving.explorer import Explorer as Explorer
    from geobind.serving.explorer import load_bank as load_bank
    from geobind.serving.limits import Limits as Limits
    from geobind.serving.tiles import SceneRaster as SceneRaster

_HOMES = {
    "build_app": "geobind.serving.app",
    "Explorer": "geobind.serving.explorer",
    "Limits": "geobind.serving.limits",
    "load_bank": "geobind.serving.explorer",
    "SceneRaster": "geobind.serving.tiles",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
