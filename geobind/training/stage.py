"""A training stage: inputs, loop, result."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from geobind.binder import Binder
from geobind.data.loader import BatchLoader, ModalityInput, choose_workers
from geobind.data.sampler import BatchSampler, MixedDataset
from geobind.data.seeds import seed_torch
from geobind.embedding_cache.loader import CachedLoader
from geobind.inference import copy_ahead
from geobind.recipe import Recipe, Stage
from geobind.recipe.schema import ModalityPair
from geobind.training.cache import CachedInputs, open_stage_cache
from geobind.training.checkpoint import Checkpoint
from geobind.training.distributed import Ranks
from geobind.training.fabric import Fabric
from geobind.training.gradients import accumulation_step, build_accumulator, build_presence
from geobind.training.interruption import defer_signals, explain_failures
from geobind.training.loss_inputs import build_batch_sampler, build_loss_context
from geobind.training.losses import ContrastiveLoss
from geobind.training.losses.build import build_loss
from geobind.training.metrics import MetricsFile, Recorder, StepRecord
from geobind.training.module import ContrastiveModule
from geobind.training.optimizer import set_up_optimizer
from geobind.training.trainable import collect_trained_states, prepare_encoders
from geobind.training.validation import ValidationResult, Validator
from geobind.utils import system
from geobind.utils.hashing import derive_seed

PairLosses = Mapping[str, ContrastiveLoss]  # by pair
Quarantined = tuple[tuple[str, str], ...]  # key and reason


@dataclass(frozen=True, eq=False)
class StageRun:
    """The inputs of a training stage."""

    recipe: Recipe
    stage: Stage
    binder: Binder
    rows: MixedDataset
    folder: Path  # of this stage alone
    metrics: MetricsFile
    key: str  # the fingerprint of everything the stage depends on
    log_every: int | None = None  # steps between two looks at the loss; None: as it suits the device
    validation_rows: MixedDataset | None = None  # the rows that it is watched on
    validation_metrics: MetricsFile | None = None  # what is found there

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The encoders that take part, the anchor's first."""
        return {name: self.binder.encoders[name] for name in self.recipe.names_of(self.stage)}

    @property
    def trained_states(self) -> dict[str, nn.Module]:
        """The state of each trained encoder that a checkpoint must hold."""
        return collect_trained_states(self.encoders, self.stage.trained)

    @property
    def pairs(self) -> tuple[ModalityPair, ...]:
        """The pairs of modalities that are compared."""
        return self.recipe.pairs_of(self.stage)

    @cached_property
    def sampler(self) -> BatchSampler:
        """The batch sampler."""
        seed = derive_seed(self.recipe.seed, self.stage.name, "data")
        return build_batch_sampler(self.stage, self.rows, seed)

    @cached_property
    def partial(self) -> bool:
        """Whether some rows lack a modality."""
        return len(self.pairs) > 1 and self.rows.having([*self.encoders]) < len(self.rows)

    @cached_property
    def steps(self) -> int:
        """How many steps the stage takes."""
        if self.stage.steps is not None:
            return self.stage.steps
        return (self.stage.epochs or 0) * self.sampler.steps_per_epoch


class StageResult(NamedTuple):
    """The result of a training stage."""

    steps: int
    loss: float
    temperature: float | None  # None if several pairs have one each
    losses: tuple[dict[str, Any], ...]  # of each pair: its modalities, weight, last loss and temperature
    seconds: float
    device: str
    peak_memory_bytes: int | None  # of the accelerator, on this rank
    quarantined: Quarantined
    cached: tuple[str, ...]  # modalities that were read from the embedding cache
    filled: dict[str, Any]  # rows made for the cache on this rank, their bytes, and the seconds it took
    process_bytes: int | None  # the most memory that this process held at once
    process_since: str  # the "stage", or where that cannot be told the "start" of the process
    watched: dict[str, Any] | None  # what evaluations on the way found, and which weights were kept


_LOG_EVERY = 20  # steps; looking at a loss waits for the accelerator


def run_stage(fabric: Fabric, job: StageRun) -> StageResult:
    """Train one stage, resuming from its checkpoint if there is one.

    Raises:
        TrainingError: The loss is not finite, or a frozen encoder changed.
        DataError: Too many samples are broken.
        StorageError: A checkpoint cannot be written.
    """
    started = time.monotonic()
    cuda = fabric.device.type == "cuda"
    since = "stage" if system.reset_peak() else "start"
    if cuda:
        torch.cuda.reset_peak_memory_stats(fabric.device)
    else:
        system.keep_freed_memory()
    stage, precision = job.stage, job.recipe.precision_of(job.stage)
    with (
        explain_failures(stage, fabric.device, precision=precision, workers=job.recipe.workers),
        prepare_encoders(fabric, job) as frozen,
    ):
        cached = open_stage_cache(fabric, job, frozen, count_workers(fabric, job))
        torch.manual_seed(derive_seed(job.recipe.seed, stage.name))
        losses = {pair.name: build_loss(stage.loss, job.recipe.width) for pair in job.pairs}
        quarantined, last, last_of, watched = _train(fabric, job, losses, cached)
        cached.close()
    return StageResult(
        steps=watched.steps,
        loss=last,
        temperature=losses[job.pairs[0].name].temperature.value if len(losses) == 1 else None,
        losses=tuple(
            {
                **pair._asdict(),
                "loss": last_of.get(pair.name),
                "temperature": losses[pair.name].temperature.value,
            }
            for pair in job.pairs
        ),
        seconds=time.monotonic() - started,
        device=torch.cuda.get_device_name(fabric.device) if cuda else "cpu",
        peak_memory_bytes=torch.cuda.max_memory_allocated(fabric.device) if cuda else None,
        quarantined=quarantined,
        cached=tuple(cached.sides),
        filled=cached.filled._asdict(),
        process_bytes=system.peak_bytes(),
        process_since=since,
        watched=watched.facts,
    )


