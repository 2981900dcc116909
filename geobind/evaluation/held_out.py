"""Evaluation on held-out rows: retrieval, calibration, modality gap, arithmetic."""

# N rows of the table, Q of them with one modality, D width

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from geobind.binder import Binder
from geobind.bridge import BANK_ROWS, REFERENCE_ROWS, AnchorBank, Bridge, choose_bridge
from geobind.data.options import DataOptions
from geobind.data.table import Table
from geobind.errors import DataError
from geobind.evaluation.arithmetic import (
    MIN_PLACES,
    SumResult,
    evaluate_sum_of_composed_places,
    evaluate_sum_of_rows,
)
from geobind.evaluation.calibration import (
    CalibrationResult,
    calibrate,
    calibrate_fuser,
    measure_calibration,
)
from geobind.evaluation.embedded import EmbeddedRows, embed_modality, embed_rows
from geobind.evaluation.gap import ModalityGap, modality_gap
from geobind.evaluation.pairs import BridgedRow, Gain, PairRow, PairTable, SkippedPair, evaluate_pairs
from geobind.evaluation.questions import QuestionResults, Space, ask_questions, read_truths
from geobind.evaluation.retrieval_metrics import QueryScores, RetrievalSettings, retrieval
from geobind.evaluation.split_leakage import ClusterBy, choose_clusters
from geobind.recipe.embedding_sum import EmbeddingSum, parse_sum
from geobind.recipe.marks import Marks, mark_by_pairs
from geobind.recipe.schema import Evaluation
from geobind.utils.hashing import derive_seed
from geobind.utils.system import hash_module

Trained = Collection[frozenset[str]] | Marks  # see `evaluate_pairs`


def measure_retrieval(binder: Binder, table: Table, trained: Trained, options: Evaluation) -> PairTable:
    """Measure retrieval for every ordered pair of modalities the table has rows of.

    Args:
        binder: The encoders.
        table: Held-out rows.
        trained: Pairs of modalities that some stage aligned, or the mark of every pair.
        options: Whether a query's own row is the right answer, or every row of its class.

    Raises:
        DataError: The table has fewer than two of the modalities, or no labels where they are needed.
    """
    table = take_first_rows(table, options.limit)
    return build_retrieval_table(
        table, embed_rows(binder, table), trained, options.by, options.clusters, bridge=binder.bank_bridge
    )


def build_bank(
    binder: Binder,
    rows: Table | Callable[[str, int], Table | None],
    *,
    anchor: str | None = None,
    marks: Marks | None = None,
    most: int = BANK_ROWS,
) -> AnchorBank | None:
    """Embed the bank that bridges a binder's emergent pairs; None where it would bridge none.

    Args:
        binder: The encoders.
        rows: Rows without labels, such as those trained on; or what draws so many that have a modality.
        anchor: The modality of the bank; default: the binder's anchor.
        marks: The mark of every pair; default: the binder's.
        most: Anchors kept; of each other modality at most REFERENCE_ROWS are.

    Raises:
        DataError: A row cannot be read, or fewer than two have the anchor.
    """
    anchor, marks = anchor or binder.anchor, binder.marks if marks is None else marks
    pairs = [pair for pair, mark in marks.items() if mark == "emergent" and anchor not in pair]
    if not pairs:
        return None
    embedded: dict[str, Tensor] = {}
    for name in (anchor, *sorted(frozenset[str]().union(*pairs))):
        count = most if name == anchor else min(REFERENCE_ROWS, most)
        drawn = draw_rows(rows, name, count) if isinstance(rows, Table) else rows(name, count)
        if drawn is not None:
            embedded[name] = embed_modality(binder, drawn, name).embedding_QD
    if anchor not in embedded:
        raise DataError(f"no bank of '{anchor}': fewer than two of its rows have it")
    digests = {name: hash_module(binder.encoders[name]) for name in embedded}
    anchor_RD = embedded.pop(anchor)
    return AnchorBank(
        anchor_RD, anchor, embedded, digests, f"{len(anchor_RD):,} unlabelled rows of '{anchor}'"
    )


def draw_rows(table: Table, name: str, most: int, seed: int = 0) -> Table | None:
    """Draw rows of a table that have a modality; None with fewer than two."""
    row_R = table.rows_with([name]) if name in table.columns else np.zeros(0, np.int64)
    if len(row_R) < 2:
        return None
    random = np.random.default_rng(derive_seed(seed, "bank", name))
    return table.take(np.sort(random.choice(row_R, min(most, len(row_R)), replace=False)))


def take_first_rows(table: Table, limit: int | None) -> Table:
    """Return the first rows of a table, or all of them without a limit."""
    return table if limit is None else table.take(np.arange(min(limit, len(table))))


