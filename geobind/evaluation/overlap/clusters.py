"""Which rows are no independent queries: those of one recording, or of one piece of land."""

# N rows

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from geobind.data.table import Table
from geobind.errors import DataError
from geobind.evaluation.overlap.leakage import cells_of

ClusterBy = Literal["cell", "group"]


def clusters_of(table: Table, by: ClusterBy) -> Sequence[str | int | None]:
    """The cluster of each row, None where it is in none and so counts alone.

    Args:
        table: The rows.
        by: `cell`: the 1-degree cell of its place; `group`: the table's `group` column.

    Raises:
        DataError: No row says.
    """
    if by == "group":
        if table.groups is None:
            raise DataError(
                f"{table.name}: intervals by group need a column `group`; map one with "
                "`columns: {group: COLUMN}`"
            )
        return table.groups
    places_LL = table.places_LL
    if places_LL is None:
        raise DataError(f"{table.name}: intervals by cell need columns `lat` and `lon`")
    known_N = np.atleast_1d(np.isfinite(places_LL).all(axis=1))
    cell_N = cells_of(np.where(known_N[:, None], places_LL, 0.0))
    return [int(cell) if known else None for cell, known in zip(cell_N, known_N, strict=True)]
