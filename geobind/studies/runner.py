"""Execution of a study's cells, each in its own process, with shared stages trained once."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

import geobind
from geobind.binder import build_binder
from geobind.bundles.card import CARD
from geobind.data.manifest import hash_manifest
from geobind.errors import GeobindError
from geobind.evaluation import PairTable, measure_retrieval
from geobind.recipe import Recipe, load_recipe
from geobind.report import open_held_out_rows
from geobind.studies.grid import Cell, check_cells
from geobind.training.interruption import SIGNALS, Stopped, route_signals
from geobind.training.resume import STAGE_FACTS, read_finished_stage, stage_folders
from geobind.training.run_loggers import copy_stage_metrics
from geobind.utils import files, formatting
from geobind.utils.hashing import fingerprint
from geobind.utils.logs import level_options
from geobind.utils.system import PARENT

_log = logging.getLogger(__name__)

_DONE = "cell.json"  # written when a cell's run has ended well
# Exit codes of a run that was asked to stop, by which signal: the study stops too.
_STOPPED = {code: number for number in SIGNALS for code in (128 + number, -number)}


class CellResult(NamedTuple):
    """A cell, its folder, and whether it failed."""

    cell: Cell
    folder: Path
    failed: bool


def run_cells(cells: Sequence[Cell], home: Path) -> list[CellResult]:
    """Run every unfinished cell in `home/NAME`; a failing cell does not stop the others.

    Args:
        cells: The cells.
        home: The study's folder.

    Raises:
        RecipeProblems: A cell's recipe has mistakes; nothing has run yet.
        StorageError: The folder cannot be written.
    """
    recipes = check_cells(cells)
    ran: list[CellResult] = []
    for number, (cell, recipe) in enumerate(zip(cells, recipes, strict=True), start=1):
        folder = home / cell.name
        head = f"[{number} of {len(cells)}] {cell.title}"
        key = _compute_key(recipe)
        if _is_done(folder, key):
            _log.info("%s: finished before, unchanged; not run again", head)
            ran.append(CellResult(cell, folder, failed=False))
            continue
        shared = _share(recipe, folder, [one.folder for one in ran if not one.failed])
        taken = f" (takes over {formatting.format_count(shared, 'finished stage')})" if shared else ""
        _log.info("%s%s", head, taken)
        ran.append(CellResult(cell, folder, failed=not _run(cell, key, folder)))
    return ran


UNTRAINED = "untrained.json"


def measure_untrained(cell: Cell, home: Path) -> PairTable | None:
    """Measure a cell's encoders before any stage, as a baseline for the study; a failure is only logged.

    The figures are kept in `home`, for the next time.
    """
    try:
        recipe = load_recipe(cell.recipe, cell.overrides)
        key, known = _compute_key(recipe), files.read_json(home / UNTRAINED)
        if known.get("key") == key:
            return TypeAdapter(PairTable).validate_python(known["table"])
        table = open_held_out_rows(recipe)
        if recipe.evaluate is None or table is None:
            return None
        _log.info("untrained encoders of %s: measured as a baseline", cell.title)
        measured = measure_retrieval(build_binder(recipe), table, recipe.marks, recipe.evaluate)
        files.write_json(home / UNTRAINED, {"key": key, "table": measured.to_dict()})
    except (GeobindError, ValidationError, KeyError) as error:
        _log.warning("no baseline of untrained encoders: %s", error)
        return None
    return measured


def _run(cell: Cell, key: str, folder: Path) -> bool:
    """Run one cell in its own process, which dies with this one; return whether it succeeded."""
    sets = [word for change in cell.overrides for word in ("--set", change)]
    command = [sys.executable, "-m", "geobind", "run", cell.recipe, *sets, "--out", str(folder), "--resume"]
    command += level_options()
    # What a run prints on its standard output is its table, which the study shows once for all.
    _log.debug("%s", " ".join(command))
    cell_process = _CellProcess()  # it ends with a checkpoint when a signal asks the study to stop
    surroundings = {**os.environ, PARENT: str(os.getpid())}
    with (
        route_signals(cell_process.forward),
        subprocess.Popen(command, stdout=subprocess.DEVNULL, env=surroundings) as process,
    ):
        cell_process.attach(process)
        code = process.wait()
    if code == 0:
        files.write_json(folder / _DONE, {"key": key})
    if number := cell_process.signal or _STOPPED.get(code):
        name = signal.Signals(number).name
        raise Stopped(number, f"{name}: the study stops after '{cell.title}'; the same command resumes it")
    return code == 0


class _CellProcess:
    """The process of a cell, which receives the signals of the study."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.signal = 0  # the number of the last one

    def attach(self, process: subprocess.Popen[bytes]) -> None:
        """Take the process, and forward a signal that came before it had started."""
        self.process = process
        if self.signal:
            process.send_signal(self.signal)

    def forward(self, number: int, _: FrameType | None) -> None:
        """Forward a signal."""
        self.signal = number
        if self.process is not None:
            self.process.send_signal(number)


def _is_done(folder: Path, key: str) -> bool:
    return (folder / "bundle" / CARD).is_file() and files.read_json(folder / _DONE).get("key") == key


def _compute_key(recipe: Recipe) -> str:
    """Return the fingerprint of all that a cell's results depend on: recipe, versions, content of manifests.

    Raises:
        DataError: A manifest is missing or cannot be read.
    """
    stages = [key for _, key in stage_folders(recipe, Path())]
    measured = recipe.evaluation_data
    manifest = measured.manifest if measured else None
    content = hash_manifest(recipe.base / manifest) if manifest is not None else ""
    return fingerprint(geobind.__version__, recipe.written, stages, content)


def _share(recipe: Recipe, folder: Path, others: Sequence[Path]) -> int:
    """Link the stages of this recipe that another cell has finished; return their number.

    The run checks their fingerprints again. Files of a run are replaced, never modified, so that a link is as
    safe as a copy.
    """
    taken = 0
    for home, key in stage_folders(recipe, folder):
        if read_finished_stage(home).get("key") == key:
            continue
        for other in others:
            source = other / home.relative_to(folder)
            if read_finished_stage(source).get("key") == key:
                _take_over(home, source, folder, other)
                taken += 1
                break
        else:
            break  # later stages depend on this one
    return taken


def _take_over(home: Path, source: Path, folder: Path, other: Path) -> None:
    """Link a finished stage of another cell: whole or not at all, whenever the process is killed."""
    try:
        with files.create_folder(home) as temporary:
            shutil.copytree(source, temporary, copy_function=_link, dirs_exist_ok=True)
            copy_stage_metrics(folder, other, home.name[3:])
            (home / STAGE_FACTS).unlink(missing_ok=True)  # first: without it the rest counts for nothing
            shutil.rmtree(home, ignore_errors=True)
    except OSError as error:
        raise files.explain_write_error(home, error) from error


def _link(source: str, target: str) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)  # another disk, or a file system without links
