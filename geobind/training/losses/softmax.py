"""InfoNCE tile by tile: the softmax losses with their gradients, in memory that grows with N, not N x N."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geobind.training.losses.fused import Gradients, Outcome, Wanted, grid, length
from geobind.training.losses.tiles import Tile, shares

if TYPE_CHECKING:
    from geobind.training.losses.pairing import Pairing

# N queries (pairs on all ranks), M >= N keys (the N pairs' own, then queued ones), D width, T x C one tile

OneWay = Callable[[Tensor, Tensor, Tensor, "Pairing", Wanted], Outcome]  # query, key, scale, pairing, wanted


def one_way(query_ND: Tensor, key_MD: Tensor, scale: Tensor, pairing: Pairing, wanted: Wanted) -> Outcome:
    """Return the mean over queries of -log softmax(positive among all keys), and its gradients.

    With several positives this is their mean log-probability, eq. 2 of Khosla et al., arXiv:2004.11362. One
    product of N M D multiply-adds, one more per trainable side; the workspace is a stripe of T x M.
    """
    pairs, share_N1 = len(query_ND), shares(pairing, query_ND)
    row_blocks, column_blocks = grid(query_ND, key_MD, pairing.own)
    gradients = Gradients(query_ND, key_MD, scale, wanted)
    loss_N = query_ND.new_zeros(pairs)
    space = query_ND.new_empty(length(row_blocks[0]) * len(key_MD))
    for rows in row_blocks:
        scaled_TD = query_ND[rows] * scale
        stripe_TM = space[: len(scaled_TD) * len(key_MD)].view(len(scaled_TD), len(key_MD))
        loss_T, peak_T1 = torch.zeros_like(loss_N[rows]), loss_N.new_full((len(scaled_TD), 1), -math.inf)
        for columns in column_blocks:
            tile = Tile(pairing, rows, columns, share_N1)
            logits_TC = torch.mm(scaled_TD, key_MD[columns].T, out=stripe_TM[:, columns])
            loss_T -= tile.positives(logits_TC)
            tile.drop_(logits_TC, fill=-math.inf)
            peak_T1 = torch.maximum(peak_T1, logits_TC.amax(1, keepdim=True))
        total_T1 = torch.zeros_like(peak_T1)
        for columns in column_blocks:
            total_T1 += stripe_TM[:, columns].sub_(peak_T1).exp_().sum(1, keepdim=True)
        loss_N[rows] = loss_T + (peak_T1 + total_T1.log()).squeeze(1)
        for columns in column_blocks if gradients.any else ():
            weights_TC = stripe_TM[:, columns].mul_(1 / (total_T1 * pairs))
            Tile(pairing, rows, columns, share_N1).subtract_(weights_TC, 1 / pairs)
            gradients.add_(rows, columns, weights_TC, scaled_TD)
    return gradients.outcome(loss_N.mean())


def both_ways(query_ND: Tensor, key_ND: Tensor, scale: Tensor, pairing: Pairing, wanted: Wanted) -> Outcome:
    """Return the mean of `one_way` from either side, and its gradients, both sides read off the same tiles.

    Two products of N^2 D multiply-adds (one if no gradient is wanted), one more per trainable side; the
    workspace is two tiles. All exponentials share one shift, so that one serves row and column; should a row
    or column be lost to underflow (all its similarities near -1 at the highest scales), the sides are taken
    one by one instead.
    """
    pairs, share_N1 = len(query_ND), shares(pairing, query_ND)
    row_blocks, column_blocks = grid(query_ND, key_ND)
    shift = _common_shift(query_ND, key_ND, scale)
    row_sum_N, column_sum_N, positive_N = query_ND.new_zeros(3, pairs)
    space, spare = query_ND.new_empty(2, length(row_blocks[0]) * length(column_blocks[0]))
    for rows in row_blocks:
        scaled_TD = query_ND[rows] * scale
        for columns in column_blocks:
            tile = Tile(pairing, rows, columns, share_N1, mutual=pairing.uneven)
            logits_TC = _product(scaled_TD, key_ND[columns], space)
            positive_N[rows] += tile.positives(logits_TC)
            values_TC = _exponentials_(logits_TC, shift, tile)
            row_sum_N[rows] += values_TC.sum(1)
            column_sum_N[columns] += values_TC.sum(0)
    limits = torch.finfo(query_ND.dtype)
    if not torch.minimum(row_sum_N, column_sum_N).amin() >= pairs * limits.tiny / limits.eps:
        return both_ways_apart(query_ND, key_ND, scale, pairing, wanted)
    loss_N = (row_sum_N.log() + column_sum_N.log()) / 2 + shift - positive_N
    gradients = Gradients(query_ND, key_ND, scale, wanted)
    row_weight_N1, column_weight_N = (0.5 / pairs / row_sum_N).unsqueeze(1), 0.5 / pairs / column_sum_N
    only = len(row_blocks) == len(column_blocks) == 1
    for rows in row_blocks if gradients.any else ():
        scaled_TD = query_ND[rows] * scale
        for columns in column_blocks:
            tile = Tile(pairing, rows, columns, share_N1, mutual=pairing.uneven)
            if only:
                weights_TC = space.view(pairs, pairs)  # its exponentials are still there
            else:
                weights_TC = _exponentials_(_product(scaled_TD, key_ND[columns], space), shift, tile)
            factor_TC = spare[: weights_TC.numel()].view_as(weights_TC)
            weights_TC *= torch.add(row_weight_N1[rows], column_weight_N[columns], out=factor_TC)
            tile.subtract_(weights_TC, 1 / pairs)
            gradients.add_(rows, columns, weights_TC, scaled_TD)
    return gradients.outcome(loss_N.mean())


def both_ways_apart(
    query_ND: Tensor,
    key_MD: Tensor,
    scale: Tensor,
    pairing: Pairing,
    wanted: Wanted,
    look: OneWay = one_way,
) -> Outcome:
    """Return what `both_ways` does, side by side: dearer, but safe at any scale, and able to use queued keys.

    Queued keys are negatives of the queries only; with any, the keys must be frozen. The loss of one side can
    be another than `one_way`.
    """
    there = look(query_ND, key_MD, scale, pairing, wanted)
    unqueued = replace(pairing, column=pairing.row)
    back = look(key_MD[: len(query_ND)], query_ND, scale, unqueued, wanted.swapped()).swapped()
    value = (there.value + back.value) / 2
    return Outcome(value, *(_mean(one, other) for one, other in zip(there[1:], back[1:], strict=True)))


def _common_shift(query_ND: Tensor, key_ND: Tensor, scale: Tensor) -> float:
    """Return what to take off the logits lest a sum of exponentials overflow; 0 unless the scale is high.

    By Cauchy-Schwarz no logit exceeds the scale times the largest norms.
    """
    largest = scale * query_ND.norm(dim=1).amax() * key_ND.norm(dim=1).amax()
    room = math.log(torch.finfo(query_ND.dtype).max) - math.log(len(query_ND)) - 1
    return max(0.0, largest.item() - room)


def _mean(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if one is None or other is None else one.add_(other).div_(2)


def _product(scaled_TD: Tensor, key_CD: Tensor, space: Tensor) -> Tensor:
    shape = (len(scaled_TD), len(key_CD))
    return torch.mm(scaled_TD, key_CD.T, out=space[: math.prod(shape)].view(shape))


def _exponentials_(logits_TC: Tensor, shift: float, tile: Tile) -> Tensor:
    values_TC = (logits_TC.sub_(shift) if shift else logits_TC).exp_()
    tile.drop_(values_TC)
    return values_TC
