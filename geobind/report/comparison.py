"""Comparison of runs: recipes, training curves, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from geobind.errors import DataError
from geobind.evaluation import Metric, PairRow
from geobind.evaluation.intervals import Paired, hold_after_holm
from geobind.evaluation.query_scores import FILE, KeyedScores, compare_queries, read_query_scores
from geobind.report.page import render_template
from geobind.report.plots import (
    LOWER_IS_BETTER,
    MAIN,
    SERIES,
    TITLES,
    draw_svg,
    headline_measure,
    overlaid_panels,
)
from geobind.report.run_files import Run, read_run
from geobind.utils import files, formatting

if TYPE_CHECKING:
    from rich.table import Table

MAX_RUNS = len(SERIES)
_ABSENT = "–"
_LEVEL = 0.05  # of a test on the same queries
Scores = Mapping[tuple[str, str], KeyedScores]  # of one run


class MetricDelta(NamedTuple):
    """A metric of one run and its difference from the first run."""

    measured: Metric | None
    difference: float | None  # from the first run; None for the first, or where one of the two is missing
    apart: bool | None  # a difference is shown: on the same queries, or else by intervals that do not overlap
    better: bool | None  # whether it lies on the better side of the first run's
    note: str = ""
    paired: Paired | None = None  # the difference on the same queries; None where those are not known


class MetricRow(NamedTuple):
    """One metric of one ordered pair, for all runs."""

    query: str
    gallery: str
    mark: str
    runs: list[MetricDelta]


class MetricTable(NamedTuple):
    """One metric of all pairs, with a verdict on each run but the first."""

    measure: str
    lines: list[MetricRow]
    verdicts: list[str]


class Comparison(NamedTuple):
    """Everything that a comparison shows."""

    labels: list[str]
    runs: list[Run]
    recipes: list[tuple[str, list[str]]]  # the settings that differ, and each run's value
    tables: list[MetricTable]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON: the runs, the settings that differ, and every measure."""
        return {
            "runs": self.labels,
            "settings": dict(self.recipes),
            "measures": [
                {
                    "measure": table.measure,
                    "verdicts": table.verdicts,
                    "pairs": [
                        {
                            "query": row.query,
                            "gallery": row.gallery,
                            "mark": row.mark,
                            "values": [one.measured and one.measured.value for one in row.runs],
                            "differences": [one.difference for one in row.runs],
                            "shown": [one.apart for one in row.runs],
                        }
                        for row in table.lines
                    ],
                }
                for table in self.tables
            ],
        }


def compare(folders: Sequence[Path], measures: Sequence[str] = ()) -> Comparison:
    """Compare runs with the first of them.

    Args:
        folders: The runs, two to seven.
        measures: Names of the measures wanted; default: recall, median rank and what else there is of
            `matrix.MAIN`.

    Raises:
        DataError: Too few or too many runs, the same one twice, a folder that holds none, or a measure that
            no run has.
        CheckpointError: A file of a run is damaged.
    """
    if not 2 <= len(folders) <= MAX_RUNS:
        raise DataError(f"{len(folders)} runs to compare; name 2 to {MAX_RUNS} folders")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise DataError("the same run is named twice; name different folders")
    runs = [read_run(folder) for folder in folders]
    labels = _shortest_labels(folders)
    scores = [read_query_scores(folder / FILE) for folder in folders]
    chosen = _choose_measures(runs, measures)
    tables = [_build_metric_table(runs, scores, labels, measure) for measure in chosen]
    return Comparison(labels, runs, list(_differing_settings(runs)), tables)


def write_comparison(comparison: Comparison, page: Path) -> Path:
    """Write a comparison as one self-contained HTML page.

    Raises:
        StorageError: The page cannot be written.
    """
    stages = [
        (stage, [draw_svg(panel) for panel in panels]) for stage, panels in overlaid_panels(comparison.runs)
    ]
    files.write_atomic(
        page,
        render_template(
            "compare.html", comparison=comparison, curves=stages, times=list(_stage_times(comparison.runs))
        ),
    )
    return page


def build_comparison_tables(comparison: Comparison) -> list[Table]:
    """Build rich tables for the terminal: each metric, then what differs in the recipes."""
    from rich.markup import escape
    from rich.table import Table

    tables = [Table(title=TITLES.get(table.measure, table.measure)) for table in comparison.tables]
    for grid, table in zip(tables, comparison.tables, strict=True):
        grid.caption = escape("\n".join(table.verdicts))
        grid.add_column("query to gallery")
        for label in comparison.labels:
            grid.add_column(escape(label), justify="right")
        for line in table.lines:
            grid.add_row(f"{line.query} to {line.gallery}\n[dim]{line.mark}[/dim]", *map(_cell, line.runs))
    if comparison.recipes:
        differing = Table("setting", *map(escape, comparison.labels), title="What differs in the recipes")
        for setting, values in comparison.recipes:
            differing.add_row(escape(setting), *map(escape, values))
        tables.append(differing)
    return tables


def _cell(one: MetricDelta) -> str:
    if one.measured is None:
        return _ABSENT
    text = formatting.format_number(one.measured.value)
    if one.difference is None:
        return f"{text} [dim]{one.note}[/dim]" if one.note else text
    difference = formatting.format_signed(one.difference)
    return f"{text} [bold]{difference} *[/bold]" if one.apart else f"{text} [dim]{difference}  [/dim]"


def _shortest_labels(folders: Sequence[Path]) -> list[str]:
    """Return the shortest path endings that are unique."""
    parts = [folder.resolve().parts for folder in folders]
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(p[-length:]) for p in parts]


