"""What ends a stage from outside: memory that is full, a process that dies; said with the fix."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from geobind.data.loader import WorkerDied, is_worker_death
from geobind.errors import DataError, TrainingError

if TYPE_CHECKING:
    from geobind.training.job import Job

_FULL = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate")
_GO_ON = "the last checkpoint is kept, and --resume goes on from it"


@contextmanager
def explained(job: Job, device: torch.device) -> Generator[None]:
    """Say what is at fault where a stage ends for a reason that none of its parts knows.

    Raises:
        TrainingError: Memory is full, or a process that loads data died.
        DataError: As it was raised, with the stage's name.
    """
    name = job.stage.name
    try:
        yield
    except (WorkerDied, RuntimeError, MemoryError) as error:
        # torch tells of a dead process wherever the main one is at that moment, not only where it loads.
        if isinstance(error, WorkerDied) or is_worker_death(error):
            raise TrainingError(f"stage '{name}': {WorkerDied.of(error)}\n  {_GO_ON}") from error
        if not _is_full(error):
            raise
        raise TrainingError(_of_memory(job, device, str(error).partition("\n")[0])) from error
    except DataError as error:
        raise DataError(f"stage '{name}': {error}") from error


def _is_full(error: Exception) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in said for word in _FULL)


def _of_memory(job: Job, device: torch.device, reason: str) -> str:
    stage, recipe = job.stage, job.recipe
    precision = stage.precision or recipe.fabric.precision
    fixes = [
        f"embed fewer rows at a time: `chunk: {_fewer(stage.batch_size, stage.chunk)}`; the result stays"
    ]
    if device.type != "cpu" and precision.startswith("32"):
        fixes.append("compute in half precision: `precision: bf16-mixed`")
    if device.type == "cpu" and recipe.workers != 0:
        fixes.append(f"use fewer processes that load data: `workers` is {recipe.workers}")
    fixes.append(f"a smaller `batch_size` than {stage.batch_size} has fewer negatives; the stage starts anew")
    listed = "".join(f"\n  - {fix}" for fix in fixes)
    where = "the machine" if device.type == "cpu" else f"the accelerator ({device})"
    return f"stage '{stage.name}': the memory of {where} is full ({reason})\n  {_GO_ON}; before that:{listed}"


def _fewer(batch_size: int | str, chunk: int | str | None) -> int | str:
    now = chunk if isinstance(chunk, int) else batch_size
    return max(1, now // 2) if isinstance(now, int) else "N"
