"""Embedded rows of a table, and the query and gallery sides of a pair of modalities."""

# N rows of the table, Q and G of them on the two sides of a pair, D width

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geobind.binder import Binder
from geobind.data.sources import find_missing_storage
from geobind.data.table import Table, first_observation


class EmbeddedRows(NamedTuple):
    """Embeddings of the rows that have a modality."""

    rows_Q: NDArray[np.int64]  # rising
    embedding_QD: Tensor

    def of(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the embeddings of some of the rows."""
        return self.embedding_QD[torch.from_numpy(np.searchsorted(self.rows_Q, rows))]


class PairSides(NamedTuple):
    """Queries and a gallery; items of one id are right answers to each other."""

    query_QD: Tensor
    gallery_GD: Tensor
    query_id_Q: NDArray[np.int64]
    gallery_id_G: NDArray[np.int64]

    @property
    def right_QG(self) -> NDArray[np.bool_]:
        """Mask of right answers, (Q, G)."""
        return self.query_id_Q[:, None] == self.gallery_id_G


def embed_rows(binder: Binder, table: Table, names: Collection[str] | None = None) -> dict[str, EmbeddedRows]:
    """Embed every modality that a table has rows of.

    Args:
        binder: The encoders.
        table: The rows.
        names: Of these modalities alone; default: all of the binder's.

    Raises:
        DataError: An input cannot be read.
    """
    wanted = [name for name in binder.modalities if names is None or name in names]
    return {name: embed_modality(binder, table, name) for name in wanted if len(table.rows_with([name]))}


def build_pair_sides(
    embedded: Mapping[str, EmbeddedRows],
    query: str,
    gallery: str,
    labels: Sequence[Any] | None = None,
    *,
    max_rows: int | None = None,
    seed: int = 0,
) -> PairSides | None:
    """Build the query and gallery sides of a pair of modalities.

    Args:
        embedded: The result of `embed_rows`.
        query: The modality of the queries.
        gallery: The modality of the gallery.
        labels: A class for each row of the table: any row of it is then a right answer, and each side holds
            all its rows that have one. Without labels both sides hold the rows that have both modalities.
        max_rows: Largest number of rows on either side; more are sampled.
        seed: Makes the draw repeatable.

    Returns:
        The sides; None when fewer than two rows are left on one, or no query has a right answer.
    """
    query_Q, gallery_G = embedded[query].rows_Q, embedded[gallery].rows_Q
    if labels is None:
        query_Q = gallery_G = _sample_rows(np.intersect1d(query_Q, gallery_G), max_rows, seed)
        ids = query_Q, gallery_G
    else:
        known = {label: code for code, label in enumerate(dict.fromkeys(x for x in labels if x is not None))}
        code_N = np.array([-1 if label is None else known[label] for label in labels])
        query_Q, gallery_G = (
            _sample_rows(rows[code_N[rows] >= 0], max_rows, seed) for rows in (query_Q, gallery_G)
        )
        query_Q = query_Q[np.isin(code_N[query_Q], code_N[gallery_G])]
        ids = code_N[query_Q], code_N[gallery_G]
    if len(query_Q) < 2 or len(gallery_G) < 2:
        return None
    return PairSides(embedded[query].of(query_Q), embedded[gallery].of(gallery_G), *ids)


def _sample_rows(rows_N: NDArray[np.int64], max_rows: int | None, seed: int) -> NDArray[np.int64]:
    if max_rows is None or len(rows_N) <= max_rows:
        return rows_N
    return np.sort(np.random.default_rng(seed).choice(rows_N, max_rows, replace=False))


def embed_modality(binder: Binder, table: Table, name: str) -> EmbeddedRows:
    """Embed the rows of a table that have one modality.

    Raises:
        DataError: An input cannot be read.
    """
    rows_Q = table.rows_with([name])
    return EmbeddedRows(rows_Q, binder.embed(name, FirstObservations(table.take(rows_Q).samples(name))))


class FirstObservations(Sequence[Any]):
    """The first of each row's equally good observations; None where a row has none."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        raw = self.samples[index]
        return first_observation(raw)

    def find_missing_storage(self, row: int) -> str | None:
        """Return a message if the storage of a row's source is missing, else None."""
        return find_missing_storage(self.samples, row)
