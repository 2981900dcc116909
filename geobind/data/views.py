"""Sequences over the rows of a table whose items are made when asked for."""

# N rows

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

import numpy as np

from geobind.modality import Pair, Place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.data.table import Table

T = TypeVar("T")


class Observed(NamedTuple):
    """What was observed of one place, by modality, and what is known about it."""

    raws: Mapping[str, Any]  # raw inputs, or lists of equally good ones; None where it is missing
    key: str = ""  # names the row in messages
    place: Place | None = None
    label: str | None = None


@dataclass(frozen=True, eq=False)
class Lazy(Sequence[T], Generic[T]):
    """A sequence whose items are made when asked for; a slice is such a sequence again."""

    rows_N: NDArray[np.int32]
    make: Callable[[int], T]

    def __len__(self) -> int:
        return len(self.rows_N)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Lazy[T]: ...
    def __getitem__(self, index: int | slice) -> T | Lazy[T]:
        if isinstance(index, slice):
            return replace(self, rows_N=self.rows_N[index])
        return self.make(int(self.rows_N[index]))


@dataclass(frozen=True, eq=False)
class Pairs(Sequence[Pair]):
    """The pairs of two modalities, one for each row of `table`; a slice is such a sequence again."""

    table: Table  # only rows that have both
    anchor: str
    other: str

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Pairs: ...
    def __getitem__(self, index: int | slice) -> Pair | Pairs:
        if isinstance(index, slice):
            return replace(self, table=self.table.take(np.arange(len(self))[index]))
        raws, key, place, label = self.table.observed(index, (self.anchor, self.other))
        return Pair(raws[self.anchor], raws[self.other], key, place, label)
