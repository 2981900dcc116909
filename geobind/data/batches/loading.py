"""Batches of prepared rows: the same rows, choices and augmentations for a seed and step, however loaded."""

# B rows of a batch on this rank, M modalities

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
from torch.utils.data import Dataset

from geobind.data.batches.batching import BatchMeta, Collate, Fault, Sample, collate
from geobind.data.batches.mixing import Plan
from geobind.data.batches.order import kept, seed
from geobind.data.batches.vanishing import vanished
from geobind.data.batches.workers import Failed, Workers, auto_workers, load
from geobind.data.tables.views import Observed
from geobind.errors import DataError
from geobind.modality import Modality

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.modality import Prepared

__all__ = ["BatchLoader", "BatchMeta", "Side", "auto_workers", "collate", "prepare_batches"]

_ATTEMPTS = 10  # replacements tried for a broken row
_JUDGED_FROM = 1000  # rows seen before a share of broken ones means anything
_SHOWN = 5  # broken rows listed in one message


class Prepares(Protocol):
    """What makes a raw input a tensor: a modality, or whatever stands in for it."""

    def prepare(self, raw: Any, *, training: bool = False) -> Prepared:
        """Turn one raw input into a tensor, or a dict of tensors."""
        ...


class Side(NamedTuple):
    """One modality of a batch: who prepares its inputs, and whether they are augmented."""

    by: Prepares
    augment: bool = False


class _Rows(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Observed: ...


@dataclass
class BatchLoader:
    """Batches of steps `first_step` up to `last_step`: `(step, batch of each modality, BatchMeta)`.

    What a step holds depends on the rows, the plan and the step alone: not on workers, nor on where the run
    began. Rank r of `world` gets the r-th of `world` equal runs of the step's rows, so that the ranks'
    batches put together in rank order are the batch of a single process.

    Where rows may lack a modality, its batch holds those that have it, and `BatchMeta.present_BM` says
    which. Where they may not, a missing input is broken.

    A row that raises DataError is replaced by another and recorded in `quarantined`. Once 1,000 rows (or
    all there are) have been seen on this rank, more than the share `max_broken` of them broken is an error;
    if it is 0, any is at once. So is a row whose ten replacements are broken too, and a missing file whose
    like are all missing: then the data are gone.

    Raises:
        DataError: The batch cannot be shared by the ranks; on the way: too much is broken.
    """

    rows: _Rows
    sides: Mapping[str, Side]  # by modality
    plan: Plan
    first_step: int
    last_step: int
    workers: Workers = "auto"
    rank: int = 0
    world: int = 1
    partial: bool = False  # whether rows may lack a modality
    max_broken: float = 0.01

    def __post_init__(self) -> None:
        if self.plan.batch_size % self.world:
            raise DataError(
                f"a batch of {self.plan.batch_size} cannot be shared by {self.world} processes; "
                f"make it a multiple"
            )
        self._faults: dict[int, tuple[str, str]] = {}
        self._seen = 0

    @property
    def quarantined(self) -> list[tuple[str, str]]:
        """The broken rows met so far on this rank: key and reason."""
        return list(self._faults.values())

    def __len__(self) -> int:
        return max(0, self.last_step - self.first_step)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Prepared], BatchMeta]]:
        self._faults, self._seen = {}, 0
        steps = range(self.first_step, self.last_step)
        batches = ([(step, int(row)) for row in self.indices(step)] for step in steps)
        samples, together = _Samples(self), Collate(tuple(self.sides))
        workers = auto_workers(len(self.rows)) if self.workers == "auto" else self.workers
        for step, loaded in zip(steps, load(samples, batches, together, workers), strict=False):
            batch, meta, faults = loaded
            self._judge(faults, len(meta.keys))
            yield step, batch, meta

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return this rank's rows of a step."""
        share = self.plan.batch_size // self.world
        return self.plan.rows(step)[self.rank * share : (self.rank + 1) * share]

    def _judge(self, faults: Sequence[Fault], count: int) -> None:
        self._seen += count
        self._faults |= {row: (key, reason) for row, key, reason in faults}
        seen = min(self._seen, len(self.rows))
        if seen >= min(_JUDGED_FROM, len(self.rows)) and len(self._faults) > self.max_broken * seen:
            raise DataError(
                f"{len(self._faults)} of {seen} rows seen cannot be used, more than max_broken "
                f"({self.max_broken:g}) allows; mend or drop them, or raise it:{_listed(self.quarantined)}"
            )


