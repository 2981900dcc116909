"""Batches of prepared pairs: the same rows, choices and augmentations for a seed and step, however loaded."""

# B pairs of a batch on this rank

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from geobind.data.order import batch_indices, replacement, seeded
from geobind.data.workers import Failed, Workers, auto_workers, load
from geobind.errors import DataError
from geobind.modality import Modality, Pair

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.modality import Prepared

__all__ = ["PairLoader", "PairMeta", "auto_workers", "batch_indices", "collate", "prepare_batches"]

_ATTEMPTS = 10  # replacements tried for a broken row
_JUDGED_FROM = 1000  # rows seen before a share of broken ones means anything
_SHOWN = 5  # broken rows listed in one message
Fault = tuple[int, str, str]  # row, key, reason


class PairMeta(NamedTuple):
    """What is known about the pairs of a batch, in its order."""

    keys: list[str]
    lat: NDArray[np.float64] | None  # (B,) degrees, NaN where unknown; None if no pair has a place
    lon: NDArray[np.float64] | None
    labels: list[str | None] | None  # None if no pair has one


class _Sample(NamedTuple):
    anchor: Prepared
    other: Prepared
    pair: Pair  # without its raw inputs
    faults: list[Fault]


def collate(samples: Sequence[Prepared]) -> Prepared:
    """Stack prepared inputs, tensors or dicts of tensors, into a batch.

    Raises:
        DataError: There are none, or they differ in shape, type or keys.
    """
    if not samples:
        raise DataError("a batch needs at least one input")
    kinds = [_kind(sample) for sample in samples]
    for number, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise DataError(
                f"inputs of a batch must be prepared alike: number 0 is {kinds[0]}, number {number} is {kind}"
            )
    return default_collate([dict(sample) if isinstance(sample, Mapping) else sample for sample in samples])


def _kind(sample: Prepared) -> str:
    if isinstance(sample, Tensor):
        return f"{str(sample.dtype).removeprefix('torch.')} of shape {tuple(sample.shape)}"
    return "{" + ", ".join(f"{name}: {_kind(sample[name])}" for name in sorted(sample)) + "}"


@dataclass
class PairLoader:
    """Batches of steps `first_step` up to `last_step`: `(step, anchor batch, other batch, PairMeta)`.

    What a step holds depends on the pairs, `batch_size`, `seed` and the step alone: not on workers, nor on
    where the run began. Rank r of `world` gets the r-th of `world` equal runs of the step's rows, so that
    the ranks' batches put together in rank order are the batch of a single process.

    A row that raises DataError is replaced by another and recorded in `quarantined`. Once 1,000 rows (or
    all there are) have been seen on this rank, more than the share `max_broken` of them broken is an error;
    if it is 0, any is at once. So is a row whose ten replacements are broken too.

    Raises:
        DataError: The batch cannot be filled, or shared by the ranks; on the way: too much is broken.
    """

    pairs: Sequence[Pair]
    anchor: Modality
    other: Modality
    batch_size: int  # over all ranks
    seed: int
    first_step: int
    last_step: int
    workers: Workers = "auto"
    rank: int = 0
    world: int = 1
    augment_anchor: bool = False
    augment_other: bool = False
    max_broken: float = 0.01

    def __post_init__(self) -> None:
        if self.batch_size % self.world:
            raise DataError(
                f"a batch of {self.batch_size} cannot be shared by {self.world} processes; make it a multiple"
            )
        batch_indices(len(self.pairs), self.batch_size, 0, self.seed)  # can a batch be filled?
        self._faults: dict[int, tuple[str, str]] = {}
        self._seen = 0

    @property
    def quarantined(self) -> list[tuple[str, str]]:
        """The broken rows met so far on this rank: key and reason."""
        return list(self._faults.values())

    def __len__(self) -> int:
        return max(0, self.last_step - self.first_step)

    def __iter__(self) -> Iterator[tuple[int, Prepared, Prepared, PairMeta]]:
        self._faults, self._seen = {}, 0
        steps = range(self.first_step, self.last_step)
        batches = ([(step, int(row)) for row in self.indices(step)] for step in steps)
        samples = _PairSamples(self)
        workers = auto_workers(len(self.pairs)) if self.workers == "auto" else self.workers
        for step, batch in zip(steps, load(samples, batches, _collate_pairs, workers), strict=False):
            anchor, other, meta, faults = batch
            self._judge(faults, len(meta.keys))
            yield step, anchor, other, meta

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return this rank's rows of a step."""
        share = self.batch_size // self.world
        rows = batch_indices(len(self.pairs), self.batch_size, step, self.seed)
        return rows[self.rank * share : (self.rank + 1) * share]

    def _judge(self, faults: Sequence[Fault], count: int) -> None:
        self._seen += count
        self._faults |= {row: (key, reason) for row, key, reason in faults}
        seen = min(self._seen, len(self.pairs))
        if seen >= min(_JUDGED_FROM, len(self.pairs)) and len(self._faults) > self.max_broken * seen:
            raise DataError(
                f"{len(self._faults)} of {seen} rows seen cannot be used, more than max_broken "
                f"({self.max_broken:g}) allows; mend or drop them, or raise it:{_listed(self.quarantined)}"
            )


