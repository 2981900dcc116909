"""One stage: align modalities with their anchor, or with each other."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from geobind.data.loader import BatchLoader, Side, auto_workers
from geobind.data.sampler import seed_torch
from geobind.embedding_cache.loader import StoredLoader
from geobind.training.bind import About, Bind
from geobind.training.cached import Cached, read_from_cache
from geobind.training.checkpoint import Checkpoint
from geobind.training.encoders.parts import in_training, states_of
from geobind.training.guards.failing import explained
from geobind.training.guards.stopping import between_steps
from geobind.training.job import Job, Outcome, PairLosses, Quarantined
from geobind.training.losses import uncertainties
from geobind.training.losses.making import make_loss
from geobind.training.processes.ranks import Ranks
from geobind.training.record import Metrics, Recorder, Step
from geobind.training.steps.gradients import gradients_of, present_of, turn_of
from geobind.training.steps.moving import set_up
from geobind.training.steps.told import context_of
from geobind.training.watch.watching import Watched, Watching
from geobind.utils import files, system
from geobind.utils.hashing import seed_of

_LOOK_EVERY = 20  # steps; looking at a loss waits for the accelerator


def run_stage(fabric: Fabric, job: Job) -> Outcome:
    """Train one stage, going on from its checkpoint if there is one.

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
    stage = job.stage
    with explained(job, fabric.device), in_training(fabric, job) as frozen:
        cached = read_from_cache(fabric, job, frozen, workers_of(fabric, job))
        torch.manual_seed(seed_of(job.recipe.seed, stage.name))
        losses = {pair.name: make_loss(stage.loss, job.recipe.width) for pair in job.pairs}
        quarantined, last, last_of, watched = _train(fabric, job, losses, cached)
        cached.close()
    if fabric.is_global_zero and (heads := uncertainties(losses)):
        files.write_tensors(job.folder / "uncertainty.safetensors", heads)
    return Outcome(
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
    fabric: Fabric, job: Job, losses: PairLosses, cached: Cached
) -> tuple[Quarantined, float, dict[str, float], Watched]:
    """Take the steps of a stage; return the broken samples, the last losses, and what watching it found."""
    stage, seed, plan = job.stage, job.recipe.seed, job.plan
    ranks = Ranks(fabric.all_gather, fabric.world_size, fabric.global_rank)
    bind = Bind(cached.encoders(job), losses, job.pairs, ranks, job.recipe.width, partial=job.partial)
    moving = set_up(fabric, job, bind, cached.sides)
    gradients = gradients_of(fabric, job, bind, moving.module)
    watching = Watching(fabric, job, moving, losses, cached.sides)
    saved, path = {**_saved(job, losses), **watching.saved}, job.folder / "state.ckpt"
    checkpoint = Checkpoint(fabric, path, job.key, saved, moving.adamw, stage.checkpoint_seconds)
    loader = cached.loader(job, loader_of(fabric, job, first_step=checkpoint.restore()))
    broken = partial(_broken, checkpoint.told, loader)
    metrics = _metrics(fabric, job, loader.first_step)
    watching.begin(loader.first_step)
    every, stopped = job.look_every or (1 if fabric.device.type == "cpu" else _LOOK_EVERY), None
    with (
        Recorder(stage.name, job.steps, stage.batch_size, metrics, every) as log,
        between_steps(fabric, stage.name, every) as asked,
    ):
        log.go_on_after(checkpoint.told)
        for step, batches, meta in loader:
            if watching.over:
                break
            rate = moving.set_rate(step)
            # Dropout draws from here, so a resumed step draws what it would have drawn.
            seed_torch(fabric.device, seed_of(seed, stage.name, step, fabric.global_rank))

            turn = turn_of(step, stage.accumulate, job.steps)
            about = About(context_of(ranks, fabric.device, stage.loss, meta))
            found = gradients(batches, present_of(bind, meta), about, turn)
            scales = {name: loss.temperature.log_scale.detach().exp() for name, loss in losses.items()}
            norm = moving.step() if turn.last else None
            for loss in losses.values():
                loss.after_step()

            source = job.rows.name_of(plan.source(step))
            taken = Step(step, found.total.detach(), norm, rate, found.pairs, scales, meta.keys, source)
            log.add(taken, len(broken()))
            watching.look(step, log, moved=turn.last)
            stopped = stopped or asked(step)
            if turn.last and (checkpoint.due(step) or stopped):  # a checkpoint holds no gradients
                log.settle()  # what is saved is known to be finite
                log.last_good = str(checkpoint.save(step + 1, {**log.told, "broken": broken()}))
                watching.prune()
            if turn.last and stopped:
                raise stopped
    return broken(), log.last_loss, log.last_of, watching.finish()


def _broken(told: Mapping[str, Any], loader: BatchLoader | StoredLoader) -> Quarantined:
    """The samples left out so far, those before the checkpoint included."""
    return tuple({**dict(told.get("broken", ())), **dict(loader.quarantined)}.items())


def _metrics(fabric: Fabric, job: Job, first_step: int) -> Metrics | None:
    """What takes the figures of steps, without those that are about to be made again."""
    if not fabric.is_global_zero:
        return None
    job.metrics.rewind(job.stage.name, first_step)
    return job.metrics


def _saved(job: Job, losses: PairLosses) -> dict[str, nn.Module]:
    """What a checkpoint holds the weights of: the losses, and the encoders in training."""
    trained = {f"encoder.{name}": state for name, state in states_of(job).items()}
    return {**{f"loss.{name}": loss for name, loss in losses.items()}, **trained}


def loader_of(fabric: Fabric, job: Job, first_step: int) -> BatchLoader:
    """Return the batches of this rank, every modality prepared."""
    recipe, stage = job.recipe, job.stage
    return BatchLoader(
        job.rows,
        {name: Side(recipe.built[name], augment=name in stage.parts) for name in job.encoders},
        job.plan,
        first_step=first_step,
        last_step=job.steps,
        workers=workers_of(fabric, job),
        rank=fabric.global_rank,
        world=fabric.world_size,
        partial=job.partial,
        max_broken=recipe.max_broken,
    )


def workers_of(fabric: Fabric, job: Job) -> int:
    """Return how many processes prepare inputs."""
    if job.recipe.workers != "auto":
        return job.recipe.workers
    wanted = auto_workers(len(job.rows))
    return min(1, wanted) if fabric.device.type == "cpu" else wanted  # more would take the cores that compute
