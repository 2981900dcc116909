"""Run a dataset in worker processes, or in this one; a user's mistake arrives as one clean message."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, NamedTuple, Self

import torch
from torch.utils.data import DataLoader, Dataset

from geobind.errors import DataError

Workers = int | Literal["auto"]
_FEW = 1000  # rows that are prepared before worker processes have even started
_MOST = 8
_PATIENCE = 1800  # seconds for one batch; whoever takes longer hangs
_DEATHS = ("DataLoader worker", "DataLoader timed out")  # how torch begins to say so


class WorkerDied(DataError):
    """A process that loads data died, or hangs; the message says what to do."""

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Say it of what torch raised."""
        if isinstance(error, cls):
            return error
        if str(error).startswith(_DEATHS[1]):
            return cls(
                f"processes that load data have brought nothing for {_PATIENCE} s: the disk or network they "
                "read from may hang; `workers: 0` shows where"
            )
        return cls(
            f"a process that loads data died ({error}); it may have had too little memory: use fewer "
            "`workers`, or give more (in a container, also shared memory: --shm-size); "
            "`workers: 0` shows errors of native code"
        )


def is_worker_death(error: Exception) -> bool:
    """Whether torch says that a process that loads data died, or hangs."""
    return isinstance(error, RuntimeError) and str(error).startswith(_DEATHS)


class Failed(NamedTuple):
    """A user's mistake on its way from a worker: torch would wrap the exception itself in a traceback."""

    message: str


def auto_workers(rows: int) -> int:
    """Choose how many processes load data: none for few rows, else a share of the CPUs, at most 8."""
    if rows < _FEW:
        return 0
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def load(
    samples: Dataset[Any],
    batches: Iterable[Any],
    collate: Callable[[list[Any]], Any],
    workers: int,
) -> Iterator[Any]:
    """Yield the batches in order.

    Args:
        samples: Returns one sample for one item of a batch, or `Failed`.
        batches: The items of each batch.
        collate: Makes a batch of a list of samples; may raise DataError.
        workers: Processes; 0 does the work in this one.

    Raises:
        DataError: A sample or a batch failed.
        WorkerDied: A process died, or hangs.
    """
    others = set(multiprocessing.active_children())
    loader = DataLoader(
        samples,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        collate_fn=_Guarded(collate),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        timeout=_PATIENCE if workers else 0,
        worker_init_fn=_heed,
        generator=torch.Generator(),  # or it would draw from the global one, and change what comes after
    )
    loaded = iter(loader)
    try:
        for batch in loaded:
            if isinstance(batch, Failed):
                raise DataError(batch.message)
            yield batch
    except (RuntimeError, OSError, EOFError) as error:
        # Of one that dies while it hands over a batch torch knows only that a connection broke.
        if not (is_worker_death(error) or (workers and isinstance(error, ConnectionError | EOFError))):
            raise
        with suppress(RuntimeError):  # torch tells of a death once more, at a moment of its own
            getattr(loaded, "_shutdown_workers", lambda: None)()
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
            process.join(1)  # one that waits for a disk that hangs cannot even be killed
        raise WorkerDied.of(error) from error


def _heed(_: int) -> None:
    """Leave signals that are sent to a whole group of processes to the one that trains.

    It finishes its step, which takes batches, and then ends the others: in the worst case by a SIGTERM of
    its own, which is the second.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _heed_the_next)


def _heed_the_next(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class _Guarded:
    collate: Callable[[list[Any]], Any]

    def __call__(self, samples: list[Any]) -> Any:
        failed = next((sample for sample in samples if isinstance(sample, Failed)), None)
        if failed is not None:
            return failed
        try:
            return self.collate(samples)
        except DataError as error:
            return Failed(str(error))
