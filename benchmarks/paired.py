"""Ratios of two programs that take turns: what holds on a machine that others use, too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A median, and where 95 % of such medians lie."""

    median: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """Return the median of values with its bootstrap interval."""
    value_N = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0).integers(len(value_N), size=(4000, len(value_N)))
    low, high = np.quantile(np.median(value_N[drawn], axis=1), (0.025, 0.975))
    return Interval(float(np.median(value_N)), float(low), float(high))


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Return the seconds of each call in each round, by default of the CPU, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for number in range(rounds):
        for name in sorted(calls, reverse=number % 2 == 0):
            start = clock()
            calls[name]()
            times[name].append(clock() - start)
    return times


def ratio(one: Sequence[float], other: Sequence[float]) -> str:
    """The median of the ratios of neighbours, and where 95 % of such medians lie."""
    return _told(np.divide(one, other), "{:.3f}")


def difference(one: Sequence[float], other: Sequence[float], unit: float = 1.0) -> str:
    """The median of the differences of neighbours, and where 95 % of such medians lie."""
    return _told(np.subtract(one, other) / unit, "{:+.2f}")


def _told(value_N: np.ndarray, form: str) -> str:
    return f"{form} (95 %: {form} to {form})".format(*interval(value_N.tolist()))
