"""The installed importers, and importers built from the words of a command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from geobind.data.cells import PLACE_COLUMNS
from geobind.errors import DataError
from geobind.extras import find_missing
from geobind.importers.contract import Column, Importer, Kind
from geobind.plugins import PluginKind, Registry, list_entry_points, unknown_option

_TOLD = ("title", "home", "licence", "citation", "layout")


def _fault_of_importer(cls: type[Importer]) -> str | None:
    silent = [word for word in _TOLD if not str(getattr(cls, word, "")).strip()]
    if silent:
        return f"{cls.__name__} does not state its {', '.join(silent)}"
    columns = getattr(cls, "columns", None)
    if not isinstance(columns, Mapping) or not all(
        isinstance(column, Column) and column.kind in get_args(Kind) for column in columns.values()
    ):
        return f"{cls.__name__}.columns must be a dict of geobind.importers.Column by name"
    taken = sorted(set(columns) & set(PLACE_COLUMNS))
    if taken:
        return f"{cls.__name__}.columns has '{taken[0]}', which every manifest may have; leave it out"
    return None


IMPORTER = PluginKind(
    "importer", Importer, "geobind.importers.Importer", "geobind_importers", _fault_of_importer
)


@lru_cache(maxsize=1)
def registry() -> Registry[Importer]:
    """Return every importer on this machine; plugins are looked up once per process."""
    return IMPORTER.collect(list_entry_points())


def build_importer(cls: type[Importer], sources: Sequence[Path], options: Mapping[str, str]) -> Importer:
    """Build an importer from the options of a command line.

    Args:
        cls: The importer's class.
        sources: The dataset's folder or files.
        options: Values by option; lists and mappings are written as JSON.

    Raises:
        DataError: An option does not exist or cannot have this value, or a package is not installed.
    """
    known = [name for name in cls.model_fields if name != "sources"]
    if fault := unknown_option(options, known):
        raise DataError(f"{cls.name} has {fault}")
    try:
        made = cls(sources=tuple(sources), **{name: _value(word) for name, word in options.items()})
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise DataError(f"{cls.name}: {'; '.join(faults)}") from error
    if faults := [*find_missing(made.requires())]:
        raise DataError(f"{cls.name} {'; '.join(faults)}")
    return made


def _value(word: str) -> Any:
    if not word.lstrip().startswith(("[", "{")):
        return word
    try:
        return json.loads(word)
    except ValueError:
        return word  # pydantic says what is wrong with it
