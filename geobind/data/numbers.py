"""Numbers known of the rows of a table: columns of a manifest, or the named facts of a dataset."""

# N rows, S numbers of a vector

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geobind.data.options import DataOptions
from geobind.data.table import Table
from geobind.errors import DataError, did_you_mean

_MOST_NUMBERS = 64  # of a vector, whose mean and std are on one line
_MOST_VECTORS = 100_000  # that a mean is taken of: more would not change its digits
_PLACE = ("lat", "lon")  # of every table of places, and no column of a modality


def find_number_columns(options: DataOptions, names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that hold some numbers: a dataset's vectors of named facts, or columns of their own.

    Args:
        options: A `data` block.
        names: Names of columns or facts; that of a vector stands for all its facts. `lat` and `lon` need no
            column.

    Raises:
        DataError: The dataset has facts, but none called so.
    """
    vectors = _vectors(options)
    names = [name for name in names if name not in _PLACE]
    if not vectors:
        return tuple(dict.fromkeys(names))
    homes = {fact: column for column in reversed([*vectors]) for fact in (*vectors[column], column)}
    for name in names:
        if name not in homes:
            hint = did_you_mean(name, homes, f"its facts: {', '.join(next(iter(vectors.values())))}")
            where = options.dataset.name if options.dataset is not None else "the table"
            raise DataError(f"{where}: has no fact '{name}'; {hint}")
    return tuple(dict.fromkeys(homes[name] for name in names))


def read_number_columns(
    table: Table, options: DataOptions, names: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Read numbers of every row, (N,) by name, NaN where a cell is empty.

    Args:
        table: The rows, opened with `find_number_columns`.
        options: How they were opened.
        names: As of `find_number_columns`.

    Raises:
        DataError: The table has no such column, or a cell is no number; it names the row.
    """
    vectors = _vectors(options)
    found: dict[str, NDArray[np.float64]] = {}
    for name in names:
        place_N = getattr(table, name) if name in _PLACE else None
        if place_N is not None:
            found[name] = place_N
            continue
        column = next((home for home, facts in vectors.items() if name == home or name in facts), name)
        if column not in table.columns:
            raise DataError(f"{table.name}: has no column '{column}' of numbers")
        if column == name and column not in vectors:
            found[name] = np.array([_number(table, row, name, cell) for row, cell in _cells(table, name)])
            continue
        fact_NT = np.stack([np.asarray(cell, dtype=np.float64) for _, cell in _cells(table, column)])
        facts = list(vectors[column])
        chosen = facts if name == column else [name]
        found |= {fact: fact_NT[:, facts.index(fact)] for fact in chosen}
    return found


def _vectors(options: DataOptions) -> Mapping[str, Sequence[str]]:
    return options.dataset.vector_names() if options.dataset is not None else {}


def _cells(table: Table, column: str) -> enumerate[object]:
    return enumerate(table.samples(column))


def _number(table: Table, row: int, column: str, cell: object) -> float:
    try:
        return float("nan") if cell is None else float(np.asarray(cell, dtype=np.float64).reshape(()).item())
    except (TypeError, ValueError):
        raise DataError(f"{table.keys[row]}: column '{column}' is {cell!r:.80}, not a number") from None


class VectorSpread(NamedTuple):
    """The mean and the standard deviation of each number of a modality's vectors."""

    mean: list[float]
    std: list[float]
    rows: int
    missing: bool  # whether rows lack numbers

    @property
    def options(self) -> str:
        """The options of a modality of vectors as a recipe has them; what never varies is divided by 1."""
        if len(self.mean) > _MOST_NUMBERS:
            return f"mean and std of its {len(self.mean)} numbers are in --json"
        means, stds = (
            ", ".join(np.format_float_positional(float(f"{value:.4g}"), trim="-") for value in values)
            for values in (self.mean, [value or 1.0 for value in self.std])
        )
        lacking = ", missing: true" if self.missing else ""
        return f"size: {len(self.mean)}, mean: [{means}], std: [{stds}]{lacking}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**self._asdict(), "options": self.options}


def measure_vectors(table: Table, name: str) -> VectorSpread | None:
    """Measure the mean and the standard deviation of each number of a modality's vectors.

    None if its observations are no vectors of one length, or a number is in none. Of more than 100,000 rows
    as many are taken, evenly. Vectors that cannot be used are left out.
    """
    rows_N = table.rows_with([name])
    rows_N = rows_N[:: -(-len(rows_N) // _MOST_VECTORS) or 1]
    vectors: list[NDArray[np.float32]] = []
    for row in rows_N:
        with suppress(DataError):
            vector = table.columns[name][int(table.rows_N[row])]
            if not isinstance(vector, np.ndarray) or vector.ndim != 1:
                return None
            if vectors and len(vector) != len(vectors[0]):
                return None
            if not np.isinf(vector).any():
                vectors.append(vector)
    if not vectors:
        return None
    vector_NS = np.stack(vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a number that no row has
        mean_S = np.asarray(np.nanmean(vector_NS, axis=0, dtype=np.float64))
        std_S = np.asarray(np.nanstd(vector_NS, axis=0, dtype=np.float64))
    if np.isnan(mean_S).any():
        return None
    missing = bool(np.isnan(vector_NS).any())
    return VectorSpread(mean_S.tolist(), std_S.tolist(), len(vectors), missing)
