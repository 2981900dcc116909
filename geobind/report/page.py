"""The HTML report of a run and its sections."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

import geobind
from geobind.binder import Binder
from geobind.data.dataset import RESERVED, registry
from geobind.data.table import Table, count_licences
from geobind.errors import DataError
from geobind.evaluation import PairTable
from geobind.evaluation.embedded import EmbeddedRows
from geobind.evaluation.intervals import hold_after_holm
from geobind.recipe.marks import MARKS, MEANINGS
from geobind.recipe.schema import to_names
from geobind.report import examples, plots
from geobind.report.examples import (
    MAX_ROWS,
    EvaluationSample,
    build_scatter,
    embed_sample,
    rank_pair,
)
from geobind.report.places import Map, build_rank_map
from geobind.report.plots import (
    MAX_POINTS,
    TITLES,
    Panel,
    draw_png,
    draw_svg,
    reliability_panels,
    stage_panels,
)
from geobind.report.run_files import FinishedStage, Run, RunFileModel, load_checked, read_run
from geobind.utils import files, formatting

_TEMPLATES = Path(__file__).parent / "templates"


def format_trained(parts: Mapping[str, str]) -> str:
    """Format what a stage trained: encoders, with the part where it is not the whole."""
    return formatting.join_words(
        [name if part == "full" else f"{name} ({part})" for name, part in parts.items()]
    )


def measure_title(measure: str) -> str:
    """Return the displayed name of a metric."""
    return TITLES.get(measure, measure)


def break_name(name: str) -> Markup:
    """Return a name that a narrow table may break after its underscores."""
    return Markup(escape(name).replace("_", Markup("_<wbr>")))


_FILTERS: dict[str, Callable[..., str]] = {
    "number": formatting.format_number,
    "signed": formatting.format_signed,
    "cosine": formatting.format_cosine,
    "share": formatting.format_percent,
    "duration": formatting.format_duration,
    "size": formatting.format_size,
    "listed": formatting.join_words,
    "thing": formatting.format_count,
    "trained": format_trained,
    "title_of": measure_title,
    "breakable": break_name,
    "sentence": formatting.format_sentence,
}


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment


def render_template(template: str, **values: Any) -> bytes:
    """Fill a template; every value is escaped unless it is an SVG drawing of our own."""
    style = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))
    shared = {"style": style, "version": geobind.__version__}
    # Half a surrogate pair in a caption is no character, and cannot be written as one.
    return _environment().get_template(template).render(shared, **values).encode("utf-8", "replace")


def _provenance_section(run: Run, held_out: Table | None) -> Iterator[tuple[str, str]]:
    """Yield the facts of a run, each with its name.

    Args:
        run: The run.
        held_out: The rows it was measured on, where they are at hand.
    """
    versions = run.card.get("versions") or run.started.get("versions") or {}
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    hardware = run.started.get("hardware")
    if isinstance(hardware, Mapping):
        yield "hardware", ", ".join(f"{name} {value}" for name, value in hardware.items())
    yield from _resources(run.started)
    yield "plugins", ", ".join(f"{name}: {plugin}" for name, plugin in run.started.get("plugins", {}).items())
    yield "seed", str(run.recipe.get("seed", 0))
    sources: dict[str, list[str]] = {}
    for stage in run.recipe["stages"]:
        source = formatting.join_words(list(dict.fromkeys(map(_source_text, _stage_tables(run, stage)))))
        split = f", split {stage['split']}" if "split" in stage else ""
        sources.setdefault(source + split, []).append(stage["name"])
    for source, stages in sources.items():
        yield ("trained on" if len(sources) == 1 else f"data of {formatting.join_words(stages)}"), source
    evaluate = run.recipe.get("evaluate")
    if evaluate is not None:
        source = _source_text(evaluate.get("data") or run.recipe.get("data"))
        yield "measured on", f"split {evaluate.get('split', 'test')} of {source}"
    licence_counts = count_licences(held_out) if held_out is not None else {}
    if licence_counts:
        counted = (
            f"{formatting.shorten(name, 80)} ({formatting.format_count(rows, 'row')})"
            for name, rows in licence_counts.items()
        )
        yield "licences of held-out rows", ", ".join(counted)


def _stage_tables(run: Run, stage: Mapping[str, Any]) -> list[Mapping[str, Any] | None]:
    """Return the tables that a stage trains on, as the recipe names them."""
    stage_data = stage.get("data")
    if stage_data is not None:
        return stage_data if isinstance(stage_data, list) else [stage_data]
    own = [(run.recipe["modalities"].get(name) or {}).get("data") for name in to_names(stage["align"])]
    return [data or run.recipe.get("data") for data in own]


def _resources(started: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield run time and peak memory; for a resumed run those of its last part."""
    with suppress(KeyError, TypeError, ValueError):
        times = [datetime.fromisoformat(started[name]) for name in ("started", "finished")]
        took = formatting.format_duration((times[1] - times[0]).total_seconds())
        yield "took", f"{took}, from {times[0]:%Y-%m-%d %H:%M} UTC"
    peak = started.get("peak_memory_bytes")
    if isinstance(peak, int):
        yield "peak memory", f"{formatting.format_size(peak)} of the machine's, by the first process"


