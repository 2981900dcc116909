"""Retrieval metrics with intervals and chance levels, graded relevance included."""

# B queries at a time, G gallery items, P relevant items of one query

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch

from geobind.errors import DataError
from geobind.evaluation.embeddings import (
    EmbeddingMatrix,
    Embeddings,
    GroundTruth,
    RetrievalSides,
    build_ground_truth,
    build_retrieval_sides,
    full_precision,
    iterate_slices,
)
from geobind.evaluation.intervals import bound_median, estimate_share, median_p_value
from geobind.evaluation.ranks import (
    TOLERANCE,
    RankCounts,
    average_precision,
    chance_average_precision,
    chance_gain,
    count_rows,
    count_rows_both,
    discounted_gain,
    ideal_gain,
)
from geobind.utils.geo import chord_to_km, km_to_chord, to_unit_sphere

MAX_SCALES = 10.0  # gains beyond this many scales, under 5e-5, count as zero: most of a world-wide gallery
SCORE_BYTES = 32 * 2**20  # room for a block of queries against the whole gallery,
MIN_QUERIES = 64  # but no fewer than these: the gallery is read anew for each block
GALLERY_BLOCK = 8192


class Relevance(NamedTuple):
    """Relevant gallery items of each query."""

    items: Callable[[int], tuple[np.ndarray, np.ndarray]]
    """From a query's row to the gallery rows that matter to it, and the gain of each in (0, 1]."""
    graded: bool
    """Gains differ, so average precision, which takes an item as relevant or not, is left out."""


class Scores(NamedTuple):
    """One metric of every query and its chance level; NaN where nothing is relevant."""

    value_Q: np.ndarray
    chance_Q: np.ndarray


class RankingScores(NamedTuple):
    """Average precision (NaN for graded relevance) and nDCG of every query."""

    average_precision: Scores
    ndcg: Scores


def relevance_by_code(query_code_Q: np.ndarray, gallery_code_G: np.ndarray) -> Relevance:
    """Build relevance by equal code: gain 1; a query of code -1 (unknown) has nothing relevant."""
    order = np.argsort(gallery_code_G, kind="stable")
    sorted_G = gallery_code_G[order]
    first_Q = np.searchsorted(sorted_G, query_code_Q, "left")
    last_Q = np.where(query_code_Q < 0, first_Q, np.searchsorted(sorted_G, query_code_Q, "right"))

    def relevant(query: int) -> tuple[np.ndarray, np.ndarray]:
        items_P = order[first_Q[query] : last_Q[query]]
        return items_P, np.ones(len(items_P))

    return Relevance(relevant, graded=False)


def relevance_by_distance(query_Q2: np.ndarray, gallery_G2: np.ndarray, scale_km: float) -> Relevance:
    """Build relevance by distance on the ground: gain exp(-distance / scale), zero beyond ten scales.

    Args:
        query_Q2: Latitude and longitude in degrees, NaN where unknown.
        gallery_G2: The same of the gallery.
        scale_km: Distance at which the gain has fallen to 1/e, in kilometres.
    """
    query_Q3, gallery_G3 = to_unit_sphere(query_Q2), to_unit_sphere(gallery_G2)
    reach = km_to_chord(MAX_SCALES * scale_km)

    def relevant(query: int) -> tuple[np.ndarray, np.ndarray]:
        # 2 - 2 cos finds the candidates quickly, but only the chord is exact for neighbours metres apart.
        roughly_G = 2 - 2 * (gallery_G3 @ query_Q3[query]) <= reach**2 + 1e-12
        items_P = np.flatnonzero(roughly_G)
        chord_P = np.linalg.norm(gallery_G3[items_P] - query_Q3[query], axis=1)
        distance_km_P = chord_to_km(chord_P)
        inside_P = distance_km_P <= MAX_SCALES * scale_km
        return items_P[inside_P], np.exp(-distance_km_P[inside_P] / scale_km)

    return Relevance(relevant, graded=True)


