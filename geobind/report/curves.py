"""Training curves: one small panel for each measure of a stage, of one run or of several."""

# S steps looked at, P points drawn

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from geobind.report.facts import MEASURES, WATCHED, Curve, Run
from geobind.report.figures import DASHES, INK, SERIES, Draw, Panel
from geobind.utils.formatting import number

TITLES = {
    "loss": "loss",
    "temperature": "temperature",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    WATCHED: "validation",
}
MOST_POINTS = 160
_SIZE = (2.9, 1.75)  # inches


class Thinned(NamedTuple):
    """A curve with few enough points to draw: means over runs of steps, and what lies around them."""

    step_P: NDArray[np.float64]
    mean_P: NDArray[np.float64]
    low_P: NDArray[np.float64]
    high_P: NDArray[np.float64]


def thinned(curve: Curve, most: int = MOST_POINTS) -> Thinned:
    """Take means, least and greatest values over at most `most` runs of steps of equal length."""
    edges = np.linspace(0, len(curve.step_S), min(most, len(curve.step_S)) + 1).astype(int)
    parts = [slice(start, stop) for start, stop in pairwise(edges)]
    return Thinned(
        np.array([curve.step_S[part].mean() for part in parts]),
        np.array([curve.value_S[part].mean() for part in parts]),
        np.array([curve.value_S[part].min() for part in parts]),
        np.array([curve.value_S[part].max() for part in parts]),
    )


def stage_panels(run: Run) -> list[tuple[str, list[Panel]]]:
    """The panels of every stage that has been looked at, in the order of the recipe."""
    return [
        (stage, [_panel(f"curve-{place}-{m}", [curves], m, stage) for m in _measures([curves])])
        for place, (stage, curves) in enumerate(run.curves.items())
    ]


def overlaid_panels(runs: Sequence[Run]) -> list[tuple[str, list[Panel]]]:
    """The same panels with a line for each run, for every stage that at least one of them has."""
    stages = list(dict.fromkeys(stage for run in runs for stage in run.curves))
    return [
        (
            stage,
            [
                _panel(f"curve-{place}-{m}", [run.curves.get(stage, {}) for run in runs], m, stage)
                for m in _measures([run.curves.get(stage, {}) for run in runs])
            ],
        )
        for place, stage in enumerate(stages)
    ]


def title(measure: str) -> str:
    """Name a measure of a stage, such as `loss:one-other`, the loss of one of its pairs."""
    kind, _, pair = measure.partition(":")
    return f"{TITLES[kind]}, {pair}" if pair else TITLES[kind]


def _measures(of_runs: Sequence[Mapping[str, Curve]]) -> list[str]:
    there = dict.fromkeys(measure for curves in of_runs for measure in curves)
    return [m for m in MEASURES if m in there] + [m for m in there if m not in MEASURES]


def _panel(name: str, of_runs: Sequence[Mapping[str, Curve]], measure: str, stage: str) -> Panel:
    curves = [found.get(measure) for found in of_runs]
    there = [curve for curve in curves if curve is not None]
    ends = "; ".join(f"{number(c.value_S[0])} at first, {number(c.value_S[-1])} at last" for c in there)
    alt = f"{title(measure)} of stage {stage} over its steps: {ends}"
    return Panel(name, _draw(curves, measure), *_SIZE, alt, title=f"{stage}: {title(measure)}")


def _draw(curves: Sequence[Curve | None], measure: str) -> Draw:
    def draw(axes: Axes) -> None:
        alone = len(curves) == 1
        for place, curve in enumerate(curves):
            if curve is None or not np.isfinite(curve.value_S).any():
                continue
            points = thinned(curve)
            colour = SERIES[place % len(SERIES)]
            dashes = DASHES[place % len(DASHES)]
            if alone and len(curve.step_S) > MOST_POINTS:
                axes.fill_between(points.step_P, points.low_P, points.high_P, color=colour, alpha=0.2, lw=0)
            marker = "o" if len(points.step_P) == 1 else None
            axes.plot(points.step_P, points.mean_P, color=colour, lw=1.4, ls=dashes, marker=marker)
        axes.set_title(title(measure), color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}".replace("e-0", "e-"))

    return draw
