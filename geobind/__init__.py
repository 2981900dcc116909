"""geobind binds any kind of observation of a place to satellite imagery, in one embedding space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind.binder import Binder as Binder
    from geobind.data.table import open_table as open_table
    from geobind.errors import GeobindError as GeobindError
    from geobind.hookspecs import hookimpl as hookimpl
    from geobind.modality import Content as Content
    from geobind.modality import Modality as Modality
    from geobind.modality import Pair as Pair
    from geobind.modality import Place as Place
    from geobind.modality import Role as Role
    from geobind.plugins import register as register
    from geobind.recipe import Recipe as Recipe
    from geobind.recipe import load_recipe as load_recipe
    from geobind.testing import check_modality as check_modality
    from geobind.training.run import run as run

__version__ = "0.1.0"

_HOMES = {
    "Binder": "geobind.binder",
    "Content": "geobind.modality",
    "GeobindError": "geobind.errors",
    "Modality": "geobind.modality",
    "Pair": "geobind.modality",
    "Place": "geobind.modality",
    "Recipe": "geobind.recipe",
    "Role": "geobind.modality",
    "check_modality": "geobind.testing",
    "hookimpl": "geobind.hookspecs",
    "load_recipe": "geobind.recipe",
    "open_table": "geobind.data.table",
    "register": "geobind.plugins",
    "run": "geobind.training.run",
}
__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