def build_retrieval_table(
    table: Table,
    embedded: Mapping[str, EmbeddedRows],
    trained: Trained,
    by: Literal["row", "label"],
    clusters: ClusterBy | None = None,
    *,
    bridge: Bridge | None = None,
) -> PairTable:
    """Measure retrieval between embedded modalities; see `measure_retrieval`.

    Args:
        table: Held-out rows.
        embedded: Their embeddings.
        trained: Pairs of modalities that some stage aligned, or the mark of every pair.
        by: Whether a query's own row is the right answer, or every row of its class.
        clusters: How to group rows that are not independent queries; default: by what the table has.
        bridge: Emergent pairs of which neither is its anchor are measured by its scores, too.

    Raises:
        DataError: Labels or clusters are needed and not there.
    """
    marks = trained if isinstance(trained, Mapping) else mark_by_pairs(embedded, trained)
    grouped = choose_clusters(table, clusters)
    tabulated = _table_by_label if by == "label" else _table_by_row
    made = tabulated(table, embedded, marks, grouped.of_rows)
    bridged: list[BridgedRow] = []
    for one, two in combinations(embedded, 2):
        chosen = choose_bridge(bridge, marks, one, two)
        if chosen is not None and (one, two) in made.scores:
            sides = chosen.embed_pair(embedded[one].embedding_QD, embedded[two].embedding_QD)
            pair = {
                name: EmbeddedRows(embedded[name].rows_Q, side)
                for name, side in zip((one, two), sides, strict=True)
            }
            bridged += _compare_bridged(made, tabulated(table, pair, marks, grouped.of_rows))
    collapsed = tuple(find_collapsed(embedded))
    note = ""
    if bridge and bridged:
        note = (
            f"bridged by {bridge.describe()}. No stage compared the modalities of such a row: before they "
            f"are compared, each is moved towards the rows of '{bridge.bank.anchor}' that are most like it, "
            "and no weight changes"
        )
    return replace(
        made,
        clusters=grouped.by,
        cluster_note=grouped.note,
        warnings=collapsed,
        bridged=tuple(bridged),
        bridge_note=note,
    )


_COMPARED = ("R@1", "R@5", "R@10", "MRR")


def _compare_bridged(plain: PairTable, bridged: PairTable) -> Iterator[BridgedRow]:
    """Yield the bridged rows of a pair with their gain over the plain ones, query by query."""
    for row in bridged.rows:
        was: QueryScores = plain.scores[row.query, row.gallery]
        now: QueryScores = bridged.scores[row.query, row.gallery]
        both = [name for name in _COMPARED if name in was.measures and name in now.measures]
        yield BridgedRow(row, {name: Gain.over(was, now, name) for name in both})


COLLAPSED = 1e-4  # mean squared distance from their mean; of evenly spread embeddings it is nearly 1


def find_collapsed(embedded: Mapping[str, EmbeddedRows]) -> Iterator[str]:
    """Yield a warning for each modality whose embeddings are nearly equal.

    Similarities then differ by little more than rounding, which counts as a tie: figures are those of chance.
    """
    for name, rows in embedded.items():
        x_QD = rows.embedding_QD.double()
        spread = float((x_QD - x_QD.mean(0)).square().sum(1).mean())
        if len(x_QD) > 1 and spread < COLLAPSED:
            yield (
                f"the embeddings of '{name}' are nearly equal (mean squared distance from their mean "
                f"{spread:.1g}): its space has collapsed, and its figures say nothing"
            )


def check_comparable(table: Table, names: Iterable[str], by: str) -> None:
    """Check, before anything is embedded, that modalities can be compared on these rows.

    Raises:
        DataError: Rows have fewer than two of the modalities, or, by label, a row has no label or every pair
            of modalities has queries without a right answer.
    """
    names = list(names)
    rows = {name: rows_Q for name in names if len(rows_Q := table.rows_with([name]))}
    if len(rows) < 2:
        there = ", ".join(rows) or "none"
        raise DataError(
            f"{table.name}: rows of split '{table.view}' have {there} of {', '.join(names)}; two are needed: "
            "name the columns of others"
        )
    if by == "label":
        labels = require_labels(table)
        find_pairs_without_positive({name: [labels[row] for row in rows_Q] for name, rows_Q in rows.items()})


def require_labels(table: Table) -> Sequence[str]:
    """Return the label of every row.

    Raises:
        DataError: A row has none.
    """
    labels = [label for label in table.labels or () if label is not None]
    if len(labels) < len(table):
        raise DataError(
            f"{table.name}: evaluation by label needs a `label` in every row of split '{table.view}'"
        )
    return labels


