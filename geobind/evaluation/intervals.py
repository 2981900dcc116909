"""Confidence intervals of means and medians over queries that may come in clusters.

Every measure lies on a bounded scale, so one formula serves all: Wilson's score interval (1927), with
Student's t. In place of the number of queries stands that of the independent yes-or-no answers that would
scatter as much (Kish, 1965, section 8.2; Franco et al., 2019, J. Surv. Stat. Methodol. 7:334). The variance
is the jackknife over clusters (MacKinnon, Nielsen and Webb, 2023, J. Econometrics 232:272).
`benchmarks/intervals.py` measures what these intervals cover.
"""

# Q queries, C classes, U units (clusters, or queries alone), E repeats, P pairs of unit and class

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Codes = NDArray[np.int64]

_NODE, _WEIGHT = (part.astype(np.float64) for part in np.polynomial.legendre.leggauss(64))
_NORMAL_FROM = 1e6  # degrees of freedom from which Student's t is taken as normal
_GUESSED_CORRELATION = 0.3  # within clusters, where too few queries differ from the rest to measure it
_NOTHING = 1e-12  # variances below it are rounding


@lru_cache(maxsize=4096)
def student_inside(t: float, freedom: float) -> float:
    """Compute the probability that Student's t lies between -t and t.

    With x = sqrt(freedom) tan(angle) the density is a power of the cosine, which is integrated.
    """
    freedom = min(freedom, _NORMAL_FROM)
    end = math.atan(t / math.sqrt(freedom))
    height = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    angle = end * (_NODE + 1) / 2
    return min(height * end * float(_WEIGHT @ np.cos(angle) ** (freedom - 1)), 1.0)


@lru_cache(maxsize=4096)
def student_quantile(confidence: float, freedom: float) -> float:
    """Compute the t that Student's t stays within with a probability of `confidence`."""
    low, high = 0.0, 1.0
    while student_inside(high, freedom) < confidence and high < 1e8:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_inside(middle, freedom) < confidence else (low, middle)
    return high


class Estimate(NamedTuple):
    """A mean of scores from 0 to 1, and how far it may be off."""

    value: float
    effective: float  # independent yes-or-no answers that would scatter as much; 0: nothing is known
    freedom: float  # degrees of freedom of the variance

    def bounds(self, confidence: float = 0.95) -> tuple[float, float]:
        """Compute Wilson's score interval."""
        if self.effective <= 0:
            return 0.0, 1.0
        t = student_quantile(confidence, round(self.freedom, 2))
        z = t * t / self.effective
        middle = (self.value + z / 2) / (1 + z)
        half = math.sqrt(z * (self.value * (1 - self.value) + z / 4)) / (1 + z)
        return max(min(middle - half, self.value), 0.0), min(max(middle + half, self.value), 1.0)

    def p_value(self, null: float) -> float:
        """Compute the probability of a mean this far from `null`, were it right (the score test)."""
        return self._two_sided(self.value - null, null * (1 - null))

    def _two_sided(self, apart: float, spread: float) -> float:
        if abs(apart) < 1e-9 or self.effective <= 0:
            return 1.0
        if spread <= 0:
            return 0.0
        t = abs(apart) / math.sqrt(spread / self.effective)
        return 1 - student_inside(t, round(self.freedom, 2))


