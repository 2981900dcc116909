"""Figures of reports: curves, matrices, reliability, few-shot curves."""

# S steps looked at, P points drawn

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from geobind.evaluation import Metric, PairRow, PairTable
from geobind.evaluation.calibration import CalibrationResult, Reliability
from geobind.evaluation.few_shot_curves import FewShotCurve, FewShotPoint, ProbeResults, Shots
from geobind.report.run_files import (
    MEASURES,
    WATCHED,
    Run,
    StageCurve,
)
from geobind.utils.formatting import format_number

INK, MUTED, GRID, LAND = "#1d2125", "#5b636b", "#d8dce0", "#eceae3"
# Okabe and Ito's palette, which colour-blind people can tell apart, without its yellow.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7d7d7d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SIGNS = ("●", "■", "▲", "◆", "▼", "✚", "✖")  # the markers as letters, for keys outside of a drawing
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
# From found first to far off: blue to rust; shapes differ as well.
BANDS = ("#08519c", "#4f9bd0", "#d99a3d", "#a63d17")

# Each colour of a figure becomes a variable of the style sheet, which has a light and a dark value for it.
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--rule",
    LAND: "--land",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
    **{colour: f"--band-{number}" for number, colour in enumerate(BANDS)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

Draw = Callable[[Axes], None]


class Panel(NamedTuple):
    """One drawing: how to draw it, its size in inches, and its text alternative."""

    name: str  # unique in a page
    draw: Draw
    width: float
    height: float
    alt: str
    title: str = ""  # for a PNG, which stands alone; a page has headings and captions
    legend: bool = False  # for a PNG as well


def draw_svg(panel: Panel) -> Markup:
    """Draw a panel as SVG to be put into a page."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": panel.name}):
        figure = _figure([panel], 1, alone=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), panel)


def draw_png(panels: list[Panel], columns: int, dpi: int = 144) -> bytes:
    """Draw panels side by side as one PNG on white."""
    with mpl.rc_context({**_STYLE, "figure.facecolor": "white"}):
        buffer = io.BytesIO()
        _figure(panels, columns, alone=True).savefig(
            buffer, format="png", dpi=dpi, metadata={"Software": None}
        )
    return buffer.getvalue()


def _figure(panels: list[Panel], columns: int, *, alone: bool) -> Figure:
    rows = -(-len(panels) // columns)
    legend = 0.5 if alone and any(panel.legend for panel in panels) else 0.0
    figure = Figure(
        figsize=(columns * max(p.width for p in panels), rows * (max(p.height for p in panels) + legend)),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, axis in zip(panels, axes, strict=False):
        panel.draw(axis)
        if alone and panel.title:
            axis.set_title(panel.title)
        if alone and panel.legend:
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=4, handletextpad=0.1)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def _for_page(text: str, panel: Panel) -> Markup:
    """Strip what a page does not want of an SVG file, and make its ids and colours the page's own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)  # matplotlib repeats each label as a comment
    # A hundredth of a point is enough, and coastlines have thousands of them.
    text = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    own = re.sub(r"\W", "-", panel.name)
    text = re.sub(r'\bid="', f'id="{own}-', text)
    text = text.replace("url(#", f"url(#{own}-").replace('href="#', f'href="#{own}-')
    for colour, variable in _VARIABLES.items():
        text = text.replace(f": {colour}", f": var({variable})")
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _opening(panel), text, count=1)
    return Markup(text)


def _opening(panel: Panel) -> str:
    alt = str(Markup.escape(panel.alt)).replace("\\", r"\\")
    return rf'<svg viewBox="\1" role="img" aria-label="{alt}">'


MAIN = ("R@1", "R@10", "R@1%", "median_rank", "label_mAP", "place_nDCG")
LOWER_IS_BETTER = ("median_rank", "mean_rank")
TITLES = {
    "median_rank": "median rank",
    "mean_rank": "mean rank",
    "label_mAP": "label mAP",
    "label_nDCG": "label nDCG",
    "place_nDCG": "place nDCG",
}
_SMALL_GALLERY = 50  # with fewer gallery items than this, one in ten finds its match by chance
_WASH = LinearSegmentedColormap.from_list("wash", ["#ffffff", SERIES[0]])


