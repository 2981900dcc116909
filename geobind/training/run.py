"""Runs of a recipe: resolve open options, train every stage, write the results."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from lightning_fabric import Fabric
from torch import nn

from geobind import plugins
from geobind.binder import Binder
from geobind.bundles.stability import StageProof
from geobind.data.sampler import MixedDataset
from geobind.errors import CheckpointError, RecipeError
from geobind.evaluation import Leakage, PairTable
from geobind.evaluation.held_out import EvaluationResults
from geobind.recipe import Recipe
from geobind.recipe.describe import cautions, sentence
from geobind.recipe.parsing import dump
from geobind.towers.weights import load_strictly, read_weights
from geobind.training.distributed import alike, leave_together, on_first, together, told_by_first
from geobind.training.interruption import deterministic, listening
from geobind.training.launch import check_shares, fabrics_of
from geobind.training.loss_inputs import check_told
from geobind.training.losses.build import check_queue
from geobind.training.metrics import pair_fields
from geobind.training.results import leave
from geobind.training.resume import alone_in, begun, gone_on_with, parts_of, stage_folders, why
from geobind.training.run_loggers import figures_of
from geobind.training.stability import Prover, told
from geobind.training.stage import Job, Outcome, run_stage
from geobind.training.stage_data import Sources
from geobind.training.trainable import check_part
from geobind.training.validation import remove_best
from geobind.utils import files, system
from geobind.utils.logs import rank_zero_logger

_log = rank_zero_logger(__name__)

# Puts numbers in the place of what is open, on every process the same; it is given the run's folder.
Settle = Callable[[Recipe, Path, Fabric], Recipe]


def closed(recipe: Recipe, folder: Path, fabric: Fabric, settle: Settle | None) -> Recipe:
    """Return a recipe that leaves nothing open.

    Raises:
        RecipeError: It does, and nothing settles it.
        GeobindError: It cannot be settled on this machine.
    """
    recipe = settle(recipe, folder, fabric) if settle else recipe
    for stage in recipe.stages:
        if stage.open:
            raise RecipeError(
                f"stage '{stage.name}': `{stage.open[0]}: auto` is not settled; give `run` a "
                f"`geobind.planning.auto.Settling()`, as `geobind run` does, or write a number"
            )
    return recipe


class Finished(NamedTuple):
    """What a run leaves behind."""

    folder: Path
    bundle: Path
    table: PairTable | None  # None when the recipe evaluates nothing


def run(recipe: Recipe, folder: Path, *, resume: bool = False, settle: Settle | None = None) -> Finished:
    """Run every stage of a recipe, measure, and save a bundle.

    Args:
        recipe: A checked recipe.
        folder: Where everything of this run goes.
        resume: Go on with a run that lies there: finished stages that are unchanged are not run again, an
            interrupted one goes on from its last checkpoint.
        settle: Puts numbers in the place of what the recipe leaves open, on every process the same.

    Raises:
        GeobindError: Something is wrong that a user can mend; what is finished stays.
        Stopped: A signal asked it to stop.
    """
    with deterministic(recipe.fabric.deterministic):
        fabrics = fabrics_of(recipe)
        fabric = fabrics[recipe.fabric.precision]
        with listening(), ExitStack() as held, together(fabric):
            on_first(fabric, lambda: held.enter_context(_own(recipe, folder, resume)))
            return _through(closed(recipe, folder, fabric, settle), folder, fabrics)


@contextmanager
def _own(recipe: Recipe, folder: Path, resume: bool) -> Generator[None]:
    """Make a folder this run's, as long as the block runs."""
    with alone_in(folder):
        _open_folder(recipe, folder, resume)
        with gone_on_with(folder):
            yield


def _through(recipe: Recipe, folder: Path, fabrics: dict[str, Fabric]) -> Finished:
    """Go through all of a recipe, in a folder that is this run's."""
    fabric = fabrics[recipe.fabric.precision]
    with fabric.rank_zero_first(local=True):  # what is rendered or read may lie on a disk of each node
        sources = Sources(recipe)
    found = [sources.rows(stage) for stage in recipe.stages]
    check_shares(fabric, recipe, found)
    warned = [line for each in zip(recipe.stages, found, strict=True) for line in check_told(*each)]
    warned += [f"stage '{stage.name}': {line}" for stage in recipe.stages for line in cautions(recipe, stage)]
    binder = Binder(recipe.built, recipe.width, seed=recipe.seed)
    rehearse(recipe, binder, found)
    sources.check()
    for stage in recipe.stages:
        sources.held(stage)
    on_first(fabric, lambda: _warn_of_leaks({**sources.leakage(), **sources.leakage_of_watched()}, folder))
    for line in warned:
        _log.warning("%s", line)

    stages: list[dict[str, Any]] = []
    prover = Prover(recipe, sources, binder)
    places = stage_folders(recipe, folder)
    with figures_of(recipe, folder, _more_fields(recipe, found)) as (metrics, validations):
        for stage, rows, (home, key) in zip(recipe.stages, found, places, strict=True):
            held = sources.held(stage)
            job = Job(recipe, stage, binder, rows, home, metrics, key, held=held, validations=validations)
            stages.append(_once(fabrics[stage.precision or recipe.fabric.precision], job, prover, stages))

    def measure_and_leave() -> EvaluationResults | None:
        measured = sources.measure(binder)
        leave(recipe, binder, stages, sources, measured, folder)
        return measured

    measured = on_first(fabric, measure_and_leave)
    leave_together(fabric)
    return Finished(folder, folder / "bundle", measured.table if measured else None)


