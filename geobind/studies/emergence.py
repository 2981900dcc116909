"""Study of emergent alignment: anchored against all-to-all training with equal work.

The same modalities are bound from the same start, on the same rows and with the same amount of work: once
around each anchor, once all to all, and once in the stages that the recipe's author wrote. ImageBind (arXiv:
2305.05665) and GeoBind (arXiv:2404.11720) choose one anchor and report no such comparison.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from geobind.binder import Binder
from geobind.data.sampler import MixedDataset
from geobind.data.table import first_observation
from geobind.errors import DataError, RecipeError
from geobind.evaluation import PairTable
from geobind.inference import collate, prepare_input
from geobind.recipe import Recipe, load_recipe
from geobind.recipe.schema import Pairing, build_pairs
from geobind.report.plots import LOWER_IS_BETTER, TITLES
from geobind.report.run_files import Run, read_run
from geobind.studies.grid import Axis, Cell, build_grid, make_axis
from geobind.studies.runner import CellResult
from geobind.studies.summary import (
    SEED,
    UNTRAINED_ROW,
    SeedInterval,
    TextTable,
    choose_measure,
    dot_panel,
    format_interval,
    mean_of_pairs,
    seed_interval,
    write_study,
)
from geobind.training.stage_data import StageData, count_steps
from geobind.utils import files, formatting
from geobind.utils.formatting import format_number

# The gradients of a layer's input and of its weights each take as much work as its forward pass.
TRAINED_COSTS = 3


def count_forward_flops(encoder: nn.Module, batch: Any) -> int:
    """Count the floating-point operations of one forward pass, matrix products and convolutions alone."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(batch)
    return counter.get_total_flops()


def count_stage_flops(forward: Mapping[str, int], names: Collection[str], trained: Collection[str]) -> int:
    """Count the operations for one row of a stage: each encoder once, trained ones three times.

    The loss is left out: it costs little, and the same whatever is compared.

    Args:
        forward: Operations of one forward pass, by modality.
        names: The modalities of the stage.
        trained: Those whose encoder the stage trains.
    """
    return sum(forward[name] * (TRAINED_COSTS if name in trained else 1) for name in names)


AS_WRITTEN, ALL = "as written", "all to all"
AXIS = "bound"
# Options that the joint stage takes from the recipe's first stage.
_SAME = ("batch_size", "loss", "optimizer", "schedule", "precision", "clip_norm", "split", "mix", "data")


class EmergenceSetting(NamedTuple):
    """The settings of an emergence study."""

    recipe: str
    overrides: tuple[str, ...]
    anchors: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int  # of each joint stage


def anchored_name(anchor: str) -> str:
    """Return the name of training around an anchor."""
    return f"around {anchor}"


def plan_emergence(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    anchors: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
) -> EmergenceSetting:
    """Build the settings of a study: its anchors, and the steps that make the work equal.

    Args:
        recipe: A path or the name of a shipped recipe, whose modalities, data and evaluation are used.
        overrides: Changes to it, as `--set` takes them.
        anchors: The anchors to compare; default: every modality.
        seeds: Every way to train is run once with each.
        steps: Of each joint stage; default: as many as take the work of the recipe's own stages.

    Raises:
        RecipeError: The recipe does not allow this study; the message says why.
        DataError: Its data cannot be read.
    """
    checked = load_recipe(recipe, overrides)
    names = tuple(checked.modalities)
    if len(names) < 3:
        raise RecipeError(f"{recipe}: has {len(names)} modalities; emergent pairs need three or more")
    if checked.evaluate is None:
        raise RecipeError(f"{recipe}: measures nothing; give it an `evaluate:` block of held-out rows")
    if any("batch_size" in stage.auto_options for stage in checked.stages):
        raise RecipeError(f"{recipe}: `batch_size: auto` may differ between runs; equal work takes a number")
    strange = [name for name in anchors if name not in names]
    if strange:
        raise RecipeError(
            f"no modality '{strange[0]}' to use as an anchor; the recipe has {', '.join(names)}"
        )
    frozen = [name for name in names if checked.role(name) == "frozen"]
    if len(frozen) > 1:
        raise RecipeError(
            f"{recipe}: {' and '.join(frozen)} are both frozen, so that nothing can be learned between them; "
            f"write `role: trainable` for all but one of them"
        )
    return EmergenceSetting(
        recipe,
        tuple(overrides),
        tuple(anchors) or names,
        tuple(seeds),
        steps if steps is not None else compute_equal_steps(checked),
    )


def build_cells(setting: EmergenceSetting) -> list[Cell]:
    """Build the cells of a study: each way to bind, with each seed."""
    recipe = load_recipe(setting.recipe, setting.overrides)
    ways: dict[str, dict[str, Any]] = {AS_WRITTEN: {}}
    for anchor in setting.anchors:
        ways[anchored_name(anchor)] = _joint(recipe, anchor, "anchor", setting.steps)
    ways[ALL] = _joint(recipe, recipe.anchor, "all", setting.steps)
    axes: list[Axis] = [
        make_axis(AXIS, ways),
        make_axis(SEED, {str(seed): {SEED: seed} for seed in setting.seeds}),
    ]
    return build_grid(setting.recipe, axes, setting.overrides)


