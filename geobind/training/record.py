"""What a stage tells while it runs: metrics.csv, a progress line, an alarm when the loss is not finite."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from torch import Tensor

from geobind import storage
from geobind.errors import TrainingError
from geobind.progress import PLAIN_EVERY, bar, watched

FIELDS: tuple[str, ...] = ("stage", "step", "loss", "temperature", "lr", "grad_norm", "samples_per_second")


class Step(NamedTuple):
    """One step as it was taken; the loss stays on the device until somebody looks."""

    number: int
    loss: Tensor
    norm: Tensor | None
    lr: float
    scale: Tensor  # one over the temperature
    keys: Sequence[str]


class Metrics:
    """metrics.csv of a run: one row per looked-at step, appended and flushed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, stage: str, step: int) -> None:
        """Drop rows of a stage from `step` on: they are about to be made again."""
        if not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        kept = [row for row in rows if row["stage"] != stage or int(row["step"] or 0) < step]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        storage.write(self.path, text.getvalue().encode())

    def add(self, stage: str, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows of a stage."""
        new = not self.path.exists()
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerows({"stage": stage, **row} for row in rows)
        except OSError as error:
            raise storage.refusal(self.path, error) from error


class Recorder:
    """Collects steps, looks at them now and then, and shows how the stage goes.

    Args:
        stage: Its name.
        total: Its steps.
        batch_size: Pairs per step.
        metrics: Where rows go; None on all processes but the first.
        every: Steps between two looks: a look waits for the device.
    """

    def __init__(self, stage: str, total: int, batch_size: int, metrics: Metrics | None, every: int) -> None:
        self.stage, self.total, self.batch_size, self.metrics, self.every = (
            stage,
            total,
            batch_size,
            metrics,
            every,
        )
        self.last_good: str = "none yet"
        self.last_loss = math.nan
        self._pending: list[Step] = []
        self._broken = 0
        self._bar = bar("status") if metrics and watched() else None
        self._looked = self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self.stage, total=self.total, status="")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        if kind is None:
            self.look()

    def add(self, step: Step, broken: int) -> None:
        """Remember a step, and look when it is time; `broken` counts the samples left out so far."""
        self._pending.append(step)
        self._broken = broken
        if len(self._pending) >= self.every or step.number + 1 == self.total:
            self.look()

    def look(self) -> None:
        """Check, write and show the steps since the last look.

        Raises:
            TrainingError: A loss was not finite.
        """
        if not self._pending:
            return
        now = time.monotonic()
        rate = len(self._pending) * self.batch_size / max(now - self._looked, 1e-9)
        losses = [float(step.loss) for step in self._pending]
        for step, loss in zip(self._pending, losses, strict=True):
            if not math.isfinite(loss):
                self._alarm(step, loss)
        self.last_loss = losses[-1]
        if self.metrics:
            self.metrics.add(
                self.stage, [_row(s, loss, rate) for s, loss in zip(self._pending, losses, strict=True)]
            )
            self._show(self._pending[-1], losses[-1], rate, now)
        self._pending.clear()
        self._looked = time.monotonic()

    def _alarm(self, step: Step, loss: float) -> None:
        keys = ", ".join(step.keys[:8]) + (f" and {len(step.keys) - 8} more" if len(step.keys) > 8 else "")
        raise TrainingError(
            f"stage '{self.stage}': the loss is {loss} at step {step.number} "
            f"(learning rate {step.lr:.3g}, temperature {1 / float(step.scale):.3g})\n"
            f"  rows of the batch: {keys}\n"
            f"  last good checkpoint: {self.last_good}\n"
            f"  look at those rows, lower the learning rate or clip_norm, and run again with --resume"
        )

    def _show(self, step: Step, loss: float, rate: float, now: float) -> None:
        status = f"loss {loss:.3f}  temperature {1 / float(step.scale):.4f}  {rate:.0f} samples/s"
        status += f"  {self._broken} broken" if self._broken else ""
        if self._bar:
            self._bar.update(self._task, completed=step.number + 1, status=status)
        elif now - self._spoke > PLAIN_EVERY or step.number + 1 == self.total:
            left = (self.total - step.number - 1) * self.batch_size / max(rate, 1e-9)
            print(
                f"{self.stage}: step {step.number + 1}/{self.total}  {status}  {left:.0f} s left",
                file=sys.stderr,
            )
            self._spoke = now


def _row(step: Step, loss: float, rate: float) -> dict[str, Any]:
    return {
        "step": step.number,
        "loss": f"{loss:.6g}",
        "temperature": f"{1 / float(step.scale):.6g}",
        "lr": f"{step.lr:.6g}",
        "grad_norm": "" if step.norm is None else f"{float(step.norm):.6g}",
        "samples_per_second": f"{rate:.1f}",
    }
