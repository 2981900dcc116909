"""What a recipe leaves open becomes numbers, the same in every process and when a run goes on."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from geobind.planning.asking import Say, ask
from geobind.planning.plan import FILE, Plan, read_plan, write_plan
from geobind.planning.predict import predict
from geobind.recipe import Recipe, recipe_from
from geobind.recipe.parsing import dump
from geobind.training.distributed import told_by_first
from geobind.training.resume import stage_folders
from geobind.utils import files

SECONDS = 12.0  # that measuring takes, about, unless told otherwise
Numbers = Mapping[str, Mapping[str, int | None]]  # by stage, then by option


def make_plan(recipe: Recipe, *, seconds: float = SECONDS, limit: int | None = None, say: Say) -> Plan:
    """Measure a recipe and say what its run will take; nothing of the run's folder or the cache changes.

    Args:
        recipe: A checked recipe.
        seconds: How long steps and rows may take to measure, about.
        limit: Bytes of memory there are; None: what is free.
        say: Told what is being done.

    Raises:
        GeobindError: The recipe cannot run, or what it leaves open cannot be settled.
    """
    return predict(recipe, ask(recipe, seconds=seconds, limit=limit, say=say))


def settled(recipe: Recipe, numbers: Numbers) -> Recipe:
    """Return the recipe with numbers where it left something open."""
    values: dict[str, Any] = copy.deepcopy(recipe.written)
    for stage, written in zip(recipe.stages, values["stages"], strict=True):
        written.update({name: numbers[stage.name][name] for name in stage.open})
    return recipe_from(values, recipe.base, source=recipe.name)


@dataclass(frozen=True)
class Settling:
    """Settles a recipe at the start of its run: by the plan in the run's folder, else by a new one.

    Args:
        always: Whether to make a plan, where there is none, of a recipe that leaves nothing open.
        limit: Bytes of memory there are; None: what is free.
        seconds: How long steps and rows may take to measure, about.
    """

    always: bool = False
    limit: int | None = None
    seconds: float = SECONDS

    def __call__(self, recipe: Recipe, folder: Path, fabric: Fabric) -> Recipe:
        """Return the recipe as it is run; `plan.json` and `recipe.yaml` in the run's folder say so too.

        Raises:
            GeobindError: It cannot be settled on this machine.
        """
        if not self.always and not any(stage.open for stage in recipe.stages):
            return recipe
        numbers = told_by_first(fabric, lambda: self._numbers(recipe, folder))
        result = settled(recipe, numbers)
        if fabric.is_global_zero:
            files.write(folder / "recipe.yaml", dump(result.written).encode())
        return result

    def _numbers(self, recipe: Recipe, folder: Path) -> Numbers:
        plan = read_plan(folder)
        if plan is not None and _is_of(plan, recipe, every=self.always):
            where = f"as planned before, in {folder / FILE}"
        else:
            plan = make_plan(recipe, seconds=self.seconds, limit=self.limit, say=_say)
            write_plan(plan, folder)
            where = f"by what fits in memory, measured just now; kept in {folder / FILE}"
        for stage in plan.stages:
            said = ", ".join(f"{name} {value or 'none'}" for name, value in stage.settled.items())
            if said:
                _say(f"{stage.name}: {said} ({where}); {stage.why}")
        return {stage.name: stage.settled for stage in plan.stages}


def _is_of(plan: Plan, recipe: Recipe, *, every: bool) -> bool:
    """Whether a plan was made of this recipe, in the stages that leave something open or in all."""
    planned = {stage.name: stage.key for stage in plan.stages}
    keys = (key for _, key in stage_folders(recipe, Path()))
    wanted = {stage.name: key for stage, key in zip(recipe.stages, keys, strict=True) if every or stage.open}
    return all(planned.get(name) == key for name, key in wanted.items())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
