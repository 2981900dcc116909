"""Bootstrap resampling and confidence intervals."""

# Q queries, M measures, C classes, E repeats, U units drawn (queries or groups of them), B resamples

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


_MAX_NUMBERS = 2**22  # numbers held at a time


@dataclass(frozen=True)
class Resampling:
    """Bootstrap settings: number of resamples, seed and confidence level."""

    resamples: int = 1000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Raise DataError for a setting out of range."""
        if self.resamples < 1 or not 0 < self.confidence < 1:
            raise DataError(
                f"resamples {self.resamples} and confidence {self.confidence}: give at least 1 resample and "
                "a share between 0 and 1"
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """The quantiles of the lower and the upper bound."""
        return (1 - self.confidence) / 2, (1 + self.confidence) / 2


class ClassMeanBounds(NamedTuple):
    """Lower and upper bounds (2, ...) of the means of measures, of classes, and over classes."""

    mean_2M: Floats
    class_2C: Floats
    class_mean_2: Floats


def draw_unit_counts(random: np.random.Generator, resamples: int, units: int) -> Floats:
    """Return how often each unit is drawn in each resample (B, U)."""
    drawn_BU = random.integers(0, units, size=(resamples, units), dtype=np.int64)
    drawn_BU += units * np.arange(resamples)[:, None]
    times_BU = np.bincount(drawn_BU.ravel(), minlength=resamples * units).reshape(resamples, units)
    return times_BU.astype(np.float64)


def draw_counts(
    count: int, options: Resampling, group_Q: NDArray[np.int64] | None = None, room: int = 1
) -> Iterator[Floats]:
    """Yield in parts how often each query is drawn in each resample, (B, Q).

    Args:
        count: How many queries there are.
        options: How many resamples.
        group_Q: Queries of one number are drawn together (the cluster bootstrap), since they are not
            independent (Davison and Hinkley, 1997, section 3.8); default: each alone.
        room: Numbers that the caller holds for each of these.
    """
    random = np.random.default_rng(options.seed)
    units = count if group_Q is None else int(group_Q.max()) + 1
    step = max(1, _MAX_NUMBERS // (count * room))
    for start in range(0, options.resamples, step):
        size = min(step, options.resamples - start)
        times_BU = draw_unit_counts(random, size, units)
        yield times_BU if group_Q is None else times_BU[:, group_Q]


def bound_class_means(
    value_EQM: Floats,
    class_Q: NDArray[np.int64],
    classes: int,
    options: Resampling,
    group_Q: NDArray[np.int64] | None = None,
) -> ClassMeanBounds:
    """Compute bounds of means by resampling queries and repeats (percentile bootstrap, Efron 1979).

    Queries and repeats are crossed (every query meets every repeat), so each is drawn on its own.

    Args:
        value_EQM: Score of each query in each repeat (E, Q, M); the first measure is that of the classes.
        class_Q: The class of each query.
        classes: How many classes there are; one without queries has NaN bounds.
        options: How many resamples.
        group_Q: Queries that are drawn together.
    """
    repeats, count, measures = value_EQM.shape
    one_hot_QC = np.eye(classes)[class_Q]
    random = np.random.default_rng([options.seed, 1])
    means: list[Floats] = []
    by_class: list[Floats] = []
    for times_BQ in draw_counts(count, options, group_Q, room=measures + 1):
        repeats_BE = random.multinomial(repeats, np.full(repeats, 1 / repeats), size=len(times_BQ)) / repeats
        value_BQM = np.tensordot(repeats_BE, value_EQM, axes=1)
        total_B = times_BQ.sum(1)
        means.append(np.einsum("bq,bqm->bm", times_BQ, value_BQM) / total_B[:, None])
        with np.errstate(invalid="ignore"):  # a resample may lack a class
            by_class.append(((times_BQ * value_BQM[:, :, 0]) @ one_hot_QC) / (times_BQ @ one_hot_QC))
    class_BC = np.concatenate(by_class)
    there_C = one_hot_QC.any(0)
    class_2C = np.full((2, classes), np.nan)
    class_2C[:, there_C] = np.nanquantile(class_BC[:, there_C], options.bounds, axis=0)
    class_mean_B = np.nanmean(class_BC[:, there_C], axis=1)
    return ClassMeanBounds(
        np.quantile(np.concatenate(means), options.bounds, axis=0),
        class_2C,
        np.quantile(class_mean_B, options.bounds),
    )


# Q queries, M measures, B resamples at a time


class RankingBounds(NamedTuple):
    """Lower and upper bounds of the mean of each measure and of the median rank."""

    low_M: np.ndarray
    high_M: np.ndarray
    median_low: float
    median_high: float


def bound_ranking_measures(
    value_QM: np.ndarray, rank_Q: np.ndarray, options: Resampling, cluster_Q: np.ndarray | None = None
) -> RankingBounds:
    """Compute percentile intervals (Efron, 1979) by resampling queries, with the gallery fixed.

    All measures share the resamples, so they can be compared. Without clusters, queries count as independent;
    with many queries of one place the true interval is wider.

    Args:
        value_QM: Score of each query in each measure; NaN where it has none.
        rank_Q: Rank of each query, for the median.
        options: Number of resamples, seed, confidence level.
        cluster_Q: Queries of one number (0, 1, ...) are drawn together.
    """
    # With queries in order of rank one table of how often each was drawn serves the means and the median.
    order = np.argsort(rank_Q, kind="stable")
    rank_Q, value_QM = rank_Q[order], value_QM[order]
    cluster_Q = None if cluster_Q is None else cluster_Q[order]
    scored_QM = (~np.isnan(value_QM)).astype(np.float64)
    filled_QM = np.nan_to_num(value_QM)
    means: list[np.ndarray] = []
    medians: list[np.ndarray] = []
    for times_BQ in draw_counts(len(rank_Q), options, cluster_Q, room=4):
        medians.append(_medians(times_BQ, rank_Q))
        with np.errstate(invalid="ignore"):  # a measure that few queries have may be missing from a resample
            means.append((times_BQ @ filled_QM) / (times_BQ @ scored_QM))
    low_M, high_M = np.nanquantile(np.concatenate(means), options.bounds, axis=0)
    median_low, median_high = np.quantile(np.concatenate(medians), options.bounds)
    return RankingBounds(low_M, high_M, float(median_low), float(median_high))


def _medians(times_BQ: np.ndarray, rank_Q: np.ndarray) -> np.ndarray:
    """Return the median rank of each resample; `rank_Q` is sorted."""
    drawn_so_far_BQ = np.cumsum(times_BQ, axis=1)
    drawn_B1 = drawn_so_far_BQ[:, -1:]  # clusters differ in size, so resamples do
    lower_B = (drawn_so_far_BQ < (drawn_B1 + 1) // 2).sum(axis=1)
    upper_B = (drawn_so_far_BQ < drawn_B1 // 2 + 1).sum(axis=1)
    return (rank_Q[lower_B] + rank_Q[upper_B]) / 2
