"""Reliability diagrams: how often what was given a probability came true."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.axes import Axes

from geobind.report.figures import INK, MUTED, SERIES, Draw, Panel
from geobind.report.left_more import CalibrationDone, ReliabilityDone

_SIDE = 2.3  # inches
_LARGEST = 160.0  # square points of a dot that stands for all predictions


def reliability_panels(calibration: CalibrationDone) -> list[Panel]:
    """A small diagram for each direction of each pair, then one for each pair's matches."""
    return [*_panels(calibration)]


def _panels(calibration: CalibrationDone) -> Iterator[Panel]:
    for number, one in enumerate(calibration.choices):
        yield _panel(f"choice-{number}", f"{one.query} → {one.gallery}", one.fitted)
    for number, one in enumerate(calibration.matchings):
        title = f"{one.modalities[0]}, {one.modalities[1]}: a match?"
        yield _panel(f"matching-{number}", title, one.fitted)


def _panel(name: str, title: str, known: ReliabilityDone) -> Panel:
    points = "; ".join(f"{b.predicted:.2f} came true {b.happened:.2f}" for b in known.bins)
    alt = f"reliability of {title}: {points}"
    return Panel(name, _draw(known, title), _SIDE, _SIDE, alt, title=title)


def _draw(known: ReliabilityDone, title: str) -> Draw:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (3, 2)))
        for one in known.bins:
            axes.plot([one.predicted] * 2, [one.predicted, one.happened], color=MUTED, lw=0.6)
        predicted, happened = [one.predicted for one in known.bins], [one.happened for one in known.bins]
        sizes = [max(6.0, _LARGEST * one.share) for one in known.bins]
        axes.scatter(predicted, happened, s=sizes, c=SERIES[0], alpha=0.85, linewidths=0, zorder=3)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])
        axes.set_title(title, color=INK, size=8.5)

    return draw
