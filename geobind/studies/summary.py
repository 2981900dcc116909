"""Summaries of studies: tables, plots, the page of a sweep."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes

from geobind.errors import DataError
from geobind.evaluation import PairTable
from geobind.evaluation.intervals import student_quantile
from geobind.report.page import render_template
from geobind.report.plots import (
    INK,
    MARKERS,
    SERIES,
    TITLES,
    Draw,
    Panel,
    draw_png,
    draw_svg,
    headline_measure,
)
from geobind.report.run_files import Run, read_run
from geobind.studies.runner import CellResult
from geobind.utils import files, formatting

if TYPE_CHECKING:
    from rich.table import Table


SEED = "seed"  # the axis whose values are repetitions, not settings
MARKS = ("trained", "emergent")
UNTRAINED_ROW = "(untrained)"  # of the baseline: encoders of the first setting before any stage


class SeedInterval(NamedTuple):
    """A mean over seeds, and the half-width of its 95 % interval, NaN for a single seed."""

    mean: float
    half: float
    runs: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Return plain values for JSON; unknown figures are None."""
        half = self.half if math.isfinite(self.half) else None
        return {"mean": self.mean if self.runs else None, "half_width": half, "seeds": self.runs}


class SettingRow(NamedTuple):
    """One setting of a study."""

    settings: Mapping[str, str]  # without the seed
    folders: tuple[Path, ...]
    failed: int
    measured: Mapping[str, SeedInterval]  # by kind of pair: trained, emergent
    chance: float
    seconds: SeedInterval


class SweepSummary(NamedTuple):
    """The result of a sweep."""

    measure: str  # such as R@10
    axes: tuple[str, ...]
    lines: tuple[SettingRow, ...]
    untrained: Mapping[str, float] | None = (
        None  # the first setting's encoders before any stage, by kind of pair
    )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; unknown figures are None."""
        return {
            "measure": self.measure,
            "untrained": {mark: _known(value) for mark, value in (self.untrained or {}).items()},
            "settings": [
                {
                    "settings": dict(line.settings),
                    "folders": [str(folder) for folder in line.folders],
                    "failed": line.failed,
                    **{mark: figure.to_dict() for mark, figure in line.measured.items()},
                    "chance": _known(line.chance),
                    "seconds": line.seconds.to_dict(),
                }
                for line in self.lines
            ],
        }


def seed_interval(values: Sequence[float]) -> SeedInterval:
    """Compute the mean and 95 % t interval of repetitions (Student 1908), without NaN values."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return SeedInterval(math.nan, math.nan, 0)
    if len(known) == 1:
        return SeedInterval(known[0], math.nan, 1)
    t = student_quantile(0.95, len(known) - 1)
    return SeedInterval(fmean(known), t * stdev(known) / math.sqrt(len(known)), len(known))


def summarise_sweep(
    ran: Sequence[CellResult], measure: str | None = None, untrained: PairTable | None = None
) -> SweepSummary:
    """Summarise the runs of a sweep, the seeds of each setting together.

    Args:
        ran: The cells.
        measure: A measure of `retrieval.json`; default: recall@10, or recall@1 in small galleries.
        untrained: Figures of encoders before any stage, as a baseline.

    Raises:
        DataError: No cell has finished, or none has the measure.
    """
    runs = {one.folder: read_run(one.folder) for one in ran if not one.failed}
    tables = [run.retrieved for run in runs.values() if run.retrieved and run.retrieved.rows]
    if not tables:
        raise DataError(
            "no run of the study has measured anything; give the recipe an `evaluate:` block, "
            "or look at what the failed runs said"
        )
    chosen = choose_measure(tables[0], measure)
    axes = tuple(name for name in ran[0].cell.settings if name != SEED)
    groups: dict[tuple[str, ...], list[CellResult]] = {}
    for one in ran:
        groups.setdefault(tuple(one.cell.settings[axis] for axis in axes), []).append(one)
    lines = [_line(dict(zip(axes, key, strict=True)), group, runs, chosen) for key, group in groups.items()]
    baseline = {mark: mean_of_pairs(untrained, chosen, mark)[0] for mark in MARKS} if untrained else None
    return SweepSummary(chosen, axes, tuple(lines), baseline)


