"""Runs of a recipe: resolution of `auto` options, stages, results."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from html import escape
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from geobind import plugins
from geobind.binder import Binder, build_binder
from geobind.bundles.stability import StageProof
from geobind.data.augmentation import UNCHANGED, share_geometry
from geobind.data.sampler import MixedDataset
from geobind.data.seeds import preserve_rng
from geobind.data.table import first_observation
from geobind.errors import CheckpointError, RecipeError
from geobind.evaluation import Leakage, PairTable
from geobind.evaluation.embedded import embed_rows
from geobind.evaluation.held_out import EvaluationResults, build_retrieval_table, with_baseline
from geobind.evaluation.questions import QuestionResults
from geobind.modality import Modality
from geobind.recipe import Recipe, load_recipe
from geobind.recipe.describe import describe_stage, describe_unpublished, recipe_warnings
from geobind.recipe.loading import build_direct_recipe
from geobind.recipe.parsing import dump_yaml
from geobind.recipe.schema import find_pair
from geobind.towers.weights import load_strictly, read_weights
from geobind.training.distributed import (
    broadcast_result,
    broadcast_tensors,
    explain_lost_rank,
    rank_zero_run,
    wait_for_ranks,
)
from geobind.training.fabric import Fabric
from geobind.training.interruption import deterministic_algorithms, handle_signals
from geobind.training.launch import TrainingPrecision, check_batch_division, launch_fabrics, resolve_precision
from geobind.training.loss_inputs import check_loss_inputs
from geobind.training.losses.build import check_queue
from geobind.training.metrics import pair_columns
from geobind.training.results import write_results
from geobind.training.resume import (
    STAGE_FACTS,
    STAGE_WEIGHTS,
    add_resume_hint,
    explain_rerun,
    fingerprint_parts,
    has_partial_results,
    read_finished_stage,
    run_lock,
    stage_folders,
)
from geobind.training.run_loggers import open_run_loggers
from geobind.training.stability import Prover, describe_proof
from geobind.training.stage import StageResult, StageRun, run_stage
from geobind.training.stage_data import StageData, StageRows, count_steps
from geobind.training.trainable import check_part
from geobind.training.validation import remove_best_weights
from geobind.utils import files, system
from geobind.utils.logs import rank_zero_logger

_log = rank_zero_logger(__name__)

# Replaces `auto` by values, the same on every rank; it gets the recipe, the run's folder and a Fabric.
AutoResolution = Callable[[Recipe, Path, Fabric], Recipe]


def resolve_auto(recipe: Recipe, folder: Path, fabric: Fabric, resolver: AutoResolution | None) -> Recipe:
    """Return the recipe with every `auto` option resolved.

    Raises:
        RecipeError: An option is `auto`, and no resolver is given.
        GeobindError: It cannot be resolved on this machine.
    """
    recipe = resolver(recipe, folder, fabric) if resolver else recipe
    for stage in recipe.stages:
        if stage.auto_options:
            raise RecipeError(
                f"stage '{stage.name}': `{stage.auto_options[0]}: auto` is not resolved; pass `run` a "
                f"`resolver=geobind.planning.auto.AutoResolver()`, as `geobind run` does, or write a value"
            )
    return recipe


class RunResult(NamedTuple):
    """The results of a run."""

    folder: Path
    bundle: Path
    table: PairTable | None  # None when the recipe evaluates nothing
    questions: QuestionResults | None = None

    def _repr_html_(self) -> str:
        shown = "" if self.table is None else self.table.to_html()
        return f"<p>run in {escape(str(self.folder))}</p>{shown}"


def run(
    recipe: Recipe | str | Path | Mapping[str, Any],
    folder: str | Path | None = None,
    *,
    resume: bool = False,
    resolver: AutoResolution | None = None,
) -> RunResult:
    """Run every stage of a recipe, measure, and save a bundle.

    Args:
        recipe: A checked recipe, the path of a YAML file, the name of a shipped recipe, or a mapping of keys.
        folder: Where everything of this run goes; by default `runs/NAME` of the recipe.
        resume: Continue the run in that folder: finished, unchanged stages are not run again, an interrupted
            one continues from its last checkpoint.
        resolver: Replaces `auto` options by values, the same on every rank.

    Raises:
        GeobindError: Something that a user can fix; finished stages are kept.
        Stopped: A signal asked it to stop.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path(folder or Path("runs") / recipe.name)
    with deterministic_algorithms(recipe.fabric.deterministic):
        recipe, precision = resolve_precision(recipe, folder)
        fabrics = launch_fabrics(recipe)
        fabric = fabrics[recipe.fabric.precision]
        with handle_signals(), ExitStack() as stack, explain_lost_rank(fabric):
            claim = _claim_folder(recipe, folder, resume, precision)
            rank_zero_run(fabric, lambda: stack.enter_context(claim))
            return _run_all(resolve_auto(recipe, folder, fabric, resolver), folder, fabrics)


