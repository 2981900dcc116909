"""Have a recipe measured by a process of its own, which leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any, cast

from geobind import errors
from geobind.errors import GeobindError, RecipeError, TrainingError
from geobind.planning.found import AllFound, EndingFound, Machine, StageFound
from geobind.recipe import Recipe

Say = Callable[[str], None]
# What tells a process that it is one of several: the one that measures is alone.
_OF_MANY = re.compile(r"(LOCAL_|NODE_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_.*|SLURM_.*|TORCHELASTIC_.*")
_LAST = 15  # lines of what a process said before it died


def ask(recipe: Recipe, *, seconds: float, limit: int | None, say: Say) -> AllFound:
    """Measure a recipe in another process.

    Args:
        recipe: A checked recipe.
        seconds: How long steps and rows may take to measure, about; starting comes on top.
        limit: Bytes of memory there are; None: what is free.
        say: Told what is being done.

    Raises:
        GeobindError: The recipe cannot run, with the message of the run; or the process died.
    """
    began = time.monotonic()
    machine: Machine | None = None
    ending: EndingFound | None = None
    stages: list[StageFound] = []
    for kind, values in _events(recipe, seconds, limit, say):
        if kind == "Machine":
            machine = Machine.model_validate(values)
        elif kind == "StageFound":
            stages.append(StageFound.model_validate(values))
        elif kind == "EndingFound":
            ending = EndingFound.model_validate(values)
    if machine is None or len(stages) < len(recipe.stages):
        raise TrainingError("the process that measures ended before it had measured everything")
    return AllFound(machine=machine, stages=tuple(stages), ending=ending, seconds=time.monotonic() - began)


def _events(recipe: Recipe, seconds: float, limit: int | None, say: Say) -> Iterator[tuple[str, Any]]:
    asked = {"recipe": recipe.written, "base": str(recipe.base), "name": recipe.name}
    alone = {name: value for name, value in os.environ.items() if not _OF_MANY.fullmatch(name)}
    doing = "starting"
    with (
        # Here and not over there: a process that is killed clears nothing away.
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
                if kind == "Doing":
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
            f"the process that measures was killed ({doing}), as the system does when memory is full; end "
            f"other programs, say how much there is with --memory, or take a smaller batch"
        )
    last = "\n".join(f"  {line}" for line in heard.splitlines()[-_LAST:])
    return TrainingError(f"the process that measures failed ({doing}; exit code {code}):\n{last}")
