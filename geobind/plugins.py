"""Plugin discovery by entry point, checks of the classes that plugins provide, and their registries."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, get_args, overload

import pluggy

from geobind import hookspecs
from geobind.errors import PluginError, did_you_mean
from geobind.extras import explain_absent_modality
from geobind.modality import Modality, Role, Widget
from geobind.utils.formatting import shorten
from geobind.utils.streams import Trouble, shield_process

_log = logging.getLogger(__name__)

GROUP = "geobind"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Named(Protocol):
    """A class that a plugin provides; recipes and commands use its name."""

    name: ClassVar[str]


C = TypeVar("C", bound=Named)  # the base class of one kind
M = TypeVar("M", bound=Modality)


class Source(NamedTuple):
    """The origin of a plugin."""

    entry_point: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} [{self.entry_point}]"

    @property
    def published(self) -> bool:
        """Whether it is a distribution that can be installed elsewhere."""
        return is_distribution(self.distribution)


def is_distribution(name: str) -> bool:
    """Return whether this can be the name of a distribution, as those of files and of classes are not."""
    return re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name) is not None


_VERSION = re.compile(r"[A-Za-z0-9][\w.+!-]{0,99}")


def name_requirement(distribution: str, version: str) -> str:
    """Return NAME==VERSION for pip; empty if a stranger's words can be no such names."""
    known = is_distribution(distribution) and len(distribution) <= 100 and _VERSION.fullmatch(version)
    return f"{distribution}=={version}" if known else ""


class Plugin(NamedTuple, Generic[C]):
    """A class that a plugin provides, loaded and checked."""

    cls: type[C]
    source: Source


class Broken(NamedTuple):
    """A plugin that cannot be used, and why; it matters only to those who ask for it."""

    source: Source
    reason: str
    name: str | None = None  # of the class it provides, where two plugins clash over it


@dataclass(frozen=True)
class Registry(Generic[C]):
    """Every class of one kind that plugins on this machine provide."""

    kind: str  # the word for one of them in messages
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
        """Return the reasons why no plugin may provide `name`, because several do."""
        return [broken.reason for broken in self.broken if broken.name == name]

    def explain(self, name: str) -> str:
        """Return why there is no usable class called `name`, and which there are instead."""
        clash = self.clashes(name)
        lines = [clash[0] if clash else f"no {self.kind} named '{name}'"]
        if self.kind == "modality" and not clash and (install := explain_absent_modality(name)):
            lines[0] += f"; {install}"
        elif near := did_you_mean(name, self.plugins):
            lines[0] += f"; {near}"
        installed = ", ".join(sorted(self.plugins)) or "none (is geobind itself installed? pip install -e .)"
        lines.append(f"  installed: {installed}")
        lines += [f"  failed to load: {b.source}: {b.reason}" for b in self.broken if b.reason not in clash]
        return "\n".join(lines)


def _accept(_: type[Any]) -> None:
    return None


