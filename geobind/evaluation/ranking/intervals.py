"""Bootstrap intervals: how far a mean or a median would move had other queries been drawn."""

# Q queries, M measures, B resamples at a time

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geobind.evaluation.ranking.resampling import Resampling, by_counting, times_drawn


class Intervals(NamedTuple):
    """Lower and upper bounds of the mean of each measure and of the median rank."""

    low_M: np.ndarray
    high_M: np.ndarray
    median_low: float
    median_high: float


def bootstrap(
    value_QM: np.ndarray, rank_Q: np.ndarray, options: Resampling, cluster_Q: np.ndarray | None = None
) -> Intervals:
    """Percentile intervals (Efron, 1979) from drawing queries with replacement, the gallery held fixed.

    Every measure sees the same resamples, so two of them can be compared. Without clusters queries are taken
    as independent: with many queries of one place the true interval is wider.

    Args:
        value_QM: what each query scores in each measure; NaN where it has no score.
        rank_Q: rank of each query, for the median.
        options: how many times to draw, from which seed, and what share lies between the bounds.
        cluster_Q: queries of one number (0, 1, ...) are drawn together.
    """
    # With queries in order of rank one table of how often each was drawn serves the means and the median.
    order = np.argsort(rank_Q, kind="stable")
    rank_Q, value_QM = rank_Q[order], value_QM[order]
    cluster_Q = None if cluster_Q is None else cluster_Q[order]
    scored_QM = (~np.isnan(value_QM)).astype(np.float64)
    filled_QM = np.nan_to_num(value_QM)
    means: list[np.ndarray] = []
    medians: list[np.ndarray] = []
    for times_BQ in times_drawn(len(rank_Q), options, cluster_Q, room=4, draw=by_counting):
        medians.append(_medians(times_BQ, rank_Q))
        with np.errstate(invalid="ignore"):  # a measure that few queries have may be missing from a resample
            means.append((times_BQ @ filled_QM) / (times_BQ @ scored_QM))
    low_M, high_M = np.nanquantile(np.concatenate(means), options.bounds, axis=0)
    median_low, median_high = np.quantile(np.concatenate(medians), options.bounds)
    return Intervals(low_M, high_M, float(median_low), float(median_high))


def _medians(times_BQ: np.ndarray, rank_Q: np.ndarray) -> np.ndarray:
    """Median rank of each resample; `rank_Q` is rising."""
    drawn_so_far_BQ = np.cumsum(times_BQ, axis=1)
    drawn_B1 = drawn_so_far_BQ[:, -1:]  # clusters differ in size, so resamples do
    lower_B = (drawn_so_far_BQ < (drawn_B1 + 1) // 2).sum(axis=1)
    upper_B = (drawn_so_far_BQ < drawn_B1 // 2 + 1).sum(axis=1)
    return (rank_Q[lower_B] + rank_Q[upper_B]) / 2
