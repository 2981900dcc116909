"""Zero-shot recognition: a query is given the class whose description, in any modality, is nearest."""

# Q queries, N examples, C classes, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from geobind.errors import DataError
from geobind.evaluation.ranking.resampling import Resampling
from geobind.evaluation.ranking.rows import Embeddings, Rows, full_precision, same_width
from geobind.evaluation.recognising.recognition import Recognition, recognition, truth_of


@dataclass(frozen=True)
class Prototypes:
    """One embedding for each class, of unit length."""

    classes: tuple[str, ...]
    class_CD: Tensor


def prototypes(examples: Mapping[str, Embeddings]) -> Prototypes:
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
    first: Rows | None = None
    for name, embeddings in examples.items():
        rows = Rows(embeddings, f"examples of class '{name}'").check()
        first = first or rows
        same_width(rows, first)
        means.append(rows.block(slice(0, rows.size)).mean(0))
    return Prototypes(tuple(examples), functional.normalize(torch.stack(means), dim=1))


def prototypes_of(embeddings: Embeddings, labels: Any) -> Prototypes:
    """Describe each class by the mean of the rows that have its label; classes in alphabetical order."""
    rows = Rows(embeddings, "examples").check()
    known = [label for label in labels if label is not None]
    truth = truth_of(labels, sorted(set(known)), rows.size)
    example_ND = rows.block(slice(0, rows.size))[torch.as_tensor(truth.kept_Q)]
    class_N = torch.as_tensor(truth.class_Q)
    return prototypes({name: example_ND[class_N == c] for c, name in enumerate(truth.classes)})


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
        classes: What stands for each class, in the same space.
        groups: One per query: queries that are not independent are drawn together for the intervals.
        top: The k of top-k.
        options: How the intervals are drawn.

    Raises:
        DataError: A label that is no class, or embeddings that do not fit.
    """
    queries = Rows(query_QD, "queries").check()
    same_width(queries, Rows(classes.class_CD, "class prototypes"))
    truth = truth_of(labels, classes.classes, queries.size, groups)
    with full_precision(queries.device):
        score_QC = queries.block(slice(0, queries.size)) @ classes.class_CD.to(queries.device).T
    return recognition(score_QC.double().cpu().numpy()[truth.kept_Q], truth, top=top, options=options)
