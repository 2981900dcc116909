"""What a recipe may leave open until its run begins: it must be settled before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning_fabric import Fabric

from geobind.errors import RecipeError
from geobind.recipe import Recipe

# Puts numbers in the place of what is open, on every process the same; it is given the run's folder.
Settle = Callable[[Recipe, Path, Fabric], Recipe]


def closed(recipe: Recipe, folder: Path, fabric: Fabric, settle: Settle | None) -> Recipe:
    """Return a recipe that leaves nothing open.

    Raises:
        RecipeError: It does, and nothing settles it.
        GeobindError: It cannot be settled on this machine.
    """
    recipe = settle(recipe, folder, fabric) if settle else recipe
    for stage in recipe.stages:
        if stage.open:
            raise RecipeError(
                f"stage '{stage.name}': `{stage.open[0]}: auto` is not settled; give `run` a "
                f"`geobind.planning.settle.Settling()`, as `geobind run` does, or write a number"
            )
    return recipe
