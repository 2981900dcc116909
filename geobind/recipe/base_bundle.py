"""Recipes that begin from a bundle: its modalities, width and anchor are taken over.

A card is read as plain JSON here, so that a recipe is checked without torch; weights are read when it runs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geobind.errors import DataError, PluginError
from geobind.modality import BUNDLED, Modality
from geobind.plugins import Registry, name_requirement
from geobind.recipe.marks import read_steps
from geobind.recipe.parsing import KeyPath, ParsedYaml, Problem, RecipeProblems
from geobind.recipe.schema import BaseBundle, Name, Recipe
from geobind.utils.files import read_limited
from geobind.utils.formatting import format_first_fault, shorten
from geobind.utils.hashing import fingerprint

CARD, FORMAT = "binder.json", 1
MAX_CARD = 10_000_000  # bytes; a card is text
_WORDS = ("role", "data")  # of a modality's entry, beside its options


class _Origin(BaseModel):
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        return name_requirement(self.distribution, self.version)


class _CardFacts(BaseModel):
    """The part of a bundle's card that a recipe takes over."""

    model_config = ConfigDict(frozen=True)

    format: int
    width: int = Field(ge=2, le=65_536)
    modalities: dict[Name, dict[str, Any]] = Field(min_length=1)
    plugins: dict[str, _Origin] = {}
    digests: dict[str, str] = {}
    recipe: dict[str, Any] = {}
    stages: list[dict[str, Any]] = []


class Beginning(NamedTuple):
    """A recipe with what it takes over from a bundle."""

    written: ParsedYaml
    built: Mapping[str, Modality] = {}  # the modalities taken over
    bundle: BaseBundle | None = None
    problems: Sequence[Problem] = ()


def begin_from_bundle(written: ParsedYaml, base: Path, registry: Registry[Modality]) -> Beginning:
    """Add the modalities, width and anchor of the bundle that `base` of a recipe names.

    Args:
        written: The recipe.
        base: The folder that its relative paths start from.
        registry: The modalities of this machine.

    Raises:
        RecipeProblems: There is no such bundle, or its modalities cannot be had here.
    """
    said = written.values.get("base")
    if not isinstance(said, str):  # absent, or of a type that is refused with the recipe's fields
        return Beginning(written)
    try:
        folder, card = _read_card(base / said)
        steps = read_steps(card.stages)
    except DataError as error:
        raise RecipeProblems([written.problem(("base",), str(error))]) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"{base / said}: its card is damaged: stages: {type(error).__name__}: {error}"
        raise RecipeProblems([written.problem(("base",), shorten(message, 300))]) from None
    built, faults = _build_modalities(card, folder, registry)
    if faults:
        raise RecipeProblems(written.problem(("base",), fault) for fault in faults)
    values, problems = copy.deepcopy(written.values), list[Problem]()
    if values.setdefault("width", card.width) != card.width:
        given = shorten(repr(values["width"]), 40)
        message = f"is {given}, but embeddings of the base bundle are {card.width} long; take it out"
        problems.append(written.problem(("width",), message))
        values["width"] = card.width
    values.setdefault("anchor", _anchor(card))
    own = values.get("modalities") or {}
    if isinstance(own, dict):
        problems += _find_changed_options(written, own, card, registry, built)
        taken = {name: _take_over(card.modalities[name], own.get(name)) for name in card.modalities}
        values["modalities"] = {**taken, **{name: entry for name, entry in own.items() if name not in taken}}
    digest = fingerprint(card.digests, card.modalities)
    bundle = BaseBundle(folder, tuple(card.modalities), digest, steps)
    return Beginning(written._replace(values=values), built, bundle, problems)


def find_bundle(path: Path) -> Path:
    """Return the folder of the bundle in a run's folder, or the path itself where it is no such folder."""
    inside = path / "bundle"
    return inside if (inside / CARD).is_file() and not (path / CARD).is_file() else path


def _read_card(path: Path) -> tuple[Path, _CardFacts]:
    """Return the folder of the bundle at a path, itself or in a run's folder, and its card.

    Raises:
        DataError: There is none, it is damaged, or of another format.
    """
    folder = find_bundle(path)
    if not (folder / CARD).is_file():
        there = "that folder has no" if path.is_dir() else "no such folder; `base` needs a"
        unfinished = "; the run there is not finished" if (path / "run.json").is_file() else ""
        raise DataError(
            f"{path}: {there} {CARD}{unfinished}: name the folder of a bundle or of a finished run, "
            "from the recipe's folder"
        )
    try:
        card = _CardFacts.model_validate_json(read_limited(folder / CARD, MAX_CARD, "a bundle's card"))
    except OSError as error:
        raise DataError(f"{folder / CARD}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise DataError(f"{folder / CARD}: damaged: {format_first_fault(error)}") from None
    if card.format != FORMAT:
        raise DataError(f"{folder / CARD}: bundle format {card.format}; this geobind reads format {FORMAT}")
    return folder, card


def _build_modalities(
    card: _CardFacts, folder: Path, registry: Registry[Modality]
) -> tuple[dict[str, Modality], list[str]]:
    """Construct the modalities of a card; return them and what is wrong with others."""
    built: dict[str, Modality] = {}
    faults: list[str] = []
    for name, options in card.modalities.items():
        origin = str(card.plugins.get(name, ""))
        try:
            built[name] = registry.get(name).model_validate(options, context={BUNDLED: True})
        except PluginError as error:
            install = f"; install it: pip install {origin}" if origin and name not in registry.plugins else ""
            reason = " ".join(str(error).split())
            faults.append(f"{folder}: the bundle needs the modality '{name}': {reason}{install}")
        except ValidationError as error:
            made = f" (made with {origin})" if origin else ""
            fault = format_first_fault(error, "modalities", name)
            faults.append(f"{folder / CARD}: the plugin of '{name}'{made} refuses {fault}")
    return built, faults


def _find_changed_options(
    written: ParsedYaml,
    entries: Mapping[Any, Any],
    card: _CardFacts,
    registry: Registry[Modality],
    built: Mapping[str, Modality],
) -> list[Problem]:
    """Return a problem for each modality of the bundle that the recipe gives other options."""
    problems: list[Problem] = []
    for name in card.modalities:
        entry = entries.get(name)
        options = {key: entry[key] for key in entry if key not in _WORDS} if isinstance(entry, dict) else {}
        if not options or _means(options, registry.get(name), built[name]):
            continue
        path: KeyPath = ("modalities", name)
        message = (
            f"{name!r} is a modality of the base bundle, whose options stay as they are: take out "
            f"{', '.join(map(str, options))}; beside it, a recipe may set its `role` and `data`"
        )
        problems.append(written.problem(path, message))
    return problems


def _means(options: Mapping[str, Any], cls: type[Modality], built: Modality) -> bool:
    """Return whether options are those of a modality."""
    try:
        return cls.model_validate(options, context={BUNDLED: True}) == built
    except ValidationError:
        return False


def _take_over(options: Mapping[str, Any], entry: Any) -> dict[str, Any]:
    """Return a modality's entry: its options in the bundle, and the role and data in the recipe."""
    said = {key: entry[key] for key in _WORDS if key in entry} if isinstance(entry, dict) else {}
    return {"role": "frozen", **copy.deepcopy(dict(options)), **said}


def _anchor(card: _CardFacts) -> str:
    """Return the anchor of the recipe that trained a bundle, else its first modality."""
    anchor = card.recipe.get("anchor", Recipe.model_fields["anchor"].default)
    return anchor if anchor in card.modalities else next(iter(card.modalities))
