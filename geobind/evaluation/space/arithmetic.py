"""Embedding arithmetic: do the sums of two modalities' embeddings find what holds what both say?"""

# Q queries, G gallery items, R kinds of rivals, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from geobind.errors import DataError
from geobind.evaluation.embedded import Embedded
from geobind.evaluation.ranking.resampling import Resampling, times_drawn
from geobind.evaluation.ranking.retrieval import Metric, Retrieval, Settings, retrieval
from geobind.recipe.sums import Sum
from geobind.scoring import composed, unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

Truth = Literal["composed", "row", "label"]
TIED = 1e-6


@dataclass(frozen=True)
class Query:
    """What a sum, or one of its parts alone, finds."""

    name: str
    retrieval: Retrieval
    preferred: Mapping[str, Metric]  # by kind of rival: how often the right answer is more similar than it


@dataclass(frozen=True)
class Arithmetic:
    """A sum beside its parts, on one gallery."""

    sum: Sum
    truth: Truth
    says: str  # what the queries, the right answers and the gallery are
    queries: tuple[Query, ...]  # the sum first
    settings: Settings

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "parts": dict(self.sum.weights),
            "gallery": self.sum.gallery,
            "truth": self.truth,
            "says": self.says,
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.settings).items()},
            "queries": [
                {
                    "name": query.name,
                    "queries": query.retrieval.queries,
                    "gallery_size": query.retrieval.gallery,
                    "metrics": {name: asdict(metric) for name, metric in query.retrieval.metrics.items()},
                    "preferred": {name: asdict(metric) for name, metric in query.preferred.items()},
                }
                for query in self.queries
            ],
        }


def sums_of_rows(
    found: Mapping[str, Embedded],
    wanted: Sum,
    labels: Sequence[Any] | None = None,
    settings: Settings | None = None,
) -> Arithmetic:
    """Add several observations of one place, and see whether together they find it better than alone.

    Args:
        found: Embeddings by modality, of the same table.
        wanted: What to add, and where to look.
        labels: A class for each row: any row of it is then right; default: the row itself is.
        settings: Cut-offs, resamples.

    Raises:
        DataError: Fewer than two rows have all the modalities.
    """
    settings = settings or Settings()
    names = (*wanted.parts, wanted.gallery)
    rows_Q = _shared(found, names)
    if labels is not None:
        rows_Q = rows_Q[[labels[row] is not None for row in rows_Q]]
    if len(rows_Q) < 2:
        raise DataError(f"sum '{wanted}': {len(rows_Q)} rows have {', '.join(names)}; two are needed")
    ids = rows_Q if labels is None else [labels[row] for row in rows_Q]
    parts = {name: found[name].of(rows_Q) for name in wanted.parts}
    gallery_GD = found[wanted.gallery].of(rows_Q)
    queries = [
        Query(name, retrieval(query_QD, gallery_GD, query_ids=ids, gallery_ids=ids, settings=settings), {})
        for name, query_QD in _queries(wanted, parts).items()
    ]
    truth = "row" if labels is None else "label"
    right = "its own row" if labels is None else "any row of its class"
    says = f"observations of one place added; {right} is right, among {len(rows_Q):,} rows"
    return Arithmetic(wanted, truth, says, tuple(queries), settings)


def sums_of_two_places(
    wanted: Sum,
    parts: Mapping[str, Tensor],
    right_QD: Tensor,
    others_GD: Tensor,
    rivals: Mapping[str, Tensor],
    says: str,
    settings: Settings | None = None,
) -> Arithmetic:
    """Add observations of different places, and look for what shows both, among rivals that show one or none.

    Args:
        wanted: What is added, and where it is looked for.
        parts: Embeddings (Q, D) of each part, row i for query i.
        right_QD: The right answers.
        others_GD: What else is in the gallery of all queries.
        rivals: By kind, embeddings (Q, D) of the rival of each query, to see which of them beats its truth.
        says: What all of them are, in words.
        settings: Cut-offs, resamples.
    """
    settings = settings or Settings()
    gallery_GD = torch.cat([right_QD, others_GD])
    ids = [*range(len(right_QD))], [*range(len(gallery_GD))]
    options = Resampling(settings.resamples, settings.seed, settings.confidence)
    queries = [
        Query(
            name,
            retrieval(query_QD, gallery_GD, query_ids=ids[0], gallery_ids=ids[1], settings=settings),
            _preferred(query_QD, right_QD, rivals, options),
        )
        for name, query_QD in _queries(wanted, parts).items()
    ]
    return Arithmetic(wanted, "composed", says, tuple(queries), settings)


def _queries(wanted: Sum, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of the parts, then each alone."""
    added = composed(parts, wanted.weights)
    return {" + ".join(wanted.words): added, **{name: unit(part) for name, part in parts.items()}}


def _shared(found: Mapping[str, Embedded], names: Sequence[str]) -> NDArray[np.int64]:
    absent = [name for name in names if name not in found]
    if absent:
        raise DataError(f"no row has '{absent[0]}'")
    return reduce(np.intersect1d, (found[name].rows_Q for name in names))


def _preferred(
    query_QD: Tensor, right_QD: Tensor, rivals: Mapping[str, Tensor], options: Resampling
) -> dict[str, Metric]:
    """How often the right answer is more similar to its query than each of the query's own rivals."""
    own_Q = (query_QD * right_QD).sum(1)
    ahead_QR = np.stack([(own_Q - (query_QD * rival_QD).sum(1)).numpy() for rival_QD in rivals.values()], 1)
    won_QR = np.where(np.abs(ahead_QR) <= TIED, 0.5, ahead_QR > 0)
    drawn = [
        times_BQ @ won_QR / times_BQ.sum(1, keepdims=True) for times_BQ in times_drawn(len(won_QR), options)
    ]
    low_R, high_R = np.quantile(np.concatenate(drawn), options.bounds, axis=0)
    values = zip(rivals, won_QR.mean(0).tolist(), low_R.tolist(), high_R.tolist(), strict=True)
    return {kind: Metric(value, 0.5, low, high) for kind, value, low, high in values}
