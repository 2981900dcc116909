"""Embed held-out rows with every modality, and measure how well the modalities find each other."""

# N rows of the table, Q of them with one modality, D width

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from geobind.binder import Binder
from geobind.data.table import Table
from geobind.errors import DataError
from geobind.evaluation import PairRow, PairTable, Settings, evaluate_pairs, retrieval
from geobind.evaluation.embedded import Embedded, embed_rows
from geobind.evaluation.split_leakage import ClusterBy, clusters_of
from geobind.recipe.measuring import Evaluation

Trained = Collection[frozenset[str]]


def measure(binder: Binder, table: Table, trained: Trained, options: Evaluation) -> PairTable:
    """Measure retrieval for every ordered pair of modalities the table has rows of.

    Args:
        binder: The encoders.
        table: Held-out rows.
        trained: Pairs of modalities that some stage aligned.
        options: Whether a query's own row is the right answer, or every row of its class.

    Raises:
        DataError: The table has fewer than two of the modalities, or no labels where they are needed.
    """
    table = first_rows(table, options.limit)
    return tabulate(table, embed_rows(binder, table), trained, options.by, options.clusters)


def first_rows(table: Table, limit: int | None) -> Table:
    """The first rows of a table, all of them without a limit."""
    return table if limit is None else table.take(np.arange(min(limit, len(table))))


def tabulate(
    table: Table,
    found: Mapping[str, Embedded],
    trained: Trained,
    by: Literal["row", "label"],
    clusters: ClusterBy | None = None,
) -> PairTable:
    """Measure retrieval between embedded modalities; see `measure`.

    Args:
        table: Held-out rows.
        found: Their embeddings.
        trained: Pairs of modalities that some stage aligned.
        by: Whether a query's own row is the right answer, or every row of its class.
        clusters: What rows have in common that are no independent queries.

    Raises:
        DataError: Labels or clusters are needed and not there.
    """
    trained = {pair for pair in trained if pair <= set(found)}
    words = clusters_of(table, clusters) if clusters else None
    tabulated = _by_label if by == "label" else _by_row
    return replace(tabulated(table, found, trained, words), clusters=clusters)


def labels_of(table: Table) -> Sequence[str]:
    """The label of every row.

    Raises:
        DataError: A row has none.
    """
    labels = [label for label in table.labels or () if label is not None]
    if len(labels) < len(table):
        raise DataError(
            f"{table.name}: evaluation by label needs a `label` in every row of split '{table.view}'"
        )
    return labels


def _by_row(
    table: Table, found: Mapping[str, Embedded], trained: Trained, clusters: Sequence[Any] | None
) -> PairTable:
    size = len(table)
    whole: dict[str, Tensor] = {}
    for name, (rows_Q, embedding_QD) in found.items():
        whole[name] = torch.zeros(size, embedding_QD.shape[1])
        whole[name][torch.as_tensor(rows_Q)] = embedding_QD
    presence = {name: np.isin(np.arange(size), rows_Q) for name, (rows_Q, _) in found.items()}
    return evaluate_pairs(
        whole, trained, labels=table.labels, places=table.places_LL, clusters=clusters, presence=presence
    )


def _by_label(
    table: Table, found: Mapping[str, Embedded], trained: Trained, clusters: Sequence[Any] | None
) -> PairTable:
    return PairTable(tuple(_label_rows(labels_of(table), found, trained, clusters)), (), Settings())


def _label_rows(
    labels: Sequence[Any], found: Mapping[str, Embedded], trained: Trained, clusters: Sequence[Any] | None
) -> Iterator[PairRow]:
    for query, gallery in permutations(found, 2):
        ids = [[labels[row] for row in found[name].rows_Q] for name in (query, gallery)]
        result = retrieval(
            found[query].embedding_QD,
            found[gallery].embedding_QD,
            query_ids=ids[0],
            gallery_ids=ids[1],
            query_clusters=[clusters[row] for row in found[query].rows_Q] if clusters else None,
        )
        yield PairRow(query, gallery, frozenset((query, gallery)) in trained, result)
