"""What an embedding depends on besides its input: weights, options, code and versions, as one hash."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from geobind.frozen.contents import Uncacheable
from geobind.modality import Modality
from geobind.registering import Source
from geobind.utils.hashing import fingerprint

FORMAT = 1  # of the files; a change makes every older entry another
Part = Literal["whole", "trunk"]
_FOR_WORK = re.compile(r"extra *== *.(dev|tests?|docs|lint)\b")  # requirements that no embedding depends on
_NO_MATTER = {"torchaudio"}  # where it is missing, or another, geobind's spectrograms are the same
_OURS = ("geobind.data", "geobind.towers")  # what turns an input into numbers, beside the plugin itself


def facts_of(
    modality: Modality,
    source: Source,
    *,
    weights: str,
    part: Part,
    width: int,
    precision: str,
    augmented: bool,
    files: Callable[[str], bytes],
) -> dict[str, Any]:
    """List everything that the embedding of an input depends on, as plain values.

    All options count, those of augmentation too, since the core cannot know which of them matter, and the
    content of files that they name. So do the source code of the plugin and of geobind's own readers and
    towers, which may change without a new version while somebody works on them, and the versions of all
    the libraries they declare but torchaudio, without which geobind's spectrograms are the same.

    Args:
        modality: With its options.
        source: Where its plugin comes from.
        weights: The hash of the encoder's weights; of its trunk's, where `part` is the trunk.
        part: What is kept: the embedding, or the features that the encoder's `head` takes.
        width: Length of the shared space.
        precision: What the encoder computes in.
        augmented: Whether inputs are prepared as for training.
        files: Returns the hash of a file.

    Raises:
        Uncacheable: The plugin's source code is nowhere to be found.
    """
    options = modality.model_dump(mode="json")
    return {
        "format": FORMAT,
        "modality": modality.name,
        "plugin": str(source),
        "options": options,
        "files": {text: files(text).hex() for text in sorted(_files(options))},
        "weights": weights,
        "part": part,
        "width": width,
        "precision": precision,
        "augmented": augmented,
        "code": _code(type(modality)),
        "versions": _versions(source.distribution),
    }


def key_of(facts: dict[str, Any]) -> str:
    """Return the name of the cache entry for these facts."""
    return fingerprint(facts)[:32]


def _files(value: Any) -> set[str]:
    """Find the files that options name."""
    if isinstance(value, Mapping):
        return {file for part in value.values() for file in _files(part)}
    if isinstance(value, list | tuple):
        return {file for part in value for file in _files(part)}
    return {value} if isinstance(value, str) and os.path.isfile(value) else set()


@lru_cache(maxsize=64)
def _code(cls: type[Modality]) -> str:
    """Hash the source files of a modality and of what reads and encodes for it."""
    total = hashlib.sha256(f"{cls.__module__}.{cls.__qualname__}".encode())
    found = {file for name in _OURS for file in _sources(name)}
    for parent in cls.__mro__:
        if issubclass(parent, Modality) and parent is not Modality:
            files = _sources(parent.__module__)
            found.update(files)
            if not files:
                total.update(_text(parent).encode())
    for file in sorted(found):
        total.update(file.read_bytes())
    return total.hexdigest()


def _text(cls: type[Modality]) -> str:
    """Return the source code of a class that was typed in, as in a notebook."""
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        raise Uncacheable(f"the source code of {cls.__qualname__} is not known") from None


def _sources(name: str) -> list[Path]:
    """List the source files of a module; of a module in a package, those of the whole package."""
    if name in _OURS:
        spec = find_spec(name)
        folders = list((spec and spec.submodule_search_locations) or ())
    else:
        top = sys.modules.get(name.partition(".")[0])
        folders = list(getattr(top, "__path__", ()))
        if not folders:
            file = getattr(sys.modules.get(name), "__file__", None)
            return [Path(file)] if file and Path(file).is_file() else []
    return [file for folder in folders for file in Path(folder).rglob("*.py")]


@lru_cache(maxsize=64)
def _versions(distribution: str) -> dict[str, str]:
    """Name the versions of a distribution, of geobind, and of what the two declare that they need."""
    wanted = {"geobind", distribution}
    for name in tuple(wanted):
        try:
            declared = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            continue
        needed = [line for line in declared if not _FOR_WORK.search(line)]
        found = {match[0] for line in needed if (match := re.match(r"[A-Za-z0-9._-]+", line))}
        wanted |= found - _NO_MATTER if name == "geobind" else found
    versions = {"python": sys.version.split()[0]}
    for name in sorted(wanted):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
