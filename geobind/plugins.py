"""Find plugins by entry point, load each on its own, check what they provide, explain what is missing."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, TypeVar, get_args

import pluggy

from geobind import hookspecs
from geobind.errors import PluginError
from geobind.modality import Modality, Role

GROUP = "geobind"
C = TypeVar("C", bound=type[Any])  # the kind of class that a hook returns
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = {"key", "split", "lat", "lon", "time", "label", "group", "licence"}  # columns of every table


class Source(NamedTuple):
    """Where a plugin comes from."""

    entry_point: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} [{self.entry_point}]"


class Plugin(NamedTuple):
    """A modality class that was found, loaded and checked."""

    modality: type[Modality]
    source: Source


class Broken(NamedTuple):
    """A plugin that cannot be used, and why; it matters only to a recipe that asks for it."""

    source: Source
    reason: str
    name: str | None = None  # the name of what it provides, when the plugin got far enough to tell


class Registry(NamedTuple):
    """Every modality on this machine."""

    plugins: dict[str, Plugin]
    broken: tuple[Broken, ...]

    def get(self, name: str) -> type[Modality]:
        """Return the modality class called `name`.

        Raises:
            PluginError: There is none; the message lists what is installed and what failed to load.
        """
        if name in self.plugins:
            return self.plugins[name].modality
        raise PluginError(self.explain(name))

    def explain(self, name: str) -> str:
        """Say why there is no usable modality called `name`, and what there is instead."""
        return explain("modality", name, self.plugins, self.broken)


def explain(kind: str, name: str, usable: Collection[str], broken: Iterable[Broken]) -> str:
    """Say why there is no usable plugin called `name`, and what there is instead.

    Args:
        kind: What was looked for, such as "modality".
        name: Its name.
        usable: The names that there are.
        broken: The plugins that cannot be used.
    """
    clash = [b.reason for b in broken if b.name == name]
    lines = [clash[0] if clash else f"no {kind} named '{name}'"]
    near = difflib.get_close_matches(name, usable, n=1)
    if near:
        lines[0] += f"; did you mean '{near[0]}'?"
    installed = ", ".join(sorted(usable)) or "none (is geobind itself installed? pip install -e .)"
    lines.append(f"  installed: {installed}")
    lines += [f"  failed to load: {b.source}: {b.reason}" for b in broken if b.reason not in clash]
    return "\n".join(lines)


def find() -> list[EntryPoint]:
    """List the entry points of group `geobind`, in an order that does not depend on the file system."""
    return sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, str(_source(entry))))


def open_plugin(entry: EntryPoint) -> pluggy.PluginManager:
    """Import one plugin and return the manager through which its hooks are called.

    Each plugin gets a pluggy manager of its own: pluggy's loader stops at the first plugin that fails,
    skips a repeated entry-point name and lets a misspelt hook pass, and none of that may cross plugins.
    """
    manager = pluggy.PluginManager(hookspecs.hookspec.project_name)
    manager.add_hookspecs(hookspecs)
    manager.register(entry.load(), name=str(_source(entry)))
    manager.check_pending()
    return manager


def load(entry: EntryPoint) -> list[type[Modality]]:
    """Import one plugin and ask it for its modalities; one that answers another hook may have none."""
    manager = open_plugin(entry)
    provided = [cls for classes in manager.hook.geobind_modalities() for cls in classes]
    if not provided and not any(
        hook.get_hookimpls() for name, hook in vars(manager.hook).items() if name != "geobind_modalities"
    ):
        raise PluginError("it provides no modality: no function geobind_modalities marked @geobind.hookimpl")
    return provided


def check(cls: object) -> str | None:
    """Say in one line what is wrong with a class that claims to be a modality, or None."""
    if not (inspect.isclass(cls) and issubclass(cls, Modality)):
        return f"{cls!r} is not a subclass of geobind.Modality"
    name, role = getattr(cls, "name", None), getattr(cls, "role", None)
    if fault := fault_of_name(cls):
        return fault
    if name in _RESERVED:
        return f"{cls.__name__}.name cannot be {name!r}: every data table has a column of that name"
    taken = sorted({"role", "data"} & set(cls.model_fields))
    if taken:
        return f"{cls.__name__} has an option {taken[0]!r}, which recipes keep for themselves; rename it"
    if role not in get_args(Role):
        return f"{cls.__name__}.role must be 'frozen' or 'trainable', not {role!r}"
    missing = sorted(cls.__abstractmethods__)
    if missing:
        return f"{cls.__name__} does not implement {', '.join(missing)}"
    return None


def fault_of_name(cls: type) -> str | None:
    """Say what is wrong with the name by which recipes call what a plugin provides, or None."""
    name = getattr(cls, "name", None)
    if isinstance(name, str) and _NAME.fullmatch(name):
        return None
    return f"{cls.__name__}.name must be lower-case letters, digits and underscores, not {name!r}"


def gather(
    entries: Iterable[EntryPoint],
    load: Callable[[EntryPoint], list[C]],
    check: Callable[[object], str | None],
) -> tuple[dict[str, tuple[C, Source]], tuple[Broken, ...]]:
    """Load and check what each entry point provides; a faulty one is remembered with its reason.

    Args:
        entries: The plugins.
        load: Returns the classes that one plugin provides, each with a `name`.
        check: Says what is wrong with a class, or None.

    Returns:
        The usable classes by name, each with where it comes from, and what cannot be used.
    """
    found: dict[str, list[tuple[C, Source]]] = {}
    broken: list[Broken] = []
    for entry in entries:
        source = _source(entry)
        try:
            classes = load(entry)
        except (Exception, SystemExit) as error:  # a plugin that exits must not end the command
            reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            broken.append(Broken(source, " ".join(reason.split())))
            continue
        for cls in classes:
            fault = check(cls)
            if fault:
                broken.append(Broken(source, fault))
            else:
                found.setdefault(cls.name, []).append((cls, source))
    usable: dict[str, tuple[C, Source]] = {}
    for name, provided in sorted(found.items()):
        if len(provided) == 1:
            usable[name] = provided[0]
        else:
            who = " and ".join(str(source) for _, source in provided)
            broken.append(Broken(provided[1][1], f"two plugins provide '{name}': {who}; uninstall one", name))
    return usable, tuple(broken)


def collect(entries: Iterable[EntryPoint]) -> Registry:
    """Load and check each entry point; a faulty one is remembered with its reason and harms no other."""
    usable, broken = gather(entries, load, check)
    return Registry({name: Plugin(cls, source) for name, (cls, source) in usable.items()}, broken)


@lru_cache(maxsize=1)
def registry() -> Registry:
    """Return every modality on this machine; plugins are looked up once per process."""
    return collect(find())


def _source(entry: EntryPoint) -> Source:
    distribution = entry.dist
    if distribution is None:
        return Source(entry.name, "unknown", "?")
    return Source(entry.name, distribution.name, distribution.version)
