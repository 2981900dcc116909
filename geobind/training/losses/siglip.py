"""SigLIP loss and its sigmoid kernel."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geobind.training.losses.base import ContrastiveLoss, Temperature, check_batch, check_hardness
from geobind.training.losses.hard_negatives import hard_sigmoid_one_way
from geobind.training.losses.infonce import mean_of_both_ways
from geobind.training.losses.tiling import (
    LossAndGrads,
    NeededGrads,
    Pairing,
    ProductType,
    Tile,
    TiledGradients,
    apply_kernel,
    block_length,
    choose_product_type,
    tile_blocks,
)

if TYPE_CHECKING:
    from geobind.training.losses.base import LossContext

# N pairs on all ranks, D width, T x C one tile


class SigLIP(ContrastiveLoss):
    """Logistic loss of telling true pairs from false ones by similarity (arXiv:2303.15343, eq. 1).

    Exact at any batch size, in memory that grows with N, and each similarity is computed once. A side that
    needs no gradient costs none. With labels in the context, every pair of one label is a true pair.

    Args:
        temperature: Scale of the similarities; learnt from 0.1 by default, as in the paper.
        bias: Added to every logit, learnt; -10 at first, as in the paper, since nearly all pairs are false.
        hardness: Weight of negatives similar to the query, which goes with exp(hardness * logit), from
            either side (see `hard_negatives`). 0 for none.
        local: Whether each of several processes computes the part of its own rows.
        products: Type of the matrix products, as of `InfoNCE`.

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
        products: ProductType = "auto",
    ) -> None:
        super().__init__()
        self.hardness = check_hardness(hardness)
        self.temperature = Temperature(0.1) if temperature is None else temperature
        self.bias = nn.Parameter(torch.tensor(float(bias)))
        self.local = local
        self.products: ProductType = products

    def forward(
        self,
        anchor_ND: Tensor,
        other_ND: Tensor,
        context: LossContext | None = None,
        own: slice | None = None,
    ) -> Tensor:
        """Return the loss of N pairs of unit-length embeddings, a scalar; NaN if any embedding is not finite.

        With `own`, return the part of these rows: the sum of their losses as queries, over N.

        Raises:
            DataError: If the batch is not valid.
        """
        check_batch(anchor_ND, other_ND, context)
        pairing = Pairing.from_context(len(anchor_ND), context, anchor_ND.device, own=own)
        beta, low = self.hardness, choose_product_type(anchor_ND, self.products)

        def kernel(
            query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, needed: NeededGrads
        ) -> LossAndGrads:
            if beta:
                one_way = partial(hard_sigmoid_one_way, beta=beta, bias=bias)
                return mean_of_both_ways(query, key, scale, pairing, needed, one_way)
            return sigmoid_pairs(query, key, scale, bias, pairing, needed, low)

        return apply_kernel(kernel, anchor_ND, other_ND, self.temperature.scale, self.bias)


def sigmoid_pairs(
    query_ND: Tensor,
    key_ND: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    needed: NeededGrads,
    low: torch.dtype | None = None,
) -> LossAndGrads:
    """Return the sum over all entries of -log sigmoid(z logit), over N; z = 1 for positives, -1 for the rest.

    Zhai et al., arXiv:2303.15343, eq. 1. Since softplus(-x) = softplus(x) - x, every pair contributes a
    softplus and the positives take their logit off again. One product of N^2 D multiply-adds, one more per
    trainable side. `low` is the type of the products.
    """
    pairs = len(query_ND)
    row_blocks, column_blocks = tile_blocks(query_ND, key_ND, pairing.own)
    gradients = TiledGradients(query_ND, key_ND, scale, needed, low)
    loss_N, slope_N = query_ND.new_zeros(2, pairs)
    space, spare = query_ND.new_empty(2, block_length(row_blocks[0]) * block_length(column_blocks[0]))
    for rows in row_blocks:
        scaled_TD = gradients.scale_queries(rows)
        for columns in column_blocks:
            tile = Tile(pairing, rows, columns)
            shape = (len(scaled_TD), block_length(columns))
            logits_TC, other_TC = (memory[: math.prod(shape)].view(shape) for memory in (space, spare))
            gradients.multiply(scaled_TD, columns, logits_TC).add_(bias)
            loss_N[rows] -= tile.sum_positives(logits_TC)
            tile.mask_ignored_(logits_TC, fill=-math.inf)
            loss_N[rows] += F.softplus(logits_TC, out=other_TC).sum(1)  # pyright: ignore[reportCallIssue]
            if gradients.uses_tiles or needed.bias:
                weights_TC = logits_TC.sigmoid_()
                tile.subtract_positives_(weights_TC, 1.0)
                slope_N[rows] += weights_TC.sum(1)
                gradients.add_(rows, columns, weights_TC.div_(gradients.divisor), scaled_TD)
    return gradients.finish(loss_N.mean(), slope_N.mean() if needed.bias else None)