def _listed(faults: Sequence[tuple[str, str]]) -> str:
    return "".join(f"\n  {key}: {reason}" for key, reason in faults[:_SHOWN])


class _Samples(Dataset[Any]):
    """Prepares what a row has, or what another one has where it is broken."""

    def __init__(self, loader: BatchLoader) -> None:
        self.rows, self.sides, self.plan = loader.rows, dict(loader.sides), loader.plan
        self.partial = loader.partial
        self.attempts = _ATTEMPTS if loader.max_broken else 0

    def __getitem__(self, index: tuple[int, int]) -> Sample | Failed:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> list[Sample | Failed]:
        """Return the samples of a batch; torch's loader asks for them together."""
        with kept():
            return [self._sample(step, row) for step, row in indices]

    def _sample(self, step: int, row: int) -> Sample | Failed:
        faults: dict[int, tuple[str, str]] = {}
        for attempt in range(self.attempts + 1):
            drawn = row if attempt == 0 else self.plan.replacement(step, row, attempt)
            key = f"row {drawn}"
            try:
                seen = self.rows[drawn]
                key = seen.key or key
                prepared = self._prepared(step, drawn, seen.raws)
                told = [(broken, *fault) for broken, fault in faults.items()]
                return Sample(prepared, seen._replace(raws={}, key=key), told)
            except DataError as error:
                if gone := vanished(self.rows, drawn):
                    return Failed(gone)
                faults[drawn] = key, str(error)
            except Exception as error:  # a bug, not the data's fault: it ends the run, but say where
                error.add_note(f"while preparing {key}")
                raise
        also = "" if self.attempts else " (max_broken is 0)"
        return Failed(f"a row and what was drawn instead cannot be used{also}:{_listed([*faults.values()])}")

    def _prepared(self, step: int, row: int, raws: Mapping[str, Any]) -> dict[str, Prepared]:
        seed(self.plan.seed, step, row)
        return {
            name: side.by.prepare(_one(raws.get(name), random.randrange), training=side.augment)
            for name, side in self.sides.items()
            if not (self.partial and raws.get(name) is None)
        }


def _one(raw: Any, choose: Any) -> Any:
    """Return one of equally good observations."""
    if isinstance(raw, list):
        items = cast("list[Any]", raw)
        raw = items[choose(len(items))] if items else None
    if raw is None:
        raise DataError("is missing")
    return raw


class _Inputs(Dataset[Any]):
    def __init__(self, modality: Modality, samples: Sequence[Any]) -> None:
        self.modality, self.samples = modality, samples

    def __getitem__(self, index: int) -> Prepared | Failed:
        try:
            return self.modality.prepare(_one(self.samples[index], lambda _: 0))
        except DataError as error:
            return Failed(f"input {index}: {error}")


def prepare_batches(
    modality: Modality, samples: Sequence[Any], batch_size: int, workers: Workers = "auto"
) -> Iterator[tuple[NDArray[np.int64], Prepared]]:
    """Prepare raw inputs for embedding, in order and without augmentation; of a list, the first item.

    Yields:
        The numbers of the inputs in the batch, and the batch; the last one may be smaller.

    Raises:
        DataError: An input cannot be prepared; the message gives its number.
    """
    count = len(samples)
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    chosen = auto_workers(count) if workers == "auto" else workers
    for rows, batch in zip(batches, load(_Inputs(modality, samples), batches, collate, chosen), strict=True):
        yield np.arange(rows.start, rows.stop), batch
