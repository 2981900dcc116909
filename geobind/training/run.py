"""From a recipe to a bundle: every stage in turn, then what was measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from lightning_fabric import Fabric
from torch import nn

from geobind import plugins, provenance, storage
from geobind.binder import Binder
from geobind.data.mixing import Mixture
from geobind.errors import RecipeError
from geobind.evaluation import Leakage, PairTable
from geobind.recipe import Recipe, Stage
from geobind.recipe.describing import sentence
from geobind.recipe.reading import dump
from geobind.recipe.schema import Fabric as FabricOptions
from geobind.seeds import fingerprint
from geobind.towers.weights import load_strictly, read_weights
from geobind.training.bind import check_queue
from geobind.training.parts import check_part
from geobind.training.record import Metrics, pair_fields
from geobind.training.results import leave
from geobind.training.sources import Sources
from geobind.training.stage import Job, Outcome, run_stage
from geobind.training.told import check_told


class Finished(NamedTuple):
    """What a run leaves behind."""

    folder: Path
    bundle: Path
    table: PairTable | None  # None when the recipe evaluates nothing


def run(recipe: Recipe, folder: Path, *, resume: bool = False) -> Finished:
    """Run every stage of a recipe, measure, and save a bundle.

    Args:
        recipe: A checked recipe.
        folder: Where everything of this run goes.
        resume: Go on with a run that lies there: finished stages that are unchanged are not run again, an
            interrupted one goes on from its last checkpoint.

    Raises:
        GeobindError: Something is wrong that a user can mend; what is finished stays.
    """
    fabrics = _fabrics(recipe)
    fabric = fabrics[recipe.fabric.precision]
    if fabric.is_global_zero:
        _open_folder(recipe, folder, resume)
    fabric.barrier()
    with fabric.rank_zero_first():
        sources = Sources(recipe)
    found = [sources.rows(stage) for stage in recipe.stages]
    warned = [line for told in zip(recipe.stages, found, strict=True) for line in check_told(*told)]
    binder = Binder(recipe.built, recipe.width, seed=recipe.seed)
    _rehearse(recipe, binder, found)
    sources.check()
    if fabric.is_global_zero:
        _warn_of_leaks(sources.leakage(), folder)
        for line in warned:
            print(f"warning: {line}", file=sys.stderr, flush=True)

    stages: list[dict[str, Any]] = []
    places = stage_folders(recipe, folder)
    for stage, rows, (home, key) in zip(recipe.stages, found, places, strict=True):
        metrics = Metrics(folder / "metrics.csv", _more_fields(recipe, found))
        job = Job(recipe, stage, binder, rows, home, metrics, key)
        stages.append(_once(fabrics[stage.precision or recipe.fabric.precision], job))

    measured = sources.measure(binder) if fabric.is_global_zero else None
    if fabric.is_global_zero:
        leave(recipe, binder, stages, sources, measured, folder)
    fabric.barrier()
    return Finished(folder, folder / "bundle", measured.table if measured else None)


def _fabrics(recipe: Recipe) -> dict[str, Fabric]:
    """Start one Fabric for each precision that the stages ask for."""
    wanted = [recipe.fabric.precision, *(stage.precision for stage in recipe.stages if stage.precision)]
    return {precision: make_fabric(recipe.fabric, precision) for precision in dict.fromkeys(wanted)}


def make_fabric(options: FabricOptions, precision: str) -> Fabric:
    """Start Lightning Fabric as a recipe asks for it.

    Raises:
        RecipeError: This machine has no such accelerator, device or precision.
    """
    wanted: dict[str, Any] = {**options.model_dump(), "precision": precision}
    try:
        fabric = Fabric(**wanted)
        fabric.launch()
    except (ValueError, RuntimeError, TypeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"fabric {wanted} cannot run on this machine: {reason}") from error
    return fabric


def _open_folder(recipe: Recipe, folder: Path, resume: bool) -> None:
    if (folder / "run.json").exists() and not resume:
        raise RecipeError(
            f"{folder} holds a run already: go on with it (--resume), or choose another folder (--out)"
        )
    storage.sweep(folder)
    storage.write(folder / "recipe.yaml", dump(recipe.written).encode())
    sources = {name: str(plugins.registry().plugins[name].source) for name in recipe.modalities}
    base = str(recipe.base.resolve())  # where `geobind report` finds relative manifests again
    facts = {"recipe": recipe.name, "base": base, "versions": provenance.versions(), "plugins": sources}
    facts |= {"hardware": provenance.hardware(), "started": provenance.now()}
    storage.write_json(folder / "run.json", facts)


def _rehearse(recipe: Recipe, binder: Binder, found: Sequence[Mixture]) -> None:
    """Embed a row of every stage and table, so that what cannot work fails before hours of training."""
    for stage, rows in zip(recipe.stages, found, strict=True):
        for name, part in stage.trained.items():
            check_part(name, binder.encoders[name], part)
        check_queue(stage, min(rows.having(pair.both) for pair in recipe.pairs_of(stage)))
        for name, source in product(recipe.names_of(stage), rows.sources):
            there_R = source.rows.rows_with([name])
            if len(there_R):
                raw = source.rows[int(there_R[0])].raws[name]
                binder.embed(name, raw[0] if isinstance(raw, list) else raw)


def _more_fields(recipe: Recipe, found: Sequence[Mixture]) -> list[str]:
    """The columns of metrics.csv beside the usual: those of stages with several pairs or sources."""
    several = [pairs for stage in recipe.stages if len(pairs := recipe.pairs_of(stage)) > 1]
    names = dict.fromkeys(pair.name for pairs in several for pair in pairs)
    return pair_fields([*names]) + (["source"] if any(len(rows.sources) > 1 for rows in found) else [])


def _once(fabric: Fabric, job: Job) -> dict[str, Any]:
    """Run a stage, unless it was finished before and nothing it depends on has changed."""
    stage = job.stage
    done = storage.read_json(job.folder / "stage.json")
    if done.get("key") == job.key:
        load_strictly(_trained(job), read_weights(job.folder / "trained.safetensors"), str(job.folder))
        _say(fabric, f"{stage.name}: finished before, unchanged; not run again")
        return done
    _say(fabric, f"{stage.name}: {sentence(job.recipe, stage)}")
    return _finish(fabric, job, run_stage(fabric, job))


def _warn_of_leaks(leaks: dict[str, Leakage], folder: Path) -> None:
    storage.write_json(folder / "leakage.json", {name: leak.to_dict() for name, leak in leaks.items()})
    for name, leak in leaks.items():
        if leak.warning:
            print(f"warning: stage '{name}': {leak.warning}", file=sys.stderr, flush=True)


def _finish(fabric: Fabric, job: Job, outcome: Outcome) -> dict[str, Any]:
    """Write what a stage trained; `stage.json` comes last and means that the stage is finished."""
    stage, recipe = job.stage, job.recipe
    done = {
        "name": stage.name,
        "key": job.key,
        "anchor": recipe.anchor_of(stage),
        "align": stage.align,
        "train": stage.parts,
        "pairs": len(job.rows),
        "sources": _sources(job.rows),
        "batch_size": stage.batch_size,
        **outcome._asdict(),
        "broken": len(outcome.quarantined),
        "digests": {name: provenance.digest(job.binder.encoders[name]) for name in stage.parts},
    }
    if fabric.is_global_zero:
        storage.write_tensors(job.folder / "trained.safetensors", _trained(job).state_dict())
        storage.write_json(job.folder / "stage.json", done)
        (job.folder / "state.ckpt").unlink(missing_ok=True)
    fabric.barrier()
    return done


def stage_folders(recipe: Recipe, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each stage's folder inside a run's, and the fingerprint of all that its result depends on."""
    key = fingerprint(recipe.seed, recipe.width)
    for number, stage in enumerate(recipe.stages, start=1):
        key = _key(key, recipe, stage)
        yield folder / "stages" / f"{number:02d}_{stage.name}", key


def _sources(rows: Mixture) -> list[dict[str, Any]]:
    told = zip(rows.sources, rows.shares, strict=True)
    return [{"name": source.name, "rows": len(source.rows), "share": share} for source, share in told]


def _key(previous: str, recipe: Recipe, stage: Stage) -> str:
    """Fingerprint all that a stage's result depends on, the stages before it included."""
    sides = recipe.names_of(stage)
    return fingerprint(
        previous,
        stage.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        {name: recipe.built[name].model_dump(mode="json") for name in sides},
        {name: plugins.registry().plugins[name].source.version for name in sides},
        [options.model_dump(mode="json") for options in recipe.tables_of(stage)],
    )


def _trained(job: Job) -> nn.ModuleDict:
    return nn.ModuleDict({name: job.binder.encoders[name] for name in job.stage.parts})


def _say(fabric: Fabric, line: str) -> None:
    if fabric.is_global_zero:
        print(line, file=sys.stderr, flush=True)
