"""The processes that train together."""

# B rows on this rank

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Ranks(NamedTuple):
    """The processes that train together; a call puts the rows of all, in rank order, after one another."""

    all_gather: Callable[..., Any]  # Fabric's
    world: int

    def __call__(self, local_B: Tensor) -> Tensor:
        """Concatenate a tensor (B, ...) of every rank, all of one shape, with gradients."""
        if self.world == 1:
            return local_B
        # Fabric adds a leading rank axis only when there is more than one rank.
        wanted = torch.is_grad_enabled() and local_B.requires_grad
        return self.all_gather(local_B, sync_grads=wanted).flatten(0, 1)
