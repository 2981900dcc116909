"""Pretrained weights inside installed packages: their contract, and what `package:NAME` stands for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, cast

from geobind.errors import CheckpointError, GeobindError
from geobind.extras import find_missing
from geobind.plugins import Plugin, PluginKind, Registry, list_entry_points

__all__ = ["PackagedWeights"]

PREFIX = "package:"


class PackagedWeights(ABC):
    """Pretrained weights that an installed package holds."""

    name: ClassVar[str]  # recipes write `package:NAME`
    needs: ClassVar[str]  # the module of the package that holds them
    install: ClassVar[str]  # the command that installs it

    @abstractmethod
    def path(self) -> Path:
        """Return the file or folder of the weights; called only where the package is installed.

        It is read as if a recipe named it: tensors alone, under the names that the model gives them.
        """

    def folder(self) -> Path:
        """Return the folder of the package, without importing it.

        Raises:
            CheckpointError: It has none.
        """
        spec = find_spec(self.needs)
        if spec is None or not spec.submodule_search_locations:
            raise CheckpointError(f"{PREFIX}{self.name}: {self.needs} is no package with files")
        return Path(spec.submodule_search_locations[0])


WEIGHTS = PluginKind(
    "pretrained weights", PackagedWeights, "geobind.pretrained.PackagedWeights", "geobind_weights"
)


@lru_cache(maxsize=1)
def registry() -> Registry[PackagedWeights]:
    """Return all weights that plugins on this machine offer; plugins are looked up once per process."""
    return WEIGHTS.collect(list_entry_points())


def locate_packaged(source: str) -> Path | None:
    """Return the file or folder that `package:NAME` stands for, None for any other source.

    Raises:
        CheckpointError: No plugin offers it, or its package is not installed.
    """
    if not source.startswith(PREFIX):
        return None
    offered = _find(source)
    try:
        return offered.cls().path()
    except GeobindError:
        raise
    except Exception as error:  # of a plugin's own code
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{source}: {offered.source} cannot locate it ({reason})") from error


def find_faults(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each `pretrained: package:NAME` in a modality's options that cannot be had."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from find_faults(cast("Mapping[str, Any]", value))
        elif key == "pretrained" and isinstance(value, str) and value.startswith(PREFIX):
            try:
                _find(value)
            except CheckpointError as error:
                yield str(error)


def _find(source: str) -> Plugin[PackagedWeights]:
    """Look up the name behind `package:` among those that plugins offer; it is never part of a path."""
    name = source.removeprefix(PREFIX)
    offered = registry()
    if name not in offered.plugins:
        some = offered.plugins or offered.broken
        none = (
            "no plugin that offers weights is installed; geobind-modality-pretrained does: "
            "pip install './plugins/geobind-modality-pretrained[images,texts]' in a clone of geobind"
        )
        raise CheckpointError(f"{source}: {offered.explain(name) if some else none}")
    found = offered.plugins[name]
    for fault in find_missing({found.cls.needs: found.cls.install}):
        raise CheckpointError(f"{source} {fault}")
    return found
