"""Evaluation on held-out rows: retrieval, calibration, modality gap, arithmetic."""

# N rows of the table, Q of them with one modality, D width

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from geobind.binder import Binder
from geobind.data.options import DataOptions
from geobind.data.table import Table
from geobind.errors import DataError
from geobind.evaluation.arithmetic import FEWEST_PLACES, Arithmetic, sums_of_rows, sums_on_toyearth
from geobind.evaluation.calibration import Calibrated, calibrate, measure_calibration
from geobind.evaluation.embedded import Embedded, embed_rows
from geobind.evaluation.gap import Gap, modality_gap
from geobind.evaluation.pairs import PairRow, PairTable, evaluate_pairs
from geobind.evaluation.retrieval_metrics import Settings, retrieval
from geobind.evaluation.split_leakage import ClusterBy, clusters_of
from geobind.recipe.embedding_sum import Sum, read_sum
from geobind.recipe.schema import Evaluation

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


@dataclass(frozen=True)
class EvaluationResults:
    """All that was measured on held-out rows, and the embeddings that it was measured from."""

    held_out: Table
    embedded: Mapping[str, Embedded]
    table: PairTable
    gap: Gap
    calibrated: Calibrated | None
    calibrating: Table | None  # the rows that it was fitted on
    sums: tuple[Arithmetic, ...]

    def parts(self) -> dict[str, dict[str, Any]]:
        """Plain values, ready for JSON, by what they are about; what was not asked for is left out."""
        found = {"retrieval": self.table.to_dict(), "gap": self.gap.to_dict()}
        if self.calibrated:
            found["calibration"] = self.calibrated.to_dict()
        if self.sums:
            found["arithmetic"] = {"sums": [one.to_dict() for one in self.sums]}
        return found


def check_rows(table: Table, options: Evaluation) -> None:
    """See that a table has what `evaluate` asks for, before hours of training.

    Raises:
        DataError: It has no such split, labels, clusters, or rows with all modalities of a sum.
    """
    held_out = first_rows(table.split(options.split), options.limit)
    if options.by == "label":
        labels_of(held_out)
    if options.clusters:
        clusters_of(held_out, options.clusters)
    if options.calibrate:
        table.split(options.calibrate)
    for text in options.sums:
        wanted = read_sum(text, table.columns)
        if len(held_out.rows_with((*wanted.parts, wanted.gallery))) < 2:
            raise DataError(
                f"{table.name}: sum '{wanted}': fewer than two rows of '{options.split}' have all"
            )


def measure_all(
    binder: Binder, table: Table, data: DataOptions, trained: Trained, options: Evaluation
) -> EvaluationResults:
    """Measure all that `evaluate` asks for; every row is embedded once.

    Args:
        binder: The encoders.
        table: The rows that it names, of all splits.
        data: How they were opened.
        trained: Pairs of modalities that some stage aligned.
        options: What to measure.

    Raises:
        DataError: The rows do not allow it.
    """
    held_out = first_rows(table.split(options.split), options.limit)
    found = embed_rows(binder, held_out)
    measured = tabulate(held_out, found, trained, options.by, options.clusters)
    calibrating = table.split(options.calibrate) if options.calibrate else None
    calibrated = None
    if calibrating is not None:
        calibrated = calibrated_on(binder, calibrating, held_out, found, options.by)
    sums = tuple(
        one
        for text in options.sums
        for one in sums_of(binder, held_out, data, found, read_sum(text, found), options.by)
    )
    return EvaluationResults(held_out, found, measured, modality_gap(found), calibrated, calibrating, sums)


def calibrated_on(
    binder: Binder, rows: Table, held_out: Table, found: Mapping[str, Embedded], by: str
) -> Calibrated:
    """Fit probabilities on some rows and see how good they are on held-out ones.

    Raises:
        DataError: A row has no label where labels decide.
    """
    label = by == "label"
    fitted_on = f"split '{rows.view}' of {rows.name}"
    calibration = calibrate(embed_rows(binder, rows), fitted_on, labels_of(rows) if label else None)
    measured_on = f"split '{held_out.view}' of {held_out.name}"
    return measure_calibration(calibration, found, measured_on, labels_of(held_out) if label else None)


def sums_of(
    binder: Binder, table: Table, data: DataOptions, found: Mapping[str, Embedded], wanted: Sum, by: str
) -> list[Arithmetic]:
    """Measure a sum: of observations of one place, and on toy Earth of two places as well.

    Raises:
        DataError: Too few rows have all its modalities.
    """
    measured = [sums_of_rows(found, wanted, labels_of(table) if by == "label" else None)]
    if data.toyearth is not None and len(wanted.parts) == 2 and len(table) >= FEWEST_PLACES:
        measured.insert(0, sums_on_toyearth(binder, table, data, found, wanted))
    return measured


def warned(measured: EvaluationResults, warnings: tuple[str, ...]) -> EvaluationResults:
    """The same, with warnings in its table."""
    return replace(measured, table=replace(measured.table, warnings=warnings))
