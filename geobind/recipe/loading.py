"""Loading of recipes, by path or by name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from yaml import YAMLError

from geobind import plugins
from geobind.errors import PluginError
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
    read_recipe_text,
)
from geobind.recipe.schema import Recipe
from geobind.recipe.shipped import find_recipe, is_shipped

_log = logging.getLogger(__name__)


def load_recipe(
    name: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), *, files: bool = True
) -> Recipe:
    """Load a recipe, with every check that needs no torch.

    Args:
        name: Path of a YAML file; the name of a shipped recipe, or a mapping of a recipe's keys, whose
            relative paths start from the current folder.
        overrides: Changes such as `stages.0.batch_size=64`; a stage may be given by its name.
        files: Whether the manifests it names must exist.

    Raises:
        RecipeProblems: The recipe has mistakes; every one is listed with file, line, column and the fix.
    """
    if isinstance(name, Mapping):
        base, written = Path(), read_recipe_text(_dump_mapping(name), "the recipe", overrides)
    else:
        file = find_recipe(name)
        _log.debug("recipe %s", file.resolve())
        base = Path() if is_shipped(name) else file.parent
        written = read_recipe_file(file, overrides)
    problems = _register_plugins(written, base)
    begun = begin_from_bundle(written, base, plugins.registry())
    return _checked(begun, base, files=files, packages=True, known=problems)


def _dump_mapping(values: Mapping[str, Any]) -> str:
    """Return a recipe that is given as a mapping as YAML; paths in it become strings.

    Raises:
        RecipeProblems: It holds something that YAML does not, such as an array.
    """
    try:
        return dump_yaml(_plain(values))
    except YAMLError as error:
        reason = f"holds what YAML does not: {str(error).partition(chr(10))[0][:200]}"
        raise RecipeProblems([Problem("the recipe", "", reason)]) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    return str(value) if isinstance(value, Path) else value


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


# Of the stage that a direct one is like: what is told anew, and what chooses weights by other rows.
_NOT_SHARED = ("name", "align", "anchor", "pairs", "weights", "train", "epochs", "steps", "watch")


def build_direct_recipe(recipe: Recipe, pair: tuple[str, str], steps: Mapping[str, int]) -> Recipe:
    """Build the recipe that trains two modalities on each other, from the same start and for as many steps.

    Its one stage has the options of the longest stage that trains either, and trains of each what the last
    stage that trains it does.

    Args:
        recipe: A recipe that names the pair under `evaluate.direct`.
        pair: The two.
        steps: The steps of each of its stages, by name.

    Raises:
        RecipeProblems: The pair cannot be trained on its own.
    """
    written = list(zip(recipe.stages, recipe.written["stages"], strict=True))
    of_pair = [(stage, said) for stage, said in written if set(pair) & set(stage.parts)]
    longest, said = max(of_pair, key=lambda each: steps[each[0].name])
    trained: dict[str, Any] = {}
    for _, other in of_pair:
        train = other["train"]
        trained |= {
            name: train[name] if isinstance(train, Mapping) else "full" for name in pair if name in train
        }
    direct = {
        **{key: value for key, value in said.items() if key not in _NOT_SHARED},
        "name": "direct",
        "anchor": pair[0],
        "align": pair[1],
        "train": trained,
        "batch_size": longest.batch_size,
        "chunk": longest.chunk,
        "steps": steps[longest.name],
    }
    together = [name for name in recipe.augment.together if name in pair]
    values = {
        **{key: value for key, value in recipe.written.items() if key not in ("card", "evaluate", "loggers")},
        "anchor": pair[0],
        "modalities": {name: said for name, said in recipe.written["modalities"].items() if name in pair},
        "augment": {"together": together if len(together) > 1 else []},
        "stages": [direct],
    }
    return build_recipe(values, recipe.base, source=f"evaluate.direct: {'-'.join(pair)}", begin=True)


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
