"""Bootstrap resampling of queries, for figures that are no means."""

# Q queries, U units drawn (queries or groups of them), B resamples

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
