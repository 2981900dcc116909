"""Make the rows that an entry lacks: prepare, encode, write a shard every half minute."""

# B inputs of a batch, M rows, F numbers of a row

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from geobind.data.loader import Failed, collate, load
from geobind.data.sampler import seeded
from geobind.data.sources import vanished
from geobind.errors import DataError
from geobind.frozen.contents import Uncacheable
from geobind.frozen.entry import Entry
from geobind.frozen.folder import LIMIT, limit_bytes
from geobind.modality import Modality
from geobind.utils.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.modality import Prepared

_SECONDS = 30.0  # what an interruption loses at most
_BYTES = 2**27  # kept in memory before they are written


class Wanted(NamedTuple):
    """An observation whose row is to be made."""

    row: int  # of the pairs
    item: int  # of the row's equally good observations
    view: int  # of its augmented views
    content: tuple[int, int]


class _Sample(NamedTuple):
    number: int
    prepared: Prepared | None
    fault: str = ""
    drew: bool = False  # random numbers, though the result is to be the same every time


@dataclass
class Filling:
    """Makes rows of one side.

    Args:
        entry: Where they go.
        modality: Prepares the inputs.
        raws: The raw input of each pair, or a list of equally good ones.
        augmented: Whether to prepare them as for training.
        views: How many augmented views there are of each; 0: preparing must give the same every time.
        encode: From a prepared batch to float32 (B, F).
        check: Raises TrainingError unless the encoder's weights are what the entry is named after.
        batch_size: Inputs per forward pass.
        workers: Processes that prepare.
    """

    entry: Entry
    modality: Modality
    raws: Sequence[Any]
    augmented: bool
    views: int
    encode: Callable[[Any], NDArray[np.float32]]
    check: Callable[[], None]
    batch_size: int
    workers: int
    _made: list[tuple[NDArray[np.float32], list[tuple[int, int]]]] = field(default_factory=list, init=False)
    _written: float = field(default=0.0, init=False)

    def fill(self, wanted: Sequence[Wanted]) -> dict[int, str]:
        """Make and write the rows of these observations.

        Returns:
            What is wrong with those that cannot be used, by their number in `wanted`.

        Raises:
            Uncacheable: Preparing draws random numbers, or the rows would not fit.
            TrainingError: The encoder changes its weights while it runs.
            StorageError: The disk is full.
        """
        faults: dict[int, str] = {}
        numbers = range(len(wanted))
        batches = [numbers[i : i + self.batch_size] for i in range(0, len(wanted), self.batch_size)]
        samples = _Observations(self, wanted)
        self._written = time.monotonic()
        title = f"embedding {self.modality.name}"
        loaded = load(samples, batches, _collate, self.workers)
        try:
            for good, batch, broken, drew in track(loaded, title, len(batches)):
                if drew:
                    raise Uncacheable(
                        "preparing it draws random numbers; `cache: {views: K}` keeps K augmented views "
                        "of each"
                    )
                faults |= broken
                if good:
                    self._keep(self.encode(batch), [wanted[number].content for number in good], len(wanted))
        except KeyboardInterrupt:  # the run is asked to stop: what is made is kept
            self._write()
            raise
        self._write()
        return faults

    def _keep(self, value_BF: NDArray[np.float32], contents: list[tuple[int, int]], total: int) -> None:
        needed = total * value_BF[0].size * 2
        if needed > limit_bytes():
            raise Uncacheable(
                f"{total} rows of {value_BF[0].size} numbers take {needed / 1e9:.3g} GB, more than the "
                f"{limit_bytes() / 1e9:g} GB that {LIMIT} allows"
            )
        self._made.append((value_BF, contents))
        held = sum(values.nbytes for values, _ in self._made)
        if held >= _BYTES or time.monotonic() - self._written >= _SECONDS:
            self._write()

    def _write(self) -> None:
        if not self._made:
            return
        # Weights that drift would put rows of one encoder under the name of another.
        self.check()
        content_M2 = np.array(
            [content for _, contents in self._made for content in contents], dtype=np.uint64
        )
        self.entry.add(content_M2, np.concatenate([values for values, _ in self._made]))
        self._made, self._written = [], time.monotonic()


class _Observations(Dataset[Any]):
    """Prepares observations, and notices whether that draws random numbers."""

    def __init__(self, filling: Filling, wanted: Sequence[Wanted]) -> None:
        self.modality, self.raws, self.wanted = filling.modality, filling.raws, wanted
        self.augmented, self.views = filling.augmented, filling.views

    def __getitem__(self, number: int) -> _Sample | Failed:
        row, item, _, content = self.wanted[number]
        try:
            raw = self.raws[row]
            one = raw[item] if isinstance(raw, list) else raw
            # The numbers of a view come from its content: it is the same in every run.
            with seeded(*content):
                prepared = self.modality.prepare(one, training=self.augmented)
                after = _next_draws()
            with seeded(*content):
                drew = after != _next_draws()
            return _Sample(number, prepared, drew=drew and not self.views)
        except DataError as error:
            if gone := vanished(self.raws, row):
                return Failed(gone)
            return _Sample(number, None, fault=str(error))
        except Exception as error:  # a bug, not the data's fault: it ends the run, but say where
            error.add_note(f"while preparing input {row} of {self.modality.name}")
            raise


def _next_draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random_sample()), float(torch.rand((), dtype=torch.float64))


def _collate(samples: list[_Sample]) -> tuple[list[int], Any, dict[int, str], bool]:
    """Stack what could be prepared, list what could not, and tell whether any drew random numbers."""
    good = [sample for sample in samples if sample.prepared is not None]
    batch = collate([sample.prepared for sample in good if sample.prepared is not None]) if good else None
    faults = {sample.number: sample.fault for sample in samples if sample.prepared is None}
    return [sample.number for sample in good], batch, faults, any(sample.drew for sample in samples)
