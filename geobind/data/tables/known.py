"""What is known of the rows of a table besides observations: keys, places, times, splits, labels, groups."""

# N rows; LL latitude and longitude in degrees

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from geobind.data.tables.views import Lazy
from geobind.modality import Place
from geobind.utils.arrow import mapped_table

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of rows of places; it lies in a memory-mapped file that every process shares."""

    name: str  # what messages call it
    path: Path  # the Arrow file with keys, splits and places
    rows_N: NDArray[np.int32]  # the rows of the file that are meant

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def keys(self) -> Sequence[str]:
        """What names each row in messages: column `key`, or else the file and line."""
        return Lazy(self.rows_N, self._key)

    @property
    def splits(self) -> dict[str, int]:
        """Rows in each split; rows without one are in none."""
        counted = Counter(word for word in self._field("split") or () if word is not None)
        return dict(sorted(counted.items()))

    @property
    def labels(self) -> list[str | None] | None:
        """The class of each row, or None if no row has one."""
        return self._field("label")

    @property
    def groups(self) -> list[str | None] | None:
        """What each row belongs to, such as the recording it was cut from; None if no row says."""
        return self._field("group")

    @property
    def places_LL(self) -> NDArray[np.float64] | None:
        """Latitude and longitude of each row (N, 2), NaN where unknown; None if no row has them."""
        lat, lon = self._array("lat"), self._array("lon")
        return None if lat is None or lon is None else np.stack([lat, lon], axis=1)

    @property
    def lat(self) -> NDArray[np.float64] | None:
        """Degrees north of each row (N,), NaN where unknown; None if no row has them."""
        return self._array("lat")

    @property
    def lon(self) -> NDArray[np.float64] | None:
        """Degrees east of each row (N,), NaN where unknown; None if no row has them."""
        return self._array("lon")

    @property
    def time(self) -> NDArray[np.datetime64] | None:
        """When, in UTC (N,), NaT where unknown; None if no row has it."""
        return self._array("time")

    def _cell(self, field: str, row: int) -> Any:
        table = mapped_table(self.path)
        return table.column(field)[row].as_py() if field in table.column_names else None

    def _key(self, row: int) -> str:
        return self._cell("key", row) or f"{self.name}:{self._cell('line', row)}"

    def _place(self, row: int) -> Place | None:
        lat, time = self._cell("lat", row), self._cell("time", row)
        return None if lat is None else Place(lat, self._cell("lon", row), time and time.replace(tzinfo=UTC))

    def _taken(self, field: str) -> pa.ChunkedArray | None:
        table = mapped_table(self.path)
        if field not in table.column_names:
            return None
        values = table.column(field).take(pa.array(self.rows_N))
        return None if values.null_count == len(values) else values

    def _field(self, field: str) -> list[str | None] | None:
        values = self._taken(field)
        return None if values is None else values.to_pylist()

    def _array(self, field: str) -> NDArray[Any] | None:
        values = self._taken(field)
        return None if values is None else values.to_numpy()