@contextmanager
def _claim_folder(
    recipe: Recipe, folder: Path, resume: bool, precision: TrainingPrecision | None
) -> Generator[None]:
    """Lock and prepare the run's folder, inside the block."""
    with run_lock(folder):
        _open_folder(recipe, folder, resume, precision)
        with add_resume_hint(folder):
            yield


class _Training(NamedTuple):
    """A recipe whose data are open and whose stages are checked."""

    recipe: Recipe
    folder: Path
    data: StageData
    rows: list[StageRows]


def _run_all(recipe: Recipe, folder: Path, fabrics: dict[str, Fabric]) -> RunResult:
    """Resolve the data, train every stage, and measure, in a locked folder."""
    fabric = fabrics[recipe.fabric.precision]
    main = _open_data(fabric, recipe, folder)
    direct = _open_direct(fabric, main)
    binder = build_binder(recipe)
    for each in (main, *direct):
        for line in _check_stages(fabric, each.recipe, [rows.training for rows in each.rows], binder):
            _log.warning("%s", line)
    rank_zero_run(fabric, lambda: _warn_of_leaks(main.data.all_leakage(), folder))
    stages = _train_stages(main, fabrics, binder)
    bounds = [_measure_direct(each, main, fabrics) for each in direct]

    def measure_and_write() -> EvaluationResults | None:
        binder.bank = main.data.build_bank(binder)
        binder.fuser = main.data.train_fuser(binder)
        measured = main.data.measure(binder)
        for bound in bounds:
            if measured is not None and bound is not None:
                measured = with_baseline(measured, "direct", bound)
        write_results(recipe, binder, stages, main.data, measured, folder)
        return measured

    measured = rank_zero_run(fabric, measure_and_write)
    wait_for_ranks(fabric)
    found = (measured.table, measured.questions) if measured else (None, None)
    return RunResult(folder, folder / "bundle", *found)


def _open_data(fabric: Fabric, recipe: Recipe, folder: Path) -> _Training:
    """Open the data of a recipe, and resolve the rows of its stages."""
    with fabric.rank_zero_first(local=True):  # what is rendered or read may lie on a disk of each node
        data = StageData(recipe)
    return _Training(recipe, folder, data, data.resolve())


def _open_direct(fabric: Fabric, main: _Training) -> list[_Training]:
    """Open the data of each pair of `evaluate.direct`, to be trained on itself."""
    recipe = main.recipe
    steps = {
        stage.name: count_steps(stage, each.training)
        for stage, each in zip(recipe.stages, main.rows, strict=True)
    }
    opened: list[_Training] = []
    for name in recipe.evaluate.direct if recipe.evaluate else ():
        pair = find_pair(name, recipe.modalities)
        if pair is not None:
            direct = build_direct_recipe(recipe, pair, steps)
            opened.append(_open_data(fabric, direct, main.folder / "direct" / name))
    return opened


