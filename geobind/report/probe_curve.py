"""The few-shot curve as a drawing: accuracy by examples of each class."""

from __future__ import annotations

from matplotlib.axes import Axes

from geobind.evaluation.few_shot_curves import Curve as FewShotCurve
from geobind.evaluation.few_shot_curves import Point, Probes, Shots
from geobind.report.figures import DASHES, MARKERS, MUTED, SERIES, Draw, Panel

_SIZE = (6.4, 4.2)  # inches


def probe_panel(probes: Probes) -> Panel:
    """Draw every curve with its interval, zero-shot figures at 0 shots, chance as a line."""
    ends = "; ".join(
        f"{features}, {curve.classifier}: {_said(curve.points[0])}, {_said(curve.points[-1])}"
        for features, curves in (probes.curves or {}).items()
        for curve in curves
    )
    return Panel(
        "few-shot-curve",
        _draw(probes),
        *_SIZE,
        alt=f"Accuracy of recognising {probes.modality} by examples of each class: {ends}",
        title=f"few-shot recognition of {probes.modality}",
    )


def _said(point: Point) -> str:
    return f"{point.metrics['accuracy'].value:.3f} at {point.shots}"


def places_of(probes: Probes) -> dict[Shots, int]:
    """Where each number of shots lies along the axis: 0 where there is zero-shot, then one step apart."""
    shots = [
        point.shots for curves in (probes.curves or {}).values() for curve in curves for point in curve.points
    ]
    counts = sorted({k for k in shots if isinstance(k, int)} | ({0} if probes.zero_shot else set()))
    named: list[Shots] = [*counts]
    if "all" in shots:
        named.append("all")
    return {k: place for place, k in enumerate(named)}


def _draw(probes: Probes) -> Draw:
    where = places_of(probes)

    def draw(axes: Axes) -> None:
        axes.axhline(probes.chance, color=MUTED, lw=0.8, ls=":", label="chance")
        for number, (features, curves) in enumerate((probes.curves or {}).items()):
            for style, curve in enumerate(curves):
                _line(axes, where, curve, features, number, style)
        for number, (through, found) in enumerate((probes.zero_shot or {}).items()):
            metric = found.metrics["accuracy"]
            reach = [[metric.value - metric.low], [metric.high - metric.value]]
            colour, marker = SERIES[-1 - number % len(SERIES)], MARKERS[-1 - number % len(MARKERS)]
            # Side by side, for they share the place of 0 shots.
            place = where[0] + 0.12 * number
            label = f"zero-shot, {through}"
            axes.errorbar(
                [place], [metric.value], reach, color=colour, marker=marker, lw=1, ls="", label=label
            )
        axes.set_xticks(list(where.values()), [str(k) for k in where])
        axes.set_xlabel("examples of each class")
        axes.set_ylabel("accuracy")
        axes.set_ylim(0, 1.02)
        axes.legend(loc="best", fontsize=7.5, handlelength=3.2)

    return draw


def _line(
    axes: Axes, where: dict[Shots, int], curve: FewShotCurve, features: str, number: int, style: int
) -> None:
    metrics = [point.metrics["accuracy"] for point in curve.points]
    place = [where[point.shots] for point in curve.points]
    colour = SERIES[number % len(SERIES)]
    axes.fill_between(
        place, [m.low for m in metrics], [m.high for m in metrics], color=colour, alpha=0.12, lw=0
    )
    axes.plot(
        place,
        [m.value for m in metrics],
        color=colour,
        ls=DASHES[style % len(DASHES)],
        marker=MARKERS[number % len(MARKERS)],
        ms=4,
        lw=1.4,
        label=f"{features}, {curve.classifier}",
    )
