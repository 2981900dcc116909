"""Both towers of a stage and its loss as one module: what a step differentiates."""

# B pairs on this rank, N pairs on all ranks, D width

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from geobind.binder import unit
from geobind.recipe.schema import InfoNCE as InfoNCEOptions
from geobind.recipe.schema import SigLIP as SigLIPOptions
from geobind.recipe.schema import Temperature as TemperatureOptions
from geobind.training.losses import Context, ContrastiveLoss, InfoNCE, SigLIP, Temperature

Gather = Callable[[Tensor], Tensor]


class Bind(nn.Module):
    """Embed both sides of a batch, gather all ranks' embeddings, and take the loss.

    One module holds both towers because DDP refuses a module with nothing to train, which a frozen tower
    alone would be.
    """

    def __init__(self, anchor: nn.Module, other: nn.Module, loss: ContrastiveLoss, gather: Gather) -> None:
        super().__init__()
        self.anchor = anchor
        self.other = other
        self.loss = loss
        self.gather = gather

    def forward(self, anchor_batch: Any, other_batch: Any, context: Context | None) -> Tensor:
        """Return the loss over all ranks' pairs, the same number on every rank."""
        anchor_ND = self.gather(unit(self.anchor(anchor_batch)))
        other_ND = self.gather(unit(self.other(other_batch)))
        return self.loss(anchor_ND, other_ND, context)


def make_loss(options: InfoNCEOptions | SigLIPOptions) -> ContrastiveLoss:
    """Build the loss a stage asks for."""
    temperature = _temperature(options.temperature)
    if options.name == "siglip":
        return SigLIP(temperature, options.bias)
    return InfoNCE(options.direction, temperature)


def _temperature(options: TemperatureOptions) -> Temperature:
    return Temperature(
        options.init, learn=options.learn, min_scale=1 / options.maximum, max_scale=1 / options.minimum
    )


def across_ranks(all_gather: Callable[..., Any], world: int) -> Gather:
    """Make the function that concatenates every rank's embeddings, in rank order, with gradients."""

    def gather(local_BD: Tensor) -> Tensor:
        if world == 1:
            return local_BD
        # Fabric adds a leading rank axis only when there is more than one rank.
        return all_gather(local_BD, sync_grads=torch.is_grad_enabled() and local_BD.requires_grad).flatten(
            0, 1
        )

    return gather
