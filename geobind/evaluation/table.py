"""A table of pairs for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from geobind.evaluation.pairs import PairTable
from geobind.evaluation.retrieval import Metric

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = ("R@1", "R@10", "R@1%", "median_rank", "label_mAP", "place_nDCG")


def render(table: PairTable, metrics: Sequence[str] = SHOWN) -> Table:
    """The pairs as a rich table: each figure with its interval, and chance below it.

    Args:
        table: what `evaluate_pairs` returned.
        metrics: names of the columns; those that no pair has are left out.
    """
    from rich.table import Table

    columns = [name for name in metrics if any(name in row.retrieval.metrics for row in table.rows)]
    grid = Table(title="Retrieval between modalities", caption=_caption(table))
    grid.add_column("query")
    grid.add_column("gallery")
    grid.add_column("pair")
    grid.add_column("items", justify="right")
    for name in columns:
        grid.add_column(name, justify="right")
    for row in table.rows:
        mark = row.mark if row.trained else f"[bold]{row.mark}[/bold]"
        cells = [_cell(row.retrieval.metrics.get(name)) for name in columns]
        grid.add_row(row.query, row.gallery, mark, f"{row.retrieval.gallery:,}", *cells)
    return grid


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    value, low, high, chance = (
        _number(part) for part in (metric.value, metric.low, metric.high, metric.chance)
    )
    return f"{value} [dim]({low} to {high})\nchance {chance}[/dim]"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 1.5 else f"{value:.3f}"


def _caption(table: PairTable) -> str:
    settings = table.settings
    lines = [f"{settings.confidence:.0%} intervals: {settings.resamples} resamples of the queries"]
    lines += [f"not measured: {' and '.join(pair.modalities)}: {pair.reason}" for pair in table.skipped]
    return "\n".join(lines)