class MatrixCell(NamedTuple):
    """One cell of the matrix."""

    pair: PairRow
    measured: Metric


def headline_measure(retrieved: PairTable) -> str:
    """Choose the metric of the matrix: recall@10, or recall@1 in small galleries."""
    small = min((row.gallery_size for row in retrieved.rows), default=0) < _SMALL_GALLERY
    wanted = ("R@1", "R@10") if small else ("R@10", "R@1")
    metrics = retrieved.rows[0].metrics if retrieved.rows else {}
    return next((name for name in wanted if name in metrics), next(iter(metrics), ""))


def explain_measure(measure: str) -> str:
    """Explain what a cell of the matrix shows."""
    title = TITLES.get(measure, measure)
    if not measure.startswith("R@"):
        return f"{title} of queries (rows) in a gallery (columns)."
    first = measure.removeprefix("R@")
    where = f"in the first {first}" if first.endswith("%") else f"among the first {first}"
    return f"{title}: the share of queries (rows) whose right answer is {where} of the gallery (columns)."


def beats_chance(measure: str, measured: Metric) -> bool:
    """Return whether the whole interval lies on the better side of chance."""
    if measure in LOWER_IS_BETTER:
        return measured.high < measured.chance
    return measured.low > measured.chance


def matrix_cells(retrieved: PairTable, measure: str) -> dict[tuple[str, str], MatrixCell]:
    """Return the cells of the matrix, by query and gallery."""
    return {
        (row.query, row.gallery): MatrixCell(row, row.metrics[measure])
        for row in retrieved.rows
        if measure in row.metrics
    }


def matrix_panel(retrieved: PairTable, measure: str) -> Panel:
    """Draw the matrix for slides and papers; the page shows it as a table."""
    names = retrieved.modalities
    cells = matrix_cells(retrieved, measure)

    def draw(axes: Axes) -> None:
        for (query, gallery), (pair, measured) in cells.items():
            corner = names.index(gallery), names.index(query)
            trained = pair.mark == "trained"
            face = _WASH(0.75 * min(max(measured.value, 0.0), 1.0))
            square = Rectangle(
                (corner[0] + 0.04, corner[1] + 0.04), 0.92, 0.92, facecolor=face, edgecolor=INK
            )
            square.set(linewidth=1.4 if trained else 0.8, linestyle="-" if trained else ":")
            axes.add_patch(square)
            middle = corner[0] + 0.5
            axes.text(
                middle, corner[1] + 0.45, format_number(measured.value), ha="center", va="center", size=11
            )
            chance = f"chance {format_number(measured.chance)}"
            below = chance if trained else f"{chance}\n{pair.mark}"
            axes.text(middle, corner[1] + 0.74, below, ha="center", va="center", size=7, color=MUTED)
        axes.set(xlim=(0, len(names)), ylim=(len(names), 0), aspect="equal")
        axes.set_xticks([place + 0.5 for place in range(len(names))], names)
        axes.set_yticks([place + 0.5 for place in range(len(names))], names)
        axes.set_title(f"{TITLES.get(measure, measure)}; solid frame: trained pairs")
        axes.set_xlabel("gallery")
        axes.set_ylabel("query")
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    side = 1.4 + 0.95 * len(names)
    return Panel("matrix", draw, side + 0.4, side, f"{measure} between {', '.join(names)}")


CURVE_TITLES = {
    "loss": "loss",
    "temperature": "temperature",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    WATCHED: "validation",
}
MAX_POINTS = 160
_CURVE_SIZE = (2.9, 1.75)  # inches


