"""Probes as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from geobind.evaluation.ranking.retrieval import Metric
from geobind.evaluation.recognising.few_shot import Curve, Point, Shots
from geobind.evaluation.recognising.probes import Probes
from geobind.evaluation.recognising.recognition import Recognition

if TYPE_CHECKING:
    from rich.table import Table

_MISTAKEN = 5  # pairs of classes listed


def render_probes(probes: Probes) -> list[Table]:
    """The tables of what was probed: each figure above its interval."""
    if probes.kind == "facts":
        return [_facts(probes)]
    tables = [_zero_shot(probes, probes.zero_shot)] if probes.zero_shot else []
    return [*tables, _curves(probes, probes.curves)] if probes.curves else tables


def mistaken(found: Recognition, most: int = _MISTAKEN) -> Iterator[tuple[str, str, float]]:
    """Yield the classes mistaken for each other most often: the right one, the one given, and how often."""
    wrong_CC = found.confusion_CC * (1 - np.eye(len(found.classes)))
    for place in np.argsort(-wrong_CC, axis=None, kind="stable")[:most]:
        right, given = divmod(int(place), len(found.classes))
        if wrong_CC[right, given] >= 1:
            yield found.classes[right], found.classes[given], float(wrong_CC[right, given])


def _zero_shot(probes: Probes, of: Mapping[str, Recognition]) -> Table:
    names = list(dict.fromkeys(name for found in of.values() for name in found.metrics))
    lines = [
        f"through {through}, mistaken most often: "
        + ", ".join(f"{right} for {given} ({times:g})" for right, given, times in mistaken(found))
        for through, found in of.items()
        if any(True for _ in mistaken(found, 1))
    ]
    lines.append(_level(probes))
    grid = _grid(f"Zero-shot recognition of {probes.modality}", "through", "\n".join(lines))
    for name in names:
        grid.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for through, found in of.items():
        grid.add_row(through, *(_cell(found.metrics.get(name)) for name in names), end_section=True)
    return grid


def _curves(probes: Probes, of: Mapping[str, tuple[Curve, ...]]) -> Table:
    curves = [(features, curve) for features, found in of.items() for curve in found]
    shots: list[Shots] = list(dict.fromkeys(point.shots for _, curve in curves for point in curve.points))
    caption = f"accuracy by examples of each class, the mean over draws of them; {_level(probes)}"
    grid = _grid(f"Few-shot recognition of {probes.modality}", "examples", caption)
    points: list[dict[Shots, Point]] = []
    for features, curve in curves:
        grid.add_column(f"{features}\n[dim]{curve.classifier}[/dim]", justify="right")
        points.append({point.shots: point for point in curve.points})
    for k in shots:
        cells = [_cell(of[k].metrics["accuracy"]) if k in of else "-" for of in points]
        grid.add_row(str(k), *cells, end_section=True)
    return grid


def _facts(probes: Probes) -> Table:
    of = probes.facts or {}
    first = next(iter(of.values()))
    caption = (
        f"R2 of a linear map on {first[0].rows:,} rows in {first[0].blocks:,} blocks of land, "
        "each predicted from other blocks"
    )
    grid = _grid(f"Facts read from {probes.modality}", "fact", caption)
    for features in of:
        grid.add_column(features, justify="right")
    grid.add_column("nearest place", justify="right")
    for number, fact in enumerate(first):
        near = "-" if fact.nearest_place is None else _number(fact.nearest_place)
        cells = [_cell(found[number].r2) for found in of.values()]
        grid.add_row(fact.name, *cells, near, end_section=True)
    return grid


def _grid(title: str, first: str, caption: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    grid = Table(title=escape(title), caption=escape(caption), caption_justify="left")
    grid.add_column(first)
    return grid


def _level(probes: Probes) -> str:
    return (
        f"{probes.queries:,} queries of {len(probes.classes)} classes: chance {_number(probes.chance)}, "
        f"the most frequent class {_number(probes.majority)}"
    )


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return f"{_number(metric.value)}\n[dim]{_number(metric.low)}-{_number(metric.high)}[/dim]"


def _number(value: float) -> str:
    return f"{value:.3f}"
