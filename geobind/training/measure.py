"""Embed held-out rows with every modality, and measure how well the modalities find each other."""

# N rows of the table, Q of them with one modality, D width

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geobind.binder import Binder
from geobind.data.table import Table
from geobind.errors import DataError
from geobind.evaluation import PairRow, PairTable, Settings, evaluate_pairs, retrieval
from geobind.recipe.schema import Evaluation

Trained = Collection[frozenset[str]]


class Embedded(NamedTuple):
    """The rows that have a modality, and their embeddings."""

    rows_Q: NDArray[np.int64]
    embedding_QD: Tensor


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
    return tabulate(table, embed_rows(binder, table), trained, options.by)


def first_rows(table: Table, limit: int | None) -> Table:
    """The first rows of a table, all of them without a limit."""
    return table if limit is None else table.take(np.arange(min(limit, len(table))))


def embed_rows(binder: Binder, table: Table) -> dict[str, Embedded]:
    """Embed every modality that a table has rows of."""
    return {name: _embed(binder, table, name) for name in binder.modalities if len(table.rows_with([name]))}


def tabulate(
    table: Table, found: Mapping[str, Embedded], trained: Trained, by: Literal["row", "label"]
) -> PairTable:
    """Measure retrieval between embedded modalities; see `measure`."""
    trained = {pair for pair in trained if pair <= set(found)}
    return _by_label(table, found, trained) if by == "label" else _by_row(table, found, trained)


def _embed(binder: Binder, table: Table, name: str) -> Embedded:
    rows_Q = table.rows_with([name])
    return Embedded(rows_Q, binder.embed(name, _First(table.take(rows_Q).samples(name))))


class _First(Sequence[Any]):
    """The first of each row's equally good observations."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        raw = self.samples[index]
        return raw[0] if isinstance(raw, list) else raw


def _by_row(table: Table, found: Mapping[str, Embedded], trained: Trained) -> PairTable:
    size = len(table)
    whole: dict[str, Tensor] = {}
    for name, (rows_Q, embedding_QD) in found.items():
        whole[name] = torch.zeros(size, embedding_QD.shape[1])
        whole[name][torch.as_tensor(rows_Q)] = embedding_QD
    presence = {name: np.isin(np.arange(size), rows_Q) for name, (rows_Q, _) in found.items()}
    return evaluate_pairs(whole, trained, labels=table.labels, places=table.places_LL, presence=presence)


def _by_label(table: Table, found: Mapping[str, Embedded], trained: Trained) -> PairTable:
    labels = table.labels
    if labels is None or any(label is None for label in labels):
        raise DataError(
            f"{table.name}: evaluation by label needs a `label` in every row of split '{table.view}'"
        )
    return PairTable(tuple(_label_rows(labels, found, trained)), (), Settings())


def _label_rows(labels: Sequence[Any], found: Mapping[str, Embedded], trained: Trained) -> Iterator[PairRow]:
    for query, gallery in permutations(found, 2):
        ids = [[labels[row] for row in found[name].rows_Q] for name in (query, gallery)]
        result = retrieval(
            found[query].embedding_QD,
            found[gallery].embedding_QD,
            query_ids=ids[0],
            gallery_ids=ids[1],
        )
        yield PairRow(query, gallery, frozenset((query, gallery)) in trained, result)
