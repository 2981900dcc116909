"""Recipes: YAML in, checked values out, every mistake with its line."""

from __future__ import annotations

from geobind.recipe.loading import build_recipe, find_recipe, list_shipped, load_recipe
from geobind.recipe.parsing import Problem, RecipeProblems
from geobind.recipe.schema import Recipe, Stage

__all__ = [
    "Problem",
    "Recipe",
    "RecipeProblems",
    "Stage",
    "build_recipe",
    "find_recipe",
    "list_shipped",
    "load_recipe",
]
