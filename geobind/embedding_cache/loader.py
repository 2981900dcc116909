"""Batches of cached embeddings, with stand-ins for cached columns and modalities."""

# N rows of all sources, K views

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from geobind.data.loader import BatchLoader, BatchMeta, ModalityInput
from geobind.data.sampler import MixedDataset, find_source
from geobind.data.seeds import python_random
from geobind.data.sources import RowMetadata, SourceColumn
from geobind.data.table import LazySequence, Row
from geobind.embedding_cache.build import CachedColumn, CacheIndex
from geobind.errors import DataError

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class RawColumn(Sequence[Any]):
    """Raw inputs of one modality in every row of a stage, None where a row lacks it.

    Args:
        rows: The stage's rows.
        name: The modality.
        described: Whether to describe a raster window by its files and place, instead of reading it.
    """

    rows: MixedDataset
    name: str
    described: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        source = find_source(self.rows.starts, index)
        column, row = self._columns[source], index - self.rows.starts[source]
        return column.describe(row) if self.described else column[row]

    @cached_property
    def _columns(self) -> tuple[SourceColumn, ...]:
        return tuple(source.rows.column(self.name) for source in self.rows.sources)

    def find_missing_storage(self, row: int) -> str | None:
        """Return a message if the storage of a row's source is missing, else None."""
        return self.rows.find_missing_storage(row)


@dataclass(frozen=True, eq=False)
class CachedRows:
    """Rows whose cells of cached modalities are numbers of observations."""

    rows: MixedDataset  # of the other modalities
    indexes: Mapping[str, CacheIndex]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Row:
        original = self.rows[row]
        return original._replace(
            raws={**original.raws, **{name: index.cell(row) for name, index in self.indexes.items()}}
        )

    def find_missing_storage(self, row: int) -> str | None:
        """Return a message if the storage of a row's source is missing, else None."""
        return self.rows.find_missing_storage(row)


def drop_columns(rows: MixedDataset, names: Mapping[str, Any]) -> MixedDataset:
    """Return the same rows without some modalities, so that their cells are not read."""
    return MixedDataset(tuple(source._replace(rows=source.rows.drop(names)) for source in rows.sources))


class CachedModality:
    """Stand-in for a modality; its prepared input is the number of a cache row."""

    def __init__(self, index: CacheIndex) -> None:
        self.index = index

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Return the cache row of an observation, of one of its views drawn at random.

        Raises:
            DataError: The observation is unusable.
        """
        return torch.tensor(self.index.row(raw, random.randrange))


# B rows of a batch on this rank, N rows


Batches = tuple[int, dict[str, Any], BatchMeta]


class CachedLoader:
    """Batches of a loader, with cache rows in place of the inputs of some modalities.

    It draws the same rows, and the same of several observations, as without the cache. If all modalities are
    cached, nothing is left to prepare, and a batch is a few look-ups in this process.

    Args:
        loader: The loader without the cache.
        rows: Its rows.
        stored: The cached columns, by modality.
    """

    def __init__(self, loader: BatchLoader, rows: MixedDataset, stored: Mapping[str, CachedColumn]) -> None:
        self.stored = dict(stored)
        self._indexes: dict[str, CacheIndex] = {name: side.lookup for name, side in stored.items()}
        sides = {name: ModalityInput(CachedModality(index)) for name, index in self._indexes.items()}
        self.loader = replace(
            loader,
            rows=CachedRows(drop_columns(rows, stored), self._indexes),
            sides={**loader.sides, **sides},
        )
        whole = set(loader.sides) == set(stored) and not loader.partial
        self._rows = rows
        self._metadata = rows.metadata() if whole else None
        self._broken: dict[str, str] = {}

    @property
    def first_step(self) -> int:
        """First step of the loader."""
        return self.loader.first_step

    @property
    def quarantined(self) -> list[tuple[str, str]]:
        """Broken rows met so far on this rank: key and reason."""
        return [*self.loader.quarantined, *self._broken.items()]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batches]:
        metadata = self._metadata
        steps = self.loader if metadata is None else self._iter_cached_batches(metadata)
        for step, batches, meta in steps:
            yield step, {name: self._read(name, batch) for name, batch in batches.items()}, meta

    def _read(self, name: str, batch: Any) -> Any:
        return self.stored[name].read(batch.numpy()) if name in self.stored else batch

    def _load_step(self, step: int) -> Iterator[Batches]:
        # The share of broken rows was checked when the cache was filled.
        one = replace(self.loader, first_step=step, last_step=step + 1, workers=0, max_broken=1.0)
        yield from one
        self._broken |= dict(one.quarantined)

    def _iter_cached_batches(self, metadata: RowMetadata) -> Iterator[Batches]:
        fixed = {name: index.fixed_N for name, index in self._indexes.items()}
        for step in range(self.loader.first_step, self.loader.last_step):
            row_B = self.loader.indices(step)
            picked = {name: fixed_N[row_B] for name, fixed_N in fixed.items()}
            open_B = np.any([found_B < 0 for found_B in picked.values()], axis=0)
            try:
                for place in np.flatnonzero(open_B):
                    draw = python_random(self.loader.sampler.seed, step, int(row_B[place])).randrange
                    for name, index in self._indexes.items():
                        picked[name][place] = index.pick(int(row_B[place]), draw)
            except DataError:  # a row is broken, and the loader knows its replacement
                yield from self._load_step(step)
                continue
            meta = metadata.batch(row_B, LazySequence(row_B.astype(np.int32), self._key))
            yield step, {name: torch.from_numpy(rows) for name, rows in picked.items()}, meta

    def _key(self, row: int) -> str:
        return self._rows[row].key or f"row {row}"
