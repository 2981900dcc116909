"""Run a dataset in worker processes, or in this one; a user's mistake arrives as one clean message."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from geobind.errors import DataError

Workers = int | Literal["auto"]
_FEW = 1000  # rows that are prepared before worker processes have even started
_MOST = 8


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
        DataError: A sample or a batch failed, or a worker died.
    """
    loader = DataLoader(
        samples,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        collate_fn=_Guarded(collate),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or it would draw from the global one, and change what comes after
    )
    try:
        for batch in loader:
            if isinstance(batch, Failed):
                raise DataError(batch.message)
            yield batch
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a process that loads data died ({error}); give it more memory (in a container, also shared "
            "memory: --shm-size), or use fewer `workers`; `workers: 0` shows errors of native code"
        ) from error


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
