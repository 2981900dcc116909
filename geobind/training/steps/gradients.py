"""The gradient of one step: how the losses of a batch reach what is trained."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from geobind.training.bind import About, Bind, Losses
from geobind.training.steps.chunks import batch_statistics
from geobind.training.steps.two_pass import TwoPass, apart

if TYPE_CHECKING:
    from geobind.data.loader import BatchMeta
    from geobind.recipe import Stage
    from geobind.training.job import Job


class Turn(NamedTuple):
    """Where a step stands among those that move the weights together."""

    number: int = 0
    of: int = 1

    @property
    def last(self) -> bool:
        """Whether the weights move now."""
        return self.number + 1 == self.of


def turn_of(step: int, every: int, steps: int) -> Turn:
    """Tell a step's place among the `every` that move the weights together; at the end they may be fewer."""
    first = step - step % every
    return Turn(step - first, min(every, steps - first))


def chunk_rows(stage: Stage, world: int) -> int | None:
    """Return how many rows of a process are embedded at a time; None: all that a step has."""
    if not isinstance(stage.chunk, int) or stage.chunk * world >= stage.batch_size:
        return None
    return stage.chunk


class Gradients:
    """Leaves the gradient of a step's losses in the parameters, beside that of earlier steps in its turn.

    Args:
        fabric: Where the stage runs.
        bind: What is differentiated.
        module: The same as Fabric set it up.
        chunk: How many rows are embedded at a time; None: all.
    """

    def __init__(self, fabric: Fabric, bind: Bind, module: Any, chunk: int | None = None) -> None:
        self.fabric, self.bind, self.module = fabric, bind, module
        self.two_pass = None if chunk is None else TwoPass(fabric, bind, module, chunk)
        self._idle: set[str] | None = None  # what no step of this turn has trained; None: no step was taken

    def __call__(
        self, batches: Mapping[str, Any], present_BM: Tensor | None, about: About, turn: Turn | None = None
    ) -> Losses:
        """Embed a batch, take the losses and go back through all of it.

        Args:
            batches: The prepared inputs of each modality: of the rows that have it, in their order.
            present_BM: Which rows have which modality; None: all have all.
            about: What is known of the rows of all ranks.
            turn: The step's place among those whose mean gradient moves the weights; None: it is alone.
        """
        turn = turn or Turn()
        if self.two_pass is not None:
            share = 1 / turn.of
            found = self.two_pass(batches, present_BM, about.context, share=share, sync=turn.last)
        else:
            with nullcontext() if turn.last else apart(self.fabric, self.module):
                found = self.module(self.fabric.to_device(batches), present_BM, about)
                self.fabric.backward(found.total if turn.of == 1 else found.total / turn.of)
        self._idle = {*found.idle} if self._idle is None else self._idle & {*found.idle}
        if turn.last:
            self.bind.rest(self._idle)
            self._idle = None
        return found


def present_of(bind: Bind, meta: BatchMeta) -> Tensor | None:
    """Tell which rows have which modality; None where all have all, on every rank and in every step."""
    if not bind.partial:
        return None
    if meta.present_BM is None:
        return torch.ones(len(meta.keys), len(bind.encoders), dtype=torch.bool)
    return torch.from_numpy(meta.present_BM)


def gradients_of(fabric: Fabric, job: Job, bind: Bind, module: Any) -> Gradients:
    """Return what leaves the gradients of a stage's steps, and warn of what chunks change."""
    chunk = chunk_rows(job.stage, fabric.world_size)
    names = batch_statistics(bind.encoders) if chunk else []
    if names and fabric.is_global_zero:
        print(
            f"warning: stage '{job.stage.name}': {', '.join(names)} trains BatchNorm, whose statistics with "
            f"`chunk` are those of {chunk} rows and not of the batch, which makes another result; take a "
            f"backbone with LayerNorm, GroupNorm or no norm, or train its `head` or `lora`, which leave "
            f"BatchNorm as it is",
            file=sys.stderr,
            flush=True,
        )
    return Gradients(fabric, bind, module, chunk)
