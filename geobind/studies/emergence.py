"""Does binding everything to one anchor lose anything, and does it matter which? Runs that say so.

The same modalities are bound from the same start, on the same rows and with the same amount of work: once
around each anchor, once all to all, and once in the stages that the recipe's author wrote. ImageBind (arXiv:
2305.05665) and GeoBind (arXiv:2404.11720) choose one anchor and report no such comparison.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from geobind.binder import Binder
from geobind.data.loader import collate
from geobind.data.sampler import Mixture
from geobind.errors import RecipeError
from geobind.inference import prepared
from geobind.recipe import Recipe, Stage, load_recipe
from geobind.recipe.schema import Pairing, bound_pairs
from geobind.studies.cells import Axis, Cell, grid, make_axis
from geobind.studies.compute import forward_flops, pair_flops
from geobind.studies.outcome import SEED
from geobind.training.stage_data import Sources

AS_WRITTEN, ALL = "as written", "all to all"
AXIS = "bound"
# What the one joint stage takes over from the recipe's first.
_SAME = ("batch_size", "loss", "optimizer", "schedule", "precision", "clip_norm", "split", "mix", "data")


class Setting(NamedTuple):
    """What a study compares."""

    recipe: str
    overrides: tuple[str, ...]
    anchors: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int  # of each joint stage


def around(anchor: str) -> str:
    """What a study calls training around an anchor."""
    return f"around {anchor}"


def plan(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    anchors: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
) -> Setting:
    """Decide what to run: which anchors, and how many steps make the work equal.

    Args:
        recipe: A path or the name of a shipped recipe, whose modalities, data and evaluation are used.
        overrides: Changes to it, as `--set` takes them.
        anchors: The anchors to compare; default: every modality.
        seeds: Every way to train is run once with each.
        steps: Of each joint stage; default: as many as take the work of the recipe's own stages.

    Raises:
        RecipeError: The recipe cannot be studied so; the message says why.
        DataError: Its data cannot be read.
    """
    checked = load_recipe(recipe, overrides)
    names = tuple(checked.modalities)
    if len(names) < 3:
        raise RecipeError(f"{recipe}: has {len(names)} modalities; what is emergent takes three or more")
    if checked.evaluate is None:
        raise RecipeError(f"{recipe}: measures nothing; give it an `evaluate:` block of held-out rows")
    if any("batch_size" in stage.open for stage in checked.stages):
        raise RecipeError(f"{recipe}: `batch_size: auto` may differ between runs; equal work takes a number")
    strange = [name for name in anchors if name not in names]
    if strange:
        raise RecipeError(f"no modality '{strange[0]}' to be an anchor; the recipe has {', '.join(names)}")
    frozen = [name for name in names if checked.role(name) == "frozen"]
    if len(frozen) > 1:
        raise RecipeError(
            f"{recipe}: {' and '.join(frozen)} are both frozen, so that nothing can be learned between them; "
            f"write `role: trainable` for all but one of them"
        )
    return Setting(
        recipe,
        tuple(overrides),
        tuple(anchors) or names,
        tuple(seeds),
        steps if steps is not None else equal_steps(checked),
    )


def cells_of(setting: Setting) -> list[Cell]:
    """The runs of a study: each way to bind, with each seed."""
    recipe = load_recipe(setting.recipe, setting.overrides)
    ways: dict[str, dict[str, Any]] = {AS_WRITTEN: {}}
    for anchor in setting.anchors:
        ways[around(anchor)] = _joint(recipe, anchor, "anchor", setting.steps)
    ways[ALL] = _joint(recipe, recipe.anchor, "all", setting.steps)
    axes: list[Axis] = [
        make_axis(AXIS, ways),
        make_axis(SEED, {str(seed): {SEED: seed} for seed in setting.seeds}),
    ]
    return grid(setting.recipe, axes, setting.overrides)


def equal_steps(recipe: Recipe) -> int:
    """How many steps of a joint stage take the work of the recipe's own stages, encoders counted alone.

    Raises:
        RecipeError: The work comes to less than a step.
    """
    sources = Sources(recipe)
    rows = {stage.name: sources.rows(stage) for stage in recipe.stages}
    forward = _forward_flops(recipe, list(rows.values()))
    spent = sum(
        stage.batch_size
        * _steps(stage, rows[stage.name])
        * pair_flops(forward, recipe.names_of(stage), stage.parts)
        for stage in recipe.stages
    )
    trained = [name for name in recipe.modalities if recipe.role(name) == "trainable"]
    step = recipe.stages[0].batch_size * pair_flops(forward, list(recipe.modalities), trained)
    if spent < step:
        raise RecipeError("the recipe's stages take less work than one joint step; give --steps")
    return round(spent / step)


def _steps(stage: Stage, rows: Mixture) -> int:
    if stage.steps is not None:
        return stage.steps
    return (stage.epochs or 0) * rows.plan(stage.batch_size, 0, mixed=stage.mix == "rows").epoch


def _forward_flops(recipe: Recipe, mixtures: Sequence[Mixture]) -> dict[str, int]:
    """Operations that embedding one row takes, by modality."""
    binder = Binder(recipe.built, recipe.width, pretrained=False)
    found: dict[str, int] = {}
    for stage, mixture in zip(recipe.stages, mixtures, strict=True):
        for name, source in product(recipe.names_of(stage), mixture.sources):
            there_R = source.rows.rows_with([name])
            if name not in found and len(there_R):
                raw = source.rows[int(there_R[0])].raws[name]
                batch = collate([prepared(recipe.built[name], 0, raw[0] if isinstance(raw, list) else raw)])
                found[name] = forward_flops(binder.encoders[name], batch)
    absent = [name for name in recipe.modalities if name not in found]
    if absent:
        raise RecipeError(
            f"no stage of the recipe has rows with '{absent[0]}'; leave it out, or give it data"
        )
    return found


def _joint(recipe: Recipe, anchor: str, pairing: Pairing, steps: int) -> dict[str, Any]:
    """The changes that make a recipe one stage which binds everything at once."""
    first = recipe.written["stages"][0]
    others = [name for name in recipe.modalities if name != anchor]
    trained = [name for name in recipe.modalities if recipe.role(name) == "trainable"]
    pairs = bound_pairs(anchor, others, pairing, trained)
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