def _table_by_row(
    table: Table, embedded: Mapping[str, EmbeddedRows], marks: Marks, clusters: Sequence[Any] | None
) -> PairTable:
    size = len(table)
    whole: dict[str, Tensor] = {}
    for name, (rows_Q, embedding_QD) in embedded.items():
        whole[name] = torch.zeros(size, embedding_QD.shape[1])
        whole[name][torch.as_tensor(rows_Q)] = embedding_QD
    presence = {name: np.isin(np.arange(size), rows_Q) for name, (rows_Q, _) in embedded.items()}
    return evaluate_pairs(
        whole, marks, labels=table.labels, places=table.places_LL, clusters=clusters, presence=presence
    )


def _table_by_label(
    table: Table, embedded: Mapping[str, EmbeddedRows], marks: Marks, clusters: Sequence[Any] | None
) -> PairTable:
    labels = require_labels(table)
    rows: list[PairRow] = []
    scores: dict[tuple[str, str], QueryScores] = {}
    skipped = find_pairs_without_positive({name: labels_of(labels, one) for name, one in embedded.items()})
    for query, gallery in permutations(embedded, 2):
        if any(pair.modalities == (query, gallery) for pair in skipped):
            continue
        result = retrieval(
            embedded[query].embedding_QD,
            embedded[gallery].embedding_QD,
            query_ids=labels_of(labels, embedded[query]),
            gallery_ids=labels_of(labels, embedded[gallery]),
            query_clusters=labels_of(clusters, embedded[query]) if clusters else None,
        )
        mark = marks[frozenset((query, gallery))]
        rows.append(PairRow.from_retrieval(query, gallery, mark, result))
        scores[query, gallery] = result.scores._replace(row_Q=embedded[query].rows_Q)
    return PairTable(tuple(rows), skipped, RetrievalSettings(), scores=scores)


def labels_of(values: Sequence[Any], rows: EmbeddedRows) -> list[Any]:
    """Return the values, one for each row of a table, of the rows that are embedded."""
    return [values[row] for row in rows.rows_Q]


def find_pairs_without_positive(labels: Mapping[str, Sequence[Any]]) -> tuple[SkippedPair, ...]:
    """Find the ordered pairs of modalities in which a query has no right answer.

    Args:
        labels: By modality, the class of each row that has it.

    Raises:
        DataError: There is no other pair to measure.
    """
    skipped: list[SkippedPair] = []
    pairs = list(permutations(labels, 2))
    for query, gallery in pairs:
        known = set(labels[gallery])
        absent = sorted({str(label) for label in labels[query] if label not in known})
        if absent:
            count = sum(label not in known for label in labels[query])
            classes = f"{', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}"
            reason = f"{count:,} rows of '{query}' are of classes that no row of '{gallery}' shows: {classes}"
            skipped.append(SkippedPair((query, gallery), reason))
    if pairs and len(skipped) == len(pairs):
        raise DataError(
            f"no two modalities can be compared by label: {skipped[0].reason}; leave those rows out, or add "
            "rows of these classes"
        )
    return tuple(skipped)


@dataclass(frozen=True)
class EvaluationResults:
    """Everything measured on held-out rows, with the embeddings used."""

    held_out: Table
    embedded: Mapping[str, EmbeddedRows]
    table: PairTable
    gap: ModalityGap
    calibrated: CalibrationResult | None
    calibrating: Table | None  # the rows that it was fitted on
    sums: tuple[SumResult, ...]
    questions: QuestionResults | None = None

    def parts(self) -> dict[str, dict[str, Any]]:
        """Return plain values, ready for JSON, by file name; parts that were not measured are left out."""
        values = {"retrieval": self.table.to_dict(), "gap": self.gap.to_dict()}
        if self.calibrated:
            values["calibration"] = self.calibrated.to_dict()
        if self.sums:
            values["arithmetic"] = {"sums": [one.to_dict() for one in self.sums]}
        if self.questions:
            values["questions"] = self.questions.to_dict()
        return values


def check_evaluation_rows(table: Table, options: Evaluation) -> None:
    """Check before training that a table has what `evaluate` asks for.

    Raises:
        DataError: It has no such split, labels, clusters, or rows with all modalities of a sum.
    """
    held_out = take_first_rows(table.split(options.split), options.limit)
    if options.by == "label":
        check_comparable(held_out, held_out.columns, options.by)
    choose_clusters(held_out, options.clusters)
    if options.calibrate:
        table.split(options.calibrate)
    for text in options.sums:
        wanted = parse_sum(text, table.columns)
        if len(held_out.rows_with((*wanted.parts, wanted.gallery))) < 2:
            raise DataError(
                f"{table.name}: sum '{wanted}': fewer than two rows of '{options.split}' have all"
            )


