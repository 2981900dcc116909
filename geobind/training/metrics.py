"""Metrics of training steps: metrics.csv, the progress line, the check for finite losses."""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor

from geobind.errors import StorageError, TrainingError
from geobind.utils import files
from geobind.utils.logs import rank_zero_logger
from geobind.utils.progress import PLAIN_EVERY, is_interactive, make_bar

_log = rank_zero_logger(__name__)

_SHOW_EVERY = 0.1  # seconds; a bar is drawn no more often
FIELDS: tuple[str, ...] = ("stage", "step", "loss", "temperature", "lr", "grad_norm", "samples_per_second")


class StepRecord(NamedTuple):
    """One training step; the loss stays on the device until the next flush."""

    number: int
    loss: Tensor
    norm: Tensor | None
    lr: float
    losses: Mapping[str, Tensor]  # of each pair that had rows enough
    scales: Mapping[str, Tensor]  # one over the temperature, of every pair
    keys: Sequence[str]
    source: str = ""  # where the rows are from, if steps take turns


class MetricsFile:
    """metrics.csv of a run: one row per step, appended and flushed.

    Args:
        path: The file.
        more: Columns beside the first ones, such as those of `pair_fields`.
        first: Its first columns.
    """

    write_every: ClassVar[float] = 0.2  # seconds: opening the file takes as long as recording a step

    def __init__(self, path: Path, more: Sequence[str] = (), first: Sequence[str] = FIELDS) -> None:
        self.path = path
        self.fields = (*first, *more)

    def rewind(self, stage: str, step: int) -> None:
        """Remove rows of a stage from `step` on, before they are written again."""
        kept = [row for row in self._rows() if row["stage"] != stage or int(row["step"] or 0) < step]
        if kept or self.path.exists():
            self._write(kept)

    def replace_stage(self, other: MetricsFile, stage: str) -> None:
        """Replace the rows of a stage by those of another run."""
        own = [row for row in self._rows() if row["stage"] != stage]
        self._write([*own, *(row for row in other._rows() if row["stage"] == stage)])

    def _rows(self) -> list[dict[str, str]]:
        """Return the complete rows: a killed process or a full disk cuts the last one."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1].replace("\0", ""), newline=""))
        return [row for row in rows if None not in row.values() and (row["step"] or "").isdigit()]

    def _write(self, rows: Sequence[Mapping[str, str]]) -> None:
        text = io.StringIO(newline="")
        kept_columns = (name for row in rows[:1] for name in row if name)  # of an earlier recipe
        self.fields = tuple(dict.fromkeys((*self.fields, *kept_columns)))
        writer = csv.DictWriter(text, self.fields, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        files.write_atomic(self.path, text.getvalue().encode())

    def add(self, stage: str, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows of a stage."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.fields, lineterminator="\n")
        if not self.path.exists():
            writer.writeheader()
        writer.writerows({"stage": stage, **row} for row in rows)
        try:
            with self.path.open("ab") as file:
                file.write(text.getvalue().encode())
        except OSError as error:
            raise files.explain_write_error(self.path, error) from error

    def sync(self) -> None:
        """Sync the file to disk, so that rows survive a power cut."""
        try:
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise files.explain_write_error(self.path, error) from error


class Recorder:
    """Collects steps, writes them in groups, and shows progress.

    Args:
        stage: Its name.
        total: Its steps.
        batch_size: Rows per step.
        metrics: Where rows go; None on all processes but the first.
        every: Steps between two looks: a look waits for the device.
    """

    def __init__(
        self, stage: str, total: int, batch_size: int, metrics: MetricsFile | None, every: int
    ) -> None:
        self.stage, self.total, self.batch_size = stage, total, batch_size
        self.metrics, self.every = metrics, every
        self.last_good: str = "none yet"
        self.status_extra = ""  # what else the line of progress tells
        self.last_loss = math.nan
        self.last_of: dict[str, float] = {}  # by pair, of the last step that compared it
        self._pending: list[StepRecord] = []
        self._rows: list[dict[str, Any]] = []  # looked at, and not yet in the file
        self._broken = 0
        self._bar = make_bar("status") if metrics and is_interactive() else None
        self._flushed = self._shown = self._written = time.monotonic()

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self.stage, total=self.total, status="")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        if kind is None:
            self.flush()
        else:
            with suppress(StorageError):  # what ended the stage counts
                self._write()

    def add(self, step: StepRecord, broken: int) -> None:
        """Record a step and flush when due; `broken` counts the samples left out so far."""
        self._pending.append(step)
        self._broken = broken
        if len(self._pending) >= self.every or step.number + 1 == self.total:
            self._look()
            due = self._written + self.metrics.write_every if self.metrics else math.inf
            if self._flushed >= due or step.number + 1 == self.total:
                self._write()

    def flush(self) -> None:
        """Check, show and write the steps since the last flush.

        Raises:
            TrainingError: A loss was not finite.
        """
        self._look()
        self._write()

    def _write(self) -> None:
        if self.metrics and self._rows:
            self.metrics.add(self.stage, self._rows)
        self._rows.clear()
        self._written = time.monotonic()

    def _look(self) -> None:
        if not self._pending:
            return
        now = time.monotonic()
        rate = len(self._pending) * self.batch_size / max(now - self._flushed, 1e-9)
        losses = [float(step.loss) for step in self._pending]
        for step, loss in zip(self._pending, losses, strict=True):
            if not math.isfinite(loss):
                self._alarm(step, loss)
        self.last_loss = losses[-1]
        for step in self._pending:
            self.last_of |= {name: float(value) for name, value in step.losses.items()}
        if self.metrics:
            self._rows += [_csv_row(s, loss, rate) for s, loss in zip(self._pending, losses, strict=True)]
            self._show(self._pending[-1], losses[-1], rate, now)
        self._pending.clear()
        self._flushed = time.monotonic()

    @property
    def last_values(self) -> dict[str, Any]:
        """The losses of the last step, for a checkpoint."""
        return {"loss": self.last_loss, "losses": self.last_of}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Restore the losses of the step before the first."""
        self.last_loss = values.get("loss", math.nan)
        self.last_of = dict(values.get("losses", {}))

    def sync(self) -> None:
        """Flush, and sync the file to disk before a checkpoint.

        Raises:
            TrainingError: A loss was not finite.
        """
        self.flush()
        if self.metrics:
            self.metrics.sync()

    def exclude_elapsed(self) -> None:
        """Exclude the time since the last flush from the throughput."""
        self._flushed = time.monotonic()

    def _alarm(self, step: StepRecord, loss: float) -> None:
        keys = ", ".join(step.keys[:8]) + (f" and {len(step.keys) - 8} more" if len(step.keys) > 8 else "")
        bad = [name for name, value in step.losses.items() if not math.isfinite(float(value))]
        of = f" of {', '.join(bad)}" if len(step.scales) > 1 else ""
        raise TrainingError(
            f"stage '{self.stage}': the loss{of} is {loss} at step {step.number} "
            f"(learning rate {step.lr:.3g}, temperature {_format_temperatures(step, '.3g')})\n"
            f"  rows of the batch: {keys}\n"
            f"  last good checkpoint: {self.last_good}\n"
            f"  look at those rows, lower the learning rate or clip_norm, and run again with --resume"
        )

    def _show(self, step: StepRecord, loss: float, rate: float, now: float) -> None:
        last = step.number + 1 == self.total
        if not last and now - self._shown < (_SHOW_EVERY if self._bar else PLAIN_EVERY):
            return
        self._shown = now
        parts = "".join(
            f"  {name} {value:.3f}" for name, value in self.last_of.items() if len(step.scales) > 1
        )
        status = (
            f"loss {loss:.3f}{parts}  temperature {_format_temperatures(step, '.4f')}  {rate:.0f} samples/s"
        )
        status += f"  {self.status_extra}" if self.status_extra else ""
        status += f"  {self._broken} broken" if self._broken else ""
        if self._bar:
            self._bar.update(self._task, completed=step.number + 1, status=status)
        else:
            left = (self.total - step.number - 1) * self.batch_size / max(rate, 1e-9)
            _log.info(
                "%s: step %d/%d  %s  %.0f s left", self.stage, step.number + 1, self.total, status, left
            )


def pair_columns(pairs: Sequence[str]) -> list[str]:
    """Return the columns of stages with several pairs; the loss of a single pair is `loss`."""
    return [f"{measure}:{pair}" for pair in pairs for measure in ("loss", "temperature")]


def _format_temperatures(step: StepRecord, form: str) -> str:
    return ", ".join(f"{1 / float(scale):{form}}" for scale in step.scales.values())


def _csv_row(step: StepRecord, loss: float, rate: float) -> dict[str, Any]:
    alone = len(step.scales) == 1
    values = {f"loss:{name}": f"{float(value):.6g}" for name, value in step.losses.items()}
    values |= {f"temperature:{name}": f"{1 / float(scale):.6g}" for name, scale in step.scales.items()}
    return {
        **({} if alone else values),
        **({"source": step.source} if step.source else {}),
        "step": step.number,
        "loss": f"{loss:.6g}",
        "temperature": _format_temperatures(step, ".6g") if alone else "",
        "lr": f"{step.lr:.6g}",
        "grad_norm": "" if step.norm is None else f"{float(step.norm):.6g}",
        "samples_per_second": f"{rate:.1f}",
    }
