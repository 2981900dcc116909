"""Result tables for terminals: retrieval, probes, calibration, sums, questions, modality gap, protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from geobind.evaluation.arithmetic import SumResult
from geobind.evaluation.calibration import CalibrationResult
from geobind.evaluation.classification import Recognition
from geobind.evaluation.few_shot_curves import FewShotCurve, FewShotPoint, ProbeResults, Shots
from geobind.evaluation.gap import ModalityGap
from geobind.evaluation.pairs import BridgedRow, PairTable
from geobind.evaluation.protocols import ProtocolResult
from geobind.evaluation.questions import QuestionResults
from geobind.evaluation.retrieval_metrics import Metric
from geobind.recipe.marks import MARKS
from geobind.utils.formatting import format_decimal, format_number, format_percent

if TYPE_CHECKING:
    from rich.table import Table


SUM_METRICS = ("R@1", "R@10", "median_rank")
SHOWN_METRICS = ("R@1", "R@10", "median_rank", "mAP", "label_mAP", "place_nDCG")


def build_pair_table(table: PairTable, metrics: Sequence[str] = SHOWN_METRICS) -> Table:
    """Build a rich table of the pairs: each metric above its interval and its chance level.

    Args:
        table: The result of `evaluate_pairs`.
        metrics: Names of the columns; metrics that no pair has are left out.
    """
    from rich.table import Table

    columns = [name for name in metrics if any(name in row.metrics for row in table.rows)]
    grid = Table(title="Retrieval between modalities", caption=_caption(table))
    grid.add_column("query to gallery", no_wrap=True)
    for name in columns:
        grid.add_column(name, justify="right", no_wrap=True)
    compared = _compared(columns)
    for baseline in table.baselines:
        grid.add_column(f"{baseline}\n{compared}", justify="right", no_wrap=True)
    for row in table.rows:
        mark = row.mark if row.trained else f"[bold]{row.mark}[/bold]"
        pair = f"{row.query} to {row.gallery}\n{mark}\n[dim]{row.gallery_size:,} in gallery[/dim]"
        cells = [_cell(row.metrics.get(name)) for name in columns]
        cells += [_cell(row.beside.get(name, {}).get(compared)) for name in table.baselines]
        bridged = table.bridged_row(row.query, row.gallery)
        grid.add_row(pair, *cells, end_section=bridged is None)
        if bridged is not None:
            cells = [_gain_cell(bridged, name) for name in columns]
            grid.add_row(f"[bold]{row.mark}, bridged[/bold]", *cells, end_section=True)
    return grid


def _gain_cell(bridged: BridgedRow, name: str) -> str:
    """Format a bridged figure above its interval and that of its gain."""
    measured, gain = bridged.row.metrics.get(name), bridged.gain.get(name)
    if measured is None:
        return "-"
    value, low, high = map(format_number, (measured.value, measured.low, measured.high))
    more = f"\ngain {gain.low:+.3f} to {gain.high:+.3f}" if gain else ""
    return f"{value}\n[dim]{low} to {high}{more}[/dim]"


def build_summary_table(
    table: PairTable, metrics: Sequence[str] = ("R@1", "R@5", "R@10", "median_rank")
) -> Table:
    """Build a rich table with one line per pair, those of one mark together, chance in brackets.

    Args:
        table: The result of `evaluate_pairs`.
        metrics: Names of the columns.
    """
    from rich.table import Table

    sizes = sorted({row.gallery_size for row in table.rows})
    gallery = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else "0"
    grid = Table(box=None, padding=(0, 1, 0, 0), caption_justify="left", caption=_notes(table))
    grid.add_column(f"gallery of {gallery}", no_wrap=True)
    for name in metrics:
        grid.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    compared = _compared(metrics)
    for baseline in table.baselines:
        grid.add_column(f"{baseline}\n{compared}", justify="right", no_wrap=True)
    if "direct" in table.baselines:
        grid.add_column("share of\ndirect", justify="right", no_wrap=True)
    for mark in MARKS:
        rows = [row for row in table.rows if row.mark == mark]
        if rows:
            grid.add_row(f"[bold]{mark}[/bold]")
        for row in rows:
            cells = [_beside_chance(row.metrics.get(name)) for name in metrics]
            cells += [_value(row.beside.get(name, {}).get(compared)) for name in table.baselines]
            share = row.share_of_direct(compared)
            cells += ["" if share is None else format_percent(share)] * ("direct" in table.baselines)
            grid.add_row(f"  {row.query} to {row.gallery}", *cells)
            if (bridged := table.bridged_row(row.query, row.gallery)) is not None:
                cells = [_beside_chance(bridged.row.metrics.get(name)) for name in metrics]
                grid.add_row("    bridged", *cells)
    return grid


def build_question_table(results: QuestionResults) -> Table:
    """Build a rich table of questions in words, and the AUC of each modality that was asked."""
    from rich.markup import escape
    from rich.table import Table

    asked = [f"{one.name}: {' / '.join(one.prompts)}; {one.truth}" for one in results.questions]
    caption = [*asked, "AUC: share of pairs of a true and an untrue row in the right order; chance 0.5"]
    if results.anchor:
        caption.append(f"anchor: {results.anchor} on the same rows; untrained: the same encoder")
    grid = Table(
        box=None,
        padding=(0, 1, 0, 0),
        caption_justify="left",
        caption=escape("\n".join([*caption, results.note])),
    )
    grid.add_column("questions in words", overflow="fold")
    for head in ("AUC", "95 %", "anchor", "untrained", "true", "rows"):
        grid.add_column(head, justify="right", no_wrap=True)
    for question in results.questions:
        grid.add_row(f"[bold]{escape(question.name)}[/bold]")
        for answer in question.answers:
            grid.add_row(
                f"  {answer.modality} [dim]({answer.mark})[/dim]",
                f"{answer.auc.value:.3f}",
                f"[dim]{answer.auc.low:.3f} to {answer.auc.high:.3f}[/dim]",
                *(f"{one.value:.3f}" if one else "-" for one in (answer.anchor, answer.untrained)),
                f"{answer.true_rows:,}",
                f"{answer.rows:,}",
            )
    return grid


def _compared(metrics: Sequence[str]) -> str:
    """Return the metric of which baselines are shown."""
    return next((name for name in ("R@10", "R@1") if name in metrics), next(iter(metrics), ""))


def _value(metric: Metric | None) -> str:
    return "" if metric is None else format_number(metric.value)


def _beside_chance(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return f"{format_number(metric.value)} [dim]({format_number(metric.chance).removeprefix('0')})[/dim]"


def _notes(table: PairTable) -> str | None:
    lines = [f"not measured: {' and '.join(pair.modalities)}: {pair.reason}" for pair in table.skipped]
    lines += [f"warning: {line}" for line in table.warnings]
    lines += [table.bridge_note] if table.bridge_note else []
    return "\n".join(lines) or None


def _cell(metric: Metric | None, write: Callable[[float], str] = format_number) -> str:
    if metric is None:
        return "-"
    value, low, high, chance = map(write, (metric.value, metric.low, metric.high, metric.chance))
    return f"{value}\n[dim]{low} to {high}\nchance {chance}[/dim]"


def _precise_cell(metric: Metric) -> str:
    """Format a metric with three decimals, whatever its size."""
    return _cell(metric, format_decimal)


def _caption(table: PairTable) -> str:
    settings = table.settings
    lines = [f"{settings.confidence:.0%} intervals; {table.cluster_note or f'over {table.drawn}'}"]
    skipped = _notes(table)
    return "\n".join([*lines, *([skipped] if skipped else [])])


_MAX_CONFUSIONS = 5  # pairs of classes listed


def build_probe_tables(probes: ProbeResults) -> list[Table]:
    """Build the tables of a probe: each metric above its interval."""
    if probes.kind == "facts":
        return [_fact_table(probes)]
    tables = [_zero_shot_table(probes, probes.zero_shot)] if probes.zero_shot else []
    return [*tables, _few_shot_table(probes, probes.curves)] if probes.curves else tables


def find_confused_classes(
    result: Recognition, max_pairs: int = _MAX_CONFUSIONS
) -> Iterator[tuple[str, str, float]]:
    """Yield the classes mistaken for each other most often: the right one, the one given, and how often."""
    wrong_CC = result.confusion_CC * (1 - np.eye(len(result.classes)))
    for place in np.argsort(-wrong_CC, axis=None, kind="stable")[:max_pairs]:
        right, given = divmod(int(place), len(result.classes))
        if wrong_CC[right, given] >= 1:
            yield result.classes[right], result.classes[given], float(wrong_CC[right, given])


def _zero_shot_table(probes: ProbeResults, results: Mapping[str, Recognition]) -> Table:
    names = list(dict.fromkeys(name for result in results.values() for name in result.metrics))
    lines = [
        f"through {through}, mistaken most often: "
        + ", ".join(
            f"{right} for {given} ({times:g})" for right, given, times in find_confused_classes(result)
        )
        for through, result in results.items()
        if any(True for _ in find_confused_classes(result, 1))
    ]
    lines.append(_baseline_text(probes))
    grid = _new_table(f"Zero-shot recognition of {probes.modality}", "through", "\n".join(lines))
    for name in names:
        grid.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for through, result in results.items():
        grid.add_row(through, *(_probe_cell(result.metrics.get(name)) for name in names), end_section=True)
    return grid


def _few_shot_table(probes: ProbeResults, of: Mapping[str, tuple[FewShotCurve, ...]]) -> Table:
    curves = [(features, curve) for features, of_features in of.items() for curve in of_features]
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
    facts = probes.facts or {}
    first = next(iter(facts.values()))
    caption = (
        f"R2 of a linear map on {first[0].rows:,} rows in {first[0].blocks:,} blocks of land, "
        "each predicted from other blocks"
    )
    grid = _new_table(f"Facts read from {probes.modality}", "fact", caption)
    for features in facts:
        grid.add_column(features, justify="right")
    grid.add_column("nearest place", justify="right")
    for place, fact in enumerate(first):
        near = "-" if fact.nearest_place is None else format_number(fact.nearest_place)
        cells = [_probe_cell(probes_of_features[place].r2) for probes_of_features in facts.values()]
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
        f"{probes.queries:,} queries of {len(probes.classes)} classes: "
        f"chance {format_number(probes.chance)}, the most frequent class {format_number(probes.majority)}"
    )


def _probe_cell(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    value, low, high = map(format_number, (metric.value, metric.low, metric.high))
    return f"{value}\n[dim]{low}-{high}[/dim]"


def build_calibration_table(calibrated: CalibrationResult) -> Table:
    """Build the table of fitted probabilities: each error beside what perfect ones would show."""
    from rich.table import Table

    grid = Table(title="Calibration", caption_justify="left")
    grid.caption = (
        f"fitted on {calibrated.fitted_on}, measured on {calibrated.measured_on}; error: expected "
        "calibration error, 15 bins of equal width"
    )
    for name in ("query to gallery", "temperature", "error", "perfect shows", "before", "log loss"):
        grid.add_column(name, justify="left" if name == "query to gallery" else "right", no_wrap=True)
    for one in calibrated.choices:
        error, before = one.fitted.equal_width, one.before.equal_width
        error_text = f"{error.value:.3f} [dim]{error.low:.3f} to {error.high:.3f}[/dim]"
        pair = f"{one.query} to {one.gallery}"
        numbers = (f"{error.perfect:.3f}", f"{before.value:.3f}", f"{one.fitted.log_loss:.2f}")
        grid.add_row(pair, f"{one.temperature:.4f}", error_text, *numbers)
    for one in calibrated.matchings:
        error = one.fitted.equal_width
        error_text = f"{error.value:.3f} [dim]{error.low:.3f} to {error.high:.3f}[/dim]"
        pair = f"{one.modalities[0]} and {one.modalities[1]} match"
        grid.add_row(pair, "", error_text, f"{error.perfect:.3f}", "", f"{one.fitted.log_loss:.2f}")
    return grid


def build_sum_table(one: SumResult) -> Table:
    """Build the table of a sum beside its parts."""
    from rich.table import Table

    grid = Table(title=f"{one.queries[0].name} to {one.gallery}", caption=one.says)
    grid.add_column("query", no_wrap=True)
    measures = [name for name in SUM_METRICS if name in one.queries[0].metrics]
    rivals = list(one.queries[0].preferred)
    for name in measures:
        grid.add_column(name.replace("_", " "), justify="right")
    for name in rivals:
        grid.add_column(f"beats {name}", justify="right")
    for query in one.queries:
        cells = [query.metrics[name] for name in measures]
        grid.add_row(query.name, *map(_cell, cells), *(_cell(query.preferred[name]) for name in rivals))
    return grid


def build_gap_table(gap: ModalityGap) -> Table:
    """Build the table of the modality gap: every pair, then each modality alone."""
    from rich.table import Table

    grid = Table(title="Modality gap")
    for name in ("modalities", "distance of centroids", "told apart", "alignment"):
        grid.add_column(name, justify="left" if name == "modalities" else "right")
    for pair in gap.pairs:
        cells = map(_precise_cell, (pair.distance, pair.separable, pair.alignment))
        grid.add_row(" and ".join(pair.modalities), *cells)
    for spread in gap.spreads:
        grid.add_row(f"{spread.modality}: uniformity", "", "", _precise_cell(spread.uniformity))
    return grid


def build_protocol_tables(results: Sequence[ProtocolResult]) -> list[Table]:
    """Build a rich table for each result: printed name and value, what it measures, and the clean value."""
    return [_protocol_table(result) for result in results]


def _protocol_table(result: ProtocolResult) -> Table:
    from rich.table import Table

    notes = result.protocol.notes()
    if result.caveat:
        notes.insert(0, f"[bold]{result.caveat}[/bold]")
    title = (
        f"As {result.protocol.name} prints it: {result.anchor} and {result.other}, {result.gallery:,} rows"
    )
    grid = Table(title=title, caption="\n".join(notes), caption_justify="left")
    for column in ("printed as", "value", "what it measures", "clean"):
        grid.add_column(column, justify="right" if column in ("value", "clean") else "left")
    for figure in result.figures:
        grid.add_row(figure.says, format_number(figure.value), figure.means, format_number(figure.clean))
    return grid
