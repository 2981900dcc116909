"""Zero-shot classification: accuracy, confusion, chance."""

# Q queries, C classes, M measures, E repeats, N examples, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geobind.errors import DataError
from geobind.evaluation.bootstrap import Resampling
from geobind.evaluation.embeddings import (
    EmbeddingMatrix,
    Embeddings,
    check_same_width,
    encode_values,
    full_precision,
    number_clusters,
    to_plain_list,
)
from geobind.evaluation.intervals import Estimate, estimate_repeated_share
from geobind.evaluation.ranks import TOLERANCE
from geobind.evaluation.retrieval_metrics import Metric
from geobind.utils.vectors import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Recognition:
    """Accuracy of choosing one of several classes for each query."""

    classes: tuple[str, ...]
    queries: int
    majority: float  # the accuracy of always naming the class that most queries have
    metrics: Mapping[str, Metric]  # accuracy, topK, mean_per_class
    per_class: Mapping[str, Metric]  # the accuracy of each class's queries, of classes that have any
    confusion: tuple[tuple[float, ...], ...]  # queries of each class (rows) given each class (columns)

    @property
    def confusion_CC(self) -> NDArray[np.float64]:
        """The confusion matrix as an array."""
        return np.array(self.confusion)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "classes": list(self.classes),
            "queries": self.queries,
            "majority": self.majority,
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
            "per_class": {name: asdict(metric) for name, metric in self.per_class.items()},
            "confusion": [list(row) for row in self.confusion],
        }


class QueryClasses(NamedTuple):
    """Class and group numbers of the queries; queries without a class are left out."""

    classes: tuple[str, ...]
    kept_Q: NDArray[np.bool_]  # of all queries, those that have a class
    class_Q: Codes  # of the kept
    group_Q: Codes | None  # of the kept

    @property
    def majority(self) -> float:
        """The share of the most frequent class."""
        return float(np.bincount(self.class_Q).max() / len(self.class_Q))


def build_query_classes(labels: Any, classes: Sequence[str], rows: int, groups: Any = None) -> QueryClasses:
    """Number the labels of queries by their place in `classes`.

    Args:
        labels: One per row, None where unknown.
        classes: The names that can be chosen.
        rows: How many rows there are.
        groups: One per row: rows that are not independent, such as cuts of one recording; or None.

    Raises:
        DataError: A label is no class, none is known, or there are not as many as rows.
    """
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise DataError(f"recognition needs two or more different classes, not {list(classes)}")
    known: dict[Any, int] = {name: number for number, name in enumerate(classes)}
    class_N = encode_values(labels, rows, "labels", known)
    if len(known) > len(classes):
        unknown = sorted(map(str, list(known)[len(classes) :]))
        raise DataError(
            f"rows are labelled {', '.join(unknown[:5])}, which is none of the {len(classes)} classes: "
            "give every class its prompt or examples, or leave those rows out"
        )
    kept_N = class_N >= 0
    if not kept_N.any():
        raise DataError("no row has a label; recognition is measured on labelled rows")
    group_Q = None
    if groups is not None:
        kept_groups = _keep_labelled(to_plain_list(groups), kept_N)
        group_Q = number_clusters(kept_groups, len(kept_groups), "groups")
    return QueryClasses(tuple(classes), kept_N, class_N[kept_N], group_Q)


def _keep_labelled(values: list[Any], kept_N: NDArray[np.bool_]) -> list[Any]:
    if len(values) != len(kept_N):
        raise DataError(f"groups: {len(values)} values for {len(kept_N)} rows; give one per row")
    return [value for value, kept in zip(values, kept_N, strict=True) if kept]


def hits_QM(score_QC: Floats, class_Q: Codes, top: Sequence[int]) -> Floats:
    """Compute the probability that each query's class is in the top k, for every k of `top`: (Q, M).

    Where scores are tied, within 1e-6, it is the expectation over all orders of them, so scores that say
    nothing get exactly k / C.
    """
    own_Q1 = score_QC[np.arange(len(class_Q)), class_Q][:, None]
    above_Q = (score_QC > own_Q1 + TOLERANCE).sum(1)
    tied_Q = (np.abs(score_QC - own_Q1) <= TOLERANCE).sum(1)
    return np.stack([np.clip((k - above_Q) / tied_Q, 0.0, 1.0) for k in top], axis=1)


def count_confusions(score_QC: Floats, class_Q: Codes) -> Floats:
    """Count the queries of each class that were given each class (C, C); ties are shared out."""
    best_QC = (score_QC >= score_QC.max(1, keepdims=True) - TOLERANCE).astype(np.float64)
    given_QC = best_QC / best_QC.sum(1, keepdims=True)
    return np.eye(score_QC.shape[1])[class_Q].T @ given_QC


