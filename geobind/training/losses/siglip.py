"""SigLIP: each pair of embeddings is judged on its own, as belonging together or not."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from geobind.training.losses.base import ContrastiveLoss, check_batch, checked_hardness
from geobind.training.losses.fused import Outcome, Wanted, evaluate
from geobind.training.losses.hard import hard_sigmoid
from geobind.training.losses.pairing import Pairing
from geobind.training.losses.sigmoid import pairwise
from geobind.training.losses.softmax import both_ways_apart
from geobind.training.losses.temperature import Temperature

if TYPE_CHECKING:
    from geobind.training.losses.context import Context

# N pairs on all ranks, D width


class SigLIP(ContrastiveLoss):
    """Logistic loss of telling true pairs from false ones by similarity (arXiv:2303.15343, eq. 1).

    Exact at any batch size, in memory that grows with N, and each similarity is worked out once. A side that
    needs no gradient costs none. With labels in the context, every pair of one label is a true pair.

    Args:
        temperature: Its temperature; learnt from 0.1 by default, as in the paper.
        bias: What is added to every logit, learnt; -10 at first, as in the paper, since nearly all pairs are
            false.
        hardness: How much more those negatives count that resemble the query: weights go with
            exp(hardness * logit), taken once from either side (see `hard`). 0 for none.
        local: Whether each of several processes takes the part of its own rows.

    Raises:
        RecipeError: If hardness is negative.
    """

    def __init__(
        self,
        temperature: Temperature | None = None,
        bias: float = -10.0,
        hardness: float = 0.0,
        *,
        local: bool = False,
    ) -> None:
        super().__init__()
        self.hardness = checked_hardness(hardness)
        self.temperature = Temperature(0.1) if temperature is None else temperature
        self.bias = nn.Parameter(torch.tensor(float(bias)))
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
            DataError: If the batch cannot be contrasted.
        """
        check_batch(anchor_ND, other_ND, context)
        pairing = Pairing.of(len(anchor_ND), context, anchor_ND.device, own=own)
        beta = self.hardness

        def kernel(query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, wanted: Wanted) -> Outcome:
            if beta:
                look = partial(hard_sigmoid, beta=beta, bias=bias)
                return both_ways_apart(query, key, scale, pairing, wanted, look)
            return pairwise(query, key, scale, bias, pairing, wanted)

        return evaluate(kernel, anchor_ND, other_ND, self.temperature.scale, self.bias)
