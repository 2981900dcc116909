"""Loading of recipes, by path or by name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from geobind import plugins
from geobind.errors import PluginError, did_you_mean
from geobind.recipe import validation
from geobind.recipe.base_bundle import CARD, Beginning, begin_from_bundle
from geobind.recipe.parsing import (
    KeyPath,
    ParsedYaml,
    Problem,
    RecipeProblems,
    dump_yaml,
    parse_yaml,
    read_recipe_file,
)
from geobind.recipe.schema import Recipe

_log = logging.getLogger(__name__)

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
    hint = did_you_mean(path.stem, recipes, f"shipped recipes: {', '.join(recipes) or 'none'}")
    raise RecipeProblems([Problem(str(name), "", f"no such recipe file, nor a shipped recipe; {hint}")])


def load_recipe(name: str | Path, overrides: Iterable[str] = (), *, files: bool = True) -> Recipe:
    """Load a recipe, with every check that needs no torch.

    Args:
        name: Path of a YAML file, or the name of a shipped recipe, whose relative paths start from the
            current folder.
        overrides: Changes such as `stages.0.batch_size=64`; a stage may be given by its name.
        files: Whether the manifests it names must exist.

    Raises:
        RecipeProblems: The recipe has mistakes; every one is listed with file, line, column and the fix.
    """
    file = find_recipe(name)
    _log.debug("recipe %s", file.resolve())
    base = Path() if is_shipped(name) else file.parent
    written = read_recipe_file(file, overrides)
    problems = _register_plugins(written, base)
    begun = begin_from_bundle(written, base, plugins.registry())
    return _checked(begun, base, files=files, packages=True, known=problems)


def _register_plugins(written: ParsedYaml, base: Path) -> list[Problem]:
    """Import the plugin files of a recipe that the user names, and return what is wrong with them.

    Nobody else's recipe imports anything: not one that a bundle carries, whatever lies beside it.
    """
    named = written.values.get("plugins")
    names = enumerate(cast("list[Any]", named)) if isinstance(named, list) else ()
    files: list[tuple[KeyPath, str]] = [(("plugins", i), name) for i, name in names if isinstance(name, str)]
    if files and (base / CARD).exists():
        message = "code is not taken from the folder of a bundle; copy the recipe, and the files you trust"
        return [written.problem(("plugins",), message)]
    problems: list[Problem] = []
    for path, name in files:
        try:
            plugins.register(base / name)
        except PluginError as error:
            problems.append(written.problem(path, str(error)))
    return problems


def is_shipped(name: str | Path) -> bool:
    """Return whether this is the name of a shipped recipe, and no path."""
    return not Path(name).is_file() and str(name) in list_shipped()


def build_recipe(
    values: Mapping[str, Any], base: Path, *, source: str, files: bool = False, begin: bool = False
) -> Recipe:
    """Build a checked recipe from plain values, such as those saved in a bundle.

    The packages of its training need not be installed here, as it may have run on another machine.

    Args:
        values: The recipe as `Recipe.written` gives it.
        base: The folder that its relative paths start from.
        source: Its name in messages.
        files: Whether the manifests it names must exist.
        begin: Whether to read the bundle that it begins from, which running it takes; not for a stranger's
            recipe, as it names a folder.
    """
    plain, marks = parse_yaml(dump_yaml(dict(values)), source)
    written = ParsedYaml(plain, {path: source for path in marks}, source)
    begun = begin_from_bundle(written, base, plugins.registry()) if begin else Beginning(written)
    return _checked(begun, base, files=files)


def _checked(
    begun: Beginning, base: Path, *, files: bool, packages: bool = False, known: Iterable[Problem] = ()
) -> Recipe:
    written = begun.written
    recipe, problems, marred = validation.check_fields(written)
    problems += [*known, *begun.problems]
    built, more = validation.check_modalities(written, plugins.registry(), base, begun.built)
    problems += more
    if recipe is not None:
        recipe._written, recipe._base, recipe._built = written.values, base, built  # pyright: ignore[reportPrivateUsage]
        recipe._base_bundle = begun.bundle  # pyright: ignore[reportPrivateUsage]
        marked = {problem.path for problem in problems}
        problems += [
            p for p in validation.check_stages(written, recipe, built, marred) if p.path not in marked
        ]
        problems += validation.check_files(written, recipe) if files else []
        problems += validation.check_packages(written, recipe, built) if packages else []
    if recipe is None or problems:
        raise RecipeProblems(problems)
    return recipe
