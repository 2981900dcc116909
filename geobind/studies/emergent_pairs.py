"""What an emergence study found: each pair of modalities under each way to bind them, and the differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any, NamedTuple

from geobind.errors import DataError
from geobind.report.plots import LOWER_IS_BETTER
from geobind.report.run_files import Run, read_run
from geobind.studies.emergence import ALL, AXIS
from geobind.studies.outcome import SEED, Spread, measure_of, spread
from geobind.studies.running import Ran
from geobind.utils.formatting import number

Unordered = tuple[str, str]


class Way(NamedTuple):
    """One way to bind the modalities."""

    name: str
    pairs: Mapping[Unordered, Spread]  # the mean of both directions, over seeds
    emergent: frozenset[Unordered]  # never trained together this way
    every: Spread  # the mean over all pairs
    seconds: Spread


class Difference(NamedTuple):
    """All to all, less another way to bind: paired by seed."""

    way: str
    every: Spread  # over all pairs
    emergent: Spread  # over the pairs that are emergent in the other way


class Emergence(NamedTuple):
    """The result of a study."""

    measure: str
    chance: float
    seeds: int
    ways: tuple[Way, ...]
    differences: tuple[Difference, ...]

    @property
    def pairs(self) -> list[Unordered]:
        """The pairs that were measured."""
        return list(dict.fromkeys(pair for way in self.ways for pair in way.pairs))

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON; what is not known is None."""
        return {
            "measure": self.measure,
            "chance": self.chance,
            "seeds": self.seeds,
            "ways": {
                way.name: {
                    "all_pairs": _plain(way.every),
                    "seconds": _plain(way.seconds),
                    "pairs": {
                        "-".join(pair): {"emergent": pair in way.emergent, **_plain(figure)}
                        for pair, figure in way.pairs.items()
                    },
                }
                for way in self.ways
            },
            "all_to_all_less": {
                one.way: {"all_pairs": _plain(one.every), "emergent": _plain(one.emergent)}
                for one in self.differences
            },
        }


def find(ran: Sequence[Ran], measure: str | None = None) -> Emergence:
    """Read the runs of a study.

    Args:
        ran: The runs; those that failed are passed over.
        measure: A measure of `retrieval.json`; default: recall@10, or recall@1 in small galleries.

    Raises:
        DataError: No run has measured anything, or none has the measure.
    """
    runs: dict[str, dict[str, Run]] = {}
    for one in ran:
        if not one.failed:
            runs.setdefault(one.cell.settings[AXIS], {})[one.cell.settings[SEED]] = read_run(one.folder)
    tables = [
        run.retrieved for way in runs.values() for run in way.values() if run.retrieved and run.retrieved.rows
    ]
    if not tables:
        raise DataError("no run of the study was finished; look at what the failed ones said")
    chosen = measure_of(tables[0], measure)
    by_seed = {name: {seed: _pairs(run, chosen) for seed, run in way.items()} for name, way in runs.items()}
    ways = tuple(_way(name, by_seed[name], runs[name]) for name in runs)
    base = by_seed.get(ALL, {})
    differences = tuple(_difference(way, by_seed[way.name], base) for way in ways if base and way.name != ALL)
    chance = fmean(row.metrics[chosen].chance for row in tables[0].rows)
    return Emergence(chosen, chance, max(map(len, runs.values())), ways, differences)


def verdicts(found: Emergence) -> list[str]:
    """Say what the differences show, and what they do not."""
    if found.seeds < 2:
        return [
            "One seed: no interval can be given, and a small difference means nothing; give --seeds 0,1,2."
        ]
    lines: list[str] = []
    for one in found.differences:
        for figure, what in ((one.every, "all pairs"), (one.emergent, "the pairs emergent there")):
            if figure.runs:
                lines.append(f"All to all against {one.way}, {what}: {_said(figure, found.measure)}")
    return lines


def _said(figure: Spread, measure: str) -> str:
    low, high = figure.mean - figure.half, figure.mean + figure.half
    span = f"{number(figure.mean)} ({number(low)} to {number(high)})"
    if not math.isfinite(figure.half):
        return f"{number(figure.mean)}, from one seed"
    if low <= 0 <= high:
        return f"no difference shown, {span}."
    better = (figure.mean > 0) != (measure in LOWER_IS_BETTER)
    return f"{'better' if better else 'worse'} by {span}."


def _pairs(run: Run, measure: str) -> dict[Unordered, tuple[float, bool]]:
    """Each pair's mean over both directions, and whether it is emergent."""
    rows = {(row.query, row.gallery): row for row in (run.retrieved.rows if run.retrieved else ())}
    found: dict[Unordered, tuple[float, bool]] = {}
    for pair in combinations(sorted({name for both in rows for name in both}), 2):
        ways = [
            rows[way] for way in (pair, (pair[1], pair[0])) if way in rows and measure in rows[way].metrics
        ]
        if ways:
            emergent = ways[0].mark == "emergent"
            found[pair] = fmean(row.metrics[measure].value for row in ways), emergent
    return found


def _way(name: str, seeds: Mapping[str, dict[Unordered, tuple[float, bool]]], runs: Mapping[str, Run]) -> Way:
    first = next(iter(seeds.values()))
    return Way(
        name,
        {pair: spread([found[pair][0] for found in seeds.values() if pair in found]) for pair in first},
        frozenset(pair for pair, (_, emergent) in first.items() if emergent),
        spread([fmean(value for value, _ in found.values()) for found in seeds.values() if found]),
        spread([sum(stage.seconds for stage in run.stages) for run in runs.values()]),
    )


def _difference(
    way: Way,
    seeds: Mapping[str, dict[Unordered, tuple[float, bool]]],
    base: Mapping[str, dict[Unordered, tuple[float, bool]]],
) -> Difference:
    def less(wanted: Sequence[Unordered]) -> Spread:
        return spread(
            [
                fmean(base[seed][pair][0] - found[pair][0] for pair in wanted)
                for seed, found in seeds.items()
                if wanted and seed in base and all(pair in found and pair in base[seed] for pair in wanted)
            ]
        )

    return Difference(way.name, less(list(way.pairs)), less(sorted(way.emergent)))


def _plain(figure: Spread) -> dict[str, float | int | None]:
    half = figure.half if math.isfinite(figure.half) else None
    return {"mean": figure.mean if figure.runs else None, "half_width": half, "seeds": figure.runs}