def choose_measure(table: PairTable, wanted: str | None) -> str:
    """Return the requested measure, else the headline measure.

    Raises:
        DataError: The table has no such measure.
    """
    chosen, there = wanted or headline_measure(table), table.rows[0].metrics
    if chosen not in there:
        raise DataError(f"no measure '{chosen}'; the runs have {', '.join(there)}")
    return chosen


def mean_of_pairs(table: PairTable | None, measure: str, mark: str | None = None) -> tuple[float, float]:
    """Return the means of a measure and of its chance over the ordered pairs with a mark, or over all."""
    rows = [row for row in (table.rows if table else ()) if mark in (None, row.mark)]
    found = [row.metrics[measure] for row in rows if measure in row.metrics]
    if not found:
        return math.nan, math.nan
    return fmean(one.value for one in found), fmean(one.chance for one in found)


def render_csv(summary: SweepSummary) -> bytes:
    """Render a sweep as CSV, with shares from 0 to 1."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    figures = [f"{summary.measure} {mark}{part}" for mark in MARKS for part in ("", " ±")]
    writer.writerow([*summary.axes, "runs", "failed", *figures, "chance", "seconds"])
    for line in summary.lines:
        values = [_plain(value) for mark in MARKS for value in line.measured[mark][:2]]
        ends = (_plain(line.chance), _plain(line.seconds.mean))
        writer.writerow([*line.settings.values(), len(line.folders), line.failed, *values, *ends])
    return text.getvalue().encode()


def _line(
    settings: Mapping[str, str], group: Sequence[CellResult], runs: Mapping[Path, Run], measure: str
) -> SettingRow:
    done = [runs[one.folder] for one in group if one.folder in runs]
    return SettingRow(
        settings,
        tuple(run.folder for run in done),
        len(group) - len(done),
        {
            mark: seed_interval([mean_of_pairs(run.retrieved, measure, mark)[0] for run in done])
            for mark in MARKS
        },
        seed_interval([mean_of_pairs(run.retrieved, measure)[1] for run in done]).mean,
        seed_interval([sum(stage.seconds for stage in run.stages) for run in done]),
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


_WIDTH, _HEIGHT = 4.6, 3.0  # inches of a panel
_APART = 0.5  # horizontal spread of the markers at one x position


class TextTable(NamedTuple):
    """A table, as text."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


Series = Mapping[str, Mapping[str, SeedInterval]]  # what a mark stands for -> place on the x axis -> figure


def write_study(
    home: Path,
    name: str,
    title: str,
    notes: Sequence[str],
    grids: Sequence[TextTable],
    panels: Sequence[Panel],
) -> Path:
    """Write NAME.html and NAME.png into the study's folder; return the page.

    Raises:
        StorageError: One of them cannot be written.
    """
    if panels:
        files.write_atomic(home / f"{name}.png", draw_png(list(panels), columns=min(2, len(panels))))
    page = home / f"{name}.html"
    drawn = [draw_svg(panel) for panel in panels]
    files.write_atomic(
        page, render_template("study.html", title=title, notes=notes, tables=grids, plots=drawn)
    )
    return page


