"""One stage: align a modality with its anchor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import nn

from geobind import storage
from geobind.binder import Binder
from geobind.data.loading import PairLoader, PairMeta
from geobind.modality import Pair
from geobind.recipe import Recipe, Stage
from geobind.seeds import seed_of
from geobind.training.bind import Bind, across_ranks, make_loss
from geobind.training.freezing import check_frozen, frozen_digests, parameter_groups, set_trainable
from geobind.training.losses import Context, label_ids, unit_sphere
from geobind.training.record import Metrics, Recorder, Step
from geobind.training.schedule import learning_rate


class Job(NamedTuple):
    """All that running one stage takes."""

    recipe: Recipe
    stage: Stage
    binder: Binder
    pairs: Sequence[Pair]
    folder: Path  # of this stage alone
    metrics: Metrics
    key: str  # the fingerprint of everything the stage depends on


class Outcome(NamedTuple):
    """What a stage came to."""

    steps: int
    loss: float
    temperature: float
    seconds: float
    quarantined: tuple[tuple[str, str], ...]  # (key, reason)


def run_stage(fabric: Fabric, job: Job) -> Outcome:
    """Train one stage, going on from its checkpoint if there is one.

    Raises:
        TrainingError: The loss is not finite, or a frozen encoder changed.
        DataError: Too many samples are broken.
        StorageError: A checkpoint cannot be written.
    """
    recipe, stage, binder = job.recipe, job.stage, job.binder
    anchor, other = recipe.anchor_of(stage), stage.align
    encoders = {name: binder.encoders[name] for name in (anchor, other)}
    for name, encoder in encoders.items():
        set_trainable(name, encoder, stage.parts.get(name))
    before = frozen_digests(encoders, stage.parts)

    torch.manual_seed(seed_of(recipe.seed, stage.name))
    loss = make_loss(stage.loss)
    bind = Bind(encoders[anchor], encoders[other], loss, across_ranks(fabric.all_gather, fabric.world_size))
    options = stage.optimizer
    # fused=None lets torch choose: fp16's gradient scaler cannot be combined with every fused kernel.
    adamw = torch.optim.AdamW(
        parameter_groups(bind, options), lr=options.lr, betas=options.betas, eps=options.eps
    )
    module, optimizer = fabric.setup(bind, adamw)

    total = stage.steps or stage.epochs * (len(job.pairs) // stage.batch_size)  # pyright: ignore[reportOptionalOperand]
    saved = _Checkpoint(job, encoders, loss, adamw)
    first = saved.restore()
    loader = PairLoader(
        job.pairs,
        recipe.built[anchor],
        recipe.built[other],
        batch_size=stage.batch_size,
        seed=seed_of(recipe.seed, stage.name, "data"),
        first_step=first,
        last_step=total,
        workers=recipe.workers,
        rank=fabric.global_rank,
        world=fabric.world_size,
        augment_anchor=anchor in stage.parts,
        augment_other=other in stage.parts,
        max_broken=recipe.max_broken,
    )
    metrics = job.metrics if fabric.is_global_zero else None
    if metrics:
        metrics.rewind(stage.name, first)
    started = time.monotonic()
    with Recorder(
        stage.name, total, stage.batch_size, metrics, every=1 if fabric.device.type == "cpu" else 20
    ) as log:
        for step, anchor_batch, other_batch, meta in loader:
            rate = learning_rate(step, total, options.lr, stage.schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # Dropout draws from here, so a resumed step draws what it would have drawn.
            torch.manual_seed(seed_of(recipe.seed, stage.name, step, fabric.global_rank))

            batch_loss = module(*fabric.to_device((anchor_batch, other_batch)), _context(fabric, stage, meta))
            fabric.backward(batch_loss)
            norm = (
                fabric.clip_gradients(module, optimizer, max_norm=stage.clip_norm)
                if stage.clip_norm
                else None
            )
            scale = loss.temperature.scale.detach()
            optimizer.step()
            optimizer.zero_grad()
            loss.after_step()

            log.add(
                Step(step, batch_loss.detach(), norm, rate, scale, meta.keys), broken=len(loader.quarantined)
            )
            if fabric.is_global_zero and saved.due(step):
                log.look()
                log.last_good = str(saved.save(step + 1))
    check_frozen(before, frozen_digests(encoders, stage.parts), stage.name)
    for name, encoder in encoders.items():
        set_trainable(name, encoder, None)
    seconds = time.monotonic() - started
    return Outcome(total, log.last_loss, loss.temperature.value, seconds, tuple(loader.quarantined))


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


class _Checkpoint:
    """The state of a stage on disk: what it trains, its optimiser, and the next step."""

    def __init__(
        self, job: Job, encoders: dict[str, nn.Module], loss: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.path = job.folder / "state.ckpt"
        self.key = job.key
        self.every = job.stage.checkpoint_seconds
        self.modules = {name: encoders[name] for name in job.stage.parts} | {"": loss}
        self.optimizer = optimizer
        self._saved = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self.every

    def save(self, step: int) -> Path:
        """Write the state that step `step` starts from."""
        state: dict[str, Any] = {
            "key": self.key,
            "step": step,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        storage.write_state(self.path, state)
        self._saved = time.monotonic()
        return self.path

    def restore(self) -> int:
        """Load the state, if there is one of this very stage, and return the step to go on with."""
        state = storage.read_state(self.path)
        if state is None or state.get("key") != self.key:
            return 0
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
