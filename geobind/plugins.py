"""Plugin discovery by entry point, the checks of what plugins provide, and the installed modalities."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, get_args

import pluggy

from geobind import hookspecs
from geobind.errors import PluginError, did_you_mean
from geobind.modality import Modality, Role

GROUP = "geobind"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Named(Protocol):
    """What every plugin provides has a name, which recipes and commands use."""

    name: ClassVar[str]


C = TypeVar("C", bound=Named)  # what the classes that plugins provide are subclasses of


class Source(NamedTuple):
    """Where a plugin comes from."""

    entry_point: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} [{self.entry_point}]"


class Plugin(NamedTuple, Generic[C]):
    """A class that a plugin provides, found, loaded and checked."""

    cls: type[C]
    source: Source


class Broken(NamedTuple):
    """A plugin that cannot be used, and why; it matters only to those who ask for it."""

    source: Source
    reason: str
    name: str | None = None  # the name of what it provides, when the plugin got far enough to tell


@dataclass(frozen=True)
class Registry(Generic[C]):
    """Everything of one kind that plugins on this machine provide."""

    kind: ClassVar[str]  # the word for one of them in messages
    plugins: dict[str, Plugin[C]]
    broken: tuple[Broken, ...]

    def get(self, name: str) -> type[C]:
        """Return the class called `name`.

        Raises:
            PluginError: There is none; the message lists what is installed and what failed to load.
        """
        if name in self.plugins:
            return self.plugins[name].cls
        raise PluginError(self.explain(name))

    def clashes(self, name: str) -> list[str]:
        """Say which plugins all provide `name`, so that none of them is used; nothing if there are none."""
        return [broken.reason for broken in self.broken if broken.name == name]

    def explain(self, name: str) -> str:
        """Say why there is no usable plugin called `name`, and what there is instead."""
        clash = self.clashes(name)
        lines = [clash[0] if clash else f"no {self.kind} named '{name}'"]
        if near := did_you_mean(name, self.plugins):
            lines[0] += f"; {near}"
        installed = ", ".join(sorted(self.plugins)) or "none (is geobind itself installed? pip install -e .)"
        lines.append(f"  installed: {installed}")
        lines += [f"  failed to load: {b.source}: {b.reason}" for b in self.broken if b.reason not in clash]
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
    plugin = entry.load()
    manager.register(plugin, name=str(_source(entry)))
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(_unknown_hook(manager, plugin) or str(error)) from error
    return manager


def _unknown_hook(manager: pluggy.PluginManager, plugin: object) -> str | None:
    """Say which hook of a plugin is none of geobind's, and which may be meant."""
    known = [name for name, hook in sorted(vars(manager.hook).items()) if hook.has_spec()]
    for hook in manager.get_hookcallers(plugin) or ():
        if not hook.has_spec():
            hint = did_you_mean(hook.name, known, f"there are {', '.join(known)}")
            return f"no hook '{hook.name}'; {hint}"
    return None


def provided(manager: pluggy.PluginManager, hook: str) -> list[Any]:
    """Ask an open plugin for the classes that it provides through one hook."""
    return [cls for classes in getattr(manager.hook, hook)() for cls in classes]


def fault_of(cls: object, base: type[C], address: str, own: Callable[[type[C]], str | None]) -> str | None:
    """Say in one line what is wrong with a class that a plugin provides, or None.

    Args:
        cls: What claims to be such a class.
        base: What it must be a subclass of.
        address: What messages call `base`.
        own: Says what else is wrong with a class of this kind.
    """
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        return f"{cls!r} is not a subclass of {address}"
    name = getattr(cls, "name", None)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        return f"{cls.__name__}.name must be lower-case letters, digits and underscores, not {name!r}"
    if fault := own(cls):
        return fault
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    return f"{cls.__name__} does not implement {', '.join(missing)}" if missing else None


def unknown_option(given: Iterable[str], known: Sequence[str]) -> str | None:
    """Say which option is none of those known, and which may be meant, or None."""
    there = ", ".join(known) or "none"
    unknown = next((name for name in given if name not in known), None)
    return unknown and f"no option '{unknown}'; {did_you_mean(unknown, known, f'it has {there}')}"


def gather(
    entries: Iterable[EntryPoint],
    load: Callable[[EntryPoint], list[type[C]]],
    check: Callable[[object], str | None],
) -> tuple[dict[str, Plugin[C]], tuple[Broken, ...]]:
    """Load and check what each entry point provides; a faulty one is remembered with its reason.

    Args:
        entries: The plugins.
        load: Returns the classes that one plugin provides, each with a `name`.
        check: Says what is wrong with a class, or None.

    Returns:
        The usable classes by name, each with where it comes from, and what cannot be used.
    """
    found: dict[str, list[Plugin[C]]] = {}
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
            if fault := check(cls):
                broken.append(Broken(source, fault))
            else:
                found.setdefault(cls.name, []).append(Plugin(cls, source))
    usable: dict[str, Plugin[C]] = {}
    for name, plugins in sorted(found.items()):
        if len(plugins) == 1:
            usable[name] = plugins[0]
        else:
            who = " and ".join(str(plugin.source) for plugin in plugins)
            reason = f"two plugins provide '{name}': {who}; uninstall one"
            broken.append(Broken(plugins[1].source, reason, name))
    return usable, tuple(broken)


def _source(entry: EntryPoint) -> Source:
    distribution = entry.dist
    if distribution is None:
        return Source(entry.name, "unknown", "?")
    return Source(entry.name, distribution.name, distribution.version)


_RESERVED = {"key", "split", "lat", "lon", "time", "label", "group", "licence"}  # columns of every table


class ModalityRegistry(Registry[Modality]):
    """Every modality on this machine."""

    kind = "modality"


def load(entry: EntryPoint) -> list[type[Modality]]:
    """Import one plugin and ask it for its modalities; one that answers another hook may have none."""
    manager = open_plugin(entry)
    classes = provided(manager, "geobind_modalities")
    if not classes and not any(
        hook.get_hookimpls() for name, hook in vars(manager.hook).items() if name != "geobind_modalities"
    ):
        raise PluginError("it provides no modality: no function geobind_modalities marked @geobind.hookimpl")
    return classes


def check(cls: object) -> str | None:
    """Say in one line what is wrong with a class that claims to be a modality, or None."""
    return fault_of(cls, Modality, "geobind.Modality", _fault)


def collect(entries: Iterable[EntryPoint]) -> ModalityRegistry:
    """Load and check each entry point; a faulty one is remembered with its reason and harms no other."""
    return ModalityRegistry(*gather(entries, load, check))


@lru_cache(maxsize=1)
def registry() -> ModalityRegistry:
    """Return every modality on this machine; plugins are looked up once per process."""
    return collect(find())


def _fault(cls: type[Modality]) -> str | None:
    if cls.name in _RESERVED:
        return f"{cls.__name__}.name cannot be {cls.name!r}: every data table has a column of that name"
    taken = sorted({"role", "data"} & set(cls.model_fields))
    if taken:
        return f"{cls.__name__} has an option {taken[0]!r}, which recipes keep for themselves; rename it"
    role: Any = getattr(cls, "role", None)
    if role not in get_args(Role):
        return f"{cls.__name__}.role must be 'frozen' or 'trainable', not {role!r}"
    return None
