"""Metric files of a run (metrics.csv, validation.csv) and the loggers of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from geobind.loggers import About, Logger, Writer, build_logger
from geobind.recipe import Recipe
from geobind.recipe.parsing import dump_yaml
from geobind.recipe.validation import split_logger_entry
from geobind.training.metrics import FIELDS, MetricsFile
from geobind.training.validation import validation_columns
from geobind.utils.logs import rank_zero_logger

_log = rank_zero_logger(__name__)

VALIDATION = "validation.csv"
_FIRST = ("stage", "step")


class MetricFiles(NamedTuple):
    """The metric files of a run."""

    metrics: MetricsFile
    validations: MetricsFile


def copy_stage_metrics(folder: Path, other: Path, stage: str) -> None:
    """Replace the metrics of a stage by those of another run's folder."""
    for name, first in (("metrics.csv", FIELDS), (VALIDATION, _FIRST)):
        if (other / name).exists():
            MetricsFile(folder / name, first=first).replace_stage(
                MetricsFile(other / name, first=first), stage
            )


@contextmanager
def open_run_loggers(recipe: Recipe, folder: Path, more: Sequence[str]) -> Generator[MetricFiles]:
    """Open the metric files of a run; rank zero opens the loggers when a stage starts.

    Args:
        recipe: Names the loggers.
        folder: Of the run.
        more: Columns of metrics.csv beside the usual ones.
    """
    loggers = RunLoggers(recipe, folder)
    try:
        yield MetricFiles(
            LoggedMetricsFile(folder / "metrics.csv", more, loggers),
            LoggedMetricsFile(
                folder / VALIDATION, validation_columns(recipe), loggers, first=_FIRST, kind="validation/"
            ),
        )
    finally:
        loggers.close()


class LoggedMetricsFile(MetricsFile):
    """A metrics file whose rows go to the loggers too.

    Args:
        path: The file.
        more: Its columns beside the first.
        loggers: The loggers.
        first: Its first columns.
        kind: What the names of its figures begin with there.
    """

    def __init__(
        self,
        path: Path,
        more: Sequence[str],
        loggers: RunLoggers,
        *,
        first: Sequence[str] = FIELDS,
        kind: str = "",
    ) -> None:
        super().__init__(path, more, first)
        self.loggers, self.kind = loggers, kind

    def rewind(self, stage: str, step: int) -> None:
        """Remove rows of a stage from `step` on, here and in the loggers."""
        super().rewind(stage, step)
        self.loggers.begin(stage, step)

    def add(self, stage: str, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows of a stage."""
        super().add(stage, rows)
        for row in rows:
            self.loggers.write(_numeric_values(row, self.kind), int(row["step"]))


class RunLoggers:
    """The loggers of a recipe; one that fails is dropped, and the run continues.

    Args:
        recipe: Names them.
        folder: Of the run.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self._loggers: dict[str, Logger] = {
            name: build_logger(name, opts) for name, opts in map(split_logger_entry, recipe.loggers)
        }
        self._writers: dict[str, Writer] = {}
        self._stage: str | None = None

    def begin(self, stage: str, first_step: int) -> None:
        """Open the writers of a stage."""
        if stage == self._stage:
            return
        self.close()
        self._stage = stage
        text = dump_yaml(self.recipe.written)
        about = About(self.recipe.name, self.folder, stage, first_step, self.recipe.written, text)

        def open_one(name: str) -> None:
            self._writers[name] = self._loggers[name].open(about)

        self._each(list(self._loggers), open_one)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Pass the metrics of a step to all writers."""
        self._each(list(self._writers), lambda name: self._writers[name].numbers(values, step))

    def close(self) -> None:
        """Close the writers of the stage."""
        self._each(list(self._writers), lambda name: self._writers[name].close())
        self._writers.clear()

    def _each(self, names: Sequence[str], what: Callable[[str], None]) -> None:
        for name in names:
            try:
                what(name)
            except Exception as error:  # hours of training do not end because a server is away
                self._loggers.pop(name, None)
                self._writers.pop(name, None)
                reason = " ".join(str(error).split()) or type(error).__name__
                _log.warning("logger '%s' failed and is left out from now on: %s", name, reason)


def _numeric_values(row: Mapping[str, Any], kind: str) -> dict[str, float]:
    """Return the numbers of a row; `loss:one-other` becomes `loss/one-other`."""
    values: dict[str, float] = {}
    for name, value in row.items():
        if name not in ("step", "stage", "source", "seconds") and value not in ("", None):
            values[f"{kind}{name}".replace(":", "/")] = float(value)
    return values