def _name_dataset(data: Mapping[str, Any]) -> str | None:
    """Return the dataset that a `data` block names in place of a manifest."""
    return next((key for key, value in data.items() if key not in RESERVED and value is not None), None)


def _lies_on_earth(run: Run) -> bool:
    """Return whether the coordinates of the held-out rows are places on Earth."""
    data = (run.recipe.get("evaluate") or {}).get("data") or run.recipe.get("data") or {}
    plugin = registry().plugins.get(_name_dataset(data) or "")
    return plugin is None or plugin.cls.on_earth


def _source_text(data: Mapping[str, Any] | None) -> str:
    if data is None:
        return "pairs that its modality brings"
    dataset = _name_dataset(data)
    if dataset is not None:
        plugin = registry().plugins.get(dataset)
        given = data[dataset] if isinstance(data[dataset], Mapping) else {}
        options = ", ".join(f"{name} {value}" for name, value in given.items())
        return f"{plugin.cls.title if plugin else dataset}{f' ({options})' if options else ''}"
    name = str(data.get("manifest", "?"))
    return PurePath(name).name if PurePath(name).is_absolute() else name


class PlannedSeconds(RunFileModel):
    """Times of a stage."""

    stage: float


class PlannedDisk(RunFileModel):
    """Bytes that a stage writes to disk."""

    cache: int
    trained: int


class PlannedStage(RunFileModel):
    """A stage of `plan.json`."""

    name: str
    batch_size: int
    steps: int
    why: str
    seconds: PlannedSeconds
    memory_bytes: int | None = None
    disk: PlannedDisk


class PlannedMemory(RunFileModel):
    """Kind of memory that is planned."""

    kind: str


class PlanFile(RunFileModel):
    """`plan.json`, written by `geobind plan --out` or by a run that resolves `auto`."""

    memory: PlannedMemory
    opening_seconds: float
    stages: tuple[PlannedStage, ...]
    evaluation_seconds: float
    memory_bytes: int | None = None
    disk_bytes: int


class PlanVsActual(NamedTuple):
    """A planned and a measured value; None where there is none."""

    planned: float | None
    measured: float | None

    @property
    def off(self) -> str:
        """The relative error of the plan."""
        if not self.planned or not self.measured:
            return ""
        ratio = self.planned / self.measured
        if not math.isfinite(100 * ratio):
            return ""
        share = round(100 * (ratio - 1))
        return f"{share:+d}\N{NO-BREAK SPACE}%".replace("-", "−")


class PlanRow(NamedTuple):
    """Plan and measurement of a stage, or of the whole run."""

    name: str
    seconds: PlanVsActual
    memory: PlanVsActual
    disk: PlanVsActual
    why: str


class PlanComparison(NamedTuple):
    """Content of the section on plan and measurement."""

    rows: tuple[PlanRow, ...]
    accelerator: bool  # whose memory it is
    others: tuple[str, ...]  # stages that ran otherwise than planned


