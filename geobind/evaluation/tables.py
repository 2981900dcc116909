"""Tables of retrieval and probe results for terminals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from geobind.evaluation.classification import Recognition
from geobind.evaluation.few_shot_curves import FewShotCurve, FewShotPoint, ProbeResults, Shots
from geobind.evaluation.pairs import PairTable
from geobind.evaluation.retrieval_metrics import Metric

if TYPE_CHECKING:
    from rich.table import Table


SHOWN_METRICS = ("R@1", "R@10", "median_rank", "label_mAP", "place_nDCG")


def build_pair_table(table: PairTable, metrics: Sequence[str] = SHOWN_METRICS) -> Table:
    """The pairs as a rich table: each figure above its interval and its chance level.

    Args:
        table: what `evaluate_pairs` returned.
        metrics: names of the columns; those that no pair has are left out.
    """
    from rich.table import Table

    columns = [name for name in metrics if any(name in row.metrics for row in table.rows)]
    grid = Table(title="Retrieval between modalities", caption=_caption(table))
    grid.add_column("query to gallery", no_wrap=True)
    for name in columns:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        mark = row.mark if row.trained else f"[bold]{row.mark}[/bold]"
        pair = f"{row.query} to {row.gallery}\n{mark}\n[dim]{row.gallery_size:,} in gallery[/dim]"
        cells = [_cell(row.metrics.get(name)) for name in columns]
        grid.add_row(pair, *cells, end_section=True)
    return grid


def build_summary_table(
    table: PairTable, metrics: Sequence[str] = ("R@1", "R@5", "R@10", "median_rank")
) -> Table:
    """The pairs as a rich table of one line each: trained ones, then emergent ones, chance in brackets.

    Args:
        table: what `evaluate_pairs` returned.
        metrics: names of the columns.
    """
    from rich.table import Table

    sizes = sorted({row.gallery_size for row in table.rows})
    gallery = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else "0"
    grid = Table(box=None, padding=(0, 1, 0, 0), caption_justify="left", caption=_notes(table))
    grid.add_column(f"gallery of {gallery}", no_wrap=True)
    for name in metrics:
        grid.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for mark in ("trained", "emergent"):
        rows = [row for row in table.rows if row.mark == mark]
        if rows:
            grid.add_row(f"[bold]{mark}[/bold]")
        for row in rows:
            cells = [_beside_chance(row.metrics.get(name)) for name in metrics]
            grid.add_row(f"  {row.query} to {row.gallery}", *cells)
    return grid


def _beside_chance(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return f"{_number(metric.value)} [dim]({_number(metric.chance).removeprefix('0')})[/dim]"


def _notes(table: PairTable) -> str | None:
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
    skipped = _notes(table)
    return "\n".join([*lines, *([skipped] if skipped else [])])


_MAX_CONFUSIONS = 5  # pairs of classes listed


def build_probe_tables(probes: ProbeResults) -> list[Table]:
    """The tables of what was probed: each figure above its interval."""
    if probes.kind == "facts":
        return [_fact_table(probes)]
    tables = [_zero_shot_table(probes, probes.zero_shot)] if probes.zero_shot else []
    return [*tables, _few_shot_table(probes, probes.curves)] if probes.curves else tables


def find_confused_classes(
    found: Recognition, most: int = _MAX_CONFUSIONS
) -> Iterator[tuple[str, str, float]]:
    """Yield the classes mistaken for each other most often: the right one, the one given, and how often."""
    wrong_CC = found.confusion_CC * (1 - np.eye(len(found.classes)))
    for place in np.argsort(-wrong_CC, axis=None, kind="stable")[:most]:
        right, given = divmod(int(place), len(found.classes))
        if wrong_CC[right, given] >= 1:
            yield found.classes[right], found.classes[given], float(wrong_CC[right, given])


def _zero_shot_table(probes: ProbeResults, of: Mapping[str, Recognition]) -> Table:
    names = list(dict.fromkeys(name for found in of.values() for name in found.metrics))
    lines = [
        f"through {through}, mistaken most often: "
        + ", ".join(
            f"{right} for {given} ({times:g})" for right, given, times in find_confused_classes(found)
        )
        for through, found in of.items()
        if any(True for _ in find_confused_classes(found, 1))
    ]
    lines.append(_baseline_text(probes))
    grid = _new_table(f"Zero-shot recognition of {probes.modality}", "through", "\n".join(lines))
    for name in names:
        grid.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for through, found in of.items():
        grid.add_row(through, *(_probe_cell(found.metrics.get(name)) for name in names), end_section=True)
    return grid


def _few_shot_table(probes: ProbeResults, of: Mapping[str, tuple[FewShotCurve, ...]]) -> Table:
    curves = [(features, curve) for features, found in of.items() for curve in found]
    shots: list[Shots] = list(dict.fromkeys(point.shots for _, curve in curves for point in curve.points))
    caption = f"accuracy by examples of each class, the mean over draws of them; {_baseline_text(probes)}"
    grid = _new_table(f"Few-shot recognition of {probes.modality}", "examples", caption)
    points: list[dict[Shots, FewShotPoint]] = []
    for features, curve in curves:
        grid.add_column(f"{features}\n[dim]{curve.classifier}[/dim]", justify="right")
        points.append({point.shots: point for point in curve.points})
    for k in shots:
        cells = [_probe_cell(of[k].metrics["accuracy"]) if k in of else "-" for of in points]
        grid.add_row(str(k), *cells, end_section=True)
    return grid


def _fact_table(probes: ProbeResults) -> Table:
    of = probes.facts or {}
    first = next(iter(of.values()))
    caption = (
        f"R2 of a linear map on {first[0].rows:,} rows in {first[0].blocks:,} blocks of land, "
        "each predicted from other blocks"
    )
    grid = _new_table(f"Facts read from {probes.modality}", "fact", caption)
    for features in of:
        grid.add_column(features, justify="right")
    grid.add_column("nearest place", justify="right")
    for number, fact in enumerate(first):
        near = "-" if fact.nearest_place is None else _decimal(fact.nearest_place)
        cells = [_probe_cell(found[number].r2) for found in of.values()]
        grid.add_row(fact.name, *cells, near, end_section=True)
    return grid


def _new_table(title: str, first: str, caption: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    grid = Table(title=escape(title), caption=escape(caption), caption_justify="left")
    grid.add_column(first)
    return grid


def _baseline_text(probes: ProbeResults) -> str:
    return (
        f"{probes.queries:,} queries of {len(probes.classes)} classes: chance {_decimal(probes.chance)}, "
        f"the most frequent class {_decimal(probes.majority)}"
    )


def _probe_cell(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return f"{_decimal(metric.value)}\n[dim]{_decimal(metric.low)}-{_decimal(metric.high)}[/dim]"


def _decimal(value: float) -> str:
    return f"{value:.3f}"