def compute_equal_steps(recipe: Recipe) -> int:
    """Compute the steps of a joint stage that equal the work of the recipe's stages, by encoders alone.

    Raises:
        RecipeError: The work is less than a step.
    """
    sources = StageData(recipe)
    rows = {stage.name: sources.rows(stage) for stage in recipe.stages}
    forward = _forward_flops(recipe, list(rows.values()))
    spent = sum(
        stage.batch_size
        * count_steps(stage, rows[stage.name])
        * count_stage_flops(forward, recipe.names_of(stage), stage.parts)
        for stage in recipe.stages
    )
    trained = [name for name in recipe.modalities if recipe.role(name) == "trainable"]
    step = recipe.stages[0].batch_size * count_stage_flops(forward, list(recipe.modalities), trained)
    if spent < step:
        raise RecipeError("the recipe's stages take less work than one joint step; give --steps")
    return round(spent / step)


def _forward_flops(recipe: Recipe, mixtures: Sequence[MixedDataset]) -> dict[str, int]:
    """Count the operations to embed one row, by modality."""
    binder = Binder(recipe.built, recipe.width, pretrained=False)
    found: dict[str, int] = {}
    for stage, mixture in zip(recipe.stages, mixtures, strict=True):
        for name, source in product(recipe.names_of(stage), mixture.sources):
            there_R = source.rows.rows_with([name])
            if name not in found and len(there_R):
                raw = source.rows[int(there_R[0])].raws[name]
                first = first_observation(raw)
                batch = collate([prepare_input(recipe.built[name], 0, first)])
                found[name] = count_forward_flops(binder.encoders[name], batch)
    absent = [name for name in recipe.modalities if name not in found]
    if absent:
        raise RecipeError(
            f"no stage of the recipe has rows with '{absent[0]}'; leave it out, or give it data"
        )
    return found


def _joint(recipe: Recipe, anchor: str, pairing: Pairing, steps: int) -> dict[str, Any]:
    """Return the changes that turn a recipe into one joint stage."""
    first = recipe.written["stages"][0]
    others = [name for name in recipe.modalities if name != anchor]
    trained = [name for name in recipe.modalities if recipe.role(name) == "trainable"]
    pairs = build_pairs(anchor, others, pairing, trained)
    stage = {
        "name": "joint",
        "align": others,
        "anchor": anchor,
        "pairs": pairing,
        # The mean over pairs, so that gradients are clipped alike however many pairs there are.
        "weights": {pair.name: round(1 / len(pairs), 9) for pair in pairs},
        "train": trained,
        "steps": steps,
        **{field: first[field] for field in _SAME if field in first},
    }
    return {"stages": json.dumps([stage])}


Unordered = tuple[str, str]


class BindingResult(NamedTuple):
    """One way to bind the modalities."""

    name: str
    pairs: Mapping[Unordered, SeedInterval]  # the mean of both directions, over seeds
    emergent: frozenset[Unordered]  # never trained together this way
    every: SeedInterval  # the mean over all pairs
    seconds: SeedInterval


class Difference(NamedTuple):
    """All to all, less another way to bind: paired by seed."""

    way: str
    every: SeedInterval  # over all pairs
    emergent: SeedInterval  # over the pairs that are emergent in the other way


class Emergence(NamedTuple):
    """The result of a study."""

    measure: str
    chance: float
    seeds: int
    ways: tuple[BindingResult, ...]
    differences: tuple[Difference, ...]
    untrained: float | None = None  # over all pairs, of encoders before any stage

    @property
    def pairs(self) -> list[Unordered]:
        """The measured pairs."""
        return list(dict.fromkeys(pair for way in self.ways for pair in way.pairs))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; unknown figures are None."""
        return {
            "measure": self.measure,
            "chance": self.chance,
            "seeds": self.seeds,
            "untrained": self.untrained,
            "ways": {
                way.name: {
                    "all_pairs": way.every.to_dict(),
                    "seconds": way.seconds.to_dict(),
                    "pairs": {
                        "-".join(pair): {"emergent": pair in way.emergent, **figure.to_dict()}
                        for pair, figure in way.pairs.items()
                    },
                }
                for way in self.ways
            },
            "all_to_all_less": {
                one.way: {"all_pairs": one.every.to_dict(), "emergent": one.emergent.to_dict()}
                for one in self.differences
            },
        }


def summarise_emergence(
    ran: Sequence[CellResult], measure: str | None = None, untrained: PairTable | None = None
) -> Emergence:
    """Summarise the runs of a study.

    Args:
        ran: The runs; failed ones are ignored.
        measure: A measure of `retrieval.json`; default: recall@10, or recall@1 in small galleries.
        untrained: Figures of encoders before any stage, as a baseline.

    Raises:
        DataError: No run has results, or none has the measure.
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
    chosen = choose_measure(tables[0], measure)
    by_seed = {name: {seed: _pairs(run, chosen) for seed, run in way.items()} for name, way in runs.items()}
    ways = tuple(_way(name, by_seed[name], runs[name]) for name in runs)
    base = by_seed.get(ALL, {})
    differences = tuple(_difference(way, by_seed[way.name], base) for way in ways if base and way.name != ALL)
    chance = fmean(row.metrics[chosen].chance for row in tables[0].rows)
    baseline = mean_of_pairs(untrained, chosen)[0] if untrained else None
    return Emergence(chosen, chance, max(map(len, runs.values())), ways, differences, baseline)


