"""A few of a stage's rows, and a clock in the place of its metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from geobind.data.sampler import Mixture, Source
from geobind.data.sources import OwnRows, TableRows
from geobind.modality import Pair
from geobind.training.metrics import Metrics


def some(rows: Mixture, count: int) -> Mixture:
    """Return at most `count` rows of each source, drawn once for all: fewer are among more."""
    return Mixture(tuple(_some(source, count) for source in rows.sources))


def _some(source: Source, count: int) -> Source:
    there, size = source.rows, len(source.rows)
    chosen = np.sort(np.random.default_rng(0).permutation(size)[:count])
    if isinstance(there, TableRows):
        return source._replace(rows=replace(there, table=there.table.take(chosen)))
    if isinstance(there, OwnRows):
        return source._replace(rows=replace(there, pairs=_Some(there.pairs, chosen.tolist())))
    return source


class _Some(Sequence[Pair]):
    """Some of a plugin's own pairs."""

    def __init__(self, pairs: Sequence[Pair], chosen: list[int]) -> None:
        self.pairs, self.chosen = pairs, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(index, slice):
            return _Some(self.pairs, self.chosen[index])
        return self.pairs[self.chosen[index]]


class Clock(Metrics):
    """Notes when steps were looked at, and writes nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "metrics.csv")
        self.at: list[float] = []
        self.rows: list[dict[str, Any]] = []

    def rewind(self, stage: str, step: int) -> None:
        """Do nothing: no step was taken before."""

    def add(self, stage: str, rows: Sequence[dict[str, Any]]) -> None:
        """Note the time, and what was told."""
        self.at.append(time.monotonic())
        self.rows += rows

    def sync(self) -> None:
        """Do nothing: nothing was written."""

    def mean(self) -> float:
        """Return the mean seconds of a step, without the first ones.

        Batches for those were prepared while the stage was set up.
        """
        gaps = np.diff(self.at)
        kept = gaps[2:] if len(gaps) > 4 else gaps[1:] if len(gaps) > 1 else gaps
        return float(kept.mean()) if len(kept) else 0.0
