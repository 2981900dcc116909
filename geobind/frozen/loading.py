"""Batches some of whose modalities are read from the cache."""

# B rows of a batch on this rank, N rows

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from geobind.data.loader import BatchLoader, BatchMeta, Side
from geobind.data.sampler import Mixture, python_random
from geobind.data.sources import Known
from geobind.data.table import Lazy
from geobind.errors import DataError
from geobind.frozen.rows import FromCache, StoredRows, without
from geobind.frozen.sides import Picks, Stored

if TYPE_CHECKING:
    from numpy.typing import NDArray

Batches = tuple[int, dict[str, Any], BatchMeta]


class _Known(NamedTuple):
    """What is known about the rows of a stage, so that a step need not look at them one by one."""

    key_of: Callable[[int], str]
    columns: Known

    @staticmethod
    def of(rows: Mixture) -> _Known:
        parts = [source.rows.known() for source in rows.sources]
        columns = Known(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        return _Known(lambda row: rows[row].key or f"row {row}", columns)

    def meta(self, row_B: NDArray[np.int64]) -> BatchMeta:
        """Return what is known about some rows."""
        known = self.columns
        lat_B, lon_B, hour_B = known.lat_N[row_B], known.lon_N[row_B], known.hour_N[row_B]
        label_B = known.label_N[row_B]
        placed, timed = not np.isnan(lat_B).all(), not np.isnan(hour_B).all()
        labels = label_B.tolist() if any(label is not None for label in label_B) else None
        return BatchMeta(
            Lazy(row_B.astype(np.int32), self.key_of),
            lat_B if placed else None,
            lon_B if placed else None,
            labels,
            hours=hour_B if timed else None,
        )


class StoredLoader:
    """The batches of a loader, with rows of the cache in place of the inputs of some modalities.

    The same rows and the same of several observations are drawn as without the cache. Where all modalities
    are read from it, nothing is left to prepare, and a batch is a few lookups in this process.

    Args:
        loader: What would be loaded without the cache.
        rows: Its rows.
        stored: What is read from the cache, by modality.
    """

    def __init__(self, loader: BatchLoader, rows: Mixture, stored: Mapping[str, Stored]) -> None:
        self.stored = dict(stored)
        self._picks: dict[str, Picks] = {name: side.picks for name, side in stored.items()}
        sides = {name: Side(FromCache(picks)) for name, picks in self._picks.items()}
        self.loader = replace(
            loader, rows=StoredRows(without(rows, stored), self._picks), sides={**loader.sides, **sides}
        )
        whole = set(loader.sides) == set(stored) and not loader.partial
        self._known = _Known.of(rows) if whole else None
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

    def _lookups(self, known: _Known) -> Iterator[Batches]:
        fixed = {name: picks.fixed_N for name, picks in self._picks.items()}
        for step in range(self.loader.first_step, self.loader.last_step):
            row_B = self.loader.indices(step)
            picked = {name: fixed_N[row_B] for name, fixed_N in fixed.items()}
            open_B = np.any([found_B < 0 for found_B in picked.values()], axis=0)
            try:
                for place in np.flatnonzero(open_B):
                    draw = python_random(self.loader.plan.seed, step, int(row_B[place])).randrange
                    for name, picks in self._picks.items():
                        picked[name][place] = picks.pick(int(row_B[place]), draw)
            except DataError:  # a row is broken, and the loader knows what takes its place
                yield from self._loaded(step)
                continue
            yield step, {name: torch.from_numpy(rows) for name, rows in picked.items()}, known.meta(row_B)
