"""Resolution of `auto` options, and the probe process behind it."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any, cast

from geobind import errors
from geobind.errors import GeobindError, RecipeError, TrainingError
from geobind.planning.models import (
    FILE,
    NOT_ON_A_CPU,
    EndingMeasurement,
    Machine,
    ProbeResult,
    RunPlan,
    StageMeasurement,
    read_plan,
    write_plan,
)
from geobind.planning.predict import predict_run
from geobind.recipe import Recipe, build_recipe
from geobind.recipe.parsing import dump_yaml
from geobind.training.distributed import broadcast_result
from geobind.training.fabric import Fabric
from geobind.training.resume import stage_folders
from geobind.utils import files

_log = logging.getLogger(__name__)

Say = Callable[[str], None]
# Environment variables of a multi-process launch, which the probe process must not inherit.
_OF_MANY = re.compile(r"(LOCAL_|NODE_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_.*|SLURM_.*|TORCHELASTIC_.*")
_LAST = 15  # lines of output shown when the process dies


def run_probe_process(recipe: Recipe, *, seconds: float, limit: int | None, say: Say) -> ProbeResult:
    """Return the measurements of a recipe, taken in another process.

    Args:
        recipe: A checked recipe.
        seconds: Time to measure steps and rows, about, without the start of the process.
        limit: Available memory in bytes; None: what is free.
        say: Called with the progress.

    Raises:
        GeobindError: The recipe cannot run (with the message of the run), or the process died.
    """
    began = time.monotonic()
    machine: Machine | None = None
    ending: EndingMeasurement | None = None
    stages: list[StageMeasurement] = []
    for kind, values in _events(recipe, seconds, limit, say):
        if kind == "Machine":
            machine = Machine.model_validate(values)
        elif kind == "StageMeasurement":
            stages.append(StageMeasurement.model_validate(values))
        elif kind == "EndingMeasurement":
            ending = EndingMeasurement.model_validate(values)
    if machine is None or len(stages) < len(recipe.stages):
        raise TrainingError("the probe process ended before it had measured everything")
    return ProbeResult(machine=machine, stages=tuple(stages), ending=ending, seconds=time.monotonic() - began)


def _events(recipe: Recipe, seconds: float, limit: int | None, say: Say) -> Iterator[tuple[str, Any]]:
    asked = {"recipe": recipe.written, "base": str(recipe.base), "name": recipe.name}
    alone = {name: value for name, value in os.environ.items() if not _OF_MANY.fullmatch(name)}
    doing = "starting"
    with (
        # Created here, because a killed process does not clean up.
        TemporaryDirectory(prefix="geobind-plan-", ignore_cleanup_errors=True) as folder,
        TemporaryFile("w+", encoding="utf-8", errors="replace") as heard,
        subprocess.Popen(
            [sys.executable, "-m", "geobind.planning"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=heard,
            env=alone,
            encoding="utf-8",
        ) as process,
    ):
        try:
            say(doing)
            with suppress(BrokenPipeError), cast("IO[str]", process.stdin) as there:
                json.dump({**asked, "folder": folder, "seconds": seconds, "limit": limit}, there)
            for line in cast("IO[str]", process.stdout):
                kind, values = json.loads(line)
                _log.debug("probe: %s %s", kind, values)
                if kind == "Progress":
                    doing = values
                    say(doing)
                elif kind == "error":
                    raise _error(*values)
                else:
                    yield kind, values
        except BaseException:
            process.kill()
            raise
        code = process.wait()
        if code:
            heard.seek(0)
            raise _died(code, doing, heard.read())


def _error(name: str, message: str) -> GeobindError:
    kind = getattr(errors, name, RecipeError)  # RecipeProblems is none of the errors there
    return kind(message)


def _died(code: int, doing: str, heard: str) -> GeobindError:
    if code == -9:
        return TrainingError(
            f"the probe process was killed ({doing}), as the system does when memory is full; end other "
            f"programs, set the available memory with --memory, or take a smaller batch"
        )
    last = "\n".join(f"  {line}" for line in heard.splitlines()[-_LAST:])
    return TrainingError(f"the probe process failed ({doing}; exit code {code}):\n{last}")


SECONDS = 12.0  # default time to measure, about
AutoValues = Mapping[str, Mapping[str, bool | int | None]]  # by stage, then by option


def make_plan(recipe: Recipe, *, seconds: float = SECONDS, limit: int | None = None, say: Say) -> RunPlan:
    """Return the plan of a recipe's run; neither the run's folder nor the cache changes.

    Args:
        recipe: A checked recipe.
        seconds: Time to measure steps and rows, about.
        limit: Available memory in bytes; None: what is free.
        say: Called with the progress.

    Raises:
        GeobindError: The recipe cannot run, or an `auto` option cannot be resolved.
    """
    return predict_run(recipe, run_probe_process(recipe, seconds=seconds, limit=limit, say=say))


def with_values(recipe: Recipe, numbers: AutoValues) -> Recipe:
    """Return the recipe with values for its `auto` options."""
    values: dict[str, Any] = copy.deepcopy(recipe.written)
    for stage, written in zip(recipe.stages, values["stages"], strict=True):
        written.update({name: numbers[stage.name][name] for name in stage.auto_options})
    return build_recipe(values, recipe.base, source=recipe.name, begin=True)


@dataclass(frozen=True)
class AutoResolver:
    """Resolves `auto` options at the start of a run, by the plan in the run's folder or by a new one.

    Args:
        always: Whether to plan a recipe without `auto` options too, where there is no plan.
        limit: Available memory in bytes; None: what is free.
        seconds: Time to measure steps and rows, about.
    """

    always: bool = False
    limit: int | None = None
    seconds: float = SECONDS

    def __call__(self, recipe: Recipe, folder: Path, fabric: Fabric) -> Recipe:
        """Return the recipe with values, also written to `plan.json` and `recipe.yaml` in the run's folder.

        Raises:
            GeobindError: An option cannot be resolved on this machine.
        """
        if not self.always and not any(stage.auto_options for stage in recipe.stages):
            return recipe
        values = broadcast_result(fabric, lambda: self._values(recipe, folder, fabric))
        result = with_values(recipe, values)
        if fabric.is_global_zero:
            files.write_atomic(folder / "recipe.yaml", dump_yaml(result.written).encode())
        return result

    def _values(self, recipe: Recipe, folder: Path, fabric: Fabric) -> AutoValues:
        opened = {name for stage in recipe.stages for name in stage.auto_options}
        if not self.always and opened == {"compile"} and fabric.device.type != "cuda":
            _log.info("compile: auto is false: %s", NOT_ON_A_CPU)  # nothing is left to measure
            return {stage.name: dict.fromkeys(stage.auto_options, False) for stage in recipe.stages}
        plan = read_plan(folder)
        if plan is not None and _is_of(plan, recipe, every=self.always):
            where = f"as planned before, in {folder / FILE}"
        else:
            plan = make_plan(recipe, seconds=self.seconds, limit=self.limit, say=_log.info)
            write_plan(plan, folder)
            where = f"measured just now; kept in {folder / FILE}"
        for stage in plan.stages:
            if stage.settled:
                _log.info("%s: %s (%s); %s", stage.name, stage.settled_words, where, stage.why)
        return {stage.name: stage.settled for stage in plan.stages}


def _is_of(plan: RunPlan, recipe: Recipe, *, every: bool) -> bool:
    """Return whether a plan fits this recipe, in all stages or in those with `auto` options."""
    planned = {stage.name: (stage.key, {*stage.settled}) for stage in plan.stages}
    keys = (key for _, key in stage_folders(recipe, Path()))
    wanted = {
        stage.name: (key, {*stage.auto_options})
        for stage, key in zip(recipe.stages, keys, strict=True)
        if every or stage.auto_options
    }
    return all(planned.get(name) == facts for name, facts in wanted.items())
