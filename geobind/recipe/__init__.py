"""Recipes: YAML in, checked values out, every mistake with its line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind.recipe.loading import build_recipe as build_recipe
    from geobind.recipe.loading import load_recipe as load_recipe
    from geobind.recipe.parsing import Problem as Problem
    from geobind.recipe.parsing import RecipeProblems as RecipeProblems
    from geobind.recipe.schema import Recipe as Recipe
    from geobind.recipe.schema import Stage as Stage
    from geobind.recipe.shipped import find_recipe as find_recipe
    from geobind.recipe.shipped import list_shipped as list_shipped

_HOMES = {
    "Problem": "geobind.recipe.parsing",
    "Recipe": "geobind.recipe.schema",
    "RecipeProblems": "geobind.recipe.parsing",
    "Stage": "geobind.recipe.schema",
    "build_recipe": "geobind.recipe.loading",
    "find_recipe": "geobind.recipe.shipped",
    "list_shipped": "geobind.recipe.shipped",
    "load_recipe": "geobind.recipe.loading",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