def estimate_share(value_Q: Floats, unit_Q: Codes | None = None, class_Q: Codes | None = None) -> Estimate:
    """Estimate the mean of scores from 0 to 1, over queries or over classes.

    Where few queries differ from the rest (a share near 0 or 1), their variance and their dependence cannot
    be measured well. Both are then drawn towards the largest variance that such a mean can have, and towards
    a guess of the correlation within clusters.

    Args:
        value_Q: Score of each query; NaN where it has none, such queries are left out.
        unit_Q: Queries of one number are no independent ones; default: each alone.
        class_Q: Average over classes, not queries; default: all queries are of one class.
    """
    known_Q = ~np.isnan(value_Q)
    value_Q = np.clip(value_Q[known_Q].astype(np.float64), 0.0, 1.0)
    if not len(value_Q):
        return Estimate(math.nan, 0.0, 1.0)
    alone = unit_Q is None
    unit_Q = np.arange(len(value_Q)) if unit_Q is None else np.unique(unit_Q[known_Q], return_inverse=True)[1]
    class_Q = (
        np.zeros_like(unit_Q) if class_Q is None else np.unique(class_Q[known_Q], return_inverse=True)[1]
    )
    count_C = np.bincount(class_Q).astype(np.float64)
    mean_C = np.bincount(class_Q, value_Q) / count_C
    value = float(mean_C.mean())
    weight_Q = 1 / (count_C[class_Q] * len(count_C))
    weight_U = np.bincount(unit_Q, weight_Q)
    if len(weight_U) == 1 and not (alone and np.isin(value_Q, (0.0, 1.0)).all()):
        return Estimate(value, 0.0, 1.0)
    size, units = 1 / float((weight_Q**2).sum()), 1 / float((weight_U**2).sum())
    alone = alone or len(weight_U) == len(value_Q)
    if alone and len(count_C) == 1 and np.isin(value_Q, (0.0, 1.0)).all():
        return Estimate(value, size, math.inf)  # the variance of yes-or-no answers follows from their mean
    rare_Q: Floats = weight_Q * (value_Q if value <= 0.5 else 1 - value_Q)
    trust = _count_evenly(np.bincount(unit_Q, rare_Q).astype(np.float64))
    largest = max(value * (1 - value), _NOTHING) / size
    spread_C = np.maximum(np.bincount(class_Q, (value_Q - mean_C[class_Q]) ** 2) / count_C, 0.0)
    independent = float((spread_C / count_C).sum()) / len(count_C) ** 2
    found = _jackknife(value_Q, unit_Q, class_Q)
    guess = 1 + _GUESSED_CORRELATION * (size / units - 1)
    dependence = max(found / independent, 1.0) if independent > _NOTHING else guess
    if alone and len(count_C) == 1:
        independent, dependence, guess = found, 1.0, 1.0
    ratio = (trust * independent / largest + 1) / (trust + 1)
    ratio *= (trust**2 * dependence + guess) / (trust**2 + 1)
    return Estimate(value, size / ratio, max(units - 1, 1.0))


def _count_evenly(part_U: Floats) -> float:
    """Count the parts that make up a sum: 1 if one is all of it, U if all are equal; 0 without a sum."""
    square = float((part_U**2).sum())
    return float(part_U.sum()) ** 2 / square if square > 0 else 0.0


def _jackknife(value_Q: Floats, unit_Q: Codes, class_Q: Codes) -> float:
    """Compute the variance of a mean over classes by leaving out one unit at a time."""
    classes = int(class_Q.max()) + 1
    pair, pair_Q = np.unique(unit_Q * classes + class_Q, return_inverse=True)
    unit_P, class_P = np.divmod(pair, classes)
    count_P, total_P = np.bincount(pair_Q).astype(np.float64), np.bincount(pair_Q, value_Q)
    count_C, total_C = np.bincount(class_P, count_P), np.bincount(class_P, total_P)
    mean_C = total_C / count_C
    lost_P = count_P == count_C[class_P]  # the class has no other unit
    left_P = (total_C[class_P] - total_P) / np.where(lost_P, 1, count_C[class_P] - count_P)
    change_P = np.where(lost_P, 0.0, left_P) - mean_C[class_P]
    units = int(unit_P.max()) + 1
    left_U = classes - np.bincount(unit_P, lost_P, minlength=units)
    mean_U = (mean_C.sum() + np.bincount(unit_P, change_P, minlength=units)) / np.maximum(left_U, 1)
    mean_U = np.where(left_U == 0, mean_C.mean(), mean_U)
    return float((units - 1) / units * ((mean_U - mean_C.mean()) ** 2).sum())


def estimate_repeated_share(
    value_EQ: Floats, unit_Q: Codes | None = None, class_Q: Codes | None = None
) -> Estimate:
    """Estimate the mean of scores over queries and over repeats, such as draws of training examples.

    Queries and repeats are crossed, so their variances add up. What comes from each query's own reaction to
    each repeat is in the variance of the queries already.
    """
    one = estimate_share(value_EQ.mean(0), unit_Q, class_Q)
    repeats, count = value_EQ.shape
    if repeats < 2 or count < 2 or one.effective <= 0:
        return one
    if class_Q is None:
        weight_Q = np.full(count, 1 / count)
    else:
        count_C = np.bincount(class_Q)
        weight_Q = 1 / (count_C[class_Q] * np.count_nonzero(count_C))
    mean_E = value_EQ @ weight_Q
    rest_EQ = value_EQ - value_EQ.mean(0) - mean_E[:, None] + mean_E.mean()
    own = float((rest_EQ**2 @ weight_Q**2).sum()) / (repeats - 1) / repeats
    drawn = max(float(mean_E.var(ddof=1)) / repeats - own, 0.0)
    spread = max(one.value * (1 - one.value), _NOTHING)
    asked = spread / one.effective
    if drawn <= _NOTHING:
        return one
    freedom = (asked + drawn) ** 2 / (asked**2 / one.freedom + drawn**2 / (repeats - 1))
    return Estimate(one.value, spread / (asked + drawn), freedom)


