"""The installed modalities: what plugins provide, checked, by the names that recipes use."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint
from typing import Any, get_args

from geobind import registering
from geobind.errors import PluginError
from geobind.modality import Modality, Role
from geobind.registering import Plugin, Source, fault_of, find, gather, open_plugin, provided

_RESERVED = {"key", "split", "lat", "lon", "time", "label", "group", "licence"}  # columns of every table

__all__ = ["Plugin", "Registry", "Source", "check", "collect", "find", "load", "registry"]


class Registry(registering.Registry[Modality]):
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


def collect(entries: Iterable[EntryPoint]) -> Registry:
    """Load and check each entry point; a faulty one is remembered with its reason and harms no other."""
    return Registry(*gather(entries, load, check))


@lru_cache(maxsize=1)
def registry() -> Registry:
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