class ThinnedCurve(NamedTuple):
    """A curve thinned for drawing: means over windows of steps, with their range."""

    step_P: NDArray[np.float64]
    mean_P: NDArray[np.float64]
    low_P: NDArray[np.float64]
    high_P: NDArray[np.float64]


def thin_curve(curve: StageCurve, max_points: int = MAX_POINTS) -> ThinnedCurve:
    """Thin a curve to mean, minimum and maximum over at most `max_points` windows of equal length."""
    edges = np.linspace(0, len(curve.step_S), min(max_points, len(curve.step_S)) + 1).astype(int)
    parts = [slice(start, stop) for start, stop in pairwise(edges)]
    return ThinnedCurve(
        np.array([curve.step_S[part].mean() for part in parts]),
        np.array([curve.value_S[part].mean() for part in parts]),
        np.array([curve.value_S[part].min() for part in parts]),
        np.array([curve.value_S[part].max() for part in parts]),
    )


def stage_panels(run: Run) -> list[tuple[str, list[Panel]]]:
    """Build the panels of every stage with metrics, in the order of the recipe."""
    return [
        (stage, [_curve_panel(f"curve-{place}-{m}", [curves], m, stage) for m in _measures([curves])])
        for place, (stage, curves) in enumerate(run.curves.items())
    ]


def overlaid_panels(runs: Sequence[Run]) -> list[tuple[str, list[Panel]]]:
    """Build the same panels with a line for each run."""
    stages = list(dict.fromkeys(stage for run in runs for stage in run.curves))
    return [
        (
            stage,
            [
                _curve_panel(f"curve-{place}-{m}", [run.curves.get(stage, {}) for run in runs], m, stage)
                for m in _measures([run.curves.get(stage, {}) for run in runs])
            ],
        )
        for place, stage in enumerate(stages)
    ]


def curve_title(measure: str) -> str:
    """Return the title of a stage's metric, such as `loss:one-other`, the loss of one pair."""
    kind, _, pair = measure.partition(":")
    return f"{CURVE_TITLES[kind]}, {pair}" if pair else CURVE_TITLES[kind]


def _measures(of_runs: Sequence[Mapping[str, StageCurve]]) -> list[str]:
    present = dict.fromkeys(measure for curves in of_runs for measure in curves)
    return [m for m in MEASURES if m in present] + [m for m in present if m not in MEASURES]


def _curve_panel(name: str, of_runs: Sequence[Mapping[str, StageCurve]], measure: str, stage: str) -> Panel:
    curves = [curves_of_run.get(measure) for curves_of_run in of_runs]
    drawn = [curve for curve in curves if curve is not None]
    ends = "; ".join(
        f"{format_number(c.value_S[0])} at first, {format_number(c.value_S[-1])} at last" for c in drawn
    )
    alt = f"{curve_title(measure)} of stage {stage} over its steps: {ends}"
    heading = f"{stage}: {curve_title(measure)}"
    return Panel(name, _draw_curves(curves, measure), *_CURVE_SIZE, alt, title=heading)


def _draw_curves(curves: Sequence[StageCurve | None], measure: str) -> Draw:
    def draw(axes: Axes) -> None:
        alone = len(curves) == 1
        for place, curve in enumerate(curves):
            if curve is None or not np.isfinite(curve.value_S).any():
                continue
            points = thin_curve(curve)
            colour = SERIES[place % len(SERIES)]
            dashes = DASHES[place % len(DASHES)]
            if alone and len(curve.step_S) > MAX_POINTS:
                axes.fill_between(points.step_P, points.low_P, points.high_P, color=colour, alpha=0.2, lw=0)
            marker = "o" if len(points.step_P) == 1 else None
            axes.plot(points.step_P, points.mean_P, color=colour, lw=1.4, ls=dashes, marker=marker)
        axes.set_title(curve_title(measure), color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}".replace("e-0", "e-"))

    return draw


_SIDE = 2.3  # inches
_LARGEST = 160.0  # square points of a dot that stands for all predictions