def score_rankings(
    query: EmbeddingMatrix, gallery: EmbeddingMatrix, relevances: dict[str, Relevance], tolerance: float
) -> dict[str, RankingScores]:
    """Score average precision and nDCG of every query under each relevance, from one sort.

    Only values are sorted, never indices: a relevant item's place is found by where its similarity falls,
    which is cheaper than argsort and sees ties within `tolerance` on either side.

    Args:
        query: Checked query embeddings.
        gallery: Checked gallery embeddings.
        relevances: Relevant items of each query, by name.
        tolerance: Similarities this close are tied.
    """
    table = {name: np.full((4, query.size), np.nan) for name in relevances}
    step = max(MIN_QUERIES, SCORE_BYTES // (4 * gallery.size))
    with full_precision(query.device), torch.no_grad():
        for at in iterate_slices(0, query.size, step):
            score_BG = _compute_similarities(query, gallery, at)
            for row, score_G in zip(range(at.start, at.stop), score_BG, strict=True):
                sorted_G = np.sort(score_G)
                for name, relevant in relevances.items():
                    items_P, gain_P = relevant.items(row)
                    if len(items_P):
                        score_P = score_G[items_P]
                        table[name][:, row] = _score_query(
                            score_P, gain_P, sorted_G, tolerance, relevant.graded
                        )
    return {
        name: RankingScores(Scores(ap, ap0), Scores(dcg, dcg0))
        for name, (ap, ap0, dcg, dcg0) in table.items()
    }


def _compute_similarities(query: EmbeddingMatrix, gallery: EmbeddingMatrix, at: slice) -> np.ndarray:
    query_BD = query.block(at)
    score_BG = torch.empty(len(query_BD), gallery.size)
    for columns in iterate_slices(0, gallery.size, GALLERY_BLOCK):
        score_BG[:, columns] = query_BD @ gallery.block(columns, query.device).T
    return score_BG.numpy()


def _score_query(
    score_P: np.ndarray, gain_P: np.ndarray, sorted_G: np.ndarray, tolerance: float, graded: bool
) -> tuple[float, float, float, float]:
    """Score average precision and nDCG of one query, each followed by its chance level."""
    gallery = len(sorted_G)
    rising = np.argsort(score_P)  # searches for rising values find each other's cache lines: twice as fast
    score_P, gain_P = score_P[rising], gain_P[rising]
    larger_P, tied_P = _find_places(score_P, sorted_G, tolerance)
    ideal = ideal_gain(gain_P, gallery)
    ndcg = discounted_gain(larger_P, tied_P, gain_P, gallery) / ideal
    chance_ndcg = chance_gain(gain_P, gallery) / ideal
    if graded:
        return np.nan, np.nan, ndcg, chance_ndcg
    precision = average_precision(larger_P, tied_P, *_find_places(score_P, score_P, tolerance), gallery)
    return precision, chance_average_precision(len(score_P), gallery), ndcg, chance_ndcg


def _find_places(
    score_P: np.ndarray, sorted_N: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Count how many of the sorted values beat each score, and how many tie with it."""
    below_P = np.searchsorted(sorted_N, score_P - np.float32(tolerance), "left")
    up_to_P = np.searchsorted(sorted_N, score_P + np.float32(tolerance), "right")
    return len(sorted_N) - up_to_P, up_to_P - below_P


# Q queries, G gallery items, N rows of either side, M measures


@dataclass(frozen=True)
class RetrievalSettings:
    """Settings of retrieval evaluation, stored with the figures so that they can be compared."""

    recall_at: tuple[int, ...] = (1, 5, 10, 100)
    recall_percent: tuple[int | float, ...] = (1, 10)  # of the gallery, rounded up to whole items
    scale_km: float = 25.0  # distance at which the gain of a neighbouring place has fallen to 1/e
    tolerance: float = TOLERANCE
    resamples: int = 1000  # of comparisons of median ranks; intervals need none
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Raise DataError for a setting out of range."""
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


@dataclass(frozen=True)
class Metric:
    """A metric, its chance level (that of a constant embedding), and the bounds of its interval."""

    value: float
    chance: float
    low: float
    high: float
    p: float | None = None  # probability of a value this far from chance, were chance right


class QueryScores(NamedTuple):
    """Scores of each query in each measure, to compare with another model on the same queries."""

    measures: tuple[str, ...]
    row_Q: np.ndarray  # of the table measured
    value_QM: np.ndarray  # NaN where a query has no such measure; `mean_rank` is its rank
    cluster_Q: np.ndarray | None = None


@dataclass(frozen=True)
class Retrieval:
    """Every retrieval metric in one direction."""

    queries: int
    gallery: int
    metrics: Mapping[str, Metric]
    scores: Any = field(default=None, repr=False, compare=False)  # QueryScores

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
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
    settings: RetrievalSettings | None = None,
) -> Retrieval:
    """Measure how well queries find their positives in a gallery, in one direction.

    Args:
        query_QD: Unit-length embeddings (Q, D), tensor or numpy array.
        gallery_GD: Unit-length embeddings (G, D).
        query_ids: One per query; row i wants row i when left out.
        gallery_ids: One per gallery item; an item is a positive of every query of its id.
        query_labels: One class per query, None where unknown; adds label_mAP and label_nDCG.
        gallery_labels: The same of the gallery.
        query_places: (Q, 2) latitude and longitude in degrees, NaN or None where unknown; adds place_nDCG.
        gallery_places: The same of the gallery.
        query_clusters: Cluster of each query, such as its recording, or None; intervals take the queries of
            one as dependent.
        settings: Cut-offs, tolerance, resamples.

    Raises:
        DataError: Inputs that do not fit, with the row.
    """
    settings = settings or RetrievalSettings()
    sides = build_retrieval_sides(query_QD, gallery_GD, query_ids, gallery_ids)
    query, gallery, query_id_Q, gallery_id_G = sides
    _check_both_sides("labels", query_labels, gallery_labels)
    _check_both_sides("places", query_places, gallery_places)
    known: dict[Any, int] = {}
    near = build_ground_truth(
        query.size, query_id_Q, query_labels, query_places, known, query_clusters, prefix="query_"
    )
    far = build_ground_truth(
        gallery.size, gallery_id_G, gallery_labels, gallery_places, known, prefix="gallery_"
    )
    counts = count_rows(sides, tolerance=settings.tolerance)
    return _summarise(query, gallery, near, far, counts, settings)


def retrieval_both(
    query: EmbeddingMatrix,
    gallery: EmbeddingMatrix,
    near: GroundTruth,
    far: GroundTruth,
    settings: RetrievalSettings,
) -> tuple[Retrieval, Retrieval]:
    """Measure `retrieval` both ways, with ranks counted from one matrix product."""
    forth, back = count_rows_both(
        RetrievalSides(query, gallery, near.id_N, far.id_N), tolerance=settings.tolerance
    )
    return (
        _summarise(query, gallery, near, far, forth, settings),
        _summarise(gallery, query, far, near, back, settings),
    )


def _check_both_sides(kind: str, query: Any, gallery: Any) -> None:
    if (query is None) != (gallery is None):
        raise DataError(
            f"{kind} were given for one side only; give query_{kind} and gallery_{kind}, or neither"
        )


def _summarise(
    query: EmbeddingMatrix,
    gallery: EmbeddingMatrix,
    near: GroundTruth,
    far: GroundTruth,
    counts: RankCounts,
    settings: RetrievalSettings,
) -> Retrieval:
    scores = _score_ranks(counts, settings) | _score_relevances(query, gallery, near, far, counts, settings)
    scores = {name: score for name, score in scores.items() if not np.isnan(score.value_Q).all()}
    unit_Q, confidence, end = near.drawn_N, settings.confidence, max(counts.gallery, 2)
    metrics = {
        name: _bound_mean(score, (1, end) if name == "mean_rank" else (0, 1), unit_Q, confidence)
        for name, score in scores.items()
    }
    chance = counts.chance_median_rank()
    bounds = bound_median(counts.rank_Q, (1, counts.gallery), unit_Q, confidence)
    p = median_p_value(counts.rank_Q, chance, unit_Q)
    metrics["median_rank"] = Metric(counts.median_rank, chance, *bounds, p)
    value_QM = np.stack([score.value_Q for score in scores.values()], axis=1)
    told = QueryScores(tuple(scores), np.arange(query.size), value_QM, unit_Q)
    return Retrieval(query.size, gallery.size, metrics, told)


def _bound_mean(
    score: Scores, span: tuple[float, float], unit_Q: np.ndarray | None, confidence: float
) -> Metric:
    """Average a measure over the queries that have it, on the scale that it can span."""
    if span == (0, 1) and (score.chance_Q[~np.isnan(score.value_Q)] >= 1).all():
        return Metric(1.0, 1.0, 1.0, 1.0, 1.0)  # a cut-off beyond the gallery finds everything
    start, wide = span[0], span[1] - span[0]
    estimate = estimate_share((score.value_Q - start) / wide, unit_Q)
    chance = float(np.nanmean(score.chance_Q))
    low, high = (start + wide * bound for bound in estimate.bounds(confidence))
    value = float(np.nanmean(score.value_Q))
    return Metric(value, chance, min(low, value), max(high, value), estimate.p_value((chance - start) / wide))


def _score_ranks(counts: RankCounts, settings: RetrievalSettings) -> dict[str, Scores]:
    chance = counts.chance()
    cut_offs = {f"R@{k}": k for k in settings.recall_at}
    cut_offs |= {f"R@{p:g}%": ceil(counts.gallery * p / 100) for p in settings.recall_percent}
    scores = {name: Scores(counts.hit_Q(k), chance.hit_Q(k)) for name, k in cut_offs.items()}
    scores["mean_rank"] = Scores(counts.rank_Q, chance.rank_Q)
    scores["MRR"] = Scores(counts.reciprocal_Q, chance.reciprocal_Q)
    return scores


def _score_relevances(
    query: EmbeddingMatrix,
    gallery: EmbeddingMatrix,
    near: GroundTruth,
    far: GroundTruth,
    counts: RankCounts,
    settings: RetrievalSettings,
) -> dict[str, Scores]:
    relevances: dict[str, Relevance] = {}
    if counts.relevant_Q.max() > 1:  # with one positive mAP is MRR
        relevances["positives"] = relevance_by_code(near.id_N, far.id_N)
    if near.label_N is not None and far.label_N is not None:
        relevances["label"] = relevance_by_code(near.label_N, far.label_N)
    if near.place_N2 is not None and far.place_N2 is not None:
        relevances["place"] = relevance_by_distance(near.place_N2, far.place_N2, settings.scale_km)
    if not relevances:
        return {}
    ranking = score_rankings(query, gallery, relevances, settings.tolerance)
    chosen = {
        "mAP": ranking["positives"].average_precision if "positives" in ranking else None,
        "label_mAP": ranking["label"].average_precision if "label" in ranking else None,
        "label_nDCG": ranking["label"].ndcg if "label" in ranking else None,
        "place_nDCG": ranking["place"].ndcg if "place" in ranking else None,
    }
    return {name: scores for name, scores in chosen.items() if scores is not None}