def _measure_direct(direct: _Training, main: _Training, fabrics: Mapping[str, Fabric]) -> PairTable | None:
    """Train a pair on itself, and measure it on the held-out rows of the run; None but on rank zero."""
    (stage,) = direct.recipe.stages
    names = direct.recipe.names_of(stage)
    _log.info("%s and %s: trained on each other, as an upper bound", *names)
    direct.folder.mkdir(parents=True, exist_ok=True)
    binder = build_binder(direct.recipe)
    _train_stages(direct, fabrics, binder)
    held_out, options = main.data.evaluation_table(), main.recipe.evaluate

    def measure() -> PairTable | None:
        if held_out is None or options is None:
            return None
        embedded = embed_rows(binder, held_out, names)
        return build_retrieval_table(held_out, embedded, {frozenset(names)}, options.by, options.clusters)

    return rank_zero_run(fabrics[main.recipe.fabric.precision], measure)


def _check_stages(
    fabric: Fabric, recipe: Recipe, training: Sequence[MixedDataset], binder: Binder
) -> list[str]:
    """Check every stage before the first one is trained; return warnings."""
    check_batch_division(fabric, recipe, training)
    warnings = [
        line for each in zip(recipe.stages, training, strict=True) for line in check_loss_inputs(*each)
    ]
    for stage in recipe.stages:
        warnings += [f"stage '{stage.name}': {line}" for line in recipe_warnings(recipe, stage)]
    warnings += describe_unpublished(recipe)
    rehearse(recipe, binder, training)
    return warnings


def _train_stages(training: _Training, fabrics: Mapping[str, Fabric], binder: Binder) -> list[dict[str, Any]]:
    """Train every stage that is not finished; return the facts of all."""
    recipe, folder, data, rows = training
    prover = Prover(recipe, data, binder)
    stages: list[dict[str, Any]] = []
    columns = _extra_columns(recipe, [each.training for each in rows])
    with open_run_loggers(recipe, folder, columns) as (metrics, validation_metrics):
        for stage, each, (home, key) in zip(recipe.stages, rows, stage_folders(recipe, folder), strict=True):
            stage_run = StageRun(
                recipe,
                stage,
                binder,
                each.training,
                home,
                metrics,
                key,
                validation_rows=each.validation,
                validation_metrics=validation_metrics,
            )
            stages.append(_run_or_load(fabrics[recipe.precision_of(stage)], stage_run, prover, stages))
    return stages


def _open_folder(recipe: Recipe, folder: Path, resume: bool, precision: TrainingPrecision | None) -> None:
    if (folder / "run.json").exists() and has_partial_results(folder) and not resume:
        raise RecipeError(
            f"{folder} holds a run already: continue it (--resume), or choose another folder (--out)"
        )
    files.remove_partial_files(folder, deep=True)
    files.write_atomic(folder / "recipe.yaml", dump_yaml(recipe.written).encode())
    sources = {name: str(plugins.registry().plugins[name].source) for name in recipe.modalities}
    base = str(recipe.base.resolve())  # where `geobind report` finds relative manifests again
    facts = {"recipe": recipe.name, "base": base, "versions": system.collect_versions(), "plugins": sources}
    facts |= {"hardware": system.describe_hardware(), "started": system.utc_now()}
    facts |= {"precision": precision.precision, "precision_reason": precision.reason} if precision else {}
    files.write_json(folder / "run.json", facts)


def rehearse(recipe: Recipe, binder: Binder, training: Sequence[MixedDataset]) -> None:
    """Embed a row of every stage and table, so that faults show before hours of training."""
    for stage, rows in zip(recipe.stages, training, strict=True):
        for name, part in stage.trained.items():
            check_part(name, binder.encoders[name], part)
        check_queue(stage, min(rows.having(pair.both) for pair in recipe.pairs_of(stage)))
        for name, source in product(recipe.names_of(stage), rows.sources):
            there_R = source.rows.rows_with([name])
            if len(there_R):
                raw = first_observation(source.rows[int(there_R[0])].raws[name])
                binder.embed(name, raw)
                if name in recipe.together_in(stage):
                    _check_geometry(name, recipe.built[name], raw)