def compare_with_plan(run: Run) -> PlanComparison | None:
    """Compare the plan of a run with its stages; None without a plan, or before a stage is finished.

    Raises:
        CheckpointError: The plan is damaged.
    """
    path = run.folder / "plan.json"
    if not path.is_file():
        return None
    plan = load_checked(PlanFile, path)
    accelerator = plan.memory.kind == "accelerator"
    done = {stage.name: stage for stage in run.stages}
    pairs = [(stage, done[stage.name]) for stage in plan.stages if stage.name in done]
    same = [(one, two) for one, two in pairs if (one.batch_size, one.steps) == (two.batch_size, two.steps)]
    rows = [_stage_row(run.folder, one, two, accelerator) for one, two in same]
    if len(rows) == len(plan.stages) and rows:
        rows += _total_rows(run, plan, rows, accelerator)
    others = tuple(one.name for one, two in pairs if (one, two) not in same)
    return PlanComparison(tuple(rows), accelerator, others) if pairs else None


def _stage_row(folder: Path, stage: PlannedStage, done: FinishedStage, accelerator: bool) -> PlanRow:
    trained = sum(path.stat().st_size for path in folder.glob(f"stages/*_{stage.name}/trained.safetensors"))
    peak_bytes = done.peak_memory_bytes if accelerator else done.process_bytes
    return PlanRow(
        stage.name,
        PlanVsActual(stage.seconds.stage, done.seconds if math.isfinite(done.seconds) else None),
        PlanVsActual(stage.memory_bytes, peak_bytes),
        PlanVsActual(stage.disk.cache + stage.disk.trained, trained + int(done.filled.get("bytes", 0))),
        stage.why,
    )


def _total_rows(run: Run, plan: PlanFile, rows: list[PlanRow], accelerator: bool) -> Iterator[PlanRow]:
    took = None
    with suppress(KeyError, TypeError, ValueError):
        times = [datetime.fromisoformat(run.started[name]) for name in ("started", "finished")]
        took = (times[1] - times[0]).total_seconds()
    seconds = plan.opening_seconds + sum(stage.seconds.stage for stage in plan.stages)
    peaks = [row.memory.measured for row in rows if row.memory.measured is not None]
    bundle = sum(path.stat().st_size for path in run.folder.glob("bundle/*.safetensors"))
    written = sum(row.disk.measured or 0 for row in rows) + bundle
    yield PlanRow(
        "whole run",
        PlanVsActual(seconds + plan.evaluation_seconds, took),
        PlanVsActual(plan.memory_bytes, max(peaks, default=None)),
        PlanVsActual(plan.disk_bytes, written),
        "",
    )


_MEASURES = ("R@1", "R@10", "median_rank")
_COLUMNS = 4  # of a PNG


def _extra_sections(run: Run, pictures: dict[str, tuple[list[Panel], int]]) -> dict[str, Any]:
    """Build the template values of calibration, plan and arithmetic, where there are any."""
    panels = reliability_panels(run.calibration) if run.calibration else []
    if panels:
        pictures["calibration"] = panels, min(_COLUMNS, len(panels))
    present = {name for one in run.sums for query in one.queries for name in query.metrics}
    return {
        "reliability": [draw_svg(panel) for panel in panels],
        "planned": compare_with_plan(run),
        "sum_measures": [name for name in _MEASURES if name in present],
    }


PAGE, FIGURES = "report.html", "figures"
_MAX_BROKEN = 50  # broken samples listed for a stage
_MAX_MAPS = 4


