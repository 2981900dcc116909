"""Optimizer setup, learning-rate schedule and gradient clipping."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from geobind.recipe.stage_options import Constant, Cosine, WarmRestarts
from geobind.training.distributed import average_over_ranks
from geobind.training.encoder_transforms import compile_encoder, enable_checkpointing
from geobind.training.fabric import Fabric
from geobind.training.fsdp import is_sharded, local_shard
from geobind.training.gradients import batch_norm_encoders, chunk_rows
from geobind.training.module import ContrastiveModule
from geobind.training.sync_batchnorm import build_dummy_rows, sync_batch_norms
from geobind.training.trainable import (
    Float32Modules,
    build_parameter_groups,
    collect_lr_scales,
)
from geobind.utils.logs import rank_zero_logger

_log = rank_zero_logger(__name__)

if TYPE_CHECKING:
    from geobind.embedding_cache.build import CachedColumn
    from geobind.recipe import Stage
    from geobind.training.stage import StageRun


def learning_rate(step: int, total: int, peak: float, schedule: Constant | Cosine | WarmRestarts) -> float:
    """Return the learning rate of a step, counted from 0.

    The first `warmup_steps` steps climb in a straight line to the peak. Then, with `t` the steps since the
    warm-up (or since the last restart) and `T` the steps until the end (or of the period), the rate is
    final + (peak - final) (1 + cos(pi t / T)) / 2 (SGDR, arXiv:1608.03983 eq. 5).

    Args:
        step: The step about to be taken.
        total: Steps of the stage.
        peak: Highest learning rate.
        schedule: Its shape.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    since = step - schedule.warmup_steps
    period = max(1, total - schedule.warmup_steps)
    if schedule.name == "warm_restarts":
        period = schedule.period
        while since >= period:
            since -= period
            period *= schedule.multiplier
            if schedule.multiplier == 1:
                since %= period
    lowest = schedule.final * peak
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * since / period)) / 2


_NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"


class OptimizerState(NamedTuple):
    """The module and optimizer of a stage, as Fabric set them up."""

    fabric: Fabric
    stage: Stage
    steps: int  # of the stage
    wrapped: Any  # the `ContrastiveModule` as Fabric set it up
    optimizer: Any  # as Fabric set it up
    adamw: torch.optim.Optimizer  # inside it: what a checkpoint holds the state of

    def set_rate(self, step: int) -> float:
        """Set and return the learning rate of a step."""
        rate = learning_rate(step, self.steps, self.stage.optimizer.lr, self.stage.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        return rate

    def step(self) -> Tensor:
        """Clip the gradient, step the optimizer, and return the gradient norm before clipping."""
        self.fabric.strategy.precision.unscale_gradients(self.adamw)
        norm = self._clipped()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _clipped(self) -> Tensor:
        """Clip the gradient to `clip_norm` and return its norm before."""
        grads = [p.grad for group in self.adamw.param_groups for p in group["params"] if p.grad is not None]
        in_shards = is_sharded(self.fabric)
        own = [grad for grad in grads if not isinstance(grad, DTensor)] if in_shards else grads
        if in_shards:
            average_over_ranks(self.fabric, own)  # nobody else does
        # A norm that is not finite is left to the recorder, which can name step and rows.
        norm = torch.nn.utils.get_total_norm(own).to(self.fabric.device)
        if in_shards:
            sharded = [grad.to_local() for grad in grads if isinstance(grad, DTensor)]
            square = torch.nn.utils.get_total_norm(sharded).to(self.fabric.device) ** 2
            dist.all_reduce(square)
            norm = (norm**2 + square).sqrt()
        max_norm = self.stage.clip_norm
        if max_norm is not None and grads:
            # As torch.nn.utils.clip_grads_with_norm_ does it, which does not take shards.
            share = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
            scale: Any = torch._foreach_mul_  # pyright: ignore
            scale([local_shard(grad) for grad in grads] if in_shards else grads, share)
        return norm


def set_up_optimizer(
    fabric: Fabric, job: StageRun, module: ContrastiveModule, stored: Mapping[str, CachedColumn]
) -> OptimizerState:
    """Build the optimizer of a stage, and set up module and optimizer with Fabric.

    Args:
        fabric: Where the stage runs.
        job: The stage.
        module: What it trains.
        stored: The modalities that are read from the embedding cache.
    """
    _search_nvml_once()
    if job.recipe.precision_of(job.stage).endswith("-true"):
        module.losses = Float32Modules(dict(module.losses.items()))
    if fabric.world_size > 1:
        _sync_batch_norms(fabric, job, module)
    if job.stage.checkpoint_activations is True:
        _checkpoint_activations(job.stage, job.encoders)
    if mode := job.stage.compile_mode:
        for encoder in module.encoders.values():
            compile_encoder(encoder, mode, by_block=is_sharded(fabric))
    wrapped: Any = fabric.setup_module(module)
    if fabric.world_size > 1 and job.partial:
        trained = {name: encoder for name, encoder in module.encoders.items() if name in job.stage.parts}
        module.dummy_rows |= build_dummy_rows(fabric, job.rows, trained, job.recipe.built, stored)
    options = job.stage.optimizer
    groups = build_parameter_groups(
        module, options, collect_lr_scales(job.encoders, job.stage.trained)
    )  # after the module: shards are other parameters
    fused = choose_fused(
        fabric.device.type,
        scaled=getattr(fabric.strategy.precision, "scaler", None) is not None,
        sharded=is_sharded(fabric),
    )
    adamw = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps, fused=fused)
    return OptimizerState(fabric, job.stage, job.steps, wrapped, fabric.setup_optimizers(adamw), adamw)


def choose_fused(device: str, *, scaled: bool, sharded: bool) -> bool | None:
    """Return whether AdamW takes its fused kernel; None leaves it to torch, which never does.

    The kernel goes through the weights once. It refuses gradients that a scaler has scaled down before it,
    as their norm asks for.
    """
    if device == "cpu":
        return None if scaled else True
    return True if device == "cuda" and not (scaled or sharded) else None


def _search_nvml_once() -> None:
    """Prevent a search for the NVML library in every optimizer step.

    It asks torch for GPUs, whom Fabric tells to count them by NVML before CUDA starts. Where that cannot be
    loaded, torch looks for it each time anew, and then counts without it.
    """
    try:
        ctypes.CDLL("libnvidia-ml.so.1")  # as torch does it
    except OSError:
        os.environ.pop(_NVML_CHECK, None)


def _checkpoint_activations(stage: Stage, encoders: Mapping[str, nn.Module]) -> None:
    for name, encoder in encoders.items():
        if name in stage.parts and not enable_checkpointing(encoder):
            _log.info(
                "%s: the encoder of '%s' has no blocks, so that checkpoint_activations saves no memory in it",
                stage.name,
                name,
            )


def _sync_batch_norms(fabric: Fabric, job: StageRun, module: ContrastiveModule) -> None:
    """Synchronise batch norms over ranks, or warn that each rank has its own statistics."""
    if chunk_rows(job.stage, fabric.world_size) is not None:
        return  # they are those of a chunk, of which the first process warns
    if job.recipe.fabric.sync_batchnorm:
        fused = fabric.device.type == "cuda" and not job.partial
        for encoder in module.encoders.values():
            sync_batch_norms(encoder, fused=fused)
    elif names := batch_norm_encoders(module.encoders):
        _log.warning(
            "stage '%s': %s trains BatchNorm, whose statistics are those of each process's own rows, so that "
            "the result depends on the number of processes",
            job.stage.name,
            ", ".join(names),
        )