def bound_median(
    value_Q: Floats, span: tuple[float, float], unit_Q: Codes | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Bound the median by order statistics: where the share of smaller values may still be one half.

    Source: Woodruff (1952), J. Am. Stat. Assoc. 47:635, with the interval of a share for queries in clusters.

    Args:
        value_Q: Such as the rank of each query.
        span: Smallest and largest value possible, given where nothing else is known.
        unit_Q: Queries of one number are no independent ones.
        confidence: Of the interval.
    """
    one = estimate_share((value_Q <= np.median(value_Q)).astype(np.float64), unit_Q)
    if one.effective <= 0:
        return span
    share, _ = Estimate(0.5, one.effective, one.freedom).bounds(confidence)
    sorted_Q = np.sort(value_Q)
    first = max(math.ceil(share * len(sorted_Q) - 1e-9), 1)
    return float(sorted_Q[first - 1]), float(sorted_Q[len(sorted_Q) - first])


def median_p_value(value_Q: Floats, null: float, unit_Q: Codes | None = None) -> float:
    """Compute the probability of values this uneven about `null`, were it their median (sign test)."""
    below_Q = np.where(value_Q < null, 1.0, np.where(value_Q == null, 0.5, 0.0))
    return estimate_share(below_Q, unit_Q).p_value(0.5)


class Paired(NamedTuple):
    """A difference between two figures of the same queries."""

    difference: float
    low: float
    high: float
    p: float  # probability of a difference this large, were there none


def compare_means(apart_Q: Floats, unit_Q: Codes | None = None, confidence: float = 0.95) -> Paired:
    """Test the mean of differences between two scores of each query (paired t, jackknife over clusters)."""
    unit_Q = np.arange(len(apart_Q)) if unit_Q is None else np.unique(unit_Q, return_inverse=True)[1]
    size_U = np.bincount(unit_Q).astype(np.float64)
    deviation = math.sqrt(_jackknife(apart_Q, unit_Q, np.zeros_like(unit_Q))) if len(size_U) > 1 else math.inf
    return _paired(float(apart_Q.mean()), deviation, _count_evenly(size_U) - 1, confidence)


def compare_medians(
    one_Q: Floats,
    two_Q: Floats,
    unit_Q: Codes | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Paired:
    """Test the difference between two medians, by a bootstrap that draws the same queries of both."""
    unit_Q = np.arange(len(one_Q)) if unit_Q is None else np.unique(unit_Q, return_inverse=True)[1]
    size_U = np.bincount(unit_Q).astype(np.float64)
    difference = float(np.median(one_Q) - np.median(two_Q))
    units = len(size_U)
    if units < 2:
        return _paired(difference, math.inf, 1, confidence)
    order_Q = np.argsort(unit_Q, kind="stable")
    alone = units == len(order_Q)  # each query is drawn by itself
    rows_U = [] if alone else np.split(order_Q, np.cumsum(size_U[:-1]).astype(np.int64))
    random = np.random.default_rng(seed)
    drawn: list[float] = []
    for _ in range(resamples):
        chosen = random.integers(0, units, units)
        row_Q = order_Q[chosen] if alone else np.concatenate([rows_U[unit] for unit in chosen])
        drawn.append(float(np.median(one_Q[row_Q]) - np.median(two_Q[row_Q])))
    deviation = float(np.std(drawn)) * math.sqrt(units / (units - 1))
    return _paired(difference, deviation, _count_evenly(size_U) - 1, confidence)


def _paired(difference: float, deviation: float, freedom: float, confidence: float) -> Paired:
    if deviation <= _NOTHING:  # every query differs alike
        return Paired(difference, difference, difference, 1.0 if abs(difference) <= _NOTHING else 0.0)
    freedom = round(max(freedom, 1.0), 2)
    half = student_quantile(confidence, freedom) * deviation
    p = 1 - student_inside(abs(difference) / deviation, freedom)
    return Paired(difference, difference - half, difference + half, p)


def hold_after_holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Return which tests hold when so many are made (Holm, 1979, Scand. J. Stat. 6:65)."""
    held = [False] * len(p_values)
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[at] > level / (len(p_values) - rank):
            break
        held[at] = True
    return held