def write_report(
    run_folder: Path,
    *,
    binder: Binder | None = None,
    table: PairTable | None = None,
    held_out: Table | None = None,
    embedded: Mapping[str, EmbeddedRows] | None = None,
    most_rows: int = MAX_ROWS,
    why_not: str = "",
) -> Path:
    """Write the report of a run, finished or not: `report.html` and `figures/*.png` in its folder.

    Args:
        run_folder: The folder of a run.
        binder: The encoders; with them and `held_out` the page shows galleries, maps and the space.
        table: The retrieval results; default: the run's `retrieval.json`.
        held_out: The rows it was measured on.
        embedded: Their embeddings, if already computed; default: they are embedded.
        most_rows: Largest number of held-out rows for galleries, maps and the space; more are sampled.
        why_not: Text in place of galleries, if there are none.

    Returns:
        The page.

    Raises:
        DataError: The folder holds no run.
        CheckpointError: A file of the run is damaged.
        StorageError: The page cannot be written.
    """
    run = read_run(run_folder)
    retrieved = table if table is not None else run.retrieved
    run = replace(run, retrieved=retrieved if retrieved and retrieved.rows else None)
    values: dict[str, Any] = {"galleries": [], "left_out": [], "maps": [], "space": None, "sample": ""}
    pictures: dict[str, tuple[list[Panel], int]] = {}
    if binder is not None and held_out is not None:
        try:
            by_label = run.by == "label"
            rows = embed_sample(binder, held_out, by_label=by_label, max_rows=most_rows, embedded=embedded)
            values |= _sample_values(run, rows, pictures)
        except DataError as error:  # missing data cost the galleries, not the report
            why_not = f"Galleries, maps and the shared space need the held-out rows: {error}"
    values |= _run_values(run, pictures) | _extra_sections(run, pictures) | {"why_not": why_not, "run": run}
    values["facts"] = list(_provenance_section(run, held_out))
    values["sections"] = list(_sections(run, values))
    for name, (panels, columns) in pictures.items():
        files.write_atomic(run_folder / FIGURES / f"{name}.png", draw_png(panels, columns))
    files.write_atomic(run_folder / PAGE, render_template("report.html", **values))
    return run_folder / PAGE


def _run_values(run: Run, pictures: dict[str, tuple[list[Panel], int]]) -> dict[str, Any]:
    """Build the template values that come from the run's files."""
    stages = [(stage, panels) for stage, panels in stage_panels(run) if panels]
    if stages:
        widest = max(len(panels) for _, panels in stages)
        pictures["training"] = [panel for _, panels in stages for panel in panels], widest
    values: dict[str, Any] = {
        "created": str(run.card.get("created", ""))[:10],
        "summary": _summary(run),
        "curves": [(stage, [draw_svg(panel) for panel in panels]) for stage, panels in stages],
        "banded": any(len(c.step_S) > MAX_POINTS for curves in run.curves.values() for c in curves.values()),
        "any_memory": any(stage.peak_memory_bytes for stage in run.stages),
        "any_device": any(stage.device for stage in run.stages),
        "broken": [_broken(stage) for stage in run.stages if stage.broken or stage.quarantined],
        "reaches": sorted(
            {km for leak in run.leaks.values() if leak.near for km in leak.near.within_km}, key=float
        ),
        "digests": run.card.get("digests", {}),
        "use": _describe_use(run),
    }
    if run.retrieved:
        measure = plots.headline_measure(run.retrieved)
        pictures["retrieval"] = [plots.matrix_panel(run.retrieved, measure)], 1
        present = list(dict.fromkeys(name for row in run.retrieved.rows for name in row.metrics))
        values |= {
            "compared": measure,
            "headline": plots.explain_measure(measure),
            "verdict": _verdict(run.retrieved, measure),
            "meanings": {
                mark: MEANINGS[mark] for mark in MARKS if any(row.mark == mark for row in run.retrieved.rows)
            },
            "squares": plots.matrix_cells(run.retrieved, measure),
            "same_chance": _same_chance(run.retrieved, measure),
            "measures": [name for name in plots.MAIN if name in present],
            "more_measures": [name for name in present if name not in plots.MAIN],
        }
    return values


def _sample_values(
    run: Run, rows: EvaluationSample, pictures: dict[str, tuple[list[Panel], int]]
) -> dict[str, Any]:
    """Build the template values that need held-out rows: galleries, maps, the shared space."""
    shown, left_out = examples.build_galleries(rows, run.anchor, run.marks, _newest_pair(run))
    maps = _maps(run, rows)
    if maps:
        pictures["places"] = [item.panel for item in maps], min(len(maps), 2)
    space = build_scatter(rows)
    if space:
        pictures["space"] = [space.panel], 1
    count = len(rows.table)
    sample = f"Drawn from {count:,} of the {rows.total:,} held-out rows, and ranked among those."
    return {
        "galleries": shown,
        "left_out": left_out,
        "maps": [{**item._asdict(), "drawing": draw_svg(item.panel)} for item in maps],
        "space": {**space._asdict(), "drawing": draw_svg(space.panel)} if space else None,
        "sample": sample if rows.total > count else "",
    }


