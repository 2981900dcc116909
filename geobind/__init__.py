"""geobind binds any kind of observation of a place to satellite imagery, in one embedding space."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geobind.binder import Binder as Binder
    from geobind.errors import GeobindError as GeobindError
    from geobind.hookspecs import hookimpl as hookimpl
    from geobind.modality import Modality as Modality
    from geobind.modality import Pair as Pair
    from geobind.modality import Place as Place
    from geobind.recipe import Recipe as Recipe
    from geobind.recipe import load_recipe as load_recipe

__version__ = "0.1.0"

_HOMES = {
    "Binder": "geobind.binder",
    "GeobindError": "geobind.errors",
    "Modality": "geobind.modality",
    "Pair": "geobind.modality",
    "Place": "geobind.modality",
    "Recipe": "geobind.recipe",
    "hookimpl": "geobind.hookspecs",
    "load_recipe": "geobind.recipe",
}
__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    # Resolved on first use, so that `import geobind` and `geobind --help` do not import torch.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'geobind' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
