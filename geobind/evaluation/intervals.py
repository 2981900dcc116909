"""Bootstrap intervals: how far a mean or a median would move had other queries been drawn."""

# Q queries, M measures, B resamples at a time

from __future__ import annotations

from typing import NamedTuple

import numpy as np

DRAWS = 2**20  # random draws held at a time


class Intervals(NamedTuple):
    """Lower and upper bounds of the mean of each measure and of the median rank."""

    low_M: np.ndarray
    high_M: np.ndarray
    median_low: float
    median_high: float


def bootstrap(
    value_QM: np.ndarray,
    rank_Q: np.ndarray,
    *,
    resamples: int,
    seed: int,
    confidence: float = 0.95,
    cluster_Q: np.ndarray | None = None,
) -> Intervals:
    """Percentile intervals (Efron, 1979) from drawing queries with replacement, the gallery held fixed.

    Every measure sees the same resamples, so two of them can be compared. Without clusters queries are taken
    as independent: with many queries of one place the true interval is wider. Clusters are drawn whole (the
    cluster bootstrap, Davison and Hinkley, 1997, section 3.8).

    Args:
        value_QM: what each query scores in each measure; NaN where it has no score.
        rank_Q: rank of each query, for the median.
        resamples: how many times to draw.
        seed: makes the draw repeatable.
        confidence: share of resamples between the bounds.
        cluster_Q: queries of one number (0, 1, ...) are drawn together.
    """
    # With queries in order of rank one table of how often each was drawn serves the means and the median.
    order = np.argsort(rank_Q, kind="stable")
    rank_Q, value_QM = rank_Q[order], value_QM[order]
    cluster_Q = None if cluster_Q is None else cluster_Q[order]
    units = len(rank_Q) if cluster_Q is None else int(cluster_Q.max()) + 1
    scored_QM = (~np.isnan(value_QM)).astype(np.float64)
    filled_QM = np.nan_to_num(value_QM)
    random = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    medians: list[np.ndarray] = []
    queries = len(rank_Q)
    step = max(1, DRAWS // queries)
    for start in range(0, resamples, step):
        times_BQ = _times_drawn(random, min(step, resamples - start), units)
        times_BQ = times_BQ if cluster_Q is None else times_BQ[:, cluster_Q]
        medians.append(_medians(times_BQ, rank_Q))
        weight_BQ = times_BQ.astype(np.float64)
        with np.errstate(invalid="ignore"):  # a measure that few queries have may be missing from a resample
            means.append((weight_BQ @ filled_QM) / (weight_BQ @ scored_QM))
    bounds = [(1 - confidence) / 2, (1 + confidence) / 2]
    low_M, high_M = np.nanquantile(np.concatenate(means), bounds, axis=0)
    median_low, median_high = np.quantile(np.concatenate(medians), bounds)
    return Intervals(low_M, high_M, float(median_low), float(median_high))


def _times_drawn(random: np.random.Generator, resamples: int, queries: int) -> np.ndarray:
    """How often each query, or cluster of them, is drawn in each resample (B, Q)."""
    drawn_BQ = random.integers(0, queries, size=(resamples, queries), dtype=np.int64)
    drawn_BQ += queries * np.arange(resamples)[:, None]
    return np.bincount(drawn_BQ.ravel(), minlength=resamples * queries).reshape(resamples, queries)


def _medians(times_BQ: np.ndarray, rank_Q: np.ndarray) -> np.ndarray:
    """Median rank of each resample; `rank_Q` is rising."""
    drawn_so_far_BQ = np.cumsum(times_BQ, axis=1)
    drawn_B1 = drawn_so_far_BQ[:, -1:]  # clusters differ in size, so resamples do
    lower_B = (drawn_so_far_BQ < (drawn_B1 + 1) // 2).sum(axis=1)
    upper_B = (drawn_so_far_BQ < drawn_B1 // 2 + 1).sum(axis=1)
    return (rank_Q[lower_B] + rank_Q[upper_B]) / 2
