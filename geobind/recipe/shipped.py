"""The recipes that come with geobind, by name."""

from __future__ import annotations

from pathlib import Path

from geobind.errors import did_you_mean

# In a wheel the recipes lie inside the package; in a checkout beside it.
_HERE = Path(__file__).resolve().parents[1]
_SHELVES = (_HERE / "recipes", _HERE.parent / "recipes")


def recipe_folders() -> list[Path]:
    """Return the folders of the shipped recipes."""
    return [shelf for shelf in _SHELVES if shelf.is_dir()]


def list_shipped() -> dict[str, Path]:
    """Return the shipped recipes by name."""
    files = (file for shelf in recipe_folders() for file in sorted(shelf.glob("*.yaml")))
    return {file.stem: file for file in files}


def list_shipped_questions() -> dict[str, Path]:
    """Return the shipped files of questions in words by name."""
    files = (file for shelf in recipe_folders() for file in sorted(shelf.glob("questions/*.yaml")))
    return {file.stem: file for file in files}


def find_recipe(name: str | Path) -> Path:
    """Find a recipe file by its path, or a shipped recipe by its bare name.

    Raises:
        RecipeProblems: There is none; the message lists the shipped ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    recipes = list_shipped()
    if path.suffix == "" and path.name == str(name) and path.name in recipes:
        return recipes[path.name]
    from geobind.recipe.parsing import Problem, RecipeProblems

    hint = did_you_mean(path.stem, recipes, f"shipped recipes: {', '.join(recipes) or 'none'}")
    raise RecipeProblems([Problem(str(name), "", f"no such recipe file, nor a shipped recipe; {hint}")])


def is_shipped(name: str | Path) -> bool:
    """Return whether this is the name of a shipped recipe, and no path."""
    return not Path(name).is_file() and str(name) in list_shipped()