def reliability_panels(calibration: CalibrationResult) -> list[Panel]:
    """Build a small diagram for each direction of each pair, then one for each pair's matches."""
    return [*_iterate_reliability_panels(calibration)]


def _iterate_reliability_panels(calibration: CalibrationResult) -> Iterator[Panel]:
    for index, one in enumerate(calibration.choices):
        yield _reliability_panel(f"choice-{index}", f"{one.query} → {one.gallery}", one.fitted)
    for index, one in enumerate(calibration.matchings):
        title = f"{one.modalities[0]}, {one.modalities[1]}: a match?"
        yield _reliability_panel(f"matching-{index}", title, one.fitted)


def _reliability_panel(name: str, title: str, known: Reliability) -> Panel:
    points = "; ".join(f"{b.predicted:.2f} came true {b.happened:.2f}" for b in known.bins)
    alt = f"reliability of {title}: {points}"
    return Panel(name, _draw_reliability(known, title), _SIDE, _SIDE, alt, title=title)


def _draw_reliability(known: Reliability, title: str) -> Draw:
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


_PROBE_SIZE = (6.4, 4.2)  # inches


def probe_panel(probes: ProbeResults) -> Panel:
    """Draw every curve with its interval, zero-shot figures at 0 shots, chance as a line."""
    ends = "; ".join(
        f"{features}, {curve.classifier}: "
        f"{_describe_point(curve.points[0])}, {_describe_point(curve.points[-1])}"
        for features, curves in (probes.curves or {}).items()
        for curve in curves
    )
    return Panel(
        "few-shot-curve",
        _draw_probe(probes),
        *_PROBE_SIZE,
        alt=f"Accuracy of recognising {probes.modality} by examples of each class: {ends}",
        title=f"few-shot recognition of {probes.modality}",
    )


def _describe_point(point: FewShotPoint) -> str:
    return f"{point.metrics['accuracy'].value:.3f} at {point.shots}"


def axis_positions(probes: ProbeResults) -> dict[Shots, int]:
    """Return the axis position of each number of shots: 0 for zero-shot, then one step apart."""
    shots = [
        point.shots for curves in (probes.curves or {}).values() for curve in curves for point in curve.points
    ]
    counts = sorted({k for k in shots if isinstance(k, int)} | ({0} if probes.zero_shot else set()))
    named: list[Shots] = [*counts]
    if "all" in shots:
        named.append("all")
    return {k: place for place, k in enumerate(named)}


def _draw_probe(probes: ProbeResults) -> Draw:
    where = axis_positions(probes)

    def draw(axes: Axes) -> None:
        axes.axhline(probes.chance, color=MUTED, lw=0.8, ls=":", label="chance")
        for index, (features, curves) in enumerate((probes.curves or {}).items()):
            for style, curve in enumerate(curves):
                _draw_probe_curve(axes, where, curve, features, index, style)
        for index, (through, recognition) in enumerate((probes.zero_shot or {}).items()):
            metric = recognition.metrics["accuracy"]
            reach = [[metric.value - metric.low], [metric.high - metric.value]]
            colour, marker = SERIES[-1 - index % len(SERIES)], MARKERS[-1 - index % len(MARKERS)]
            # Side by side, for they share the place of 0 shots.
            place = where[0] + 0.12 * index
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


def _draw_probe_curve(
    axes: Axes, where: dict[Shots, int], curve: FewShotCurve, features: str, index: int, style: int
) -> None:
    metrics = [point.metrics["accuracy"] for point in curve.points]
    place = [where[point.shots] for point in curve.points]
    colour = SERIES[index % len(SERIES)]
    axes.fill_between(
        place, [m.low for m in metrics], [m.high for m in metrics], color=colour, alpha=0.12, lw=0
    )
    axes.plot(
        place,
        [m.value for m in metrics],
        color=colour,
        ls=DASHES[style % len(DASHES)],
        marker=MARKERS[index % len(MARKERS)],
        ms=4,
        lw=1.4,
        label=f"{features}, {curve.classifier}",
    )
