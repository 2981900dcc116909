"""Find the installed loggers, check them, and make one from what a recipe says."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint
from typing import Any, NamedTuple

from pydantic import ValidationError

from geobind.errors import PluginError
from geobind.loggers.contract import Logger
from geobind.plugins import Broken, Source, explain, fault_of_name, find, gather, open_plugin


class Registry(NamedTuple):
    """Every logger on this machine."""

    loggers: dict[str, tuple[type[Logger], Source]]
    broken: tuple[Broken, ...]

    def get(self, name: str) -> type[Logger]:
        """Return the logger class called `name`.

        Raises:
            PluginError: There is none; the message lists what is installed and what failed to load.
        """
        if name in self.loggers:
            return self.loggers[name][0]
        raise PluginError(explain("logger", name, self.loggers, self.broken))


def check(cls: object) -> str | None:
    """Say in one line what is wrong with a class that claims to be a logger, or None."""
    if not (inspect.isclass(cls) and issubclass(cls, Logger)):
        return f"{cls!r} is not a subclass of geobind.loggers.Logger"
    if fault := fault_of_name(cls):
        return fault
    missing = sorted(cls.__abstractmethods__)
    return f"{cls.__name__} does not implement {', '.join(missing)}" if missing else None


def load(entry: EntryPoint) -> list[type[Logger]]:
    """Import one plugin and ask it for its loggers; most have none."""
    manager = open_plugin(entry)
    return [cls for classes in manager.hook.geobind_loggers() for cls in classes]


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
    known = list(cls.model_fields)
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known) or 'none'}"
            raise PluginError(f"logger '{name}' has no option '{key}'; {hint}")
    try:
        made = cls.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PluginError(f"logger '{name}': {where}: {first['msg'].removeprefix('Value error, ')}") from None
    made.check()
    return made
