"""One temperature, or one scale and one bias, that make similarities the best probabilities."""

# Q queries, G gallery items, P matches, M mismatches

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

COLDEST, WARMEST = 1e-3, 1e2  # temperatures looked at; at either end the rows do not say more
_GRID = 16
_GOLDEN = (5**0.5 - 1) / 2
_MOST_MISMATCHES = 250_000
_STEPS = 100


def log_loss(similarity_QG: Floats, right_QG: NDArray[np.bool_], temperature: float) -> float:
    """Mean over queries of minus the log probability that a softmax gives to right answers, in nats."""
    logit_QG = similarity_QG / temperature
    logit_QG -= logit_QG.max(1, keepdims=True)
    weight_QG = np.exp(logit_QG, out=logit_QG)
    right_Q = (weight_QG * right_QG).sum(1)
    return float(-np.log(np.maximum(right_Q / weight_QG.sum(1), 1e-300)).mean())


def smoothed_loss(similarity_QG: Floats, right_QG: NDArray[np.bool_], temperature: float) -> float:
    """The log loss where each query's right answer is, once in Q + 2 times, any item of the gallery.

    It is what Platt's targets are to a single pair: without it, queries that all find their answer would have
    probabilities of 1 and a temperature of 0, however few they are.
    """
    logit_QG = similarity_QG / temperature
    top_Q = logit_QG.max(1)
    anything = float((top_Q + np.log(np.exp(logit_QG - top_Q[:, None]).sum(1)) - logit_QG.mean(1)).mean())
    share = 1 / (len(similarity_QG) + 2)
    return (1 - share) * log_loss(similarity_QG, right_QG, temperature) + share * anything


def fitted_temperature(similarity_QG: Floats, right_QG: NDArray[np.bool_]) -> float:
    """The temperature with the least smoothed log loss: the best of a grid, then golden section around it.

    With one right answer for each query the loss is convex in 1 / temperature; with several the grid keeps
    the search from a worse valley.
    """

    def loss(at: float) -> float:
        return smoothed_loss(similarity_QG, right_QG, float(np.exp(at)))

    grid = np.linspace(np.log(COLDEST), np.log(WARMEST), _GRID).tolist()
    best = int(np.argmin([loss(at) for at in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    while high - low > 1e-3:
        one, two = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, two) if loss(one) <= loss(two) else (one, high)
    return float(np.exp((low + high) / 2))


def fitted_scales(match_P: Floats, mismatch_M: Floats, seed: int = 0) -> tuple[float, float]:
    """The scale and bias of the log odds of a match (Platt scaling, 1999), both kinds weighing the same.

    Targets are Platt's, a little away from 0 and 1, so that similarities which part the two kinds cleanly
    give a finite scale.

    Returns:
        The scale, 0 where matches are not more similar than mismatches, and the bias.
    """
    if len(mismatch_M) > _MOST_MISMATCHES:
        mismatch_M = np.random.default_rng(seed).choice(mismatch_M, _MOST_MISMATCHES, replace=False)
    if match_P.mean() <= mismatch_M.mean() + 1e-9:
        return 0.0, 0.0
    similarity_N = np.concatenate([match_P, mismatch_M])
    matches, mismatches = len(match_P), len(mismatch_M)
    target_N = np.repeat([(matches + 1) / (matches + 2), 1 / (matches + 2)], [matches, mismatches])
    weight_N = np.repeat([0.5 / matches, 0.5 / mismatches], [matches, mismatches])
    middle, spread = float(similarity_N.mean()), max(float(similarity_N.std()), 1e-9)
    z_N2 = np.stack([(similarity_N - middle) / spread, np.ones_like(similarity_N)], axis=1)
    scale, bias = _newton(z_N2, target_N, weight_N)
    return max(float(scale / spread), 0.0), float(bias - scale * middle / spread)


def _newton(z_N2: Floats, target_N: Floats, weight_N: Floats) -> Floats:
    """Minimise the weighted logistic loss; a step that does not lower it is halved."""

    def loss(at_2: Floats) -> float:
        logit_N = z_N2 @ at_2
        return float((weight_N * (np.logaddexp(0, logit_N) - target_N * logit_N)).sum())

    at_2, before = np.zeros(2), np.log(2)
    for _ in range(_STEPS):
        p_N = 1 / (1 + np.exp(-(z_N2 @ at_2)))
        slope_2 = z_N2.T @ (weight_N * (p_N - target_N))
        curve_22 = z_N2.T @ (z_N2 * (weight_N * p_N * (1 - p_N))[:, None]) + 1e-12 * np.eye(2)
        step_2 = np.linalg.solve(curve_22, slope_2)
        while (after := loss(at_2 - step_2)) > before and np.abs(step_2).max() > 1e-9:
            step_2 = step_2 / 2
        at_2 = at_2 - step_2
        if np.abs(step_2).max() < 1e-8 or before - after < 1e-12:
            break
        before = after
    return at_2