def describe_differences(found: Emergence) -> list[str]:
    """Return sentences about what the differences show."""
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


def _said(figure: SeedInterval, measure: str) -> str:
    low, high = figure.mean - figure.half, figure.mean + figure.half
    span = f"{format_number(figure.mean)} ({format_number(low)} to {format_number(high)})"
    if not math.isfinite(figure.half):
        return f"{format_number(figure.mean)}, from one seed"
    if low <= 0 <= high:
        return f"no difference shown, {span}."
    better = (figure.mean > 0) != (measure in LOWER_IS_BETTER)
    return f"{'better' if better else 'worse'} by {span}."


def _pairs(run: Run, measure: str) -> dict[Unordered, tuple[float, bool]]:
    """Return each pair's mean over both directions, and whether it is emergent."""
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


def _way(
    name: str, seeds: Mapping[str, dict[Unordered, tuple[float, bool]]], runs: Mapping[str, Run]
) -> BindingResult:
    first = next(iter(seeds.values()))
    return BindingResult(
        name,
        {
            pair: seed_interval([found[pair][0] for found in seeds.values() if pair in found])
            for pair in first
        },
        frozenset(pair for pair, (_, emergent) in first.items() if emergent),
        seed_interval([fmean(value for value, _ in found.values()) for found in seeds.values() if found]),
        seed_interval([sum(stage.seconds for stage in run.stages) for run in runs.values()]),
    )


def _difference(
    way: BindingResult,
    seeds: Mapping[str, dict[Unordered, tuple[float, bool]]],
    base: Mapping[str, dict[Unordered, tuple[float, bool]]],
) -> Difference:
    def less(wanted: Sequence[Unordered]) -> SeedInterval:
        return seed_interval(
            [
                fmean(base[seed][pair][0] - found[pair][0] for pair in wanted)
                for seed, found in seeds.items()
                if wanted and seed in base and all(pair in found and pair in base[seed] for pair in wanted)
            ]
        )

    return Difference(way.name, less(list(way.pairs)), less(sorted(way.emergent)))


_NOTE = (
    "Every figure is the mean of both directions on held-out rows; ± is half of a 95 % t interval over "
    "seeds. A pair marked * was never trained together in that way to bind: it is emergent. All "
    "ways but the one as written train every encoder at once, from the same start, for the same steps."
)


def write_emergence(found: Emergence, title: str, home: Path) -> Path:
    """Write emergence.json, emergence.png and emergence.html; return the page.

    Raises:
        StorageError: One of them cannot be written.
    """
    files.write_json(home / "emergence.json", found.to_dict())
    measure = TITLES.get(found.measure, found.measure)
    series = {way.name: {"-".join(pair): figure for pair, figure in way.pairs.items()} for way in found.ways}
    panels = [dot_panel("emergence", f"{measure} of each pair", series, found.chance, "pair of modalities")]
    return write_study(
        home,
        "emergence",
        title,
        [_NOTE, *describe_differences(found)],
        [ways_table(found), pairs_table(found)],
        panels,
    )


def ways_table(found: Emergence) -> TextTable:
    """Build the table of ways to bind: means over all and emergent pairs, and time."""
    measure = TITLES.get(found.measure, found.measure)
    rows = [
        [
            way.name,
            format_interval(way.every),
            _emergent(way),
            str(way.every.runs),
            formatting.format_duration(way.seconds.mean),
        ]
        for way in found.ways
    ]
    if found.untrained is not None:
        rows.append([UNTRAINED_ROW, formatting.format_number(found.untrained), "", "", ""])
    heads = ["bound", f"{measure}, all pairs", "its emergent pairs", "seeds", "training time"]
    return TextTable(f"Ways to bind (chance {formatting.format_number(found.chance)})", heads, rows)


def pairs_table(found: Emergence) -> TextTable:
    """Build the table of pairs, with a column for each way to bind."""
    rows = [["-".join(pair), *(_cell(way, pair) for way in found.ways)] for pair in found.pairs]
    return TextTable("Pairs (* emergent)", ["pair", *(way.name for way in found.ways)], rows)


def _emergent(way: BindingResult) -> str:
    return (
        formatting.format_number(fmean(way.pairs[pair].mean for pair in way.emergent))
        if way.emergent
        else "none"
    )


def _cell(way: BindingResult, pair: tuple[str, str]) -> str:
    if pair not in way.pairs:
        return "–"
    return format_interval(way.pairs[pair]) + ("*" if pair in way.emergent else "")
