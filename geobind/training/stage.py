"""One stage: align modalities with their anchor, or with each other."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from geobind import storage
from geobind.binder import Binder
from geobind.data.loading import BatchLoader, BatchMeta, Side, auto_workers
from geobind.data.mixing import Mixture, Plan
from geobind.recipe import Recipe, Stage
from geobind.recipe.pairs import Bound
from geobind.seeds import seed_of
from geobind.training.bind import About, Bind, make_loss
from geobind.training.cached import Cached, read_from_cache
from geobind.training.checkpoint import Checkpoint
from geobind.training.gradients import Gradients
from geobind.training.losses import ContrastiveLoss, uncertainties
from geobind.training.moving import set_up
from geobind.training.parts import in_training, states_of
from geobind.training.ranks import Ranks
from geobind.training.record import Metrics, Recorder, Step
from geobind.training.told import context_of, plan_of

_LOOK_EVERY = 20  # steps; looking at a loss waits for the accelerator
Losses = Mapping[str, ContrastiveLoss]  # by pair
Quarantined = tuple[tuple[str, str], ...]  # key and reason


class Job(NamedTuple):
    """All that running one stage takes."""

    recipe: Recipe
    stage: Stage
    binder: Binder
    rows: Mixture
    folder: Path  # of this stage alone
    metrics: Metrics
    key: str  # the fingerprint of everything the stage depends on

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The encoders that take part, the anchor's first."""
        return {name: self.binder.encoders[name] for name in self.recipe.names_of(self.stage)}

    @property
    def pairs(self) -> tuple[Bound, ...]:
        """The pairs of modalities that are compared."""
        return self.recipe.pairs_of(self.stage)

    @property
    def plan(self) -> Plan:
        """Which rows each step takes."""
        seed = seed_of(self.recipe.seed, self.stage.name, "data")
        return plan_of(self.stage, self.rows, seed)

    @property
    def partial(self) -> bool:
        """Whether some rows lack a modality."""
        return len(self.pairs) > 1 and self.rows.having([*self.encoders]) < len(self.rows)

    @property
    def steps(self) -> int:
        """How many steps the stage takes."""
        if self.stage.steps is not None:
            return self.stage.steps
        return (self.stage.epochs or 0) * self.plan.epoch


class Outcome(NamedTuple):
    """What a stage came to."""

    steps: int
    loss: float
    temperature: float | None  # None if several pairs have one each
    losses: tuple[dict[str, Any], ...]  # of each pair: its modalities, weight, last loss and temperature
    seconds: float
    device: str
    peak_memory_bytes: int | None  # of the accelerator, on this rank
    quarantined: Quarantined
    cached: tuple[str, ...]  # modalities that were read from the embedding cache


def run_stage(fabric: Fabric, job: Job) -> Outcome:
    """Train one stage, going on from its checkpoint if there is one.

    Raises:
        TrainingError: The loss is not finite, or a frozen encoder changed.
        DataError: Too many samples are broken.
        StorageError: A checkpoint cannot be written.
    """
    started = time.monotonic()
    cuda = fabric.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(fabric.device)
    stage = job.stage
    with in_training(fabric, job) as frozen:
        cached = read_from_cache(fabric, job, frozen, _workers(fabric, job))
        torch.manual_seed(seed_of(job.recipe.seed, stage.name))
        losses = {pair.name: make_loss(stage.loss, job.recipe.width) for pair in job.pairs}
        quarantined, last, last_of = _train(fabric, job, losses, cached)
        cached.close()
    if fabric.is_global_zero and (heads := uncertainties(losses)):
        storage.write_tensors(job.folder / "uncertainty.safetensors", heads)
    return Outcome(
        steps=job.steps,
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
    )


def _train(
    fabric: Fabric, job: Job, losses: Losses, cached: Cached
) -> tuple[Quarantined, float, dict[str, float]]:
    """Take the steps of a stage; return the broken samples, the last loss, and that of each pair."""
    stage, seed, plan = job.stage, job.recipe.seed, job.plan
    ranks = Ranks(fabric.all_gather, fabric.world_size)
    bind = Bind(cached.encoders(job), losses, job.pairs, ranks, job.recipe.width, partial=job.partial)
    moving = set_up(fabric, job, bind)
    gradients = Gradients(fabric, bind, moving.module)
    checkpoint = Checkpoint(job.folder / "state.ckpt", job.key, _saved(job, losses), moving.adamw)
    loader = cached.loader(job, _loader(fabric, job, first_step=checkpoint.restore()))
    metrics = job.metrics if fabric.is_global_zero else None
    if metrics:
        metrics.rewind(stage.name, loader.first_step)
    every = 1 if fabric.device.type == "cpu" else _LOOK_EVERY
    with Recorder(stage.name, job.steps, stage.batch_size, metrics, every) as log:
        for step, batches, meta in loader:
            rate = moving.set_rate(step)
            # Dropout draws from here, so a resumed step draws what it would have drawn.
            torch.manual_seed(seed_of(seed, stage.name, step, fabric.global_rank))

            about = About(context_of(ranks, fabric.device, stage.loss, meta))
            found = gradients(batches, _present(bind, meta), about)
            scales = {name: loss.temperature.scale.detach().clone() for name, loss in losses.items()}
            norm = moving.step()
            for loss in losses.values():
                loss.after_step()

            source = job.rows.name_of(plan.source(step))
            taken = Step(step, found.total.detach(), norm, rate, found.pairs, scales, meta.keys, source)
            log.add(taken, len(loader.quarantined))
            if fabric.is_global_zero and checkpoint.age() >= stage.checkpoint_seconds:
                log.look()  # what is saved is known to be finite
                log.last_good = str(checkpoint.save(step + 1))
    return tuple(loader.quarantined), log.last_loss, log.last_of


def _saved(job: Job, losses: Losses) -> dict[str, nn.Module]:
    """What a checkpoint holds the weights of: the losses, and the encoders in training."""
    trained = {f"encoder.{name}": state for name, state in states_of(job).items()}
    return {**{f"loss.{name}": loss for name, loss in losses.items()}, **trained}


def _loader(fabric: Fabric, job: Job, first_step: int) -> BatchLoader:
    recipe, stage = job.recipe, job.stage
    return BatchLoader(
        job.rows,
        {name: Side(recipe.built[name], augment=name in stage.parts) for name in job.encoders},
        job.plan,
        first_step=first_step,
        last_step=job.steps,
        workers=_workers(fabric, job),
        rank=fabric.global_rank,
        world=fabric.world_size,
        partial=job.partial,
        max_broken=recipe.max_broken,
    )


def _workers(fabric: Fabric, job: Job) -> int:
    if job.recipe.workers != "auto":
        return job.recipe.workers
    wanted = auto_workers(len(job.rows))
    return min(1, wanted) if fabric.device.type == "cpu" else wanted  # more would take the cores that compute


def _present(bind: Bind, meta: BatchMeta) -> Tensor | None:
    """Which rows have which modality: None where all have all, on every rank and in every step."""
    if not bind.partial:
        return None
    if meta.present_BM is None:
        return torch.ones(len(meta.keys), len(bind.encoders), dtype=torch.bool)
    return torch.from_numpy(meta.present_BM)
