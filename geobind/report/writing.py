"""The report of a run: one page that holds everything, and its figures as PNG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from geobind.binder import Binder
from geobind.data.table import Table
from geobind.errors import DataError
from geobind.evaluation import PairTable
from geobind.evaluation.embedded import Embedded
from geobind.report import galleries, matrix
from geobind.report.curves import MOST_POINTS, stage_panels
from geobind.report.facts import Run, read_run
from geobind.report.figures import Panel, png, svg
from geobind.report.held_out import MOST_ROWS, HeldOut, embed, ranked
from geobind.report.left import Retrieved, StageDone
from geobind.report.more import of_more
from geobind.report.page import render
from geobind.report.places import Map, rank_map
from geobind.report.ran import what_ran
from geobind.report.space import scatter
from geobind.utils import files, formatting

PAGE, FIGURES = "report.html", "figures"
_MOST_BROKEN = 50  # broken samples listed for a stage
_MOST_MAPS = 4


def write_report(
    run_folder: Path,
    *,
    binder: Binder | None = None,
    table: PairTable | None = None,
    held_out: Table | None = None,
    embedded: Mapping[str, Embedded] | None = None,
    most_rows: int = MOST_ROWS,
    why_not: str = "",
) -> Path:
    """Write the report of a run, finished or not: `report.html` and `figures/*.png` in its folder.

    Args:
        run_folder: What `geobind run` wrote into.
        binder: The encoders; with them and `held_out` the page shows galleries, maps and the space.
        table: What was measured; default: the run's `retrieval.json`.
        held_out: The rows it was measured on.
        embedded: Their embeddings, where they are there already; default: they are embedded.
        most_rows: From more held-out rows than this, so many are drawn for galleries, maps and the space.
        why_not: What the page says where galleries would be, if there are none.

    Returns:
        The page.

    Raises:
        DataError: The folder holds no run.
        CheckpointError: A file of the run is damaged.
        StorageError: The page cannot be written.
    """
    run = read_run(run_folder)
    retrieved = Retrieved.model_validate(table.to_dict()) if table is not None else run.retrieved
    run = replace(run, retrieved=retrieved if retrieved and retrieved.rows else None)
    values: dict[str, Any] = {"galleries": [], "left_out": [], "maps": [], "space": None, "sample": ""}
    pictures: dict[str, tuple[list[Panel], int]] = {}
    if binder is not None and held_out is not None:
        try:
            by_label = run.by == "label"
            rows = embed(binder, held_out, by_label=by_label, most=most_rows, embedded=embedded)
            values |= _of_rows(run, rows, pictures)
        except DataError as error:  # data that have moved since cost the galleries, not the report
            why_not = f"Galleries, maps and the shared space need the held-out rows: {error}"
    values |= _of_run(run, pictures) | of_more(run, pictures) | {"why_not": why_not, "run": run}
    values["facts"] = list(what_ran(run, held_out))
    values["sections"] = list(_sections(run, values))
    for name, (panels, columns) in pictures.items():
        files.write(run_folder / FIGURES / f"{name}.png", png(panels, columns))
    files.write(run_folder / PAGE, render("report.html", **values))
    return run_folder / PAGE


def _of_run(run: Run, pictures: dict[str, tuple[list[Panel], int]]) -> dict[str, Any]:
    """What the page says of the run's own files."""
    stages = [(stage, panels) for stage, panels in stage_panels(run) if panels]
    if stages:
        widest = max(len(panels) for _, panels in stages)
        pictures["training"] = [panel for _, panels in stages for panel in panels], widest
    values: dict[str, Any] = {
        "created": str(run.card.get("created", ""))[:10],
        "summary": _summary(run),
        "curves": [(stage, [svg(panel) for panel in panels]) for stage, panels in stages],
        "banded": any(len(c.step_S) > MOST_POINTS for found in run.curves.values() for c in found.values()),
        "any_memory": any(stage.peak_memory_bytes for stage in run.stages),
        "any_device": any(stage.device for stage in run.stages),
        "broken": [_broken(stage) for stage in run.stages if stage.broken or stage.quarantined],
        "reaches": sorted(
            {km for leak in run.leaks.values() if leak.near for km in leak.near.within_km}, key=float
        ),
        "digests": run.card.get("digests", {}),
    }
    if run.retrieved:
        measure = matrix.headline(run.retrieved)
        pictures["retrieval"] = [matrix.matrix_panel(run.retrieved, measure)], 1
        there = list(dict.fromkeys(name for row in run.retrieved.rows for name in row.metrics))
        values |= {
            "headline": matrix.explained(measure),
            "verdict": _verdict(run.retrieved, measure),
            "squares": matrix.squares(run.retrieved, measure),
            "measures": [name for name in matrix.MAIN if name in there],
            "more_measures": [name for name in there if name not in matrix.MAIN],
        }
    return values


