"""Held-out rows embedded with every modality, and where each query's right answer came."""

# N rows, Q queries, G gallery items, D width

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geobind.binder import Binder
from geobind.data.table import Table, open_table
from geobind.evaluation import rank_counts
from geobind.evaluation.embedded import Embedded, embed_rows
from geobind.recipe import Recipe, recipe_from
from geobind.scoring import cosine
from geobind.utils.hashing import seed_of

MOST_ROWS = 500


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows as a report uses them: all of them, or a sample when they are many."""

    table: Table
    spaces: Mapping[str, Embedded]
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


def embed(
    binder: Binder,
    table: Table,
    *,
    by_label: bool,
    most: int = MOST_ROWS,
    embedded: Mapping[str, Embedded] | None = None,
) -> HeldOut:
    """Embed held-out rows with every modality they have.

    Args:
        binder: The encoders.
        table: Held-out rows.
        by_label: Whether any row of a query's class is a right answer.
        most: From more rows than this, so many are drawn.
        embedded: Embeddings of all the rows, where they are there already.

    Raises:
        DataError: An input cannot be read.
    """
    total = len(table)
    rows_N = np.arange(total)
    if total > most:
        drawn = np.random.default_rng(seed_of(0, "report")).choice(total, most, replace=False)
        rows_N = np.sort(drawn)
        table = table.take(rows_N)
    if embedded is None:
        return HeldOut(table, embed_rows(binder, table), total, by_label)
    spaces = {name: _among(one, rows_N) for name, one in embedded.items()}
    return HeldOut(table, {name: one for name, one in spaces.items() if len(one.rows_Q)}, total, by_label)


def _among(one: Embedded, rows_N: NDArray[np.int64]) -> Embedded:
    """The embeddings of those rows that are among `rows_N`, numbered as they are there."""
    kept_Q = np.isin(one.rows_Q, rows_N)
    return Embedded(np.searchsorted(rows_N, one.rows_Q[kept_Q]), one.of(one.rows_Q[kept_Q]))


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
        cosine(query_QD, gallery_GD).numpy(),
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