@dataclass(frozen=True)
class PluginKind(Generic[C]):
    """A kind of class that plugins provide: its base class, its hook, and the checks of its own."""

    word: str  # for one of them in messages
    base: type[C]
    address: str  # of the base class, for messages
    hook: str
    find_own_fault: Callable[[type[C]], str | None] = _accept
    required: bool = False  # a plugin that answers no hook at all is broken as one of this kind

    def load(self, entry: EntryPoint) -> list[type[C]]:
        """Import one plugin and return the classes of this kind that it provides, which may be none.

        Raises:
            PluginError: The plugin answers a hook that does not exist, or none although it must.
        """
        manager = open_plugin(entry)
        classes: list[type[C]] = [cls for answer in getattr(manager.hook, self.hook)() for cls in answer]
        others = (hook for name, hook in vars(manager.hook).items() if name != self.hook)
        if self.required and not classes and not any(hook.get_hookimpls() for hook in others):
            raise PluginError(f"it provides no {self.word}: no function {self.hook} marked @geobind.hookimpl")
        return classes

    def find_fault(self, cls: object) -> str | None:
        """Return in one line what is wrong with a class that claims to be of this kind, or None."""
        if not (inspect.isclass(cls) and issubclass(cls, self.base)):
            return f"{cls!r} is not a subclass of {self.address}"
        name = getattr(cls, "name", None)
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            return f"{cls.__name__}.name must be lower-case letters, digits and underscores, not {name!r}"
        if fault := self.find_own_fault(cls):
            return fault
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        return f"{cls.__name__} does not implement {', '.join(missing)}" if missing else None

    def collect(self, entries: Iterable[EntryPoint]) -> Registry[C]:
        """Load and check each entry point; a faulty one is remembered with its reason and harms no other."""
        checked: dict[str, list[Plugin[C]]] = {}
        broken: list[Broken] = []
        for entry in entries:
            source = _source(entry)
            _log.debug("importing plugin %s", source)
            trouble = Trouble()
            try:
                with shield_process(trouble):
                    classes = self.load(entry)
            except BaseException as error:  # one that exits or raises anything must not end the command
                if trouble.interrupted:
                    raise
                reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
                broken.append(Broken(source, " ".join(reason.split())))
                if not isinstance(error, Exception):
                    _warn(source, f"is left out, it cannot be imported: {broken[-1].reason}")
                continue
            finally:
                if trouble.printed.strip():
                    _warn(source, f"prints while it is imported: {trouble.printed}")
            for cls in classes:
                if fault := self.find_fault(cls):
                    broken.append(Broken(source, fault))
                else:
                    checked.setdefault(cls.name, []).append(Plugin(cls, source))
        usable: dict[str, Plugin[C]] = {}
        for name, plugins in sorted(checked.items()):
            if len(plugins) == 1:
                usable[name] = plugins[0]
            else:
                who = " and ".join(str(plugin.source) for plugin in plugins)
                reason = f"two plugins provide '{name}': {who}; uninstall one"
                broken.append(Broken(plugins[1].source, reason, name))
        return Registry(self.word, usable, tuple(broken))


_warned: set[tuple[Source, str]] = set()


def _warn(source: Source, message: str) -> None:
    """Warn of a plugin, once: each kind of class imports it."""
    message = shorten(message, 200)
    if (source, message) not in _warned:
        _warned.add((source, message))
        _log.warning("plugin %s %s", source, message)


def list_entry_points() -> list[EntryPoint]:
    """List the entry points of group `geobind`, in an order that does not depend on the file system."""
    return sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, str(_source(entry))))


