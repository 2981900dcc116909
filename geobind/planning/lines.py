"""Straight lines through measurements, and how many different things there are by those in a sample."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

_HALVINGS = 80  # of the range in which a root is looked for


class Line(NamedTuple):
    """What so many rows take: `base + slope * rows`, neither of them negative."""

    base: float
    slope: float

    def __call__(self, rows: float) -> float:
        """Return what these rows take."""
        return self.base + self.slope * rows


def fit(points: Iterable[tuple[float, float]]) -> Line:
    """Return the line through the two measurements with most rows, exact at the last of them.

    More rows never take less: where the two say so, or a line through them would begin below zero, the
    last one alone decides, as a constant or as a multiple of the rows.

    Args:
        points: Rows, and what they took; of equal rows the last counts. One at least.
    """
    known = sorted(dict(points).items())
    rows, value = known[-1]
    if len(known) == 1:
        return Line(value, 0.0)
    before, less = known[-2]
    slope = (value - less) / (rows - before)
    if slope <= 0:
        return Line(value, 0.0)
    base = value - slope * rows
    return Line(base, slope) if base >= 0 else Line(0.0, value / rows)


def different(found: int, looked: int, total: int) -> float:
    """Estimate how many different things there are among `total`, from those found among a sample.

    If D things are equally frequent, n draws show D (1 - exp(-n / D)) of them; D is solved for, and put
    in again with all of them drawn.

    Args:
        found: Different things in the sample.
        looked: Things in the sample.
        total: Things there are.
    """
    if found >= looked or total <= looked:
        return float(total if found >= looked else found)
    low, high = float(found), float(found) * 1e6
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if _shown(middle, looked) < found:
            low = middle
        else:
            high = middle
    return min(float(total), max(float(found), _shown(low, total)))


def _shown(kinds: float, draws: float) -> float:
    return -kinds * math.expm1(-draws / kinds)
