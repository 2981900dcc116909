"""How much work training is, counted and not timed, so that different ways to train can be given the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# The gradients of a layer's input and of its weights each take as much work as its forward pass.
TRAINED_COSTS = 3


def forward_flops(encoder: nn.Module, batch: Any) -> int:
    """Count the floating-point operations of one forward pass, matrix products and convolutions alone."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(batch)
    return counter.get_total_flops()


def pair_flops(forward: Mapping[str, int], names: Collection[str], trained: Collection[str]) -> int:
    """Operations that one row of a stage takes: each encoder once, three times what a stage trains.

    The loss is left out: it is the same product of embeddings whatever is compared, and small beside them.

    Args:
        forward: Operations of one forward pass, by modality.
        names: The modalities of the stage.
        trained: Those whose encoder the stage trains.
    """
    return sum(forward[name] * (TRAINED_COSTS if name in trained else 1) for name in names)
