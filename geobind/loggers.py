"""Loggers of metrics beside metrics.csv: their contract, and those that are installed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from geobind.errors import PluginError
from geobind.extras import find_missing
from geobind.plugins import PluginKind, Registry, find, unknown_option


class About(NamedTuple):
    """What a logger is told of a stage when it begins."""

    run: str  # the recipe's name
    folder: Path  # of the run
    stage: str
    first_step: int  # 0, or where a resumed stage goes on: figures from there on are about to come again
    recipe: Mapping[str, Any]  # plain values
    recipe_text: str  # the same as YAML


class Writer(Protocol):
    """Takes the figures of one stage."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Take figures of a step, such as `loss`, `lr` or `validation/R@10`."""
        ...

    def close(self) -> None:
        """Write what is left; nothing comes after it."""
        ...


class Logger(BaseModel, ABC):
    """A place where figures go; its fields are its options in a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]  # the word recipes use
    needs: ClassVar[str] = ""  # the module that it imports, if geobind does not come with it
    install: ClassVar[str] = ""  # the command that installs it

    @abstractmethod
    def open(self, about: About) -> Writer:
        """Begin a stage, on the first process alone."""

    def check(self) -> None:
        """See that what it needs is installed.

        Raises:
            PluginError: It is not.
        """
        for fault in find_missing({self.needs: self.install} if self.needs else {}):
            raise PluginError(f"logger '{self.name}' {fault}")


class FabricWriter:
    """Writes to a logger of Lightning Fabric, or to anything with its `log_metrics` and `finalize`."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Hand figures on."""
        self.logger.log_metrics(metrics=dict(values), step=step)

    def close(self) -> None:
        """Say that the stage has ended."""
        self.logger.finalize("success")


LOGGER = PluginKind("logger", Logger, "geobind.loggers.Logger", "geobind_loggers")


@lru_cache(maxsize=1)
def registry() -> Registry[Logger]:
    """Return every logger on this machine; plugins are looked up once per process."""
    return LOGGER.collect(find())


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
