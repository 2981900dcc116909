"""Find the installed loggers, check them, and make one from what a recipe says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint
from typing import Any

from pydantic import ValidationError

from geobind import registering
from geobind.errors import PluginError
from geobind.loggers.contract import Logger
from geobind.registering import fault_of, find, gather, open_plugin, provided, unknown_option


class Registry(registering.Registry[Logger]):
    """Every logger on this machine."""

    kind = "logger"


def check(cls: object) -> str | None:
    """Say in one line what is wrong with a class that claims to be a logger, or None."""
    return fault_of(cls, Logger, "geobind.loggers.Logger", lambda _: None)


def load(entry: EntryPoint) -> list[type[Logger]]:
    """Import one plugin and ask it for its loggers; most have none."""
    return provided(open_plugin(entry), "geobind_loggers")


def collect(entries: Iterable[EntryPoint]) -> Registry:
    """Load and check each entry point; a faulty one is remembered with its reason and harms no other."""
    return Registry(*gather(entries, load, check))


@lru_cache(maxsize=1)
def registry() -> Registry:
    """Return every logger on this machine; plugins are looked up once per process."""
    return collect(find())


def make(name: str, options: Mapping[str, Any]) -> Logger:
    """Make a logger from its name and options, and see that what it needs is installed.

    Raises:
        PluginError: There is none of this name, it has no such option, or it needs a package.
    """
    cls = registry().get(name)
    if fault := unknown_option(options, list(cls.model_fields)):
        raise PluginError(f"logger '{name}' has {fault}")
    try:
        made = cls.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PluginError(f"logger '{name}': {where}: {first['msg'].removeprefix('Value error, ')}") from None
    made.check()
    return made