def _newest_pair(run: Run) -> tuple[str, str] | None:
    """Return what the last finished stage bound, as query and gallery."""
    if not run.stages:
        return None
    stage = run.stages[-1]
    return to_names(stage.align)[0], stage.anchor


class Use(NamedTuple):
    """How to load a bundle and search with it."""

    bundle: str  # its folder, as a person beside the run's folder would write it
    query: str
    gallery: str
    width: int


def _describe_use(run: Run) -> Use | None:
    """Return what the page says of using the bundle; None while there is none."""
    names = list(run.card.get("modalities", {}))
    if len(names) < 2:
        return None
    query, gallery = _newest_pair(run) or (names[1], names[0])
    if query not in names or gallery not in names:
        query, gallery = names[1], names[0]
    # A page that is mailed names no folder of this machine.
    plain = not run.folder.is_absolute() and run.folder.name and ".." not in run.folder.parts
    folder = run.folder if plain else Path(run.folder.resolve().name)
    return Use((folder / "bundle").as_posix(), query, gallery, int(run.card.get("width", 0)))


def _maps(run: Run, rows: EvaluationSample) -> list[Map]:
    """Build maps of the pairs towards the anchor, or else of the first pairs."""
    pairs = examples.ordered_pairs(rows.spaces, run.anchor)
    toward = [pair for pair in pairs if pair[1] == run.anchor] or pairs
    ranked = [rank_pair(rows, query, gallery) for query, gallery in toward[:_MAX_MAPS]]
    on_earth = _lies_on_earth(run)
    maps = [build_rank_map(rows, one, on_earth=on_earth) for one in ranked if one is not None]
    return [item for item in maps if item is not None]


def _summary(run: Run) -> str:
    names, width = list(run.recipe["modalities"]), run.recipe.get("width") or run.card.get("width")
    seconds = sum(stage.seconds for stage in run.stages if stage.seconds == stage.seconds)
    over = formatting.format_count(len(run.stages), "stage")
    took = f", trained in {formatting.format_duration(seconds)} over {over}" if run.stages else ""
    space = f" in one space of {width} dimensions" if width else " in one space"
    return f"{formatting.join_words(names)}{space}{took}."


def _verdict(retrieved: PairTable, measure: str) -> str:
    """Describe how many pairs have their whole interval on the better side of chance."""
    rows = [row for row in retrieved.rows if measure in row.metrics]
    beat = [row for row in rows if plots.beats_chance(measure, row.metrics[measure])]
    emergent = [row for row in rows if row.mark == "emergent"]
    summary = f"{len(beat)} of {formatting.format_count(len(rows), 'ordered pair')} of modalities beat chance"
    if emergent:
        summary += f", {sum(row in beat for row in emergent)} of the {len(emergent)} emergent ones among them"
    how = f"the whole {retrieved.confidence} interval of {plots.TITLES.get(measure, measure)}"
    p_values = [p for row in rows if (p := row.metrics[measure].p) is not None]
    corrected = ""
    if len(p_values) == len(rows) > 1:
        held = zip(rows, hold_after_holm(p_values), strict=True)
        count = sum(holds and row in beat for row, holds in held)
        corrected = f" After Holm's correction for {len(rows)} tests, {count} do."
    return f"{summary}: {how} lies on the better side of what chance gives.{corrected}"


def _same_chance(retrieved: PairTable, measure: str) -> float | None:
    """Return what chance gives, where that is the same for all pairs."""
    values = {row.metrics[measure].chance for row in retrieved.rows if measure in row.metrics}
    return values.pop() if len(values) == 1 else None


def _broken(stage: FinishedStage) -> tuple[FinishedStage, int, list[tuple[str, str]]]:
    shown = [
        (formatting.shorten(key, 120), formatting.shorten(reason, 300)) for key, reason in stage.quarantined
    ]
    return stage, max(stage.broken, len(shown)), shown[:_MAX_BROKEN]


def _sections(run: Run, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    candidates = (
        ("retrieval", "Retrieval", run.retrieved),
        ("questions", "Questions in words", run.questions),
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
    yield from ((id_, title) for id_, title, something in candidates if something)