def measure_all(
    binder: Binder,
    table: Table,
    data: DataOptions,
    trained: Trained,
    options: Evaluation,
    *,
    untrained: Binder | None = None,
    base: Path = Path(),
    anchor: str | None = None,
) -> EvaluationResults:
    """Measure everything that `evaluate` asks for; every row is embedded once.

    Args:
        binder: The encoders.
        table: The rows that it names, of all splits.
        data: How they were opened.
        trained: Pairs of modalities that some stage aligned, or the mark of every pair.
        options: What to measure.
        untrained: Encoders before any stage, as a baseline of retrieval and questions.
        base: The folder that relative paths of `data` start from.
        anchor: The modality whose answers to questions stand beside those of others; default: the binder's.

    Raises:
        DataError: The rows do not allow it.
    """
    held_out = take_first_rows(table.split(options.split), options.limit)
    truths = read_truths(held_out, data, options.questions, binder.modalities, base)
    space = Space(binder, embed_rows(binder, held_out))
    embedded = space.embedded
    measured = build_retrieval_table(
        held_out, embedded, trained, options.by, options.clusters, bridge=binder.bank_bridge
    )
    fresh = Space(untrained, embed_rows(untrained, held_out)) if untrained is not None else None
    if fresh is not None:
        theirs = build_retrieval_table(held_out, fresh.embedded, trained, options.by, options.clusters)
        measured = measured.set_beside("untrained", theirs)
    clusters = choose_clusters(held_out, options.clusters)
    marks = trained if isinstance(trained, Mapping) else mark_by_pairs(embedded, trained)
    questions = ask_questions(space, options.questions, truths, marks, clusters, fresh, anchor)
    calibrating = table.split(options.calibrate) if options.calibrate else None
    calibrated = None
    if calibrating is not None:
        calibrated = fit_and_measure_calibration(binder, calibrating, held_out, embedded, options.by)
    sums = tuple(
        one
        for text in options.sums
        for one in measure_sum(
            binder, held_out, data, embedded, parse_sum(text, embedded), options.by, options.clusters
        )
    )
    return EvaluationResults(
        held_out,
        embedded,
        measured,
        modality_gap(embedded),
        calibrated,
        calibrating,
        sums,
        questions,
    )


def fit_and_measure_calibration(
    binder: Binder, rows: Table, held_out: Table, embedded: Mapping[str, EmbeddedRows], by: str
) -> CalibrationResult:
    """Fit probabilities on some rows and measure their reliability on held-out ones.

    The concentrations of the binder's fuser, if it has one, are fitted on the same rows.

    Raises:
        DataError: A row has no label where labels decide.
    """
    label = by == "label"
    fitted_on = f"split '{rows.view}' of {rows.name}"
    fitting = embed_rows(binder, rows)
    calibration = calibrate(fitting, fitted_on, require_labels(rows) if label else None)
    if binder.fuser is not None:
        binder.fuser = calibrate_fuser(binder.fuser, fitting)
    measured_on = f"split '{held_out.view}' of {held_out.name}"
    return measure_calibration(
        calibration, embedded, measured_on, require_labels(held_out) if label else None
    )


def measure_sum(
    binder: Binder,
    table: Table,
    data: DataOptions,
    embedded: Mapping[str, EmbeddedRows],
    wanted: EmbeddingSum,
    by: str,
    clusters: ClusterBy | None = None,
) -> list[SumResult]:
    """Measure a sum: of observations of one place, and of composed places where the dataset renders them.

    Raises:
        DataError: Too few rows have all its modalities.
    """
    labels = require_labels(table) if by == "label" else None
    of_rows = choose_clusters(table, clusters).of_rows
    measured = [evaluate_sum_of_rows(embedded, wanted, labels, clusters=of_rows)]
    composes = data.dataset is not None and data.dataset.composer() is not None
    if composes and len(wanted.parts) == 2 and len(table) >= MIN_PLACES:
        measured.insert(0, evaluate_sum_of_composed_places(binder, table, data, embedded, wanted))
    return measured


def with_baseline(measured: EvaluationResults, name: str, other: PairTable) -> EvaluationResults:
    """Return the same results with the figures of other encoders beside those of retrieval."""
    return replace(measured, table=measured.table.set_beside(name, other))


def with_warnings(measured: EvaluationResults, warnings: tuple[str, ...]) -> EvaluationResults:
    """Return the same results with further warnings in the retrieval table."""
    table = replace(measured.table, warnings=(*warnings, *measured.table.warnings))
    return replace(measured, table=table)
