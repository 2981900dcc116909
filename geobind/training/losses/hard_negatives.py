"""InfoNCE and SigLIP kernels with hardness-weighted negatives (arXiv:2010.04592).

With K negatives n of a query and their logits l, each has the weight K exp(beta l_n) / sum exp(beta l):
importance weights for negatives drawn from a distribution tilted towards those similar to the query
(Robinson et al., arXiv:2010.04592, section 3, with no correction for false negatives). As in the authors'
code, gradients flow through the weights as well, so that they are the gradients of the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from geobind.training.losses.tiling import (
    LossAndGrads,
    NeededGrads,
    Tile,
    TiledGradients,
    block_length,
    compute_positive_shares,
    tile_blocks,
)

if TYPE_CHECKING:
    from geobind.training.losses.tiling import Pairing

# N queries (pairs on all ranks), M >= N keys (the N pairs' own, then queued ones), D width, T x C one tile

Tiles = Callable[[], Iterator[Tile]]


def hard_softmax_one_way(
    query_ND: Tensor, key_MD: Tensor, scale: Tensor, pairing: Pairing, needed: NeededGrads, *, beta: float
) -> LossAndGrads:
    """Return the mean of -l_p + log(sum exp l_p + sum w_n exp l_n) over queries, with its gradients.

    p are the positives of a query, n its negatives with weights w_n; the first term is a mean over positives.
    """
    pairs = len(query_ND)
    gradients = TiledGradients(query_ND, key_MD, scale, needed)
    loss_N = query_ND.new_zeros(pairs)
    for rows, stripe in _iter_stripes(query_ND, key_MD, scale, pairing):
        kin_T1, tilt_T1, tilted_T1 = query_ND.new_zeros(3, block_length(rows), 1)
        for part in stripe.iter_tiles():
            if part.mask_TC is not None:
                kin_T1 += part.keep_positives(part.logits_TC - stripe.best_T1).exp_().sum(1, keepdim=True)
            weights_TC = (part.apart_TC * beta).exp_()
            tilt_T1 += weights_TC.sum(1, keepdim=True)
            tilted_T1 += weights_TC.mul_(part.apart_TC.exp()).sum(1, keepdim=True)
        tilt_T1, tilted_T1 = tilt_T1.clamp_(min=1), tilted_T1.clamp_(min=1)  # less only without negatives
        rivals_T1 = stripe.peak_T1 + (stripe.count_T1 * tilted_T1 / tilt_T1).log()
        total_T1 = torch.logaddexp(stripe.best_T1 + kin_T1.log(), rivals_T1)
        loss_N[rows] = total_T1.squeeze(1) - stripe.attraction_T
        share_T1 = (rivals_T1 - total_T1).exp_() / pairs
        rise_T1, fall_T1 = (1 + beta) * share_T1 / tilted_T1, beta * share_T1 / tilt_T1
        for part in stripe.iter_tiles() if gradients.uses_tiles else ():
            weights_TC = (part.apart_TC * beta).exp_()
            weights_TC *= part.apart_TC.exp_().mul_(rise_T1).sub_(fall_T1)
            if part.mask_TC is not None:
                weights_TC += part.keep_positives(part.logits_TC - total_T1).exp_().div_(pairs)
            part.tile.subtract_positives_(weights_TC, 1 / pairs)
            gradients.add_(rows, part.columns, weights_TC, stripe.scaled_TD)
    return gradients.finish(loss_N.mean())


def hard_sigmoid_one_way(
    query_ND: Tensor,
    key_MD: Tensor,
    scale: Tensor,
    pairing: Pairing,
    needed: NeededGrads,
    *,
    beta: float,
    bias: Tensor,
) -> LossAndGrads:
    """Return the mean of sum softplus(-l_p) + sum w_n softplus(l_n) over queries, with its gradients.

    p are the positives of a query, n its negatives with weights w_n. The paper treats softmax losses only;
    this is the same weighting for the sigmoid loss, which also sums over negatives.
    """
    pairs = len(query_ND)
    gradients = TiledGradients(query_ND, key_MD, scale, needed)
    loss_N, slope_N = query_ND.new_zeros(2, pairs)
    for rows, stripe in _iter_stripes(query_ND, key_MD, scale, pairing, bias):
        tilt_T1, spent_T1 = query_ND.new_zeros(2, block_length(rows), 1)
        for part in stripe.iter_tiles():
            if part.mask_TC is not None:
                loss_N[rows] += F.softplus(part.keep_positives(-part.logits_TC)).sum(1)
            weights_TC = (part.apart_TC * beta).exp_()
            tilt_T1 += weights_TC.sum(1, keepdim=True)
            spent_T1 += weights_TC.mul_(F.softplus(part.apart_TC + stripe.peak_T1)).sum(1, keepdim=True)
        tilt_T1.clamp_(min=1)  # less only without negatives
        mean_T1 = spent_T1 / tilt_T1
        loss_N[rows] += (stripe.count_T1 * mean_T1).squeeze(1)
        share_T1 = stripe.count_T1 / tilt_T1
        for part in stripe.iter_tiles() if gradients.uses_tiles or needed.bias else ():
            weights_TC = (part.apart_TC * beta).exp_()
            logits_TC = part.apart_TC.add_(stripe.peak_T1)
            weights_TC *= (F.softplus(logits_TC) - mean_T1).mul_(beta).add_(logits_TC.sigmoid())
            weights_TC *= share_T1
            if part.mask_TC is not None:
                weights_TC -= part.keep_positives(-part.logits_TC).sigmoid_()
            slope_N[rows] += weights_TC.sum(1)
            gradients.add_(rows, part.columns, weights_TC.div_(pairs), stripe.scaled_TD)
    return gradients.finish(loss_N.mean(), slope_N.mean() if needed.bias else None)


class _StripeTile(NamedTuple):
    """Logits and masks of a stripe inside one tile."""

    tile: Tile
    columns: slice
    logits_TC: Tensor  # ignored ones are -inf
    mask_TC: Tensor | None  # where the positives are; None if there are none
    apart_TC: Tensor  # logits minus the largest negative logit; -inf except at negatives

    def keep_positives(self, values_TC: Tensor) -> Tensor:
        """Return the values with -inf everywhere but at positives."""
        return values_TC if self.mask_TC is None else values_TC.masked_fill_(~self.mask_TC, -torch.inf)


class _Stripe:
    """Logits of a block of queries with all keys, and statistics of each query (T, 1)."""

    def __init__(
        self, scaled_TD: Tensor, key_MD: Tensor, bias: Tensor | None, tiles: Tiles, space: Tensor
    ) -> None:
        self.scaled_TD, self._tiles = scaled_TD, tiles
        self._logits_TM = space[: len(scaled_TD) * len(key_MD)].view(len(scaled_TD), len(key_MD))
        self.attraction_T = scaled_TD.new_zeros(len(scaled_TD))  # mean positive logit
        self.count_T1 = scaled_TD.new_zeros(len(scaled_TD), 1)  # negatives
        self.best_T1 = torch.full_like(self.count_T1, -torch.inf)  # largest logit of a positive
        self.peak_T1 = torch.full_like(self.count_T1, -torch.inf)  # largest of a negative; 0 without any
        for tile in tiles():
            logits_TC = torch.mm(scaled_TD, key_MD[tile.columns].T, out=self._logits_TM[:, tile.columns])
            if bias is not None:
                logits_TC += bias
            self.attraction_T += tile.sum_positives(logits_TC)
            tile.mask_ignored_(logits_TC, fill=-torch.inf)
            mask_TC = tile.positive_mask(logits_TC)
            if mask_TC is not None:
                best_T1 = logits_TC.masked_fill(~mask_TC, -torch.inf).amax(1, keepdim=True)
                self.best_T1 = torch.maximum(self.best_T1, best_T1)
                logits_TC = logits_TC.masked_fill(mask_TC, -torch.inf)
            self.peak_T1 = torch.maximum(self.peak_T1, logits_TC.amax(1, keepdim=True))
            self.count_T1 += (logits_TC != -torch.inf).sum(1, keepdim=True)
        self.peak_T1.masked_fill_(self.count_T1 == 0, 0.0)

    def iter_tiles(self) -> Iterator[_StripeTile]:
        """Yield the tiles; their tensors may be overwritten, except the logits."""
        for tile in self._tiles():
            logits_TC = self._logits_TM[:, tile.columns]
            mask_TC = tile.positive_mask(logits_TC)
            apart_TC = logits_TC - self.peak_T1
            if mask_TC is not None:
                apart_TC.masked_fill_(mask_TC, -torch.inf)
            yield _StripeTile(tile, tile.columns, logits_TC, mask_TC, apart_TC)


def _iter_stripes(
    query_ND: Tensor, key_MD: Tensor, scale: Tensor, pairing: Pairing, bias: Tensor | None = None
) -> Iterator[tuple[slice, _Stripe]]:
    """Yield the logits of one block of queries after the other, all in the same memory."""
    row_blocks, column_blocks = tile_blocks(query_ND, key_MD, pairing.own)
    share_N1 = compute_positive_shares(pairing, query_ND)
    space = query_ND.new_empty(block_length(row_blocks[0]) * len(key_MD))
    for rows in row_blocks:
        # New tiles for each pass: a tile caches its masks, which would be large over all columns.
        tiles = partial(_iter_tiles, pairing, rows, column_blocks, share_N1)
        yield rows, _Stripe(query_ND[rows] * scale, key_MD, bias, tiles, space)


def _iter_tiles(
    pairing: Pairing, rows: slice, column_blocks: list[slice], share_N1: Tensor | None
) -> Iterator[Tile]:
    return (Tile(pairing, rows, columns, share_N1) for columns in column_blocks)
