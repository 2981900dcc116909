"""Sequences over the rows of a table whose items are made when asked for."""

# N rows

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

import numpy as np

from geobind.modality import Place

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
