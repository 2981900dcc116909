"""Which rows a step takes, and the random numbers of each sample: pure functions, so runs resume exactly."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST = 2  # rows of a batch: one alone has nothing to be told from


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of one step: each epoch is a new permutation without its incomplete last batch.

    Args:
        n: Rows there are.
        batch_size: Rows of a step.
        step: Counted from 0 over all epochs.
        seed: Any whole number from 0.

    Returns:
        (batch_size,) different row numbers.

    Raises:
        DataError: There are fewer rows than a batch.
    """
    if not 1 <= batch_size <= n:
        rows = "1 row" if n == 1 else f"{n} rows"
        fix = f"set batch_size to {n} or less, or add rows" if n >= FEWEST else f"it takes {FEWEST} at least"
        raise DataError(f"{rows} cannot fill a batch of {batch_size}; {fix}")
    epoch, batch = divmod(step, n // batch_size)
    return _permutation(n, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]


@lru_cache(maxsize=8)  # several sources take turns
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.default_rng([seed, epoch]).permutation(n)
    order.flags.writeable = False  # it is cached
    return order


def replacement(
    n: int,
    batch_size: int,
    step: int,
    seed: int,
    index: int,
    attempt: int,
    batch: NDArray[np.int64] | None = None,
) -> int:
    """Return the row that stands in for row `index` of a step: one not in the step, if there is any.

    The step's rows are those of `batch_indices`, unless others are given.
    """
    rng = np.random.default_rng([seed, step, index, attempt])
    batch = batch_indices(n, batch_size, step, seed) if batch is None else batch
    if n == batch_size:
        return int(rng.choice(batch[batch != index])) if n > 1 else index
    while True:
        row = int(rng.integers(n))
        if row not in batch:
            return row


def python_random(*numbers: int) -> random.Random:
    """Return a generator that draws what `random` draws after `seeded` with the same numbers."""
    return random.Random(_seeds(*numbers)[1])


def _seeds(*numbers: int) -> tuple[int, int, int]:
    numpy_seed, python_seed, torch_seed = np.random.SeedSequence(numbers).generate_state(3)
    return int(numpy_seed), int(python_seed), int(torch_seed)


@contextmanager
def seeded(*numbers: int) -> Generator[None]:
    """Seed torch, numpy and random from these numbers, and put back what they were in the main process."""
    with kept():
        seed(*numbers)
        yield


def seed(*numbers: int) -> None:
    """Seed torch, numpy and random from these numbers."""
    numpy_seed, python_seed, torch_seed = _seeds(*numbers)
    torch.default_generator.manual_seed(torch_seed)  # as `seed_torch` does it
    np.random.seed(numpy_seed)
    random.seed(python_seed)


def seed_torch(device: torch.device, number: int) -> None:
    """Seed what torch draws from on the CPU and on a device, as `torch.manual_seed` would."""
    # torch.manual_seed notes for each kind of accelerator that has not started where it was called from.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    elif device.type != "cpu":
        torch.manual_seed(number)


@contextmanager
def kept() -> Generator[None]:
    """Put back what torch, numpy and random were, in the main process.

    It takes as long as a tenth of preparing an image, so do it once for many.
    """
    # In a worker nothing else draws, so that saving and restoring would be time lost.
    in_worker = torch.utils.data.get_worker_info() is not None
    saved = None if in_worker else (torch.get_rng_state(), np.random.get_state(), random.getstate())
    try:
        yield
    finally:
        if saved is not None:
            torch.set_rng_state(saved[0])
            np.random.set_state(saved[1])
            random.setstate(saved[2])