def _differing_settings(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    flat = [dict(_flatten(run.recipe)) for run in runs]
    for setting in dict.fromkeys(name for values in flat for name in values):
        values = [str(settings[setting]) if setting in settings else _ABSENT for settings in flat]
        if len(set(values)) > 1:
            yield setting, [formatting.shorten(value, 120) for value in values]


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a recipe with its dotted path; stages go by name, as in `--set`."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for place, item in enumerate(value):
            yield from _flatten(
                item, f"{path}.{item.get('name', place) if isinstance(item, Mapping) else place}"
            )
    else:
        yield path, value


def _choose_measures(runs: Sequence[Run], wanted: Sequence[str]) -> list[str]:
    """Choose the metrics to compare, the matrix's own first.

    Raises:
        DataError: One is wanted that no run has.
    """
    tables = [run.retrieved for run in runs if run.retrieved and run.retrieved.rows]
    present = list(dict.fromkeys(name for table in tables for row in table.rows for name in row.metrics))
    unknown = [name for name in wanted if name not in present]
    if unknown:
        raise DataError(f"no run has the measure '{unknown[0]}'; there are {', '.join(present) or 'none'}")
    first = [headline_measure(tables[0])] if tables else []
    return list(wanted) or list(dict.fromkeys([*first, *(name for name in MAIN if name in present)]))


def _build_metric_table(
    runs: Sequence[Run], scores: Sequence[Scores], labels: Sequence[str], measure: str
) -> MetricTable:
    lines = list(_build_rows(runs, scores, measure))
    tests = [
        (line, place)
        for line in lines
        for place, one in enumerate(line.runs)
        if one.difference is not None and one.paired is not None
    ]
    p_values = [paired.p for line, place in tests if (paired := line.runs[place].paired) is not None]
    held = [test for test, holds in zip(tests, hold_after_holm(p_values), strict=True) if holds]
    verdicts = [_verdict(lines, n, labels, held, len(tests)) for n in range(1, len(runs))]
    return MetricTable(measure, lines, verdicts)


def _verdict(
    lines: Sequence[MetricRow],
    place: int,
    labels: Sequence[str],
    held: Sequence[tuple[MetricRow, int]],
    tests: int,
) -> str:
    """Describe how one run compares with the first.

    Args:
        lines: Every pair of modalities.
        place: Of the run.
        labels: Names of the runs.
        held: The pairs and runs whose difference survives Holm's correction.
        tests: How many differences were tested together.
    """
    compared = [line.runs[place] for line in lines if line.runs[place].difference is not None]
    shown = [one for one in compared if one.apart]
    count = formatting.format_count(len(compared), "pair")
    summary = f"{labels[place]} against {labels[0]}: {_count_sides(shown)} of {count}"
    if not compared or any(one.paired is None for one in compared):
        return f"{summary} with the intervals apart"
    after = [line.runs[place] for line, at in held if at == place]
    of_tests = formatting.format_count(tests, "test")
    return f"{summary} on the same queries (paired, 95 %); {_count_sides(after)} after Holm, {of_tests}"


def _count_sides(deltas: Sequence[MetricDelta]) -> str:
    better = sum(one.better is True for one in deltas)
    return f"better in {better} and worse in {len(deltas) - better}"


def _build_rows(runs: Sequence[Run], scores: Sequence[Scores], measure: str) -> Iterator[MetricRow]:
    tables = [{(r.query, r.gallery): r for r in run.retrieved.rows} if run.retrieved else {} for run in runs]
    for query, gallery in dict.fromkeys(pair for table in tables for pair in table):
        rows = [table.get((query, gallery)) for table in tables]
        marks = " / ".join(dict.fromkeys(row.mark for row in rows if row))
        if any(row and measure in row.metrics for row in rows):
            queries = [known.get((query, gallery)) for known in scores]
            against = [
                _compare_metric(measure, rows[0], row, (queries[0], mine), first=n == 0)
                for n, (row, mine) in enumerate(zip(rows, queries, strict=True))
            ]
            yield MetricRow(query, gallery, marks, against)


def _compare_metric(
    measure: str,
    base: PairRow | None,
    row: PairRow | None,
    queries: tuple[KeyedScores | None, KeyedScores | None],
    *,
    first: bool,
) -> MetricDelta:
    mine = row.metrics.get(measure) if row else None
    theirs = base.metrics.get(measure) if base else None
    if first or row is None or base is None or mine is None or theirs is None:
        return MetricDelta(mine, None, None, None)
    if row.gallery_size != base.gallery_size:
        note = f"among {row.gallery_size:,} items, not {base.gallery_size:,}: not comparable"
        return MetricDelta(mine, None, None, None, note)
    difference = mine.value - theirs.value
    better = difference < 0 if measure in LOWER_IS_BETTER else difference > 0
    paired = compare_queries(*queries, measure)
    if paired is not None and abs(paired.difference - difference) > 1e-3 * max(1.0, abs(theirs.value)):
        paired = None  # the file of queries is of another evaluation
    apart = mine.low > theirs.high or theirs.low > mine.high if paired is None else paired.p < _LEVEL
    return MetricDelta(mine, difference, apart, better, paired=paired)


def _stage_times(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """Yield how long each stage took in each run."""
    tables = [{stage.name: stage.seconds for stage in run.stages} for run in runs]
    for name in dict.fromkeys(stage for table in tables for stage in table):
        yield (
            name,
            [formatting.format_duration(table[name]) if name in table else _ABSENT for table in tables],
        )
