"""A stage's rows where some modalities are read from the cache: their inputs are not touched any more."""

# N rows of all sources, K views

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geobind.data.rasters.column import RasterColumn
from geobind.data.sampler import Mixture, Source, source_of
from geobind.data.sources import TableRows
from geobind.data.table import Observed

if TYPE_CHECKING:
    from geobind.frozen.sides import Picks


@dataclass(frozen=True, eq=False)
class Cells(Sequence[Any]):
    """The cells of one modality in every row of a stage, None where a row lacks it.

    Args:
        rows: The stage's rows.
        name: The modality.
        described: Whether to tell what a window of a raster is cut out of, instead of reading it.
    """

    rows: Mixture
    name: str
    described: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        source = source_of(self.rows.starts, index)
        there, row = self.rows.sources[source].rows, index - self.rows.starts[source]
        if not isinstance(there, TableRows):
            return there[row].raws.get(self.name)
        if self.name not in there.names:
            return None
        column, cell = there.table.columns[self.name], int(there.table.rows_N[row])
        if self.described and isinstance(column, RasterColumn):
            return column.described(cell)
        return column[cell]

    def vanished(self, row: int) -> str | None:
        """Say that the data of a row's source are gone, if they are."""
        return self.rows.vanished(row)


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows whose cells, of the modalities that are read from the cache, are numbers of observations."""

    rows: Mixture  # of the other modalities
    picks: Mapping[str, Picks]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Observed:
        seen = self.rows[row]
        return seen._replace(
            raws={**seen.raws, **{name: picks.cell(row) for name, picks in self.picks.items()}}
        )

    def vanished(self, row: int) -> str | None:
        """Say that the data of a row's source are gone, if they are."""
        return self.rows.vanished(row)


def without(rows: Mixture, names: Mapping[str, Any]) -> Mixture:
    """Return the same rows without some modalities, whose cells are then not read."""

    def less(source: Source) -> Source:
        if not isinstance(source.rows, TableRows):
            return source
        kept = tuple(name for name in source.rows.names if name not in names)
        return source._replace(rows=replace(source.rows, names=kept))

    return Mixture(tuple(map(less, rows.sources)))


class FromCache:
    """Stands in for a modality: its prepared input is the number of a row of the cache."""

    def __init__(self, picks: Picks) -> None:
        self.picks = picks

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Return the row of an observation, of one of its views drawn at random.

        Raises:
            DataError: The observation cannot be used.
        """
        return torch.tensor(self.picks.row(raw, random.randrange))
