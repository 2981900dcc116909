"""The table, the plots and the page of a sweep."""

from __future__ import annotations

from pathlib import Path

from geobind.report.plots import TITLES, Panel
from geobind.studies.outcome import MARKS, Spread, Summary, table_csv
from geobind.studies.showing import Grid, dots, said, write_study
from geobind.utils import files, formatting

_NOTE = (
    "Figures are means over the ordered pairs of modalities on held-out rows. ± is half of a 95 % t interval "
    "over seeds; without it there was one seed, and a small difference means nothing."
)


def write_sweep(summary: Summary, title: str, home: Path) -> Path:
    """Write sweep.csv, sweep.png and sweep.html into the study's folder; return the page.

    Raises:
        StorageError: One of them cannot be written.
    """
    files.write(home / "sweep.csv", table_csv(summary))
    return write_study(home, "sweep", title, [_NOTE], [table_of(summary)], plots(summary))


def table_of(summary: Summary, title: str = "Results") -> Grid:
    """The table: a row for each setting."""
    measure = TITLES.get(summary.measure, summary.measure)
    heads = [*summary.axes, "runs", *(f"{measure} {mark}" for mark in MARKS), "chance", "training time"]
    rows = [
        [
            *line.settings.values(),
            f"{len(line.folders)}" + (f" ({line.failed} failed)" if line.failed else ""),
            *(said(line.measured[mark]) for mark in MARKS),
            formatting.number(line.chance),
            formatting.duration(line.seconds.mean),
        ]
        for line in summary.lines
    ]
    return Grid(title, heads, rows)


def plots(summary: Summary) -> list[Panel]:
    """A panel for each kind of pair: the first axis from left to right, a mark for each other setting."""
    there = [mark for mark in MARKS if any(line.measured[mark].runs for line in summary.lines)]
    return [_panel(summary, mark) for mark in there]


def _panel(summary: Summary, mark: str) -> Panel:
    measure = TITLES.get(summary.measure, summary.measure)
    first, *others = summary.axes or ("",)
    series: dict[str, dict[str, Spread]] = {}
    for line in summary.lines:
        label = ", ".join(line.settings[axis] for axis in others)
        series.setdefault(label, {})[line.settings.get(first, "run")] = line.measured[mark]
    return dots(f"sweep-{mark}", f"{measure}, {mark} pairs", series, summary.lines[0].chance, first)
