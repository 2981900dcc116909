"""Find every mistake of a recipe at once, before anything heavy is imported."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from geobind.data.options import DataOptions
from geobind.errors import PluginError
from geobind.extras import INSTALL, missing
from geobind.modality import Modality
from geobind.plugins import Registry
from geobind.recipe.columns import column_faults
from geobind.recipe.ending import ending_faults
from geobind.recipe.explaining import field_problems, written_path
from geobind.recipe.parts import Lora
from geobind.recipe.reading import Path_, Problem, Written, strings
from geobind.recipe.schema import Entry, Recipe
from geobind.recipe.stages import stage_faults, unknown
from geobind.recipe.watched import logger_faults, watch_faults

# What a field that must be given is taken to be when it was given wrongly, so that the rest can be checked.
_STAND_INS: dict[str | int, Any] = {"name": "unnamed", "batch_size": 2, "period": 1, "blocks": 1}


def check_fields(written: Written) -> tuple[Recipe | None, list[Problem], set[int]]:
    """Check keys, types and limits.

    Returns:
        The recipe, without the values that are wrong, so that the checks that follow can still speak (None
        when nothing is left of it); the mistakes; and the numbers of the stages that have some.
    """
    try:
        return Recipe.model_validate(written.values), [], set()
    except ValidationError as error:
        problems = list(field_problems(written, error, (), Recipe))
        faults = [written_path(written.values, item["loc"]) for item in error.errors()]
    marred = {int(path[1]) for path in faults if len(path) > 1 and path[0] == "stages"}
    try:
        return Recipe.model_validate(_without(written.values, faults)), problems, marred
    except ValidationError:
        return None, problems, marred


def _without(values: dict[str, Any], paths: Iterable[Path_]) -> dict[str, Any]:
    pruned = copy.deepcopy(values)
    for path in reversed(
        dict.fromkeys(paths)
    ):  # the last item of a list first, so that the others keep their numbers
        node: Any = pruned
        for word in path[:-1]:
            node = node[word]
        if isinstance(node, dict) and path:
            node.pop(path[-1], None)
            if path[-1] in _STAND_INS:
                node[path[-1]] = _STAND_INS[path[-1]]
            elif path[-2:-1] == ("train",):
                node[path[-1]] = "full"  # it is to be trained, if it is not clear how
        elif isinstance(node, list):
            cast(list[Any], node).pop(int(path[-1]))
    return pruned


def check_modalities(
    written: Written, registry: Registry, base: Path
) -> tuple[dict[str, Modality], list[Problem]]:
    """Construct each modality of the recipe from its options.

    An option that begins with ./ or ../ is a file or folder relative to `base`, whatever the plugin: a
    recipe must mean the same wherever it is run from.
    """
    built: dict[str, Modality] = {}
    problems: list[Problem] = []
    entries = written.values.get("modalities")
    for name, values in entries.items() if isinstance(entries, dict) else ():
        path: Path_ = ("modalities", str(name))
        try:
            cls = registry.get(str(name))
            options = Entry.model_validate(values or {}).options
            absent = [(at, text) for at, text in strings(options, path) if _is_path(text, base) is False]
            problems += [
                written.problem(at, f"no such file or folder: {text} (from {base})") for at, text in absent
            ]
            if not absent:
                built[str(name)] = cls.model_validate(_located(options, base))
        except PluginError as error:
            problems.append(written.problem(path, str(error)))
        except ValidationError as error:
            # A mistake in `role` or `data` is a mistake of the recipe and was found with its fields.
            if error.title != "Entry":
                problems.extend(field_problems(written, error, path, registry.get(str(name))))
    return built, problems


def _is_path(text: str, base: Path) -> bool | None:
    """Whether a relative path is there; None for text that is none."""
    return (base / text).exists() if text.startswith(("./", "../")) else None


def _located(value: Any, base: Path) -> Any:
    if isinstance(value, dict):
        return {key: _located(child, base) for key, child in value.items()}
    if isinstance(value, list):
        return [_located(child, base) for child in value]
    return str((base / value).resolve()) if isinstance(value, str) and _is_path(value, base) else value


def check_stages(
    written: Written, recipe: Recipe, built: dict[str, Modality], marred: Collection[int] = ()
) -> list[Problem]:
    """Check what no field can tell alone: names that must exist, roles, data, and what can be trained.

    Nothing is said to be missing from a `marred` stage: it may be there, misspelt.
    """
    problems: list[Problem] = []
    if recipe.anchor not in recipe.modalities:
        problems.append(written.problem(("anchor",), unknown(recipe.anchor, recipe.modalities)))
    names = [stage.name for stage in recipe.stages]
    for index, stage in enumerate(recipe.stages):
        path: Path_ = ("stages", index)
        if stage.name in names[:index]:
            problems.append(
                written.problem((*path, "name"), f"stage {stage.name!r} is there already; rename one")
            )
        found = [
            (at, message) for at, message in stage_faults(recipe, stage, built) if at or index not in marred
        ]
        found += watch_faults(recipe, stage)
        problems.extend(written.problem((*path, *at), message) for at, message in found)
    problems.extend(written.problem(at, message) for at, message in ending_faults(recipe))
    return problems


def check_packages(written: Written, recipe: Recipe, built: Mapping[str, Modality]) -> list[Problem]:
    """Check that every optional package and logger a recipe asks for is installed; no package is imported."""
    faults: list[tuple[Path_, str]] = [*logger_faults(recipe)]
    for name, modality in built.items():
        faults += [(("modalities", name), message) for message in _missing_of(modality)]
    for path, options in data_of(recipe):
        if options.rasters:
            faults += [((*path, "rasters"), message) for message in missing(_install("rasterio"))]
    for number, stage in enumerate(recipe.stages):
        for name in (name for name, part in stage.trained.items() if isinstance(part, Lora)):
            path = ("stages", number, "train", name)
            faults += [(path, message) for message in missing(_install("peft"))]
    return [written.problem(path, message) for path, message in faults]


def _missing_of(modality: Modality) -> list[str]:
    """Return a message for each package of a modality that is not installed, or for a fault of its plugin."""
    try:
        return [*missing(modality.requires())]
    except Exception as error:  # of a plugin's own code
        return [f"its plugin fails to name what it requires ({type(error).__name__}: {error})"]


def _install(module: str) -> dict[str, str]:
    return {module: INSTALL[module]}


def check_files(written: Written, recipe: Recipe) -> list[Problem]:
    """Check that every manifest the recipe names is there, and has the columns that stages ask for."""
    whose = "the current folder" if recipe.base == Path() else f"the recipe's folder, {recipe.base}"
    missing = [
        (path, f"no such file: {manifest} (relative to {whose})") for path, manifest in missing_files(recipe)
    ]
    faults = column_faults(recipe, data_of(recipe))
    return [written.problem(path, message) for path, message in [*missing, *faults]]


def missing_files(recipe: Recipe) -> list[tuple[Path_, Path]]:
    """List the manifests that a recipe names and that are not there, each with its path in the recipe."""
    named = ((path, options.manifest) for path, options in data_of(recipe) if options.manifest is not None)
    return [((*path, "manifest"), file) for path, file in named if not (recipe.base / file).exists()]


def data_of(recipe: Recipe) -> Iterator[tuple[Path_, DataOptions]]:
    """List every `data` block of a recipe with its path."""
    blocks: list[tuple[Path_, DataOptions | None]] = [(("data",), recipe.data)]
    blocks += [(("modalities", name, "data"), entry.data) for name, entry in recipe.modalities.items()]
    for number, stage in enumerate(recipe.stages):
        path: Path_ = ("stages", number, "data")
        if isinstance(stage.data, tuple):
            blocks += [((*path, place), options) for place, options in enumerate(stage.data)]
        else:
            blocks.append((path, stage.data))
        blocks.append((("stages", number, "watch", "data"), stage.watch and stage.watch.data))
    blocks.append((("evaluate", "data"), recipe.evaluate and recipe.evaluate.data))
    return ((path, options) for path, options in blocks if options is not None)
