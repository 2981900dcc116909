"""How far probabilities are from what happens: reliability in bins, and the expected calibration error."""

# N predictions, Q rows they belong to, E bins, B resamples

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geobind.errors import DataError
from geobind.evaluation.ranking.resampling import Resampling, times_drawn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BINS = 15  # Guo et al.'s number
_PERFECT_DRAWS = 200


@dataclass(frozen=True)
class Error:
    """An expected calibration error, its interval, and what perfect probabilities would show."""

    value: float
    low: float
    high: float
    perfect: float  # mean of the error over outcomes drawn from the probabilities themselves


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same probability."""

    low: float
    high: float
    share: float  # of all predictions
    predicted: float  # mean probability
    happened: float  # share that came true


@dataclass(frozen=True)
class Reliability:
    """Probabilities beside outcomes."""

    predictions: int
    predicted: float  # mean probability
    happened: float
    log_loss: float  # mean, in nats
    equal_width: Error  # Guo et al.'s
    equal_mass: Error
    bins: tuple[Bin, ...]  # of equal width, those without a prediction left out


def reliability(
    p_N: Floats,
    happened_N: Floats,
    *,
    row_N: NDArray[np.int64] | None = None,
    log_loss: float | None = None,
    bins: int = BINS,
    options: Resampling | None = None,
) -> Reliability:
    """Compare probabilities with what happened.

    The expected calibration error is the mean over bins, by their share of predictions, of the distance
    between mean probability and share of outcomes (Guo et al., arXiv:1706.04599, eq. 3). Even perfect
    probabilities show some, as outcomes scatter; resampling adds to it once more, so the interval is the
    basic bootstrap's, which takes that off (Davison and Hinkley, 1997, eq. 5.6), and reaches down to 0 where
    perfect probabilities would often show as much.

    Args:
        p_N: Probabilities.
        happened_N: 1 where the event happened, else 0; between them where ties leave it open.
        row_N: The row (0, 1, ...) that each prediction belongs to, for the resampling; default: each its own.
        log_loss: Mean log loss, where it is not that of these events.
        bins: How many.
        options: How often to draw again.

    Raises:
        DataError: No predictions, or one outside [0, 1].
    """
    options = options or Resampling()
    if not len(p_N) or not ((p_N >= 0) & (p_N <= 1)).all():
        raise DataError("reliability needs probabilities, each from 0 to 1, and at least one")
    row_N = np.arange(len(p_N)) if row_N is None else row_N
    even_N = np.minimum((p_N * bins).astype(np.int64), bins - 1)
    edges = np.unique(np.quantile(p_N, np.linspace(0, 1, bins + 1)[1:-1]))
    mass_N = np.searchsorted(edges, p_N, side="right")
    gap_N = happened_N - p_N
    return Reliability(
        len(p_N),
        float(p_N.mean()),
        float(happened_N.mean()),
        _log_loss(p_N, happened_N) if log_loss is None else log_loss,
        _error(p_N, gap_N, even_N, row_N, options),
        _error(p_N, gap_N, mass_N, row_N, options),
        tuple(_bin(p_N, happened_N, even_N == e, e, bins) for e in np.unique(even_N).tolist()),
    )


def _log_loss(p_N: Floats, happened_N: Floats) -> float:
    safe_N = np.clip(p_N, 1e-12, 1 - 1e-12)
    return float(-(happened_N * np.log(safe_N) + (1 - happened_N) * np.log(1 - safe_N)).mean())


def _bin(p_N: Floats, happened_N: Floats, in_N: NDArray[np.bool_], number: int, bins: int) -> Bin:
    share = float(in_N.mean())
    return Bin(
        number / bins, (number + 1) / bins, share, float(p_N[in_N].mean()), float(happened_N[in_N].mean())
    )


def _error(
    p_N: Floats,
    gap_N: Floats,
    bin_N: NDArray[np.int64],
    row_N: NDArray[np.int64],
    options: Resampling,
) -> Error:
    value = float(_summed(gap_N, bin_N) / len(p_N))
    rows, bins = int(row_N.max()) + 1, int(bin_N.max()) + 1
    gap_QE = np.zeros((rows, bins))
    np.add.at(gap_QE, (row_N, bin_N), gap_N)
    size_Q = np.bincount(row_N, minlength=rows).astype(np.float64)
    drawn = [
        np.abs(times_BQ @ gap_QE).sum(1) / (times_BQ @ size_Q)
        for times_BQ in times_drawn(rows, options, room=2)
    ]
    low, high = (2 * value - q for q in np.quantile(np.concatenate(drawn), options.bounds[::-1]))
    random = np.random.default_rng([options.seed, 2])
    perfect = [_summed((random.random(len(p_N)) < p_N) - p_N, bin_N) for _ in range(_PERFECT_DRAWS)]
    perfect = np.array(perfect) / len(p_N)
    if value <= np.quantile(perfect, options.confidence):  # it may be perfect
        low = 0.0
    return Error(value, max(float(low), 0.0), max(float(high), value), float(perfect.mean()))


def _summed(gap_N: Floats, bin_N: NDArray[np.int64]) -> float:
    return float(np.abs(np.bincount(bin_N, weights=gap_N)).sum())
