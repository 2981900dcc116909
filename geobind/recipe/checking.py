"""Find every mistake of a recipe at once, before anything heavy is imported."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from geobind.errors import PluginError
from geobind.modality import Modality
from geobind.plugins import Registry
from geobind.recipe.explaining import field_problems, written_path
from geobind.recipe.reading import Path_, Problem, Written, strings
from geobind.recipe.schema import Entry, Recipe, Stage

# What a field that must be given is taken to be when it was given wrongly, so that the rest can be checked.
_STAND_INS: dict[str | int, Any] = {"name": "unnamed", "batch_size": 2, "period": 1}


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
    for path in paths:
        node: Any = pruned
        for word in path[:-1]:
            node = node[word]
        if isinstance(node, dict) and path:
            node.pop(path[-1], None)
            if path[-1] in _STAND_INS:
                node[path[-1]] = _STAND_INS[path[-1]]
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
        problems.append(written.problem(("anchor",), _unknown(recipe.anchor, recipe.modalities)))
    names = [stage.name for stage in recipe.stages]
    for index, stage in enumerate(recipe.stages):
        path: Path_ = ("stages", index)
        if stage.name in names[:index]:
            problems.append(
                written.problem((*path, "name"), f"stage {stage.name!r} is there already; rename one")
            )
        found = [(at, message) for at, message in _stage(recipe, stage, built) if at or index not in marred]
        problems.extend(written.problem((*path, *at), message) for at, message in found)
    if recipe.evaluate and recipe.evaluate.data is None and recipe.data is None:
        problems.append(
            written.problem(("evaluate",), "has no rows: give `data` here or for the whole recipe")
        )
    return problems


def check_files(written: Written, recipe: Recipe) -> list[Problem]:
    """Check that every manifest the recipe names is there."""
    problems: list[Problem] = []
    for path, options in data_of(recipe):
        if options.manifest is not None and not (recipe.base / options.manifest).exists():
            shown = options.manifest
            message = f"no such file: {shown} (relative to the recipe's folder, {recipe.base or '.'})"
            problems.append(written.problem((*path, "manifest"), message))
    return problems


def data_of(recipe: Recipe) -> Iterator[tuple[Path_, Any]]:
    """List every `data` block of a recipe with its path."""
    blocks: list[tuple[Path_, Any]] = [(("data",), recipe.data)]
    blocks += [(("modalities", name, "data"), entry.data) for name, entry in recipe.modalities.items()]
    blocks += [(("stages", i, "data"), stage.data) for i, stage in enumerate(recipe.stages)]
    blocks.append((("evaluate", "data"), recipe.evaluate and recipe.evaluate.data))
    return ((path, options) for path, options in blocks if options is not None)


def _stage(recipe: Recipe, stage: Stage, built: dict[str, Modality]) -> Iterator[tuple[Path_, str]]:
    anchor = recipe.anchor_of(stage)
    if stage.anchor is not None and stage.anchor not in recipe.modalities:
        yield ("anchor",), _unknown(stage.anchor, recipe.modalities)
    if stage.align not in recipe.modalities:
        yield ("align",), _unknown(stage.align, recipe.modalities)
    elif stage.align == anchor:
        yield ("align",), f"{anchor!r} is this stage's anchor: a modality is not aligned with itself"
    elif recipe.data_of(stage) is None and not _brings_pairs(built.get(stage.align)):
        yield (), f"has no rows: give `data` to the stage, to {stage.align!r}, or to the whole recipe"
    if (stage.epochs is None) == (stage.steps is None):
        yield (), "say how long: give either `epochs` or `steps`"
    if not stage.parts:
        yield ("train",), "nothing to train: name an encoder"
    for name in stage.parts:
        yield from _trained(recipe, stage, name, anchor, built)
    if isinstance(recipe.fabric.devices, int):
        ranks = recipe.fabric.devices * recipe.fabric.num_nodes
        if ranks < 1 or stage.batch_size % ranks:
            yield ("batch_size",), f"{stage.batch_size} pairs do not divide among {ranks} devices"


def _trained(
    recipe: Recipe, stage: Stage, name: str, anchor: str, built: dict[str, Modality]
) -> Iterator[tuple[Path_, str]]:
    if name not in recipe.modalities:
        yield ("train",), _unknown(name, recipe.modalities)
    elif name not in (stage.align, anchor):
        yield ("train",), f"{name!r} takes no part in this stage, so no gradient reaches it"
    elif name in built and recipe.role(name) == "frozen":
        yield (
            ("train",),
            f"{name!r} is frozen by its plugin; to train it on purpose write `{name}: {{role: trainable}}`",
        )


def _brings_pairs(modality: Modality | None) -> bool:
    return modality is not None and type(modality).pairs is not Modality.pairs


def _unknown(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the recipe has {', '.join(names)}"
    return f"no modality {name!r} under `modalities`; {hint}"