def _open_folder(recipe: Recipe, folder: Path, resume: bool) -> None:
    if (folder / "run.json").exists() and begun(folder) and not resume:
        raise RecipeError(
            f"{folder} holds a run already: go on with it (--resume), or choose another folder (--out)"
        )
    files.remove_partial_files(folder)
    files.write_atomic(folder / "recipe.yaml", dump(recipe.written).encode())
    sources = {name: str(plugins.registry().plugins[name].source) for name in recipe.modalities}
    base = str(recipe.base.resolve())  # where `geobind report` finds relative manifests again
    facts = {"recipe": recipe.name, "base": base, "versions": system.collect_versions(), "plugins": sources}
    facts |= {"hardware": system.describe_hardware(), "started": system.utc_now()}
    files.write_json(folder / "run.json", facts)


def rehearse(recipe: Recipe, binder: Binder, found: Sequence[MixedDataset]) -> None:
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


def _more_fields(recipe: Recipe, found: Sequence[MixedDataset]) -> list[str]:
    """The columns of metrics.csv beside the usual: those of stages with several pairs or sources."""
    several = [pairs for stage in recipe.stages if len(pairs := recipe.pairs_of(stage)) > 1]
    names = dict.fromkeys(pair.name for pairs in several for pair in pairs)
    return pair_fields([*names]) + (["source"] if any(len(rows.sources) > 1 for rows in found) else [])


def _once(fabric: Fabric, job: Job, prover: Prover, before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Run a stage, unless it was finished before and nothing it depends on has changed."""
    stage = job.stage
    done = told_by_first(fabric, lambda: files.read_json(job.folder / "stage.json"))
    if done.get("key") == job.key:
        on_first(fabric, lambda: _load_finished(job, done))
        alike(fabric, _trained(job).state_dict().values())  # the others need not see the first one's disk
        _log.info("%s: finished before, unchanged; not run again", stage.name)
        return done
    again = f" (run again: {why(done, parts_of(job.recipe, stage))})" if done else ""
    _log.info("%s: %s%s", stage.name, sentence(job.recipe, stage), again)
    states = on_first(fabric, lambda: prover.states(fabric))
    outcome = run_stage(fabric, job)
    proof = on_first(fabric, lambda: prover.proof(fabric, stage.name, tuple(stage.parts), states or {}))
    for line in told(proof, before[-1] if before else None) if proof else ():
        _log.info("%s: %s", stage.name, line)
    return _finish(fabric, job, outcome, proof)


def _load_finished(job: Job, done: Mapping[str, Any]) -> None:
    """Take the weights that a finished stage left, if they are the ones that it trained."""
    path = job.folder / "trained.safetensors"
    load_strictly(_trained(job), read_weights(path), str(path))
    for name, digest in done.get("digests", {}).items():
        if system.hash_module(job.binder.encoders[name]) != digest:
            raise CheckpointError(
                f"{path}: the weights of '{name}' are not those that the stage trained: the file has changed "
                f"since; remove {job.folder} to train the stage again"
            )
    with suppress(OSError):  # of a process that was killed between its last two writes
        (job.folder / "state.ckpt").unlink()


def _warn_of_leaks(leaks: dict[str, Leakage], folder: Path) -> None:
    files.write_json(folder / "leakage.json", {name: leak.to_dict() for name, leak in leaks.items()})
    for name, leak in leaks.items():
        if leak.warning:
            _log.warning("stage '%s': %s", name, leak.warning)


def _finish(fabric: Fabric, job: Job, outcome: Outcome, proof: StageProof | None) -> dict[str, Any]:
    """Write what a stage trained; `stage.json` comes last and means that the stage is finished."""
    stage, recipe = job.stage, job.recipe
    done = {
        "name": stage.name,
        "key": job.key,
        "parts": parts_of(recipe, stage),
        "anchor": recipe.anchor_of(stage),
        "align": stage.align,
        "train": stage.parts,
        "pairs": len(job.rows),
        "sources": _sources(job.rows),
        "batch_size": stage.batch_size,
        **outcome._asdict(),
        "broken": len(outcome.quarantined),
        "digests": {name: proof.after[name].weights for name in stage.parts} if proof else {},
        "proof": proof and proof.model_dump(mode="json"),
    }

    def write() -> None:
        files.write_tensors(job.folder / "trained.safetensors", _trained(job).state_dict())
        files.write_json(job.folder / "stage.json", done)
        (job.folder / "state.ckpt").unlink(missing_ok=True)
        remove_best(job.folder)

    on_first(fabric, write)
    return done


def _sources(rows: MixedDataset) -> list[dict[str, Any]]:
    told = zip(rows.sources, rows.shares, strict=True)
    return [{"name": source.name, "rows": len(source.rows), "share": share} for source, share in told]


def _trained(job: Job) -> nn.ModuleDict:
    return nn.ModuleDict({name: job.binder.encoders[name] for name in job.stage.parts})
