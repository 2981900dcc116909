"""What a run was planned to take beside what it took: time, memory, disk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from geobind.report.facts import Run, checked
from geobind.report.left import Left, StageDone


class SecondsPlanned(Left):
    """Times of a stage."""

    stage: float


class DiskPlanned(Left):
    """What a stage leaves on disks."""

    cache: int
    trained: int


class StagePlanned(Left):
    """A stage of `plan.json`."""

    name: str
    batch_size: int
    steps: int
    why: str
    seconds: SecondsPlanned
    memory_bytes: int | None = None
    disk: DiskPlanned


class MemoryPlanned(Left):
    """What figures of memory are about."""

    kind: str


class PlanLeft(Left):
    """`plan.json`, which `geobind plan --out` or a run that settles something writes."""

    memory: MemoryPlanned
    opening_seconds: float
    stages: tuple[StagePlanned, ...]
    evaluation_seconds: float
    memory_bytes: int | None = None
    disk_bytes: int


class Compared(NamedTuple):
    """A figure as planned and as measured; None where there is none."""

    planned: float | None
    measured: float | None

    @property
    def off(self) -> str:
        """By how much of the measured figure the planned one is off."""
        if not self.planned or not self.measured:
            return ""
        share = round(100 * (self.planned / self.measured - 1))
        return f"{share:+d}\N{NO-BREAK SPACE}%".replace("-", "−")


class Row(NamedTuple):
    """A stage, or the whole run."""

    name: str
    seconds: Compared
    memory: Compared
    disk: Compared
    why: str


class Planned(NamedTuple):
    """Everything that the section shows."""

    rows: tuple[Row, ...]
    accelerator: bool  # whose memory it is
    others: tuple[str, ...]  # stages that ran otherwise than planned


def planned(run: Run) -> Planned | None:
    """Set the plan of a run beside its stages; None without a plan, or before a stage is finished.

    Raises:
        CheckpointError: The plan is damaged.
    """
    path = run.folder / "plan.json"
    if not path.is_file():
        return None
    plan = checked(PlanLeft, path)
    accelerator = plan.memory.kind == "accelerator"
    done = {stage.name: stage for stage in run.stages}
    pairs = [(stage, done[stage.name]) for stage in plan.stages if stage.name in done]
    same = [(one, two) for one, two in pairs if (one.batch_size, one.steps) == (two.batch_size, two.steps)]
    rows = [_row(run.folder, one, two, accelerator) for one, two in same]
    if len(rows) == len(plan.stages) and rows:
        rows += _whole(run, plan, rows, accelerator)
    others = tuple(one.name for one, two in pairs if (one, two) not in same)
    return Planned(tuple(rows), accelerator, others) if pairs else None


def _row(folder: Path, stage: StagePlanned, done: StageDone, accelerator: bool) -> Row:
    trained = sum(path.stat().st_size for path in folder.glob(f"stages/*_{stage.name}/trained.safetensors"))
    held = done.peak_memory_bytes if accelerator else done.process_bytes
    return Row(
        stage.name,
        Compared(stage.seconds.stage, done.seconds if math.isfinite(done.seconds) else None),
        Compared(stage.memory_bytes, held),
        Compared(stage.disk.cache + stage.disk.trained, trained + int(done.filled.get("bytes", 0))),
        stage.why,
    )


def _whole(run: Run, plan: PlanLeft, rows: list[Row], accelerator: bool) -> Iterator[Row]:
    took = None
    with suppress(KeyError, TypeError, ValueError):
        times = [datetime.fromisoformat(run.started[name]) for name in ("started", "finished")]
        took = (times[1] - times[0]).total_seconds()
    seconds = plan.opening_seconds + sum(stage.seconds.stage for stage in plan.stages)
    held = [row.memory.measured for row in rows if row.memory.measured is not None]
    bundle = sum(path.stat().st_size for path in run.folder.glob("bundle/*.safetensors"))
    written = sum(row.disk.measured or 0 for row in rows) + bundle
    yield Row(
        "whole run",
        Compared(seconds + plan.evaluation_seconds, took),
        Compared(plan.memory_bytes, max(held, default=None)),
        Compared(plan.disk_bytes, written),
        "",
    )