def _check_geometry(name: str, modality: Modality, raw: Any) -> None:
    """Check that preparing an input applies the geometry that it shares with other rasters of its row."""
    with preserve_rng(), share_geometry("none", UNCHANGED) as sharing:
        modality.prepare(raw, training=True)
    if sharing is None or not sharing.applied:
        raise RecipeError(
            f"augment.together: '{name}' cannot be turned alike with others: its plugin does not prepare "
            f"inputs by geobind.towers.prepare_image with its option `augment`; take it out"
        )


def _extra_columns(recipe: Recipe, training: Sequence[MixedDataset]) -> list[str]:
    """Return extra columns of metrics.csv: those of stages with several pairs or sources."""
    several = [pairs for stage in recipe.stages if len(pairs := recipe.pairs_of(stage)) > 1]
    names = dict.fromkeys(pair.name for pairs in several for pair in pairs)
    return pair_columns([*names]) + (["source"] if any(len(rows.sources) > 1 for rows in training) else [])


def _run_or_load(
    fabric: Fabric, job: StageRun, prover: Prover, before: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Run a stage, or load it if it is finished and nothing it depends on has changed."""
    stage = job.stage
    done = broadcast_result(fabric, lambda: read_finished_stage(job.folder))
    if done.get("key") == job.key:
        rank_zero_run(fabric, lambda: _load_finished(job, done))
        # Only rank zero needs to see its disk.
        broadcast_tensors(fabric, _trained_encoders(job).state_dict().values())
        _log.info("%s: finished before, unchanged; not run again", stage.name)
        return done
    again = f" (run again: {explain_rerun(done, fingerprint_parts(job.recipe, stage))})" if done else ""
    _log.info("%s: %s%s", stage.name, describe_stage(job.recipe, stage), again)
    states = rank_zero_run(fabric, lambda: prover.compute_states(fabric))
    outcome = run_stage(fabric, job)
    proof = rank_zero_run(fabric, lambda: prover.prove(fabric, stage.name, tuple(stage.parts), states or {}))
    for line in describe_proof(proof, before[-1] if before else None) if proof else ():
        _log.info("%s: %s", stage.name, line)
    return _write_stage(fabric, job, outcome, proof)


def _load_finished(job: StageRun, done: Mapping[str, Any]) -> None:
    """Load and verify the weights of a finished stage."""
    path = job.folder / STAGE_WEIGHTS
    load_strictly(_trained_encoders(job), read_weights(path), str(path))
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


def _write_stage(
    fabric: Fabric, job: StageRun, outcome: StageResult, proof: StageProof | None
) -> dict[str, Any]:
    """Write the weights and facts of a stage; `stage.json` comes last and marks it finished."""
    stage, recipe = job.stage, job.recipe
    done = {
        "name": stage.name,
        "key": job.key,
        "parts": fingerprint_parts(recipe, stage),
        "anchor": recipe.anchor_of(stage),
        "align": stage.align,
        "train": stage.parts,
        "pairs": len(job.rows),
        "sources": _source_facts(job.rows),
        "batch_size": stage.batch_size,
        **outcome._asdict(),
        "broken": len(outcome.quarantined),
        "digests": {name: proof.after[name].weights for name in stage.parts} if proof else {},
        "proof": proof and proof.model_dump(mode="json"),
    }

    def write() -> None:
        files.write_tensors(job.folder / STAGE_WEIGHTS, _trained_encoders(job).state_dict())
        files.write_json(job.folder / STAGE_FACTS, done)
        (job.folder / "state.ckpt").unlink(missing_ok=True)
        remove_best_weights(job.folder)

    rank_zero_run(fabric, write)
    return done


def _source_facts(rows: MixedDataset) -> list[dict[str, Any]]:
    shares = zip(rows.sources, rows.shares, strict=True)
    return [{"name": source.name, "rows": len(source.rows), "share": share} for source, share in shares]


def _trained_encoders(job: StageRun) -> nn.ModuleDict:
    return nn.ModuleDict({name: job.binder.encoders[name] for name in job.stage.parts})
