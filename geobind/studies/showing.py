"""A study's result for people: tables for the terminal, plots, and one page with both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes

from geobind.report.page import render
from geobind.report.plots import INK, MARKERS, SERIES, Draw, Panel, png, svg
from geobind.studies.outcome import Spread
from geobind.utils import files, formatting

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH, _HEIGHT = 4.6, 3.0  # inches of a panel
_APART = 0.5  # how far the marks at one place of the x axis are spread, in its units


class Grid(NamedTuple):
    """A table, as text."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


Series = Mapping[str, Mapping[str, Spread]]  # what a mark stands for -> place on the x axis -> figure


def write_study(
    home: Path, name: str, title: str, notes: Sequence[str], grids: Sequence[Grid], panels: Sequence[Panel]
) -> Path:
    """Write NAME.html and NAME.png into the study's folder; return the page.

    Raises:
        StorageError: One of them cannot be written.
    """
    if panels:
        files.write(home / f"{name}.png", png(list(panels), columns=min(2, len(panels))))
    page = home / f"{name}.html"
    drawn = [svg(panel) for panel in panels]
    files.write(page, render("study.html", title=title, notes=notes, tables=grids, plots=drawn))
    return page


def rich_table(grid: Grid) -> Table:
    """The table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(grid.title))
    for head in grid.heads:
        table.add_column(escape(head), overflow="fold")
    for row in grid.rows:
        table.add_row(*map(escape, row))
    return table


def said(figure: Spread) -> str:
    """Write a mean and its interval."""
    if not math.isfinite(figure.half):
        return formatting.number(figure.mean)
    return f"{formatting.number(figure.mean)} ± {formatting.number(figure.half)}"


def dots(name: str, title: str, series: Series, chance: float, axis: str = "") -> Panel:
    """A panel with a mark and its interval for each figure, and chance as a dotted line.

    Args:
        name: Unique in a page.
        title: What is measured.
        series: The figures.
        chance: Its chance level; NaN draws no line.
        axis: What the places on the x axis are.
    """
    places = list(dict.fromkeys(place for figures in series.values() for place in figures))
    told = [
        f"{', '.join(filter(None, (label, place)))}: {said(figure)}"
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
