"""The learning rate of a step: a pure function."""

from __future__ import annotations

import math

from geobind.recipe.schema import Constant, Cosine, WarmRestarts


def learning_rate(step: int, total: int, peak: float, schedule: Constant | Cosine | WarmRestarts) -> float:
    """Return the learning rate of a step, counted from 0.

    The first `warmup_steps` steps climb in a straight line to the peak. Then, with `t` the steps since the
    warm-up (or since the last restart) and `T` the steps until the end (or of the period), the rate is
    final + (peak - final) (1 + cos(pi t / T)) / 2 (SGDR, arXiv:1608.03983 eq. 5).

    Args:
        step: The step about to be taken.
        total: Steps of the stage.
        peak: Highest learning rate.
        schedule: Its shape.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    since = step - schedule.warmup_steps
    period = max(1, total - schedule.warmup_steps)
    if schedule.name == "warm_restarts":
        period = schedule.period
        while since >= period:
            since -= period
            period *= schedule.multiplier
            if schedule.multiplier == 1:
                since %= period
    lowest = schedule.final * peak
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * since / period)) / 2
