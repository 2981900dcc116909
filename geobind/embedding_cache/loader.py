"""Batches of cached embeddings, and the rows and modalities that stand in for cached ones."""

# N rows of all sources, K views

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geobind.data.loader import BatchLoader, BatchMeta, ModalityInput
from geobind.data.rasters.column import RasterColumn
from geobind.data.sampler import MixedDataset, WeightedSource, find_source, python_random
from geobind.data.sources import RowMetadata, TableRows
from geobind.data.table import LazySequence, Row
from geobind.embedding_cache.build import CachedColumn, CacheIndex
from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class RawColumn(Sequence[Any]):
    """The cells of one modality in every row of a stage, None where a row lacks it.

    Args:
        rows: The stage's rows.
        name: The modality.
        described: Whether to tell what a window of a raster is cut out of, instead of reading it.
    """

    rows: MixedDataset
    name: str
    described: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        source = find_source(self.rows.starts, index)
        there, row = self.rows.sources[source].rows, index - self.rows.starts[source]
        if not isinstance(there, TableRows):
            return there[row].raws.get(self.name)
        if self.name not in there.names:
            return None
        column, cell = there.table.columns[self.name], int(there.table.rows_N[row])
        if self.described and isinstance(column, RasterColumn):
            return column.describe_window(cell)
        return column[cell]

    def find_missing_storage(self, row: int) -> str | None:
        """Say that the data of a row's source are gone, if they are."""
        return self.rows.find_missing_storage(row)


@dataclass(frozen=True, eq=False)
class CachedRows:
    """Rows whose cells, of the modalities that are read from the cache, are numbers of observations."""

    rows: MixedDataset  # of the other modalities
    picks: Mapping[str, CacheIndex]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Row:
        seen = self.rows[row]
        return seen._replace(
            raws={**seen.raws, **{name: picks.cell(row) for name, picks in self.picks.items()}}
        )

    def find_missing_storage(self, row: int) -> str | None:
        """Say that the data of a row's source are gone, if they are."""
        return self.rows.find_missing_storage(row)


def drop_columns(rows: MixedDataset, names: Mapping[str, Any]) -> MixedDataset:
    """Return the same rows without some modalities, whose cells are then not read."""

    def less(source: WeightedSource) -> WeightedSource:
        if not isinstance(source.rows, TableRows):
            return source
        kept = tuple(name for name in source.rows.names if name not in names)
        return source._replace(rows=replace(source.rows, names=kept))

    return MixedDataset(tuple(map(less, rows.sources)))


class CachedModality:
    """Stands in for a modality: its prepared input is the number of a row of the cache."""

    def __init__(self, picks: CacheIndex) -> None:
        self.picks = picks

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Return the row of an observation, of one of its views drawn at random.

        Raises:
            DataError: The observation cannot be used.
        """
        return torch.tensor(self.picks.row(raw, random.randrange))


# B rows of a batch on this rank, N rows


Batches = tuple[int, dict[str, Any], BatchMeta]


class _StageMetadata(NamedTuple):
    """What is known about the rows of a stage, so that a step need not look at them one by one."""

    key_of: Callable[[int], str]
    columns: RowMetadata

    @staticmethod
    def of(rows: MixedDataset) -> _StageMetadata:
        parts = [source.rows.metadata() for source in rows.sources]
        columns = RowMetadata(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        return _StageMetadata(lambda row: rows[row].key or f"row {row}", columns)

    def meta(self, row_B: NDArray[np.int64]) -> BatchMeta:
        """Return what is known about some rows."""
        known = self.columns
        lat_B, lon_B, hour_B = known.lat_N[row_B], known.lon_N[row_B], known.hour_N[row_B]
        label_B = known.label_N[row_B]
        placed, timed = not np.isnan(lat_B).all(), not np.isnan(hour_B).all()
        labels = label_B.tolist() if any(label is not None for label in label_B) else None
        return BatchMeta(
            LazySequence(row_B.astype(np.int32), self.key_of),
            lat_B if placed else None,
            lon_B if placed else None,
            labels,
            hours=hour_B if timed else None,
        )


class CachedLoader:
    """The batches of a loader, with rows of the cache in place of the inputs of some modalities.

    The same rows and the same of several observations are drawn as without the cache. Where all modalities
    are read from it, nothing is left to prepare, and a batch is a few lookups in this process.

    Args:
        loader: What would be loaded without the cache.
        rows: Its rows.
        stored: What is read from the cache, by modality.
    """

    def __init__(self, loader: BatchLoader, rows: MixedDataset, stored: Mapping[str, CachedColumn]) -> None:
        self.stored = dict(stored)
        self._picks: dict[str, CacheIndex] = {name: side.picks for name, side in stored.items()}
        sides = {name: ModalityInput(CachedModality(picks)) for name, picks in self._picks.items()}
        self.loader = replace(
            loader, rows=CachedRows(drop_columns(rows, stored), self._picks), sides={**loader.sides, **sides}
        )
        whole = set(loader.sides) == set(stored) and not loader.partial
        self._known = _StageMetadata.of(rows) if whole else None
        self._broken: dict[str, str] = {}

    @property
    def first_step(self) -> int:
        """The step it begins with."""
        return self.loader.first_step

    @property
    def quarantined(self) -> list[tuple[str, str]]:
        """The broken rows met so far on this rank: key and reason."""
        return [*self.loader.quarantined, *self._broken.items()]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batches]:
        found = self.loader if self._known is None else self._lookups(self._known)
        for step, batches, meta in found:
            yield step, {name: self._read(name, batch) for name, batch in batches.items()}, meta

    def _read(self, name: str, batch: Any) -> Any:
        return self.stored[name].read(batch.numpy()) if name in self.stored else batch

    def _loaded(self, step: int) -> Iterator[Batches]:
        # How many rows may be broken was judged when the cache was filled.
        one = replace(self.loader, first_step=step, last_step=step + 1, workers=0, max_broken=1.0)
        yield from one
        self._broken |= dict(one.quarantined)

    def _lookups(self, known: _StageMetadata) -> Iterator[Batches]:
        fixed = {name: picks.fixed_N for name, picks in self._picks.items()}
        for step in range(self.loader.first_step, self.loader.last_step):
            row_B = self.loader.indices(step)
            picked = {name: fixed_N[row_B] for name, fixed_N in fixed.items()}
            open_B = np.any([found_B < 0 for found_B in picked.values()], axis=0)
            try:
                for place in np.flatnonzero(open_B):
                    draw = python_random(self.loader.sampler.seed, step, int(row_B[place])).randrange
                    for name, picks in self._picks.items():
                        picked[name][place] = picks.pick(int(row_B[place]), draw)
            except DataError:  # a row is broken, and the loader knows what takes its place
                yield from self._loaded(step)
                continue
            yield step, {name: torch.from_numpy(rows) for name, rows in picked.items()}, known.meta(row_B)
