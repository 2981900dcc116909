"""Measure what comes after the last stage: embedding held-out rows, measuring, the bundle, the report."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stderr
from pathlib import Path

from geobind.binder import Binder
from geobind.data.table import open_table
from geobind.planning.bench import seconds_since
from geobind.planning.found import EndingFound
from geobind.planning.lines import fit
from geobind.recipe import Recipe
from geobind.recipe.parsing import dump
from geobind.training.final_evaluation import Measured, first_rows, measure_all
from geobind.training.results import leave
from geobind.training.stage_data import Sources
from geobind.utils import files, system

_ROWS = 32, 128


def measure_ending(recipe: Recipe, binder: Binder, sources: Sources, folder: Path) -> EndingFound:
    """Measure a few held-out rows, and write what a run leaves of them into a scratch folder.

    Raises:
        GeobindError: What the recipe asks for cannot be measured.
    """
    found, measured = _evaluated(recipe, binder)
    files.write(folder / "recipe.yaml", dump(recipe.written).encode())
    files.write_json(folder / "run.json", {"recipe": recipe.name, "started": system.now()})
    with redirect_stderr(io.StringIO()):
        began = time.monotonic()
        leave(recipe, binder, [], sources, measured, folder)
        whole = seconds_since(began)
        began = time.monotonic()
        binder.save(folder / "again")
        bundle = seconds_since(began)
    return EndingFound(seconds=found + bundle, report_seconds=max(0.0, whole - bundle))


def _evaluated(recipe: Recipe, binder: Binder) -> tuple[float, Measured | None]:
    """Return the seconds that measuring will take, and what was measured of a few rows."""
    options = recipe.evaluate
    data = (options.data or recipe.data) if options else None
    if options is None or data is None:
        return 0.0, None
    table = open_table(data, recipe.base, tuple(recipe.modalities))
    rows = len(first_rows(table.split(options.split), options.limit))
    points: list[tuple[float, float]] = []
    measured = None
    for count in sorted({min(rows, some) for some in _ROWS}):
        few = options.model_copy(update={"limit": count, "calibrate": None})
        system.tidy()
        with redirect_stderr(io.StringIO()):
            began = time.monotonic()
            measured = measure_all(binder, table, data, set(), few)
            points.append((count, seconds_since(began)))
    line = fit(points)
    calibrating = len(table.split(options.calibrate)) if options.calibrate else 0
    return line(rows) + line.slope * calibrating, measured
