"""Retrieval in numbers: every measure beside its chance level and its interval."""

# Q queries, G gallery items, N rows of either side, M measures

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np

from geobind.errors import DataError
from geobind.evaluation.ranking.expectation import Counts
from geobind.evaluation.ranking.intervals import bootstrap
from geobind.evaluation.ranking.ranks import TOLERANCE, count_rows, count_rows_both
from geobind.evaluation.ranking.relevance import Relevance, Scores, near_places, ranking_scores, same_code
from geobind.evaluation.ranking.resampling import Resampling
from geobind.evaluation.ranking.rows import Embeddings, Rows, Sides, sides_of
from geobind.evaluation.ranking.truth import Truth, truth


@dataclass(frozen=True)
class Settings:
    """What to measure and how; written beside the figures, as figures without it cannot be compared."""

    recall_at: tuple[int, ...] = (1, 5, 10, 100)
    recall_percent: tuple[float, ...] = (1, 10)  # of the gallery, rounded up to whole items
    scale_km: float = 25.0  # distance at which the gain of a neighbouring place has fallen to 1/e
    tolerance: float = TOLERANCE
    resamples: int = 1000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Raises DataError for a setting out of range."""
        for name, good, wish in (
            ("recall_at", all(k >= 1 for k in self.recall_at), "whole numbers from 1"),
            (
                "recall_percent",
                all(0 < p <= 100 for p in self.recall_percent),
                "percentages above 0, up to 100",
            ),
            ("scale_km", self.scale_km > 0, "a distance above 0 km"),
            ("tolerance", self.tolerance >= 0, "0 or more"),
            ("resamples", self.resamples >= 1, "1 or more"),
            ("confidence", 0 < self.confidence < 1, "a share between 0 and 1"),
        ):
            if not good:
                raise DataError(f"evaluation setting {name} is {getattr(self, name)}; give {wish}")


@dataclass(frozen=True)
class Metric:
    """One figure, what an embedding that says nothing would get, and the bounds of its interval."""

    value: float
    chance: float
    low: float
    high: float


@dataclass(frozen=True)
class Retrieval:
    """Every measure of retrieval in one direction."""

    queries: int
    gallery: int
    metrics: Mapping[str, Metric]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        metrics = {name: asdict(metric) for name, metric in self.metrics.items()}
        return {"queries": self.queries, "gallery": self.gallery, "metrics": metrics}


def retrieval(
    query_QD: Embeddings,
    gallery_GD: Embeddings,
    *,
    query_ids: Any = None,
    gallery_ids: Any = None,
    query_labels: Any = None,
    gallery_labels: Any = None,
    query_places: Any = None,
    gallery_places: Any = None,
    query_clusters: Any = None,
    settings: Settings | None = None,
) -> Retrieval:
    """How well queries find their positives in a gallery, one direction.

    Args:
        query_QD: unit-length embeddings (Q, D), tensor or numpy array.
        gallery_GD: unit-length embeddings (G, D).
        query_ids: one per query; row i wants row i when left out.
        gallery_ids: one per gallery item; an item is a positive of every query of its id.
        query_labels: one class per query, None where unknown; adds label_mAP and label_nDCG.
        gallery_labels: the same of the gallery.
        query_places: (Q, 2) latitude and longitude in degrees, NaN or None where unknown; adds place_nDCG.
        gallery_places: the same of the gallery.
        query_clusters: what each query belongs to, such as its recording, None where to nothing; queries of
            one cluster are drawn together for intervals.
        settings: cut-offs, tolerance, resamples.

    Raises:
        DataError: anything that does not fit, with the row.
    """
    settings = settings or Settings()
    sides = sides_of(query_QD, gallery_GD, query_ids, gallery_ids)
    query, gallery, query_id_Q, gallery_id_G = sides
    _of_both_sides("labels", query_labels, gallery_labels)
    _of_both_sides("places", query_places, gallery_places)
    known: dict[Any, int] = {}
    near = truth(query.size, query_id_Q, query_labels, query_places, known, query_clusters, prefix="query_")
    far = truth(gallery.size, gallery_id_G, gallery_labels, gallery_places, known, prefix="gallery_")
    counts = count_rows(sides, tolerance=settings.tolerance)
    return _summary(query, gallery, near, far, counts, settings)


def retrieval_both(
    query: Rows, gallery: Rows, near: Truth, far: Truth, settings: Settings
) -> tuple[Retrieval, Retrieval]:
    """`retrieval` there and back, ranks counted from one matrix product."""
    there, back = count_rows_both(Sides(query, gallery, near.id_N, far.id_N), tolerance=settings.tolerance)
    return (
        _summary(query, gallery, near, far, there, settings),
        _summary(gallery, query, far, near, back, settings),
    )


def _of_both_sides(kind: str, query: Any, gallery: Any) -> None:
    if (query is None) != (gallery is None):
        raise DataError(
            f"{kind} were given for one side only; give query_{kind} and gallery_{kind}, or neither"
        )


def _summary(
    query: Rows, gallery: Rows, near: Truth, far: Truth, counts: Counts, settings: Settings
) -> Retrieval:
    scores = _of_ranks(counts, settings) | _of_rankings(query, gallery, near, far, counts, settings)
    scores = {name: score for name, score in scores.items() if not np.isnan(score.value_Q).all()}
    value_QM = np.stack([score.value_Q for score in scores.values()], axis=1)
    options = Resampling(settings.resamples, settings.seed, settings.confidence)
    bounds = bootstrap(value_QM, counts.rank_Q, options, near.drawn_N)
    metrics = {
        name: Metric(
            float(np.nanmean(score.value_Q)), float(np.nanmean(score.chance_Q)), float(low), float(high)
        )
        for (name, score), low, high in zip(scores.items(), bounds.low_M, bounds.high_M, strict=True)
    }
    metrics["median_rank"] = Metric(
        counts.median_rank, counts.chance_median_rank(), bounds.median_low, bounds.median_high
    )
    return Retrieval(query.size, gallery.size, metrics)


def _of_ranks(counts: Counts, settings: Settings) -> dict[str, Scores]:
    chance = counts.chance()
    cut_offs = {f"R@{k}": k for k in settings.recall_at}
    cut_offs |= {f"R@{p:g}%": ceil(counts.gallery * p / 100) for p in settings.recall_percent}
    scores = {name: Scores(counts.hit_Q(k), chance.hit_Q(k)) for name, k in cut_offs.items()}
    scores["mean_rank"] = Scores(counts.rank_Q, chance.rank_Q)
    scores["MRR"] = Scores(counts.reciprocal_Q, chance.reciprocal_Q)
    return scores


def _of_rankings(
    query: Rows, gallery: Rows, near: Truth, far: Truth, counts: Counts, settings: Settings
) -> dict[str, Scores]:
    relevances: dict[str, Relevance] = {}
    if counts.relevant_Q.max() > 1:  # with one positive mAP is MRR
        relevances["positives"] = same_code(near.id_N, far.id_N)
    if near.label_N is not None and far.label_N is not None:
        relevances["label"] = same_code(near.label_N, far.label_N)
    if near.place_N2 is not None and far.place_N2 is not None:
        relevances["place"] = near_places(near.place_N2, far.place_N2, settings.scale_km)
    if not relevances:
        return {}
    found = ranking_scores(query, gallery, relevances, settings.tolerance)
    chosen = {
        "mAP": found["positives"].average_precision if "positives" in found else None,
        "label_mAP": found["label"].average_precision if "label" in found else None,
        "label_nDCG": found["label"].ndcg if "label" in found else None,
        "place_nDCG": found["place"].ndcg if "place" in found else None,
    }
    return {name: scores for name, scores in chosen.items() if scores is not None}
