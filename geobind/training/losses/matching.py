"""The matching loss of probabilistic embeddings tile by tile, with its gradients, every tile visited once."""

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


def matching(
    query_ND: Tensor,
    key_ND: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    wanted: Wanted,
    *,
    pseudo: float,
) -> Outcome:
    """Return 2 M + pseudo (R + C), and its gradients, for logits of scale q.k + bias.

    M is the binary cross-entropy of telling positives from the rest, a mean over all N^2 entries. In R every
    entry at least as likely as its row's own pair counts as a positive too, in C as its column's (Chun,
    arXiv:2305.18171, eqs. 1 and 2 and its pseudo-positives, weighted as in the authors' code). One product
    of N^2 D multiply-adds, one more per trainable side.
    """
    pairs = len(query_ND)
    row_blocks, column_blocks = grid(query_ND, key_ND)
    gradients = Gradients(query_ND, key_ND, scale, wanted)
    own_N = (query_ND * key_ND).sum(1) * scale + bias
    loss_N, slope_N = query_ND.new_zeros(2, pairs)
    space = query_ND.new_empty(length(row_blocks[0]) * length(column_blocks[0]))
    for rows in row_blocks:
        scaled_TD = query_ND[rows] * scale
        for columns in column_blocks:
            tile = Tile(pairing, rows, columns)
            shape = (len(scaled_TD), length(columns))
            logits_TC = torch.mm(scaled_TD, key_ND[columns].T, out=space[: math.prod(shape)].view(shape))
            logits_TC += bias
            pull_TC = _pull(tile, logits_TC, own_N, pseudo)
            tile.drop_(pull_TC)
            loss_N[rows] -= (pull_TC * logits_TC).sum(1)
            tile.drop_(logits_TC, fill=-math.inf)
            loss_N[rows] += F.softplus(logits_TC).sum(1).mul_(2 + 2 * pseudo)
            if gradients.any or wanted.bias:
                weights_TC = logits_TC.sigmoid_().mul_(2 + 2 * pseudo).sub_(pull_TC)
                slope_N[rows] += weights_TC.sum(1)
                gradients.add_(rows, columns, weights_TC.div_(pairs**2), scaled_TD)
    slope = slope_N.mean() / pairs if wanted.bias else None
    return gradients.outcome(loss_N.mean() / pairs, slope)


def _pull(tile: Tile, logits_TC: Tensor, own_N: Tensor, pseudo: float) -> Tensor:
    """How often each entry counts as a positive: twice, and `pseudo` times for its row and its column."""
    mask_TC = tile.positive_mask(logits_TC)
    pull_TC = torch.zeros_like(logits_TC)
    if pseudo:
        pull_TC += logits_TC >= own_N[tile.rows, None]
        pull_TC += logits_TC >= own_N[tile.columns]
        pull_TC *= pseudo
    return pull_TC if mask_TC is None else pull_TC.masked_fill_(mask_TC, 2 + 2 * pseudo)
