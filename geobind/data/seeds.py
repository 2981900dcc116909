"""Seeds of rows, and the random state of torch, numpy and Python's random."""

# B rows, K numbers that one is known by

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray


def python_random(*numbers: int) -> random.Random:
    """Return a generator that draws what `random` draws after `seeded_rng` with the same numbers."""
    return random.Random(_derive_seeds(*numbers)[1])


Seeds = tuple[int, int, int]  # of numpy, random and torch


def _derive_seeds(*numbers: int) -> Seeds:
    numpy_seed, python_seed, torch_seed = np.random.SeedSequence(numbers).generate_state(3)
    return int(numpy_seed), int(python_seed), int(torch_seed)


def derive_row_seeds(seed: int, indices: Sequence[tuple[int, int]]) -> list[Seeds]:
    """Derive the seeds of many (step, row) at once: those of `seed_rng(seed, step, row)`.

    It is numpy's `SeedSequence` (M.E. O'Neill's seed_seq_fe) for arrays: one by one, seeds take longer than
    the small samples that they are for.
    """
    fixed = [seed >> shift & _WORD for shift in range(0, max(1, seed.bit_length()), 32)]
    index_BK = np.array(indices, dtype=np.int64).reshape(-1, 2)
    if index_BK.size and index_BK.max() > _WORD:
        return [_derive_seeds(seed, *index) for index in indices]
    rows = len(index_BK)
    words = [np.full(rows, word, np.uint32) for word in fixed] + list(index_BK.T.astype(np.uint32))
    empty = [np.zeros(rows, np.uint32)] * (_POOL - len(words))
    hash_in = _WordHash(0x43B0D7E5, 0x931E8875)
    pool = [hash_in(word_B) for word_B in (words + empty)[:_POOL]]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = _mix_words(pool[target], hash_in(pool[source]))
    for word_B in words[_POOL:]:
        pool = [_mix_words(mixed_B, hash_in(word_B)) for mixed_B in pool]
    hash_out = _WordHash(0x8B51F9DD, 0x58F38DED)
    return list(zip(*(hash_out(mixed_B).tolist() for mixed_B in pool[:3]), strict=True))


_WORD, _POOL = 2**32 - 1, 4  # largest word; words of the state of a SeedSequence


class _WordHash:
    """The hash of 32-bit words by a constant that changes with each call."""

    def __init__(self, constant: int, factor: int) -> None:
        self.constant, self.factor = constant, factor

    def __call__(self, word_B: NDArray[np.uint32]) -> NDArray[np.uint32]:
        word_B = word_B ^ np.uint32(self.constant)
        self.constant = self.constant * self.factor & _WORD
        word_B *= np.uint32(self.constant)
        word_B ^= word_B >> np.uint32(16)
        return word_B


def _mix_words(one_B: NDArray[np.uint32], other_B: NDArray[np.uint32]) -> NDArray[np.uint32]:
    mixed_B = one_B * np.uint32(0xCA01F9DD)
    mixed_B -= other_B * np.uint32(0x4973F715)
    mixed_B ^= mixed_B >> np.uint32(16)
    return mixed_B


@contextmanager
def seeded_rng(*numbers: int) -> Generator[None]:
    """Seed torch, numpy and random from these numbers; restore them afterwards in the main process."""
    with preserve_rng():
        seed_rng(*numbers)
        yield


def seed_rng(*numbers: int) -> None:
    """Seed torch, numpy and random from these numbers."""
    set_seeds(_derive_seeds(*numbers))


def set_seeds(seeds: Seeds) -> None:
    """Seed numpy, random and torch."""
    numpy_seed, python_seed, torch_seed = seeds
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
def preserve_rng() -> Generator[None]:
    """Restore the random state of torch, numpy and random afterwards, in the main process.

    What numpy's `randn` keeps of a pair for its next call is lost. It takes as long as preparing a caption,
    so do it once for many.
    """
    # In a worker nothing else draws, so that saving and restoring would be time lost.
    if torch.utils.data.get_worker_info() is not None:
        yield
        return
    saved = torch.get_rng_state(), random.getstate()
    # Another generator in its place: to copy the state of one takes ten times as long as all the rest.
    own = _spare_generators.pop() if _spare_generators else np.random.MT19937(0)
    before = _swap_generator(own)
    try:
        yield
    finally:
        torch.set_rng_state(saved[0])
        random.setstate(saved[1])
        _spare_generators.append(_swap_generator(before))


def _swap_generator(other: Any) -> Any:
    """Make numpy's functions draw from another bit generator, and return the one before."""
    numpy_random: Any = np.random  # its stubs lack both
    before = numpy_random.get_bit_generator()
    numpy_random.set_bit_generator(other)
    return before


_spare_generators: list[Any] = []
