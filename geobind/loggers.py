"""Loggers of metrics beside metrics.csv: their contract and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from geobind.errors import PluginError
from geobind.extras import find_missing
from geobind.plugins import PluginKind, Registry, list_entry_points, unknown_option
from geobind.utils.formatting import format_first_fault


class About(NamedTuple):
    """The run and the stage that a logger is opened for."""

    run: str  # the recipe's name
    folder: Path  # of the run
    stage: str
    first_step: int  # 0, or the step a resumed stage continues from: metrics from there on are repeated
    recipe: Mapping[str, Any]  # plain values
    recipe_text: str  # the same as YAML


class Writer(Protocol):
    """A receiver of the metrics of one stage."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Record metrics of a step, such as `loss`, `lr` or `validation/R@10`."""
        ...

    def close(self) -> None:
        """Flush and end the stage; nothing is recorded afterwards."""
        ...


class Logger(BaseModel, ABC):
    """A destination of metrics; its fields are its options in a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]  # used in recipes
    needs: ClassVar[str] = ""  # the module that it imports, if geobind does not come with it
    install: ClassVar[str] = ""  # the command that installs it

    @abstractmethod
    def open(self, about: About) -> Writer:
        """Begin a stage and return its writer; called on rank zero alone."""

    def check(self) -> None:
        """Check that the package this logger needs is installed.

        Raises:
            PluginError: It is not installed; the message has the command that installs it.
        """
        for fault in find_missing({self.needs: self.install} if self.needs else {}):
            raise PluginError(f"logger '{self.name}' {fault}")


class FabricWriter:
    """A writer to a logger of Lightning Fabric, or to anything with its `log_metrics` and `finalize`."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Pass metrics on."""
        self.logger.log_metrics(metrics=dict(values), step=step)

    def close(self) -> None:
        """Finalize the logger."""
        self.logger.finalize("success")


LOGGER = PluginKind("logger", Logger, "geobind.loggers.Logger", "geobind_loggers")


@lru_cache(maxsize=1)
def registry() -> Registry[Logger]:
    """Return every logger on this machine; plugins are looked up once per process."""
    return LOGGER.collect(list_entry_points())


def build_logger(name: str, options: Mapping[str, Any]) -> Logger:
    """Build a logger from its name and options, and check that the package it needs is installed.

    Raises:
        PluginError: There is none of this name, it has no such option, or it needs a package.
    """
    cls = registry().get(name)
    if fault := unknown_option(options, list(cls.model_fields)):
        raise PluginError(f"logger '{name}' has {fault}")
    try:
        made = cls.model_validate(dict(options))
    except ValidationError as error:
        raise PluginError(f"logger '{name}': {format_first_fault(error)}") from None
    made.check()
    return made
