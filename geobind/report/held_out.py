"""Held-out rows embedded with every modality, and where each query's right answer came."""

# N rows, Q queries, G gallery items, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geobind.binder import Binder
from geobind.data.arrow import mapped_table
from geobind.data.table import Table, open_table
from geobind.evaluation import rank_counts
from geobind.recipe import Recipe, recipe_from
from geobind.seeds import seed_of

MOST_ROWS = 500


class Space(NamedTuple):
    """The rows that have a modality, and their embeddings."""

    rows_Q: NDArray[np.int64]  # rising
    embedding_QD: Tensor

    def of(self, rows: NDArray[np.int64]) -> Tensor:
        """The embeddings of some of the rows."""
        return self.embedding_QD[torch.from_numpy(np.searchsorted(self.rows_Q, rows))]


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows as a report uses them: all of them, or a sample when they are many."""

    table: Table
    spaces: Mapping[str, Space]
    total: int  # rows before sampling
    by_label: bool

    def raw(self, name: str, row: int) -> Any:
        """The first of a row's equally good observations in a modality."""
        raw = self.table.samples(name)[row]
        return raw[0] if isinstance(raw, list) else raw


class Ranked(NamedTuple):
    """The rank of the right answer to every query, and the similarities it comes from."""

    query: str
    gallery: str
    query_Q: NDArray[np.int64]  # rows of the table
    gallery_G: NDArray[np.int64]
    rank_Q: NDArray[np.float64]
    similarity_QG: NDArray[np.float32]
    right_QG: NDArray[np.bool_]


def open_held_out(folder: Path, base: Path) -> tuple[Binder, Table | None]:
    """Open the bundle and the held-out rows of a finished run.

    Args:
        folder: The run.
        base: Folder that the recipe's relative paths start from.

    Returns:
        The binder, and the rows its recipe is measured on: None when it is measured on nothing.

    Raises:
        GeobindError: The run is not finished, a plugin is missing, or the data are not where they were.
    """
    binder = Binder.load(folder / "bundle")
    written = binder.card.recipe if binder.card else {}
    recipe = recipe_from(written, base, source=str(folder / "bundle" / "recipe.yaml"))
    return binder, held_out_rows(recipe)


def held_out_rows(recipe: Recipe) -> Table | None:
    """Open the rows that a recipe is measured on, or None when it is measured on nothing.

    Raises:
        DataError: They are not there, or the table is malformed.
    """
    options = recipe.evaluate
    data = (options.data or recipe.data) if options else None
    if options is None or data is None:
        return None
    table = open_table(data, recipe.base, tuple(recipe.modalities)).split(options.split)
    return table if options.limit is None else table.take(np.arange(min(options.limit, len(table))))


def embed(binder: Binder, table: Table, *, by_label: bool, most: int = MOST_ROWS) -> HeldOut:
    """Embed held-out rows with every modality they have.

    Args:
        binder: The encoders.
        table: Held-out rows.
        by_label: Whether any row of a query's class is a right answer.
        most: From more rows than this, so many are drawn.

    Raises:
        DataError: An input cannot be read.
    """
    total = len(table)
    if total > most:
        drawn = np.random.default_rng(seed_of(0, "report")).choice(total, most, replace=False)
        table = table.take(np.sort(drawn))
    spaces: dict[str, Space] = {}
    held_out = HeldOut(table, spaces, total, by_label)
    for name in binder.modalities:
        rows_Q = table.rows_with([name])
        if len(rows_Q):
            spaces[name] = Space(rows_Q, binder.embed(name, (held_out.raw(name, int(row)) for row in rows_Q)))
    return held_out


def ranked(held_out: HeldOut, query: str, gallery: str) -> Ranked | None:
    """Rank the gallery for every query that has a right answer in it; None when fewer than two have."""
    query_Q, gallery_G = held_out.spaces[query].rows_Q, held_out.spaces[gallery].rows_Q
    if not held_out.by_label:  # as the measured tables do: both sides hold the rows that have both
        query_Q = gallery_G = np.intersect1d(query_Q, gallery_G)
    id_N = _ids(held_out)
    query_Q = query_Q[np.isin(id_N[query_Q], id_N[gallery_G]) & (id_N[query_Q] >= 0)]
    if len(query_Q) < 2 or len(gallery_G) < 2:
        return None
    query_QD = held_out.spaces[query].of(query_Q)
    gallery_GD = held_out.spaces[gallery].of(gallery_G)
    counts = rank_counts(query_QD, gallery_GD, query_ids=id_N[query_Q], gallery_ids=id_N[gallery_G])
    return Ranked(
        query,
        gallery,
        query_Q,
        gallery_G,
        counts.rank_Q,
        Binder.similarity(query_QD, gallery_GD).numpy(),
        id_N[query_Q, None] == id_N[gallery_G],
    )


def _ids(held_out: HeldOut) -> NDArray[np.int64]:
    """A number for each row that its right answers share; -1 where it has none."""
    labels = held_out.table.labels if held_out.by_label else None
    if labels is None:
        return np.arange(len(held_out.table))
    known = {
        label: number for number, label in enumerate(sorted({word for word in labels if word is not None}))
    }
    return np.array([-1 if label is None else known[label] for label in labels])


def licences(table: Table) -> dict[str, int]:
    """How many rows are under which licence, from the table's `licence` column; empty when it has none."""
    rows = mapped_table(table.path)
    if "licence" not in rows.column_names:
        return {}
    words: Sequence[str | None] = rows.column("licence").take(table.rows_N).to_pylist()
    counted: dict[str, int] = {}
    for word in words:
        counted[word or "not stated"] = counted.get(word or "not stated", 0) + 1
    return dict(sorted(counted.items(), key=lambda item: -item[1]))