def open_plugin(entry: EntryPoint) -> pluggy.PluginManager:
    """Import one plugin and return the manager through which its hooks are called.

    Each plugin gets a pluggy manager of its own: pluggy's loader stops at the first plugin that fails,
    skips a repeated entry-point name and lets a misspelt hook pass, and none of that may cross plugins.

    Raises:
        PluginError: The plugin answers a hook that does not exist.
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
    """Name the first hook of a plugin that geobind does not have, and the one it resembles."""
    known = [name for name, hook in sorted(vars(manager.hook).items()) if hook.has_spec()]
    for hook in manager.get_hookcallers(plugin) or ():
        if not hook.has_spec():
            hint = did_you_mean(hook.name, known, f"there are {', '.join(known)}")
            return f"no hook '{hook.name}'; {hint}"
    return None


def unknown_option(given: Iterable[str], known: Sequence[str]) -> str | None:
    """Name the first option that is not known, and the one it resembles; None if all are known."""
    options = ", ".join(known) or "none"
    unknown = next((name for name in given if name not in known), None)
    return unknown and f"no option '{unknown}'; {did_you_mean(unknown, known, f'it has {options}')}"


def _source(entry: EntryPoint) -> Source:
    distribution = entry.dist
    if distribution is None:
        return Source(entry.name, "unknown", "?")
    return Source(entry.name, *_read_distribution(distribution))


@lru_cache(maxsize=256)
def _read_distribution(distribution: Distribution) -> tuple[str, str]:
    """Return name and version; each time that they are asked for, all of its metadata is parsed."""
    return distribution.name, distribution.version


RESERVED = {"key", "split", "lat", "lon", "time", "label", "group", "licence"}  # columns of every table


def _fault_of_modality(cls: type[Modality]) -> str | None:
    if cls.name in RESERVED:
        return f"{cls.__name__}.name cannot be {cls.name!r}: every data table has a column of that name"
    taken = sorted({"role", "data"} & set(cls.model_fields))
    if taken:
        return f"{cls.__name__} has an option {taken[0]!r}, which recipes keep for themselves; rename it"
    role: Any = getattr(cls, "role", None)
    if role not in get_args(Role):
        return f"{cls.__name__}.role must be 'frozen' or 'trainable', not {role!r}"
    if cls.widget not in get_args(Widget):
        return f"{cls.__name__}.widget must be one of {', '.join(get_args(Widget))}, not {cls.widget!r}"
    return None


MODALITY = PluginKind(
    "modality", Modality, "geobind.Modality", "geobind_modalities", _fault_of_modality, required=True
)


_registered: dict[str, Plugin[Modality]] = {}


@lru_cache(maxsize=1)
def registry() -> Registry[Modality]:
    """Return every modality on this machine, and those registered in this process.

    Plugins are looked up once per process.
    """
    installed = MODALITY.collect(list_entry_points())
    return replace(installed, plugins={**installed.plugins, **_registered})


@overload
def register(provider: type[M]) -> type[M]: ...
@overload
def register(provider: str | Path) -> None: ...
def register(provider: type[M] | str | Path) -> type[M] | None:
    """Make modalities that no installed plugin provides usable in this process.

    Args:
        provider: A class, such as one of a notebook's cell (`@geobind.register` above it); running the cell
            again replaces it. Or a Python file, which answers hooks as an installed plugin does.

    Returns:
        The class.

    Raises:
        PluginError: The class or file is faulty, or an installed plugin provides the name.
    """
    if isinstance(provider, str | Path):
        return _register_file(Path(provider))
    if fault := MODALITY.find_fault(provider):
        raise PluginError(fault)
    _add(provider, Source(provider.__name__, "(registered)", "0"))
    return provider


def _register_file(path: Path) -> None:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise PluginError(f"{path}: {error.strerror or error}; name a Python file of yours") from error
    name = path.stem
    if path.suffix != ".py" or not name.isidentifier():
        raise PluginError(f"{path}: not the name of a Python file; call it such as my_modality.py")
    # As a module of its own name in its own folder, so that worker processes import the same class.
    if str(folder := path.resolve().parent) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path.resolve():
        raise PluginError(f"{path}: there is another module '{name}' already; rename the file")
    source = Source(name, f"./{path.name}", digest)
    if any(p.source[:2] == source[:2] and p.source != source for p in _registered.values()):
        importlib.reload(sys.modules[name])  # it has changed since
    found = MODALITY.collect([EntryPoint(name, name, GROUP)])
    if found.broken:
        raise PluginError(f"{path}: {found.broken[0].reason}")
    for plugin in found.plugins.values():
        _add(plugin.cls, source)


def _add(cls: type[Modality], source: Source) -> None:
    """Add a class to the registry of this process.

    Raises:
        PluginError: Another plugin provides the name.
    """
    there = registry().plugins.get(cls.name)
    if there is not None and there.cls is not cls and there.source[:2] != source[:2]:
        raise PluginError(
            f"modality '{cls.name}' is provided by {there.source} already; give {cls.__name__} another name"
        )
    registry().plugins[cls.name] = _registered[cls.name] = Plugin(cls, source)
