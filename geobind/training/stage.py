"""One stage: align a modality with its anchor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from geobind.binder import Binder
from geobind.data.loading import PairLoader, PairMeta, auto_workers
from geobind.modality import Pair
from geobind.recipe import Recipe, Stage
from geobind.seeds import seed_of
from geobind.training.bind import Bind, across_ranks, make_loss
from geobind.training.checkpoint import Checkpoint
from geobind.training.freezing import check_frozen, frozen_digests, parameter_groups, set_trainable
from geobind.training.losses import Context, ContrastiveLoss, label_ids, unit_sphere
from geobind.training.record import Metrics, Recorder, Step
from geobind.training.schedule import learning_rate

_LOOK_EVERY = 20  # steps; looking at a loss waits for the accelerator


class Job(NamedTuple):
    """All that running one stage takes."""

    recipe: Recipe
    stage: Stage
    binder: Binder
    pairs: Sequence[Pair]
    folder: Path  # of this stage alone
    metrics: Metrics
    key: str  # the fingerprint of everything the stage depends on

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The two encoders, the anchor's first."""
        names = (self.recipe.anchor_of(self.stage), self.stage.align)
        return {name: self.binder.encoders[name] for name in names}

    @property
    def steps(self) -> int:
        """How many steps the stage takes."""
        if self.stage.steps is not None:
            return self.stage.steps
        return (self.stage.epochs or 0) * (len(self.pairs) // self.stage.batch_size)


class Outcome(NamedTuple):
    """What a stage came to."""

    steps: int
    loss: float
    temperature: float
    seconds: float
    device: str
    peak_memory_bytes: int | None  # of the accelerator, on this rank
    quarantined: tuple[tuple[str, str], ...]  # (key, reason)


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
    stage, parts = job.stage, job.stage.parts
    encoders = job.encoders
    for name, encoder in encoders.items():
        set_trainable(name, encoder, parts.get(name))
    before = frozen_digests(encoders, parts)
    torch.manual_seed(seed_of(job.recipe.seed, stage.name))
    loss = make_loss(stage.loss)
    quarantined, last_loss = _train(fabric, job, loss)
    check_frozen(before, frozen_digests(encoders, parts), stage.name)
    for name, encoder in encoders.items():
        set_trainable(name, encoder, None)
    return Outcome(
        steps=job.steps,
        loss=last_loss,
        temperature=loss.temperature.value,
        seconds=time.monotonic() - started,
        device=torch.cuda.get_device_name(fabric.device) if cuda else "cpu",
        peak_memory_bytes=torch.cuda.max_memory_allocated(fabric.device) if cuda else None,
        quarantined=quarantined,
    )


def _train(fabric: Fabric, job: Job, loss: ContrastiveLoss) -> tuple[tuple[tuple[str, str], ...], float]:
    """Take the steps of a stage; return the broken samples and the last loss."""
    stage, seed = job.stage, job.recipe.seed
    anchor, other = job.encoders.values()
    bind = Bind(anchor, other, loss, across_ranks(fabric.all_gather, fabric.world_size))
    options = stage.optimizer
    groups = parameter_groups(bind, options)
    # On a CPU the fused kernel goes through the weights once; elsewhere torch knows best.
    fused = True if fabric.device.type == "cpu" else None
    adamw = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps, fused=fused)
    module, optimizer = fabric.setup(bind, adamw)
    checkpoint = Checkpoint(job.folder / "state.ckpt", job.key, _saved(job, loss), adamw)
    loader = _loader(fabric, job, first_step=checkpoint.restore())
    metrics = job.metrics if fabric.is_global_zero else None
    if metrics:
        metrics.rewind(stage.name, loader.first_step)
    every = 1 if fabric.device.type == "cpu" else _LOOK_EVERY
    with Recorder(stage.name, job.steps, stage.batch_size, metrics, every) as log:
        for step, anchor_batch, other_batch, meta in loader:
            rate = learning_rate(step, job.steps, options.lr, stage.schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # Dropout draws from here, so a resumed step draws what it would have drawn.
            torch.manual_seed(seed_of(seed, stage.name, step, fabric.global_rank))

            batch_loss = module(*fabric.to_device((anchor_batch, other_batch)), _context(fabric, stage, meta))
            fabric.backward(batch_loss)
            norm = _clip(fabric, module, optimizer, stage)
            scale = loss.temperature.scale.detach()
            optimizer.step()
            optimizer.zero_grad()
            loss.after_step()

            log.add(Step(step, batch_loss.detach(), norm, rate, scale, meta.keys), len(loader.quarantined))
            if fabric.is_global_zero and checkpoint.age() >= stage.checkpoint_seconds:
                log.look()  # what is saved is known to be finite
                log.last_good = str(checkpoint.save(step + 1))
    return tuple(loader.quarantined), log.last_loss


def _clip(fabric: Fabric, module: Any, optimizer: Any, stage: Stage) -> Tensor | None:
    """Clip the gradient; a norm that is not finite is left to the recorder, which can name step and rows."""
    if stage.clip_norm is None:
        return None
    return fabric.clip_gradients(module, optimizer, max_norm=stage.clip_norm, error_if_nonfinite=False)


def _saved(job: Job, loss: nn.Module) -> dict[str, nn.Module]:
    """What a checkpoint holds the weights of: the loss, and the encoders in training."""
    return {"loss": loss, **{f"encoder.{name}": job.encoders[name] for name in job.stage.parts}}


def _loader(fabric: Fabric, job: Job, first_step: int) -> PairLoader:
    recipe, stage = job.recipe, job.stage
    anchor, other = job.encoders
    workers = recipe.workers
    if workers == "auto" and fabric.device.type == "cpu":
        workers = min(1, auto_workers(len(job.pairs)))  # more would take the cores that compute
    return PairLoader(
        job.pairs,
        recipe.built[anchor],
        recipe.built[other],
        batch_size=stage.batch_size,
        seed=seed_of(recipe.seed, stage.name, "data"),
        first_step=first_step,
        last_step=job.steps,
        workers=workers,
        rank=fabric.global_rank,
        world=fabric.world_size,
        augment_anchor=anchor in stage.parts,
        augment_other=other in stage.parts,
        max_broken=recipe.max_broken,
    )


def _context(fabric: Fabric, stage: Stage, meta: PairMeta) -> Context | None:
    """Tell the loss what it asks for of the batch: labels, places."""
    if stage.loss.name != "infonce":
        return None
    labels = xyz = None
    gather = across_ranks(fabric.all_gather, fabric.world_size)
    if stage.loss.positives == "label":
        labels = gather(label_ids(meta.labels or [None] * len(meta.keys)).to(fabric.device))
    if stage.loss.ignore_within_m is not None:
        xyz = gather(unit_sphere(torch.as_tensor(meta.lat), torch.as_tensor(meta.lon)).to(fabric.device))
    if labels is None and xyz is None:
        return None
    return Context(labels_N=labels, xyz_N3=xyz, ignore_within_m=stage.loss.ignore_within_m)
