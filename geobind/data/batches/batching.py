"""Prepared inputs put together: one modality's as a batch, and what is known about the rows of a step."""

# B rows of a batch on this rank, M modalities

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from geobind.data.batches.sourced import hours_of
from geobind.data.tables.views import Observed
from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.modality import Prepared

Fault = tuple[int, str, str]  # row, key, reason


class BatchMeta(NamedTuple):
    """What is known about the rows of a batch, in its order."""

    keys: Sequence[str]
    lat: NDArray[np.float64] | None  # (B,) degrees, NaN where unknown; None if no row has a place
    lon: NDArray[np.float64] | None
    labels: list[str | None] | None  # None if no row has one
    present_BM: NDArray[np.bool_] | None = None  # None if every row has every modality
    hours: NDArray[np.float64] | None = None  # (B,) since 1970 in UTC, NaN where unknown; None if of no row


class Sample(NamedTuple):
    """One row, prepared."""

    prepared: Mapping[str, Prepared]  # by modality; what the row lacks is not in it
    known: Observed  # without raw inputs
    faults: list[Fault]


def collate(samples: Sequence[Prepared]) -> Prepared:
    """Stack prepared inputs, tensors or dicts of tensors, into a batch.

    Raises:
        DataError: There are none, or they differ in shape, type or keys.
    """
    if not samples:
        raise DataError("a batch needs at least one input")
    first = samples[0]
    for number, sample in enumerate(samples):
        if not _alike(sample, first):
            raise DataError(
                f"inputs of a batch must be prepared alike: number 0 is {_kind(first)}, "
                f"number {number} is {_kind(sample)}"
            )
    return default_collate([dict(sample) if isinstance(sample, Mapping) else sample for sample in samples])


def _alike(one: Prepared, other: Prepared) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype
    return _kind(one) == _kind(other)


def _kind(sample: Prepared) -> str:
    if isinstance(sample, Tensor):
        return f"{str(sample.dtype).removeprefix('torch.')} of shape {tuple(sample.shape)}"
    return "{" + ", ".join(f"{name}: {_kind(sample[name])}" for name in sorted(sample)) + "}"


class Collate(NamedTuple):
    """Puts the rows of a step together: the batch of each modality holds the rows that have it, in order."""

    names: tuple[str, ...]

    def __call__(self, samples: list[Sample]) -> tuple[dict[str, Prepared], BatchMeta, list[Fault]]:
        """Return the batch of every modality that some row has, what is known of the rows, and the faults."""
        present_BM = np.array([[name in sample.prepared for name in self.names] for sample in samples])
        inputs = {name: [s.prepared[name] for s in samples if name in s.prepared] for name in self.names}
        batches = {name: collate(there) for name, there in inputs.items() if there}
        faults = [fault for sample in samples for fault in sample.faults]
        meta = _meta([sample.known for sample in samples])
        return batches, meta if present_BM.all() else meta._replace(present_BM=present_BM), faults


def _meta(rows: Sequence[Observed]) -> BatchMeta:
    places = [row.place for row in rows]
    lat = lon = hours = None
    if any(place is not None for place in places):
        lat = np.array([place.lat if place else np.nan for place in places])
        lon = np.array([place.lon if place else np.nan for place in places])
    if any(place is not None and place.time is not None for place in places):
        hours = np.array([hours_of(place) for place in places])
    labels = [row.label for row in rows]
    known = labels if any(label is not None for label in labels) else None
    return BatchMeta([row.key for row in rows], lat, lon, known, hours=hours)
