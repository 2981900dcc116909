"""The rows that a stage is evaluated on: read and prepared once, embedded in blocks that ranks share."""

# N rows, B of a block, D width

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from geobind.data.loader import BatchMeta, collate
from geobind.data.sampler import Mixture, Source
from geobind.data.sources import OwnRows, TableRows
from geobind.embedding_cache.loader import Cells
from geobind.errors import DataError
from geobind.inputs import moved
from geobind.training.processes.ranks import Ranks, from_first

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.training.job import Job

BLOCK = 64  # rows of a forward pass: always as many, because bits depend on it
_KEPT_BYTES = 2**28  # of prepared inputs; past that they are prepared again for each evaluation
_SHOWN = 5


class Sides(NamedTuple):
    """One modality of all rows: the rows that have it, and their embeddings on every rank."""

    rows_N: NDArray[np.int64]  # rising
    embedding_ND: Tensor

    def of(self, rows: NDArray[np.int64]) -> Tensor:
        """The embeddings of some of these rows."""
        return self.embedding_ND[torch.from_numpy(np.searchsorted(self.rows_N, rows))]


def fewer(rows: Mixture, limit: int | None) -> Mixture:
    """Take rows at even distances, at most `limit` of them."""
    if limit is None or len(rows) <= limit:
        return rows
    picked_N = np.arange(limit) * len(rows) // limit
    ends = [*rows.starts[1:], len(rows)]
    there = [
        picked_N[(picked_N >= start) & (picked_N < end)] - start
        for start, end in zip(rows.starts, ends, strict=True)
    ]
    return Mixture(tuple(_taken(s, i) for s, i in zip(rows.sources, there, strict=True) if len(i)))


def _taken(source: Source, index_N: NDArray[np.int64]) -> Source:
    if isinstance(source.rows, TableRows):
        return source._replace(rows=replace(source.rows, table=source.rows.table.take(index_N)))
    own = source.rows
    if not isinstance(own, OwnRows):
        raise DataError(f"{source.name}: rows of this kind cannot be evaluated on")
    return source._replace(rows=replace(own, pairs=[own.pairs[int(row)] for row in index_N]))


class Inputs:
    """The inputs of one modality in some rows, prepared as for evaluation.

    Inputs that cannot be read are left out, and said, before anything is trained.

    Args:
        fabric: Where the stage runs.
        job: The stage.
        rows: The rows.
        name: The modality.

    Raises:
        DataError: More of them cannot be read than the recipe's `max_broken` allows.
    """

    def __init__(self, fabric: Fabric, job: Job, rows: Mixture, name: str) -> None:
        self.fabric, self.name = fabric, name
        self._prepare: Callable[..., Any] = job.recipe.built[name].prepare
        self._cells = Cells(rows, name)
        self._kept: dict[int, Any] = {}  # prepared inputs by row
        starts = zip(rows.sources, rows.starts, strict=True)
        there_N = np.concatenate([source.rows.rows_with([name]) + start for source, start in starts])
        left = self._look(there_N)
        faults = from_first(fabric, left)  # what the first process cannot read, none takes
        self.rows_N = np.array([row for row in there_N.tolist() if row not in faults], dtype=np.int64)
        self._judge(faults, len(there_N), job)

    def embed(self, forward: Callable[[Any], Tensor], ranks: Ranks, width: int) -> Sides:
        """Embed all rows; each rank takes every so many-th block, and all take equally many."""
        blocks = [self.rows_N[at : at + BLOCK] for at in range(0, len(self.rows_N), BLOCK)]
        rank, found = self.fabric.global_rank, []
        for first in range(0, len(blocks), ranks.world):
            mine = blocks[min(first + rank, len(blocks) - 1)]  # a rank with nothing left does the last again
            whole_BD = torch.zeros(BLOCK, width, device=self.fabric.device)
            batch = collate([self._input(int(row)) for row in mine])
            whole_BD[: len(mine)] = forward(moved(batch, self.fabric.device))
            gathered_ND = ranks(whole_BD).cpu()
            found += [
                gathered_ND[number * BLOCK : number * BLOCK + len(block)]
                for number, block in enumerate(blocks[first : first + ranks.world])
            ]
        return Sides(self.rows_N, torch.cat(found) if found else torch.zeros(0, width))

    def forget(self) -> None:
        """Let go of the prepared inputs."""
        self._kept.clear()

    def _look(self, there_N: NDArray[np.int64]) -> dict[int, str]:
        faults: dict[int, str] = {}
        size = 0
        for row in there_N.tolist():
            try:
                prepared = self._input(row)
            except DataError as error:
                faults[row] = str(error)
                continue
            size += _bytes(prepared)
            if size <= _KEPT_BYTES:
                self._kept[row] = prepared
        return faults

    def _input(self, row: int) -> Any:
        if row in self._kept:
            return self._kept[row]
        raw = self._cells[row]
        return self._prepare(raw[0] if isinstance(raw, list) else raw)

    def _judge(self, faults: Mapping[int, str], count: int, job: Job) -> None:
        if not faults:
            return
        most, stage = job.recipe.max_broken, job.stage
        listed = "".join(f"\n  {reason}" for reason in islice(faults.values(), _SHOWN))
        said = (
            f"stage '{stage.name}': {len(faults)} of {count} rows to watch it on have no usable '{self.name}'"
        )
        if len(faults) > most * count or len(faults) == count:
            raise DataError(
                f"{said}, more than max_broken ({most:g}) allows; mend or drop them, or raise it:{listed}"
            )
        if self.fabric.is_global_zero:
            print(f"warning: {said}; they are left out:{listed}", file=sys.stderr, flush=True)


class Facts(NamedTuple):
    """What is known of all rows."""

    keys: Sequence[str]
    lat_N: NDArray[np.float64]
    lon_N: NDArray[np.float64]
    hour_N: NDArray[np.float64]
    label_N: NDArray[np.object_]

    @classmethod
    def of(cls, rows: Mixture) -> Facts:
        """Read them."""
        parts = [source.rows.known() for source in rows.sources]
        return cls(
            [f"held out {row}" for row in range(len(rows))],
            np.concatenate([part.lat_N for part in parts]),
            np.concatenate([part.lon_N for part in parts]),
            np.concatenate([part.hour_N for part in parts]),
            np.concatenate([part.label_N for part in parts]),
        )

    def meta(self, rows: NDArray[np.int64]) -> BatchMeta:
        """What a loss is told of some rows."""
        keys = [self.keys[int(row)] for row in rows]
        labels = list(self.label_N[rows])
        return BatchMeta(keys, self.lat_N[rows], self.lon_N[rows], labels, hours=self.hour_N[rows])


def _bytes(prepared: Any) -> int:
    tensors = prepared.values() if isinstance(prepared, Mapping) else (prepared,)
    return sum(tensor.nbytes for tensor in tensors)
