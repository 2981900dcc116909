"""Measures of the whole ranking, mAP and nDCG, when relevance is a class label, a shared id or a distance."""

# B queries at a time, G gallery items, P relevant items of one query

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from geobind.evaluation.ranking.expectation import (
    average_precision,
    chance_average_precision,
    chance_gain,
    discounted_gain,
    ideal_gain,
)
from geobind.evaluation.ranking.rows import Rows, full_precision, spans

EARTH_RADIUS_KM = 6371.0088  # mean radius, so that great-circle and haversine distances agree
REACH = 10.0  # gains beyond this many scales, under 5e-5, count as zero: most of a world-wide gallery
SCORE_BYTES = 32 * 2**20  # room for a block of queries against the whole gallery,
FEWEST_QUERIES = 64  # but no fewer than these: the gallery is read anew for each block
GALLERY_BLOCK = 8192


class Relevance(NamedTuple):
    """What matters to each query."""

    items: Callable[[int], tuple[np.ndarray, np.ndarray]]
    """From a query's row to the gallery rows that matter to it, and the gain of each in (0, 1]."""
    graded: bool
    """Gains differ, so average precision, which takes an item as relevant or not, is left out."""


class Scores(NamedTuple):
    """One measure for every query, beside what a random ranking scores; NaN where nothing is relevant."""

    value_Q: np.ndarray
    chance_Q: np.ndarray


class RankingScores(NamedTuple):
    """Average precision (NaN for graded relevance) and nDCG of every query."""

    average_precision: Scores
    ndcg: Scores


def same_code(query_code_Q: np.ndarray, gallery_code_G: np.ndarray) -> Relevance:
    """Relevance by equal label or id: gain 1; a query of code -1 (unknown) has nothing relevant."""
    order = np.argsort(gallery_code_G, kind="stable")
    sorted_G = gallery_code_G[order]
    first_Q = np.searchsorted(sorted_G, query_code_Q, "left")
    last_Q = np.where(query_code_Q < 0, first_Q, np.searchsorted(sorted_G, query_code_Q, "right"))

    def relevant(query: int) -> tuple[np.ndarray, np.ndarray]:
        items_P = order[first_Q[query] : last_Q[query]]
        return items_P, np.ones(len(items_P))

    return Relevance(relevant, graded=False)


def near_places(query_Q2: np.ndarray, gallery_G2: np.ndarray, scale_km: float) -> Relevance:
    """Relevance by distance on the ground: gain exp(-distance / scale), zero beyond ten scales.

    Args:
        query_Q2: latitude and longitude in degrees, NaN where unknown.
        gallery_G2: the same of the gallery.
        scale_km: distance at which the gain has fallen to 1/e, in kilometres.
    """
    query_Q3, gallery_G3 = _on_the_sphere(query_Q2), _on_the_sphere(gallery_G2)
    reach = 2 * np.sin(min(REACH * scale_km / EARTH_RADIUS_KM, np.pi) / 2)

    def relevant(query: int) -> tuple[np.ndarray, np.ndarray]:
        # 2 - 2 cos finds the candidates quickly, but only the chord is exact for neighbours metres apart.
        roughly_G = 2 - 2 * (gallery_G3 @ query_Q3[query]) <= reach**2 + 1e-12
        items_P = np.flatnonzero(roughly_G)
        chord_P = np.linalg.norm(gallery_G3[items_P] - query_Q3[query], axis=1)
        distance_km_P = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chord_P / 2, 1.0))
        inside_P = distance_km_P <= REACH * scale_km
        return items_P[inside_P], np.exp(-distance_km_P[inside_P] / scale_km)

    return Relevance(relevant, graded=True)


def _on_the_sphere(place_N2: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 3): the angle of their chord is the great-circle distance that haversine gives."""
    lat_N, lon_N = np.radians(place_N2).T
    return np.stack([np.cos(lat_N) * np.cos(lon_N), np.cos(lat_N) * np.sin(lon_N), np.sin(lat_N)], axis=1)


def ranking_scores(
    query: Rows, gallery: Rows, relevances: dict[str, Relevance], tolerance: float
) -> dict[str, RankingScores]:
    """Average precision and nDCG of every query under each relevance, from one sort of its similarities.

    Only values are sorted, never indices: a relevant item's place is found by where its similarity falls,
    which is cheaper than argsort and sees ties within `tolerance` on either side.

    Args:
        query: checked query embeddings.
        gallery: checked gallery embeddings.
        relevances: what matters to each query, by name.
        tolerance: similarities this close are tied.
    """
    table = {name: np.full((4, query.size), np.nan) for name in relevances}
    step = max(FEWEST_QUERIES, SCORE_BYTES // (4 * gallery.size))
    with full_precision(query.device), torch.no_grad():
        for at in spans(0, query.size, step):
            score_BG = _scores(query, gallery, at)
            for row, score_G in zip(range(at.start, at.stop), score_BG, strict=True):
                sorted_G = np.sort(score_G)
                for name, relevant in relevances.items():
                    items_P, gain_P = relevant.items(row)
                    if len(items_P):
                        score_P = score_G[items_P]
                        table[name][:, row] = _measure(score_P, gain_P, sorted_G, tolerance, relevant.graded)
    return {
        name: RankingScores(Scores(ap, ap0), Scores(dcg, dcg0))
        for name, (ap, ap0, dcg, dcg0) in table.items()
    }


def _scores(query: Rows, gallery: Rows, at: slice) -> np.ndarray:
    query_BD = query.block(at)
    score_BG = torch.empty(len(query_BD), gallery.size)
    for columns in spans(0, gallery.size, GALLERY_BLOCK):
        score_BG[:, columns] = query_BD @ gallery.block(columns, query.device).T
    return score_BG.numpy()


def _measure(
    score_P: np.ndarray, gain_P: np.ndarray, sorted_G: np.ndarray, tolerance: float, graded: bool
) -> tuple[float, float, float, float]:
    """Average precision and nDCG of one query, each followed by its chance level."""
    gallery = len(sorted_G)
    rising = np.argsort(score_P)  # searches for rising values find each other's cache lines: twice as fast
    score_P, gain_P = score_P[rising], gain_P[rising]
    larger_P, tied_P = _places(score_P, sorted_G, tolerance)
    ideal = ideal_gain(gain_P, gallery)
    ndcg = discounted_gain(larger_P, tied_P, gain_P, gallery) / ideal
    chance_ndcg = chance_gain(gain_P, gallery) / ideal
    if graded:
        return np.nan, np.nan, ndcg, chance_ndcg
    precision = average_precision(larger_P, tied_P, *_places(score_P, score_P, tolerance), gallery)
    return precision, chance_average_precision(len(score_P), gallery), ndcg, chance_ndcg


def _places(score_P: np.ndarray, sorted_N: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """How many of the rising values `sorted_N` beat each score, and how many tie with it."""
    below_P = np.searchsorted(sorted_N, score_P - np.float32(tolerance), "left")
    up_to_P = np.searchsorted(sorted_N, score_P + np.float32(tolerance), "right")
    return len(sorted_N) - up_to_P, up_to_P - below_P
