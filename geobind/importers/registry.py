"""Find the installed importers, check them, and make one from its options."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError

from geobind.data.rows import PLACE_COLUMNS
from geobind.errors import DataError, PluginError
from geobind.importers.contract import Column, Importer, Kind
from geobind.plugins import Broken, Source, explain, fault_of_name, find, gather, open_plugin

_TOLD = ("title", "home", "licence", "citation", "layout")


class Found(NamedTuple):
    """An importer class that was found, loaded and checked."""

    importer: type[Importer]
    source: Source


class Registry(NamedTuple):
    """Every importer on this machine."""

    importers: dict[str, Found]
    broken: tuple[Broken, ...]

    def get(self, name: str) -> type[Importer]:
        """Return the importer called `name`.

        Raises:
            PluginError: There is none; the message lists what is installed and what failed to load.
        """
        if name in self.importers:
            return self.importers[name].importer
        raise PluginError(explain("importer", name, self.importers, self.broken))


def check(cls: object) -> str | None:
    """Say in one line what is wrong with a class that claims to be an importer, or None."""
    if not (inspect.isclass(cls) and issubclass(cls, Importer)):
        return f"{cls!r} is not a subclass of geobind.importers.Importer"
    if fault := fault_of_name(cls):
        return fault
    silent = [word for word in _TOLD if not str(getattr(cls, word, "")).strip()]
    if silent:
        return f"{cls.__name__} does not say its {', '.join(silent)}"
    columns = getattr(cls, "columns", None)
    if not isinstance(columns, Mapping) or not all(
        isinstance(column, Column) and column.kind in get_args(Kind) for column in columns.values()
    ):
        return f"{cls.__name__}.columns must be a dict of geobind.importers.Column by name"
    taken = sorted(set(columns) & set(PLACE_COLUMNS))
    if taken:
        return f"{cls.__name__}.columns has '{taken[0]}', which every manifest may have; leave it out"
    missing = sorted(cls.__abstractmethods__)
    if missing:
        return f"{cls.__name__} does not implement {', '.join(missing)}"
    return None


def load(entry: EntryPoint) -> list[type[Importer]]:
    """Import one plugin and ask it for its importers; most have none."""
    manager = open_plugin(entry)
    return [cls for classes in manager.hook.geobind_importers() for cls in classes]


def collect(entries: Iterable[EntryPoint]) -> Registry:
    """Load and check each entry point; a faulty one is remembered with its reason and harms no other."""
    found, broken = gather(entries, load, check)
    return Registry({name: Found(cls, source) for name, (cls, source) in found.items()}, broken)


@lru_cache(maxsize=1)
def registry() -> Registry:
    """Return every importer on this machine; plugins are looked up once per process."""
    return collect(find())


def make(cls: type[Importer], sources: Sequence[Path], options: Mapping[str, str]) -> Importer:
    """Make an importer from the words of a command line.

    Args:
        cls: The importer's class.
        sources: The dataset's folder or files.
        options: Values by option; lists and mappings are written as JSON.

    Raises:
        DataError: An option does not exist or cannot have this value.
    """
    known = [name for name in cls.model_fields if name != "sources"]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known) or 'none'}"
            raise DataError(f"{cls.name} has no option '{name}'; {hint}")
    try:
        return cls(sources=tuple(sources), **{name: _value(word) for name, word in options.items()})
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise DataError(f"{cls.name}: {'; '.join(faults)}") from error


def _value(word: str) -> Any:
    if not word.lstrip().startswith(("[", "{")):
        return word
    try:
        return json.loads(word)
    except ValueError:
        return word  # pydantic says what is wrong with it
