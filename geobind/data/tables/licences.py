"""How many rows of a table are under which licence."""

# N rows

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from geobind.data.tables.table import Table
from geobind.data.tables.toyearth import NAME as TOYEARTH
from geobind.licences import GENERATED, UNSTATED
from geobind.utils.arrow import mapped_table

COLUMN = "licence"


def licences(table: Table) -> dict[str, int]:
    """Count a table's rows by their `licence`, the most frequent first; empty when it has no such column."""
    rows = mapped_table(table.path)
    if COLUMN not in rows.column_names:
        return {GENERATED: len(table)} if table.name == TOYEARTH else {}
    words: Sequence[str | None] = rows.column(COLUMN).take(table.rows_N).to_pylist()
    return dict(Counter(word or UNSTATED for word in words).most_common())
