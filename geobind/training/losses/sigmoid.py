"""SigLIP tile by tile: the pairwise sigmoid loss with its gradients, every tile visited once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from geobind.training.losses.fused import Gradients, Outcome, Wanted, grid, length
from geobind.training.losses.tiles import Tile

if TYPE_CHECKING:
    from geobind.training.losses.pairing import Pairing

# N pairs on all ranks, D width, T x C one tile


def pairwise(
    query_ND: Tensor, key_ND: Tensor, scale: Tensor, bias: Tensor, pairing: Pairing, wanted: Wanted
) -> Outcome:
    """Return the sum over all entries of -log sigmoid(z logit), over N; z = 1 for positives, -1 for the rest.

    Zhai et al., arXiv:2303.15343, eq. 1. Since softplus(-x) = softplus(x) - x, every pair contributes a
    softplus and the positives take their logit off again. One product of N^2 D multiply-adds, one more per
    trainable side.
    """
    pairs = len(query_ND)
    row_blocks, column_blocks = grid(query_ND, key_ND, pairing.own)
    gradients = Gradients(query_ND, key_ND, scale, wanted)
    loss_N, slope_N = query_ND.new_zeros(2, pairs)
    space, spare = query_ND.new_empty(2, length(row_blocks[0]) * length(column_blocks[0]))
    for rows in row_blocks:
        scaled_TD = query_ND[rows] * scale
        for columns in column_blocks:
            tile = Tile(pairing, rows, columns)
            shape = (len(scaled_TD), length(columns))
            logits_TC, other_TC = (memory[: math.prod(shape)].view(shape) for memory in (space, spare))
            torch.mm(scaled_TD, key_ND[columns].T, out=logits_TC).add_(bias)
            loss_N[rows] -= tile.positives(logits_TC)
            tile.drop_(logits_TC, fill=-math.inf)
            loss_N[rows] += F.softplus(logits_TC, out=other_TC).sum(1)  # pyright: ignore[reportCallIssue]
            if gradients.any or wanted.bias:
                weights_TC = logits_TC.sigmoid_()
                tile.subtract_(weights_TC, 1.0)
                slope_N[rows] += weights_TC.sum(1)
                gradients.add_(rows, columns, weights_TC.div_(pairs), scaled_TD)
    return gradients.outcome(loss_N.mean(), slope_N.mean() if wanted.bias else None)
