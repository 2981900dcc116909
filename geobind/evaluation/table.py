"""A table of pairs for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from geobind.evaluation.pairs import PairTable
from geobind.evaluation.ranking.retrieval import Metric

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = ("R@1", "R@10", "median_rank", "label_mAP", "place_nDCG")


def render(table: PairTable, metrics: Sequence[str] = SHOWN) -> Table:
    """The pairs as a rich table: each figure above its interval and its chance level.

    Args:
        table: what `evaluate_pairs` returned.
        metrics: names of the columns; those that no pair has are left out.
    """
    from rich.table import Table

    columns = [name for name in metrics if any(name in row.retrieval.metrics for row in table.rows)]
    grid = Table(title="Retrieval between modalities", caption=_caption(table))
    grid.add_column("query to gallery", no_wrap=True)
    for name in columns:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        mark = row.mark if row.trained else f"[bold]{row.mark}[/bold]"
        pair = f"{row.query} to {row.gallery}\n{mark}\n[dim]{row.retrieval.gallery:,} in gallery[/dim]"
        cells = [_cell(row.retrieval.metrics.get(name)) for name in columns]
        grid.add_row(pair, *cells, end_section=True)
    return grid


def summary(table: PairTable, metrics: Sequence[str] = ("R@1", "R@5", "R@10", "median_rank")) -> Table:
    """The pairs as a rich table of one line each: trained ones, then emergent ones, chance in brackets.

    Args:
        table: what `evaluate_pairs` returned.
        metrics: names of the columns.
    """
    from rich.table import Table

    sizes = sorted({row.retrieval.gallery for row in table.rows})
    gallery = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else "0"
    grid = Table(box=None, padding=(0, 1, 0, 0), caption_justify="left", caption=_skipped(table))
    grid.add_column(f"gallery of {gallery}", no_wrap=True)
    for name in metrics:
        grid.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for mark in ("trained", "emergent"):
        rows = [row for row in table.rows if row.mark == mark]
        if rows:
            grid.add_row(f"[bold]{mark}[/bold]")
        for row in rows:
            cells = [_beside_chance(row.retrieval.metrics.get(name)) for name in metrics]
            grid.add_row(f"  {row.query} to {row.gallery}", *cells)
    return grid


def _beside_chance(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return f"{_number(metric.value)} [dim]({_number(metric.chance).removeprefix('0')})[/dim]"


def _skipped(table: PairTable) -> str | None:
    lines = [f"not measured: {' and '.join(pair.modalities)}: {pair.reason}" for pair in table.skipped]
    lines += [f"warning: {line}" for line in table.warnings]
    return "\n".join(lines) or None


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    value, low, high, chance = (
        _number(part) for part in (metric.value, metric.low, metric.high, metric.chance)
    )
    return f"{value}\n[dim]{low} to {high}\nchance {chance}[/dim]"


def _number(value: float) -> str:
    return f"{value:,.1f}" if abs(value) > 1 else f"{value:.3f}"


def _caption(table: PairTable) -> str:
    settings = table.settings
    lines = [f"{settings.confidence:.0%} intervals: {settings.resamples} resamples of the {table.drawn}"]
    skipped = _skipped(table)
    return "\n".join([*lines, *([skipped] if skipped else [])])