def _of_rows(run: Run, rows: HeldOut, pictures: dict[str, tuple[list[Panel], int]]) -> dict[str, Any]:
    """What the page shows of held-out rows: galleries, maps, the shared space."""
    shown, left_out = galleries.galleries(rows, run.anchor, run.aligned)
    maps = _maps(run, rows)
    if maps:
        pictures["places"] = [item.panel for item in maps], min(len(maps), 2)
    space = scatter(rows)
    if space:
        pictures["space"] = [space.panel], 1
    count = len(rows.table)
    sample = f"Drawn from {count:,} of the {rows.total:,} held-out rows, and ranked among those."
    return {
        "galleries": shown,
        "left_out": left_out,
        "maps": [{**item._asdict(), "drawing": svg(item.panel)} for item in maps],
        "space": {**space._asdict(), "drawing": svg(space.panel)} if space else None,
        "sample": sample if rows.total > count else "",
    }


def _maps(run: Run, rows: HeldOut) -> list[Map]:
    """Maps of the pairs that look for the anchor's place, or of the first pairs there are."""
    pairs = galleries.ordered_pairs(rows.spaces, run.anchor)
    toward = [pair for pair in pairs if pair[1] == run.anchor] or pairs
    found = [ranked(rows, query, gallery) for query, gallery in toward[:_MOST_MAPS]]
    maps = [rank_map(rows, one) for one in found if one is not None]
    return [item for item in maps if item is not None]


def _summary(run: Run) -> str:
    names, width = list(run.recipe["modalities"]), run.recipe.get("width") or run.card.get("width")
    seconds = sum(stage.seconds for stage in run.stages if stage.seconds == stage.seconds)
    over = formatting.count(len(run.stages), "stage")
    took = f", trained in {formatting.duration(seconds)} over {over}" if run.stages else ""
    space = f" in one space of {width} dimensions" if width else " in one space"
    return f"{formatting.listed(names)}{space}{took}."


def _verdict(retrieved: Retrieved, measure: str) -> str:
    """Count, in words, the pairs whose whole interval lies on the better side of chance."""
    rows = [row for row in retrieved.rows if measure in row.metrics]
    beat = [row for row in rows if matrix.beats_chance(measure, row.metrics[measure])]
    emergent = [row for row in rows if row.mark == "emergent"]
    said = f"{len(beat)} of {formatting.count(len(rows), 'ordered pair')} of modalities beat chance"
    if emergent:
        said += f", {sum(row in beat for row in emergent)} of the {len(emergent)} emergent ones among them"
    how = f"the whole {retrieved.confidence} interval of {matrix.TITLES.get(measure, measure)}"
    return f"{said}: {how} lies on the better side of what chance gives."


def _broken(stage: StageDone) -> tuple[StageDone, int, list[tuple[str, str]]]:
    shown = [(formatting.short(key, 120), formatting.short(reason, 300)) for key, reason in stage.quarantined]
    return stage, max(stage.broken, len(shown)), shown[:_MOST_BROKEN]


def _sections(run: Run, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    there = (
        ("retrieval", "Retrieval", run.retrieved),
        ("examples", "Examples", values["galleries"]),
        ("places", "Where it works", values["maps"]),
        ("space", "The shared space", values["space"]),
        ("gap", "Modality gap", run.gap),
        ("arithmetic", "Arithmetic", run.sums),
        ("calibration", "Calibration", run.calibration),
        ("probes", "Recognition", run.probes),
        ("training", "Training", values["curves"]),
        ("ran", "What ran", True),
        ("planned", "Planned and measured", values["planned"]),
        ("leakage", "Leakage", run.leaks),
    )
    yield from ((id_, title) for id_, title, something in there if something)