def _listed(faults: Sequence[tuple[str, str]]) -> str:
    return "".join(f"\n  {key}: {reason}" for key, reason in faults[:_SHOWN])


class _PairSamples(Dataset[Any]):
    """Prepares the two sides of a pair, or of another one where it is broken."""

    def __init__(self, loader: PairLoader) -> None:
        self.pairs, self.batch_size, self.seed = loader.pairs, loader.batch_size, loader.seed
        self.attempts = _ATTEMPTS if loader.max_broken else 0
        self.sides = (loader.anchor, loader.augment_anchor), (loader.other, loader.augment_other)

    def __getitem__(self, index: tuple[int, int]) -> _Sample | Failed:
        step, row = index
        faults: dict[int, tuple[str, str]] = {}
        for attempt in range(self.attempts + 1):
            drawn = row if attempt == 0 else self._replacement(step, row, attempt)
            key = f"row {drawn}"
            try:
                pair = self.pairs[drawn]
                key = pair.key or key
                return self._prepared(step, drawn, pair._replace(key=key), faults)
            except DataError as error:
                faults[drawn] = key, str(error)
            except Exception as error:  # a bug, not the data's fault: it ends the run, but say where
                error.add_note(f"while preparing {key}")
                raise
        also = "" if self.attempts else " (max_broken is 0)"
        return Failed(f"a row and what was drawn instead cannot be used{also}:{_listed([*faults.values()])}")

    def _prepared(self, step: int, row: int, pair: Pair, faults: Mapping[int, tuple[str, str]]) -> _Sample:
        with seeded(self.seed, step, row):
            anchor, other = (
                modality.prepare(_one(raw, random.randrange), training=augment)
                for raw, (modality, augment) in zip((pair.anchor, pair.other), self.sides, strict=True)
            )
        known = pair._replace(anchor=None, other=None)
        return _Sample(anchor, other, known, [(broken, *fault) for broken, fault in faults.items()])

    def _replacement(self, step: int, row: int, attempt: int) -> int:
        return replacement(len(self.pairs), self.batch_size, step, self.seed, row, attempt)


def _one(raw: Any, choose: Any) -> Any:
    """Return one of equally good observations."""
    if isinstance(raw, list):
        items = cast("list[Any]", raw)
        raw = items[choose(len(items))] if items else None
    if raw is None:
        raise DataError("is missing")
    return raw


def _collate_pairs(samples: list[_Sample]) -> tuple[Prepared, Prepared, PairMeta, list[Fault]]:
    places = [sample.pair.place for sample in samples]
    lat = lon = None
    if any(place is not None for place in places):
        lat = np.array([place.lat if place else np.nan for place in places])
        lon = np.array([place.lon if place else np.nan for place in places])
    labels = [sample.pair.label for sample in samples]
    meta = PairMeta(
        [sample.pair.key for sample in samples],
        lat,
        lon,
        labels if any(label is not None for label in labels) else None,
    )
    faults = [fault for sample in samples for fault in sample.faults]
    return (
        collate([sample.anchor for sample in samples]),
        collate([sample.other for sample in samples]),
        meta,
        faults,
    )


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
