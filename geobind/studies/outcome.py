"""What the cells of a study came to: one line for each setting, its seeds taken together."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from geobind.errors import DataError
from geobind.report.plots import headline
from geobind.report.run_files import Retrieved, Run, read_run
from geobind.studies.running import Ran

SEED = "seed"  # the axis whose values are repetitions, not settings
MARKS = ("trained", "emergent")
# Student's t for a two-sided 95 % interval, by degrees of freedom from 1.
_T95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)


class Spread(NamedTuple):
    """A mean over runs, and half the width of its 95 % interval: NaN for a single run."""

    mean: float
    half: float
    runs: int


class Line(NamedTuple):
    """One setting of a study."""

    settings: Mapping[str, str]  # without the seed
    folders: tuple[Path, ...]
    failed: int
    measured: Mapping[str, Spread]  # by kind of pair: trained, emergent
    chance: float
    seconds: Spread


class Summary(NamedTuple):
    """A study's result."""

    measure: str  # such as R@10
    axes: tuple[str, ...]
    lines: tuple[Line, ...]


def spread(values: Sequence[float]) -> Spread:
    """Mean and 95 % t interval of a few repetitions (Student 1908); NaN values are left out."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return Spread(math.nan, math.nan, 0)
    if len(known) == 1:
        return Spread(known[0], math.nan, 1)
    t = _T95[len(known) - 2] if len(known) - 2 < len(_T95) else 1.96 + 2.6 / (len(known) - 1)
    return Spread(fmean(known), t * stdev(known) / math.sqrt(len(known)), len(known))


def summarise(ran: Sequence[Ran], measure: str | None = None) -> Summary:
    """Read what the cells left and take the seeds of each setting together.

    Args:
        ran: The cells.
        measure: A measure of `retrieval.json`; default: recall@10, or recall@1 in small galleries.

    Raises:
        DataError: No cell was finished, or none has the measure.
    """
    runs = {one.folder: read_run(one.folder) for one in ran if not one.failed}
    tables = [run.retrieved for run in runs.values() if run.retrieved and run.retrieved.rows]
    if not tables:
        raise DataError(
            "no run of the study has measured anything; give the recipe an `evaluate:` block, "
            "or look at what the failed runs said"
        )
    chosen = measure_of(tables[0], measure)
    axes = tuple(name for name in ran[0].cell.settings if name != SEED)
    groups: dict[tuple[str, ...], list[Ran]] = {}
    for one in ran:
        groups.setdefault(tuple(one.cell.settings[axis] for axis in axes), []).append(one)
    lines = [_line(dict(zip(axes, key, strict=True)), group, runs, chosen) for key, group in groups.items()]
    return Summary(chosen, axes, tuple(lines))


def measure_of(table: Retrieved, wanted: str | None) -> str:
    """The measure to show: the one wanted, or else the headline.

    Raises:
        DataError: The table has no such measure.
    """
    chosen, there = wanted or headline(table), table.rows[0].metrics
    if chosen not in there:
        raise DataError(f"no measure '{chosen}'; the runs have {', '.join(there)}")
    return chosen


def mean_of(run: Run, measure: str, mark: str | None = None) -> tuple[float, float]:
    """The mean of a measure over the ordered pairs with a mark (all without one), and that of its chance."""
    rows = [row for row in (run.retrieved.rows if run.retrieved else ()) if mark in (None, row.mark)]
    found = [row.metrics[measure] for row in rows if measure in row.metrics]
    if not found:
        return math.nan, math.nan
    return fmean(one.value for one in found), fmean(one.chance for one in found)


def table_csv(summary: Summary) -> bytes:
    """The lines as CSV, shares as numbers from 0 to 1."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    figures = [f"{summary.measure} {mark}{part}" for mark in MARKS for part in ("", " ±")]
    writer.writerow([*summary.axes, "runs", "failed", *figures, "chance", "seconds"])
    for line in summary.lines:
        values = [_plain(value) for mark in MARKS for value in line.measured[mark][:2]]
        ends = (_plain(line.chance), _plain(line.seconds.mean))
        writer.writerow([*line.settings.values(), len(line.folders), line.failed, *values, *ends])
    return text.getvalue().encode()


def _line(settings: Mapping[str, str], group: Sequence[Ran], runs: Mapping[Path, Run], measure: str) -> Line:
    done = [runs[one.folder] for one in group if one.folder in runs]
    return Line(
        settings,
        tuple(run.folder for run in done),
        len(group) - len(done),
        {mark: spread([mean_of(run, measure, mark)[0] for run in done]) for mark in MARKS},
        spread([mean_of(run, measure)[1] for run in done]).mean,
        spread([sum(stage.seconds for stage in run.stages) for run in done]),
    )


def _plain(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
