"""InfoNCE: each embedding must find its pair's among all others of the batch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from geobind.errors import DataError, RecipeError
from geobind.training.losses.base import ContrastiveLoss, check_batch, checked_hardness
from geobind.training.losses.fused import Outcome, Wanted, evaluate
from geobind.training.losses.hard import hard_softmax
from geobind.training.losses.pairing import Pairing
from geobind.training.losses.softmax import both_ways, both_ways_apart, one_way
from geobind.training.losses.temperature import Temperature

if TYPE_CHECKING:
    from geobind.training.losses.context import Context
    from geobind.training.losses.queue import QueueOf

# N pairs on all ranks, M >= N keys (the others, then queued ones), D width

Direction = Literal["both", "anchor_to_other", "other_to_anchor"]


class InfoNCE(ContrastiveLoss):
    """Cross-entropy of finding each embedding's pair among the batch by similarity (arXiv:1807.03748, eq. 4).

    Exact at any batch size, in memory that grows with N: similarities are worked out tile by tile. A side
    that needs no gradient costs none. With labels in the context, every pair of the label is a positive and
    the loss is their mean log-probability (SupCon, arXiv:2004.11362, eq. 2).

    Args:
        direction: "anchor_to_other" finds the other among all others, "other_to_anchor" the anchor among all
            anchors, "both" is the mean of the two, as in CLIP.
        temperature: Its temperature; learnt from 0.07 by default.
        queue: Earlier embeddings of the other side, as further negatives where the anchor looks for its
            other. Filled by every forward pass in training mode.
        hardness: How much more those negatives count that resemble the query: weights go with
            exp(hardness * logit) (beta of arXiv:2010.04592; see `hard`). 0 for none; more costs more time.
        local: Whether each of several processes takes the part of its own rows.

    Raises:
        RecipeError: If the direction is unknown, or never uses the queue, or hardness is negative.
    """

    def __init__(
        self,
        direction: Direction = "both",
        temperature: Temperature | None = None,
        queue: QueueOf | None = None,
        hardness: float = 0.0,
        *,
        local: bool = False,
    ) -> None:
        super().__init__()
        if direction not in get_args(Direction):
            raise RecipeError(
                f"infonce: no direction {direction!r}; choose from {', '.join(get_args(Direction))}"
            )
        if queue is not None and direction == "other_to_anchor":
            raise RecipeError(
                "infonce: a queue holds others, but 'other_to_anchor' looks among anchors; "
                "drop the queue or choose another direction"
            )
        self.direction: Direction = direction
        self.hardness = checked_hardness(hardness)
        self.temperature = Temperature() if temperature is None else temperature
        self.queue = queue
        self.local = local

    def forward(
        self,
        anchor_ND: Tensor,
        other_ND: Tensor,
        context: Context | None = None,
        own: slice | None = None,
    ) -> Tensor:
        """Return the loss of N pairs of unit-length embeddings, a scalar; NaN if any embedding is not finite.

        With `own` it is the part of these rows: the sum of what each costs as a query, over N.

        Raises:
            DataError: If the batch cannot be contrasted, or the other side is queued but in training.
        """
        check_batch(anchor_ND, other_ND, context)
        keys_MD, pairing = self._keys(anchor_ND, other_ND, context, own)
        direction = self.direction
        look = partial(hard_softmax, beta=self.hardness) if self.hardness else one_way

        def kernel(query: Tensor, key: Tensor, scale: Tensor, _: Tensor, wanted: Wanted) -> Outcome:
            if direction == "anchor_to_other":
                return look(query, key, scale, pairing, wanted)
            if direction == "other_to_anchor":
                return look(key, query, scale, pairing, wanted.swapped()).swapped()
            if look is one_way and len(key) == len(query) and own is None:
                return both_ways(query, key, scale, pairing, wanted)
            return both_ways_apart(query, key, scale, pairing, wanted, look)

        loss = evaluate(kernel, anchor_ND, keys_MD, self.temperature.scale)
        if self.queue is not None and self.training:
            self.queue.push(other_ND, context)
        return loss

    def _keys(
        self, anchor_ND: Tensor, other_ND: Tensor, context: Context | None, own: slice | None
    ) -> tuple[Tensor, Pairing]:
        pairs, device = len(anchor_ND), anchor_ND.device
        if self.queue is None:
            return other_ND, Pairing.of(pairs, context, device, own=own)
        if other_ND.requires_grad and torch.is_grad_enabled():
            raise DataError(
                "infonce: the other side is in training, so its queued embeddings are stale; "
                "freeze it or drop the queue"
            )
        keys_MD = torch.cat([other_ND, self.queue.keys(like=other_ND)])
        return keys_MD, Pairing.of(pairs, context, device, self.queue.traits(), own)