def _train(
    fabric: Fabric, job: StageRun, losses: PairLosses, cached: CachedInputs
) -> tuple[Quarantined, float, dict[str, float], ValidationResult]:
    """Take the steps of a stage; return broken samples, the last losses and the result of validation."""
    stage, seed, sampler = job.stage, job.recipe.seed, job.sampler
    ranks = Ranks(fabric.all_gather, fabric.world_size, fabric.global_rank)
    module = ContrastiveModule(
        cached.remaining_modules(job.encoders, stage.parts),
        losses,
        job.pairs,
        ranks,
        job.recipe.width,
        partial=job.partial,
    )
    optimizer = set_up_optimizer(fabric, job, module, cached.sides)
    gradients = build_accumulator(fabric, stage, module, optimizer.wrapped)
    validator = Validator(fabric, job, optimizer, losses, cached.sides)
    saved, path = (
        {**_checkpoint_modules(job, losses), **validator.checkpoint_modules},
        job.folder / "state.ckpt",
    )
    checkpoint = Checkpoint(fabric, path, job.key, saved, optimizer.adamw, stage.checkpoint_seconds)
    loader = cached.wrap_loader(build_loader(fabric, job, first_step=checkpoint.restore()), job.rows)
    broken = partial(_all_quarantined, checkpoint.extra, loader)
    metrics = _rewound_metrics(fabric, job, loader.first_step)
    validator.start(loader.first_step)
    every, stopped = job.log_every or (1 if fabric.device.type == "cpu" else _LOG_EVERY), None
    with (
        Recorder(stage.name, job.steps, stage.batch_size, metrics, every) as log,
        defer_signals(fabric, stage.name, every) as stop_requested,
    ):
        log.restore(checkpoint.extra)
        loaded = (((step, meta), batches) for step, batches, meta in loader)
        for (step, meta), batches in copy_ahead(loaded, gradients.input_device):
            if validator.is_stopped:
                break
            rate = optimizer.set_rate(step)
            # Dropout draws from here, so a resumed step draws what it would have drawn.
            seed_torch(fabric.device, derive_seed(seed, stage.name, step, fabric.global_rank))

            turn = accumulation_step(step, stage.accumulate, job.steps)
            context = build_loss_context(ranks, fabric.device, stage.loss, meta)
            result = gradients(batches, build_presence(module, meta), context, turn)
            scales = {name: loss.temperature.log_scale.detach().exp() for name, loss in losses.items()}
            norm = optimizer.step() if turn.last else None
            for loss in losses.values():
                loss.clamp_temperature()

            source = job.rows.name_of(sampler.source(step))
            total = result.total.detach()
            record = StepRecord(step, total, norm, rate, result.pairs, scales, meta.keys, source)
            log.add(record, len(broken()))
            validator.after_step(step, log, moved=turn.last)
            stopped = stopped or stop_requested(step)
            if turn.last and (checkpoint.due(step) or stopped):  # a checkpoint holds no gradients
                log.sync()  # what is saved is known to be finite
                log.last_good = str(checkpoint.save(step + 1, {**log.last_values, "broken": broken()}))
                validator.prune()
            if turn.last and stopped:
                raise stopped
    return broken(), log.last_loss, log.last_of, validator.finish()


def _all_quarantined(extra: Mapping[str, Any], loader: BatchLoader | CachedLoader) -> Quarantined:
    """Return the samples left out so far, including those before the checkpoint."""
    return tuple({**dict(extra.get("broken", ())), **dict(loader.quarantined)}.items())


def _rewound_metrics(fabric: Fabric, job: StageRun, first_step: int) -> MetricsFile | None:
    """Return the metrics file without the steps that are about to run again; None beyond rank zero."""
    if not fabric.is_global_zero:
        return None
    job.metrics.rewind(job.stage.name, first_step)
    return job.metrics


def _checkpoint_modules(job: StageRun, losses: PairLosses) -> dict[str, nn.Module]:
    """Return the modules of a checkpoint: the losses and the trained encoders."""
    trained = {f"encoder.{name}": state for name, state in job.trained_states.items()}
    return {**{f"loss.{name}": loss for name, loss in losses.items()}, **trained}


def build_loader(fabric: Fabric, job: StageRun, first_step: int) -> BatchLoader:
    """Build the batch loader of this rank."""
    recipe, stage = job.recipe, job.stage
    geometry, augmented = recipe.geometry_of(stage), recipe.augmented_in(stage)
    sides = {
        name: ModalityInput(recipe.built[name], augment=name in augmented, geometry=geometry[name])
        for name in job.encoders
    }
    return BatchLoader(
        job.rows,
        sides,
        job.sampler,
        first_step=first_step,
        last_step=job.steps,
        workers=count_workers(fabric, job),
        rank=fabric.global_rank,
        world=fabric.world_size,
        partial=job.partial,
        max_broken=recipe.max_broken,
    )


def count_workers(fabric: Fabric, job: StageRun) -> int:
    """Return the number of data-loading workers."""
    if job.recipe.workers != "auto":
        return job.recipe.workers
    wanted = choose_workers(len(job.rows))
    return min(1, wanted) if fabric.device.type == "cpu" else wanted  # more would take the cores that compute