def to_rich_table(grid: TextTable) -> Table:
    """Return the table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(grid.title))
    for head in grid.heads:
        table.add_column(escape(head), overflow="fold")
    for row in grid.rows:
        table.add_row(*map(escape, row))
    return table


def format_interval(figure: SeedInterval) -> str:
    """Format a mean and its interval."""
    if not math.isfinite(figure.half):
        return formatting.format_number(figure.mean)
    return f"{formatting.format_number(figure.mean)} ± {formatting.format_number(figure.half)}"


def dot_panel(name: str, title: str, series: Series, chance: float, axis: str = "") -> Panel:
    """Build a panel with a marker and interval for each figure, and chance as a dotted line.

    Args:
        name: Unique in a page.
        title: What is measured.
        series: The figures.
        chance: Its chance level; NaN draws no line.
        axis: The label of the x axis.
    """
    places = list(dict.fromkeys(place for figures in series.values() for place in figures))
    told = [
        f"{', '.join(filter(None, (label, place)))}: {format_interval(figure)}"
        for label, figures in series.items()
        for place, figure in figures.items()
    ]
    return Panel(
        name,
        _draw(series, places, chance, axis),
        max(_WIDTH, 0.75 * len(places) + 1),
        _HEIGHT + 0.2 * (len(series) > 1) * -(-len(series) // 3),
        f"{title} by {axis or 'setting'}: {'; '.join(told)}",
        title=title,
    )


def _draw(series: Series, places: Sequence[str], chance: float, axis: str) -> Draw:
    def draw(axes: Axes) -> None:
        step = _APART / max(len(series), 1)
        for number, (label, figures) in enumerate(series.items()):
            x = [places.index(place) + (number - (len(series) - 1) / 2) * step for place in figures]
            halves = [figure.half if math.isfinite(figure.half) else 0.0 for figure in figures.values()]
            marker, colour = MARKERS[number % len(MARKERS)], SERIES[number % len(SERIES)]
            means = [figure.mean for figure in figures.values()]
            axes.errorbar(x, means, halves, fmt=marker, color=colour, label=label or None, capsize=2)
        if math.isfinite(chance):
            axes.axhline(chance, color=INK, linewidth=0.8, linestyle=":")
            axes.annotate("chance", (len(places) - 0.5, chance), ha="right", va="bottom", fontsize=7.5)
        long = max(map(len, places), default=0) * len(places) > 60
        turned: dict[str, Any] = {"rotation": 25, "ha": "right"} if long else {}
        axes.set_xticks(range(len(places)), places, **turned)
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.set_xlabel(axis)
        if len(series) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=3)

    return draw


_NOTE = (
    "Figures are means over the ordered pairs of modalities on held-out rows. ± is half of a 95 % t interval "
    "over seeds; without it there was one seed, and a small difference means nothing."
)


def write_sweep(summary: SweepSummary, title: str, home: Path) -> Path:
    """Write sweep.csv, sweep.png and sweep.html into the study's folder; return the page.

    Raises:
        StorageError: One of them cannot be written.
    """
    files.write_atomic(home / "sweep.csv", render_csv(summary))
    return write_study(home, "sweep", title, [_NOTE], [sweep_table(summary)], sweep_panels(summary))


def sweep_table(summary: SweepSummary, title: str = "Results") -> TextTable:
    """Build the table of a sweep, with a row for each setting."""
    measure = TITLES.get(summary.measure, summary.measure)
    heads = [*summary.axes, "runs", *(f"{measure} {mark}" for mark in MARKS), "chance", "training time"]
    rows = [
        [
            *line.settings.values(),
            f"{len(line.folders)}" + (f" ({line.failed} failed)" if line.failed else ""),
            *(format_interval(line.measured[mark]) for mark in MARKS),
            formatting.format_number(line.chance),
            formatting.format_duration(line.seconds.mean),
        ]
        for line in summary.lines
    ]
    if summary.untrained:
        first = [UNTRAINED_ROW, *[""] * (len(summary.axes) - 1)] if summary.axes else []
        means = [formatting.format_number(summary.untrained[mark]) for mark in MARKS]
        rows.append([*first, "untrained" if not first else "", *means, "", ""])
    return TextTable(title, heads, rows)


def sweep_panels(summary: SweepSummary) -> list[Panel]:
    """Build a panel for each kind of pair: the first axis as x, a marker for each other setting."""
    there = [mark for mark in MARKS if any(line.measured[mark].runs for line in summary.lines)]
    return [_panel(summary, mark) for mark in there]


def _panel(summary: SweepSummary, mark: str) -> Panel:
    measure = TITLES.get(summary.measure, summary.measure)
    first, *others = summary.axes or ("",)
    series: dict[str, dict[str, SeedInterval]] = {}
    for line in summary.lines:
        label = ", ".join(line.settings[axis] for axis in others)
        series.setdefault(label, {})[line.settings.get(first, "run")] = line.measured[mark]
    return dot_panel(f"sweep-{mark}", f"{measure}, {mark} pairs", series, summary.lines[0].chance, first)
