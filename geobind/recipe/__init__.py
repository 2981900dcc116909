"""Recipes: YAML in, checked values out, every mistake with its line."""

from __future__ import annotations

from geobind.recipe.loading import load_recipe, locate, recipe_from, shipped
from geobind.recipe.parsing import Problem, RecipeProblems
from geobind.recipe.schema import Recipe, Stage

__all__ = ["Problem", "Recipe", "RecipeProblems", "Stage", "load_recipe", "locate", "recipe_from", "shipped"]