def measure_recognition(
    score_QC: Floats, truth: QueryClasses, *, top: Sequence[int] = (1, 5), options: Resampling | None = None
) -> Recognition:
    """Measure how well scores choose the class of each query.

    Args:
        score_QC: A score of each class for each query that `truth` keeps; the highest is the choice.
        truth: The right classes.
        top: The k of top-k; 1 is the accuracy and always measured, those not below C are left out.
        options: The confidence of intervals.
    """
    count = len(truth.classes)
    top = [1, *(k for k in dict.fromkeys(top) if 1 < k < count)]
    hit_QM = hits_QM(score_QC, truth.class_Q, top)
    metrics, per_class = average_hits(hit_QM[None], truth, top, options or Resampling())
    return Recognition(
        truth.classes,
        len(truth.class_Q),
        truth.majority,
        metrics,
        per_class,
        tuple(map(tuple, count_confusions(score_QC, truth.class_Q).tolist())),
    )


def average_hits(
    hit_EQM: Floats, truth: QueryClasses, top: Sequence[int], options: Resampling
) -> tuple[dict[str, Metric], dict[str, Metric]]:
    """Average hits over repeats and queries, over all and by class, beside chance and interval."""
    count = len(truth.classes)

    def metric(estimate: Estimate, chance: float) -> Metric:
        bounds = estimate.bounds(options.confidence)
        return Metric(estimate.value, chance, *bounds, estimate.p_value(chance))

    metrics = {
        "accuracy" if k == 1 else f"top{k}": metric(
            estimate_repeated_share(hit_EQM[:, :, m], truth.group_Q), k / count
        )
        for m, k in enumerate(top)
    }
    per_class: dict[str, Metric] = {}
    for c, name in enumerate(truth.classes):
        in_Q = truth.class_Q == c
        if in_Q.any():
            groups = None if truth.group_Q is None else truth.group_Q[in_Q]
            per_class[name] = metric(estimate_repeated_share(hit_EQM[:, in_Q, 0], groups), 1 / count)
    by_class = estimate_repeated_share(hit_EQM[:, :, 0], truth.group_Q, truth.class_Q)
    metrics["mean_per_class"] = metric(by_class, 1 / count)
    return metrics, per_class


@dataclass(frozen=True)
class Prototypes:
    """One embedding for each class, of unit length; zeros, which tie, for examples that cancel out."""

    classes: tuple[str, ...]
    class_CD: Tensor


def build_prototypes(examples: Mapping[str, Embeddings]) -> Prototypes:
    """Describe each class by the mean of its examples' embeddings, scaled to unit length.

    With prompts as examples this is CLIP's prompt ensembling (arXiv:2103.00020, section 3.1.4). Sounds or
    photos may describe a class as well, and so may rows of the queries' own modality: that is the nearest
    class mean (prototypical networks, arXiv:1703.05175, with cosine similarity).

    Args:
        examples: For each class, unit-length embeddings (N, D) of one modality.

    Raises:
        DataError: There are fewer than two classes, or embeddings that do not fit.
    """
    if len(examples) < 2:
        raise DataError(f"recognition needs two or more different classes, not {list(examples)}")
    means: list[Tensor] = []
    first: EmbeddingMatrix | None = None
    for name, embeddings in examples.items():
        rows = EmbeddingMatrix(embeddings, f"examples of class '{name}'").check()
        first = first or rows
        check_same_width(rows, first)
        means.append(rows.block(slice(0, rows.size)).mean(0))
    return Prototypes(tuple(examples), unit(torch.stack(means)))


def build_prototypes_from_labels(embeddings: Embeddings, labels: Any) -> Prototypes:
    """Describe each class by the mean of the rows that have its label; classes in alphabetical order."""
    rows = EmbeddingMatrix(embeddings, "examples").check()
    known = [label for label in labels if label is not None]
    truth = build_query_classes(labels, sorted(set(known)), rows.size)
    example_ND = rows.block(slice(0, rows.size))[torch.as_tensor(truth.kept_Q)]
    class_N = torch.as_tensor(truth.class_Q)
    return build_prototypes({name: example_ND[class_N == c] for c, name in enumerate(truth.classes)})


def zero_shot(
    query_QD: Embeddings,
    labels: Any,
    classes: Prototypes,
    *,
    groups: Any = None,
    top: Sequence[int] = (1, 5),
    options: Resampling | None = None,
) -> Recognition:
    """Measure recognition of queries by the class prototype nearest to each.

    Args:
        query_QD: Unit-length embeddings (Q, D).
        labels: The class of each query, None where unknown (such a query is left out).
        classes: The prototype of each class, in the same space.
        groups: One per query: queries of one group are not independent, which widens the intervals.
        top: The k of top-k.
        options: The confidence of intervals.

    Raises:
        DataError: A label that is no class, or embeddings that do not fit.
    """
    queries = EmbeddingMatrix(query_QD, "queries").check()
    check_same_width(queries, EmbeddingMatrix(classes.class_CD, "class prototypes"))
    truth = build_query_classes(labels, classes.classes, queries.size, groups)
    with full_precision(queries.device):
        score_QC = queries.block(slice(0, queries.size)) @ classes.class_CD.to(queries.device).T
    return measure_recognition(score_QC.double().cpu().numpy()[truth.kept_Q], truth, top=top, options=options)
