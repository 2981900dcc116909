"""Stage fingerprints, the lock of a run folder, and hints on how to resume."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from geobind import plugins
from geobind.data.manifest import hash_manifest
from geobind.errors import StorageError
from geobind.recipe import Recipe, Stage
from geobind.utils import files, system
from geobind.utils.files import FileLock
from geobind.utils.hashing import fingerprint

# Fields that change no result, and fields younger than runs that lie on disks: those count once they are set.
_WITHOUT_EFFECT = ("checkpoint_seconds", "compile", "checkpoint_activations")
_ADDED_LATER = ("watch", "ema", "chunk", "accumulate")
_ADDED_LATER_TO_LOSS = ("local", "products")
_DEFAULT_PRECISION = "32-true"
_SINGLE_VALUES = ("seed", "width", "precision")  # parts that are one value
_MAX_REASONS = 4  # reasons named in a line


def stage_folders(recipe: Recipe, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each stage's folder and its fingerprint: the hash of all that its result depends on."""
    begins = (recipe.base_bundle.digest,) if recipe.base_bundle else ()
    key = fingerprint(recipe.seed, recipe.width, *begins)
    for number, stage in enumerate(recipe.stages, start=1):
        key = fingerprint(key, *_stage_facts(recipe, stage).values())
        yield folder / "stages" / f"{number:02d}_{stage.name}", key


def fingerprint_parts(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Return what a stage's result depends on, in the order of `explain_rerun`."""
    before = [one.name for one in recipe.stages[: recipe.stages.index(stage)]]
    begins = {"base": recipe.base_bundle.digest[:12]} if recipe.base_bundle else {}
    own = _stage_facts(recipe, stage)
    return {"seed": recipe.seed, "width": recipe.width, **begins, "before": before, **own}


def explain_rerun(done: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """Return the reason why a finished stage is run again.

    Args:
        done: The `stage.json` that it left.
        parts: What `parts_of` says now.
    """
    was = done.get("parts")
    if not isinstance(was, dict):
        return "something that it depends on changed"
    words = {"before": "the stages before it: ", "data": "the data: ", "plugins": "the plugin version of "}
    words |= {"contents": "the content of ", "together": "augment.together: ", "base": "the base bundle: "}
    known = cast("dict[str, Any]", was)
    changes = [
        f"{words.get(part, '')}{change}"
        for part in dict.fromkeys((*parts, *known))
        for change in _changes(known.get(part), parts.get(part), part if part in _SINGLE_VALUES else "")
    ]
    if not changes:
        return "a stage before it was run again"
    return "; ".join(changes[:_MAX_REASONS]) + (
        f"; and {len(changes) - _MAX_REASONS} more" if len(changes) > _MAX_REASONS else ""
    )


def _stage_facts(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    sides, precision = recipe.names_of(stage), recipe.precision_of(stage)
    facts: dict[str, Any] = {
        "stage": _options(stage),
        "modalities": {name: recipe.built[name].model_dump(mode="json") for name in sides},
        "plugins": {name: plugins.registry().plugins[name].source.version for name in sides},
        "data": [options.model_dump(mode="json") for options in recipe.tables_of(stage)],
    }
    if contents := _manifest_hashes(recipe, stage):
        facts["contents"] = contents
    if together := recipe.together_in(stage):
        augmented = recipe.augmented_in(stage)
        turned_frozen = [name for name in together if name in augmented and name not in stage.parts]
        facts["together"] = sorted([*together, *(f"{name}, though frozen" for name in turned_frozen)])
    # Only where it is not told by the stage, nor what it was before anybody asked.
    return facts if stage.precision or precision == _DEFAULT_PRECISION else {**facts, "precision": precision}


def _manifest_hashes(recipe: Recipe, stage: Stage) -> dict[str, str]:
    """Return the hashes of the manifests that a stage reads, without the files they name."""
    paths = {options.manifest for options in recipe.tables_of(stage) if options.manifest is not None}
    return {str(path): hash_manifest(recipe.base / path)[:12] for path in sorted(paths)}


def _options(stage: Stage) -> dict[str, Any]:
    """Return the options of a stage that its result depends on."""
    options_json = stage.model_dump(mode="json", exclude=set(_WITHOUT_EFFECT))
    for options, values, younger in (
        (stage, options_json, _ADDED_LATER),
        (stage.loss, options_json["loss"], _ADDED_LATER_TO_LOSS),
    ):
        for name in younger:
            field = type(options).model_fields.get(name)
            if field is not None and getattr(options, name) == field.get_default():
                values.pop(name, None)
    return options_json


def _changes(was: Any, now: Any, path: str) -> Iterator[str]:
    """Yield the differences between plain values, each with its path."""
    if isinstance(was, dict) and isinstance(now, dict):
        both = cast("dict[str, Any]", was), cast("dict[str, Any]", now)
        for key in dict.fromkeys((*both[0], *both[1])):
            yield from _changes(both[0].get(key), both[1].get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for number, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from _changes(one, other, f"{path}.{number}" if path else str(number))
    elif was != now:
        yield f"{path or 'it'} was {_shorten(was)} and is {_shorten(now)}"


def _shorten(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


STAGE_FACTS, STAGE_WEIGHTS = "stage.json", "trained.safetensors"


def read_finished_stage(home: Path) -> dict[str, Any]:
    """Return the facts of a finished stage; empty if there are none, or its weights are missing.

    Args:
        home: The folder of the stage.

    Raises:
        CheckpointError: The facts are no JSON object.
    """
    return files.read_json(home / STAGE_FACTS) if (home / STAGE_WEIGHTS).is_file() else {}


LOCK = "run.lock"


@contextmanager
def run_lock(folder: Path) -> Generator[None]:
    """Lock a run's folder against other processes inside the block.

    The system lets go of the lock when the process ends, however it ends; a file that a killed process has
    left behind is nobody's. Processes that load data inherit files but not this kind of lock.

    Raises:
        StorageError: Another process works there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquire(folder / LOCK)
    except OSError as error:
        raise files.explain_write_error(folder / LOCK, error) from error
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": system.utc_now()}
        with suppress(OSError):  # a full disk costs others the name of the process
            if lock.file is not None:
                lock.file.truncate(0)
                lock.file.write(json.dumps(owner))
                lock.file.flush()
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        with suppress(OSError):
            lock.close()


def has_partial_results(folder: Path) -> bool:
    """Return whether a run left results in its folder that can be resumed."""
    made = (folder / "metrics.csv", *(folder / "stages").rglob("*"))
    return any(path.is_file() for path in made)


@contextmanager
def add_resume_hint(folder: Path | None) -> Generator[None]:
    """Add a note on how to resume to any exception that leaves the block."""
    try:
        yield
    except BaseException as error:
        if folder is not None and has_partial_results(folder) and "--resume" not in str(error):
            error.add_note(f"finished work is kept in {folder}; continue with --resume")
        raise


def _acquire(path: Path) -> FileLock:
    """Return the lock that stands lock the folder, held."""
    lock = FileLock(path, wait=False, inherit=False)
    if not lock:
        owner = _describe_owner(path)
        raise StorageError(
            f"{path.parent}: {owner} is running there; wait for it, end it, or choose another folder (--out)"
        )
    return lock


def _describe_owner(path: Path) -> str:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return f"process {facts['pid']} on {facts['host']}, since {facts['since']},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
