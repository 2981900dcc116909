"""InfoNCE loss and its softmax kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from geobind.errors import DataError, RecipeError
from geobind.training.losses.base import ContrastiveLoss, Temperature, check_batch, check_hardness
from geobind.training.losses.hard_negatives import hard_softmax_one_way
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
    compute_positive_shares,
    tile_blocks,
)

if TYPE_CHECKING:
    from geobind.training.losses.base import LossContext
    from geobind.training.losses.queue import EmbeddingQueue

# N pairs on all ranks: N queries, M >= N keys (the pairs' own, then queued ones), D width, T x C one tile

Direction = Literal["both", "anchor_to_other", "other_to_anchor"]
# A kernel of query, key, scale, pairing, needed.
OneWayKernel = Callable[[Tensor, Tensor, Tensor, Pairing, NeededGrads], LossAndGrads]


class InfoNCE(ContrastiveLoss):
    """Cross-entropy of finding each embedding's pair among the batch by similarity (arXiv:1807.03748, eq. 4).

    Exact at any batch size, in memory that grows with N: similarities are computed tile by tile. A side
    that needs no gradient costs none. With labels in the context, every pair of the label is a positive and
    the loss is their mean log-probability (SupCon, arXiv:2004.11362, eq. 2).

    Args:
        direction: "anchor_to_other" finds the other among all others, "other_to_anchor" the anchor among all
            anchors, "both" is the mean of the two, as in CLIP.
        temperature: Scale of the similarities; learnt from 0.07 by default.
        queue: Earlier embeddings of the other side, as further negatives of the anchors. Every forward pass
            in training mode fills it.
        hardness: Weight of negatives similar to the query, which goes with exp(hardness * logit) (beta of
            arXiv:2010.04592; see `hard_negatives`). 0 for none; more than 0 costs more time.
        local: Whether each of several processes computes the part of its own rows.
        products: Type of the matrix products under bfloat16 or float16 autocast: "auto" for that type where
            it is faster, "half" for it anywhere, "float32". Sums are in float32 (see `choose_product_type`);
            with hardness, so are products.

    Raises:
        RecipeError: If the direction is unknown, or never uses the queue, or hardness is negative.
    """

    def __init__(
        self,
        direction: Direction = "both",
        temperature: Temperature | None = None,
        queue: EmbeddingQueue | None = None,
        hardness: float = 0.0,
        *,
        local: bool = False,
        products: ProductType = "auto",
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
        self.hardness = check_hardness(hardness)
        self.temperature = Temperature() if temperature is None else temperature
        self.queue = queue
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
            DataError: If the batch is not valid, or the other side is queued but in training.
        """
        check_batch(anchor_ND, other_ND, context)
        keys_MD, pairing = self._build_keys(anchor_ND, other_ND, context, own)
        direction, low = self.direction, choose_product_type(anchor_ND, self.products)
        one_way = (
            partial(hard_softmax_one_way, beta=self.hardness)
            if self.hardness
            else partial(softmax_one_way, low=low)
        )

        def kernel(query: Tensor, key: Tensor, scale: Tensor, _: Tensor, needed: NeededGrads) -> LossAndGrads:
            if direction == "anchor_to_other":
                return one_way(query, key, scale, pairing, needed)
            if direction == "other_to_anchor":
                return one_way(key, query, scale, pairing, needed.swap()).swap()
            if not self.hardness and len(key) == len(query) and own is None:
                return softmax_both_ways(query, key, scale, pairing, needed, low)
            return mean_of_both_ways(query, key, scale, pairing, needed, one_way)

        loss = apply_kernel(kernel, anchor_ND, keys_MD, self.temperature.scale)
        if self.queue is not None and self.training:
            self.queue.push(other_ND, context)
        return loss

    def _build_keys(
        self, anchor_ND: Tensor, other_ND: Tensor, context: LossContext | None, own: slice | None
    ) -> tuple[Tensor, Pairing]:
        pairs, device = len(anchor_ND), anchor_ND.device
        if self.queue is None:
            return other_ND, Pairing.from_context(pairs, context, device, own=own)
        if other_ND.requires_grad and torch.is_grad_enabled():
            raise DataError(
                "infonce: the other side is in training, so its queued embeddings are stale; "
                "freeze it or drop the queue"
            )
        keys_MD = torch.cat([other_ND, self.queue.keys(like=other_ND)])
        return keys_MD, Pairing.from_context(pairs, context, device, self.queue.traits(), own)


def softmax_one_way(
    query_ND: Tensor,
    key_MD: Tensor,
    scale: Tensor,
    pairing: Pairing,
    needed: NeededGrads,
    low: torch.dtype | None = None,
) -> LossAndGrads:
    """Return the mean over queries of -log softmax(positive among all keys), with its gradients.

    With several positives this is their mean log-probability, eq. 2 of Khosla et al., arXiv:2004.11362. One
    product of N M D multiply-adds, one more per trainable side; the workspace is a stripe of T x M. `low` is
    the type of the products.
    """
    pairs, share_N1 = len(query_ND), compute_positive_shares(pairing, query_ND)
    row_blocks, column_blocks = tile_blocks(query_ND, key_MD, pairing.own)
    gradients = TiledGradients(query_ND, key_MD, scale, needed, low)
    loss_N = query_ND.new_zeros(pairs)
    space = query_ND.new_empty(block_length(row_blocks[0]) * len(key_MD))
    for rows in row_blocks:
        scaled_TD = gradients.scale_queries(rows)
        stripe_TM = space[: len(scaled_TD) * len(key_MD)].view(len(scaled_TD), len(key_MD))
        loss_T, peak_T1 = torch.zeros_like(loss_N[rows]), loss_N.new_full((len(scaled_TD), 1), -math.inf)
        for columns in column_blocks:
            tile = Tile(pairing, rows, columns, share_N1)
            logits_TC = gradients.multiply(scaled_TD, columns, stripe_TM[:, columns])
            loss_T -= tile.sum_positives(logits_TC)
            tile.mask_ignored_(logits_TC, fill=-math.inf)
            peak_T1 = torch.maximum(peak_T1, logits_TC.amax(1, keepdim=True))
        total_T1 = torch.zeros_like(peak_T1)
        for columns in column_blocks:
            total_T1 += stripe_TM[:, columns].sub_(peak_T1).exp_().sum(1, keepdim=True)
        loss_N[rows] = loss_T + (peak_T1 + total_T1.log()).squeeze(1)
        for columns in column_blocks if gradients.uses_tiles else ():
            weights_TC = stripe_TM[:, columns].mul_(1 / (total_T1 * gradients.divisor))
            Tile(pairing, rows, columns, share_N1).subtract_positives_(weights_TC, 1 / gradients.divisor)
            gradients.add_(rows, columns, weights_TC, scaled_TD)
    return gradients.finish(loss_N.mean())


# Numbers of similarities that are kept, not computed twice: 16 MiB.
_KEPT = 2048**2


def softmax_both_ways(
    query_ND: Tensor,
    key_ND: Tensor,
    scale: Tensor,
    pairing: Pairing,
    needed: NeededGrads,
    low: torch.dtype | None = None,
) -> LossAndGrads:
    """Return the mean of `softmax_one_way` from either side, with its gradients, in one pass over the tiles.

    Two products of N^2 D multiply-adds (one if no gradient is needed, or the matrix is small enough to be
    kept), one more per trainable side; the workspace is two tiles. All exponentials share one shift, so that
    one serves row and column. A row or column underflows where all its similarities are near -1 at the
    highest scales. Then a CPU computes the sides one by one instead; an accelerator, which would have to be
    waited for to find out, takes the smallest normal number for the sum. One tile on a CPU goes its own way,
    as its many small operations would cost more than its products.
    """
    pairs, share_N1 = len(query_ND), compute_positive_shares(pairing, query_ND)
    row_blocks, column_blocks = tile_blocks(query_ND, key_ND)
    may_look = _may_look(query_ND.device)
    gradients = TiledGradients(query_ND, key_ND, scale, needed, low)
    if may_look and len(row_blocks) == len(column_blocks) == 1:
        tile = Tile(pairing, row_blocks[0], column_blocks[0], share_N1, mutual=pairing.uneven)
        return _softmax_both_ways_of_one(gradients, tile)
    largest = _bound_logits(query_ND, key_ND, scale)
    shift = max(0.0, largest.item()) if may_look else largest.clamp_(min=0)
    row_sum_N, column_sum_N, positive_N = query_ND.new_zeros(3, pairs)
    tile_size = block_length(row_blocks[0]) * block_length(column_blocks[0])
    kept = pairs * pairs <= max(tile_size, _KEPT)
    space, spare = query_ND.new_empty(pairs * pairs if kept else tile_size), query_ND.new_empty(tile_size)
    scaled_TD = query_ND
    for rows in row_blocks:
        scaled_TD = gradients.scale_queries(rows)
        for columns in column_blocks:
            tile = Tile(pairing, rows, columns, share_N1, mutual=pairing.uneven)
            logits_TC = gradients.multiply(scaled_TD, columns, _part(space, rows, columns, pairs, kept))
            positive_N[rows].add_(tile.sum_positives(logits_TC))
            values_TC = _exponentiate_(logits_TC, shift, tile)
            row_sum_N[rows].add_(values_TC.sum(1))
            column_sum_N[columns].add_(values_TC.sum(0))
    limits = torch.finfo(query_ND.dtype)
    if not may_look:
        row_sum_N, column_sum_N = row_sum_N.clamp_(min=limits.tiny), column_sum_N.clamp_(min=limits.tiny)
    elif _underflows(torch.minimum(row_sum_N, column_sum_N)):
        one_way = partial(softmax_one_way, low=low)
        return mean_of_both_ways(query_ND, key_ND, scale, pairing, needed, one_way)
    loss_N = (row_sum_N.log() + column_sum_N.log()) / 2 + shift - positive_N
    row_weight_N1 = (0.5 / gradients.divisor / row_sum_N).unsqueeze(1)
    column_weight_N = 0.5 / gradients.divisor / column_sum_N
    for rows in row_blocks if gradients.uses_tiles else ():
        if len(row_blocks) > 1:
            scaled_TD = gradients.scale_queries(rows)
        for columns in column_blocks:
            tile = Tile(pairing, rows, columns, share_N1, mutual=pairing.uneven)
            weights_TC = _part(space, rows, columns, pairs, kept)
            if not kept:
                weights_TC = _exponentiate_(gradients.multiply(scaled_TD, columns, weights_TC), shift, tile)
            factor_TC = _part(spare, rows, columns, pairs)
            weights_TC *= torch.add(row_weight_N1[rows], column_weight_N[columns], out=factor_TC)
            tile.subtract_positives_(weights_TC, 1 / gradients.divisor)
            gradients.add_(rows, columns, weights_TC, scaled_TD)
    return gradients.finish(loss_N.mean())


def _softmax_both_ways_of_one(gradients: TiledGradients, tile: Tile) -> LossAndGrads:
    """Return what `softmax_both_ways` does of a batch that is one tile, on a CPU."""
    query_ND, pairs = gradients.query_ND, len(gradients.query_ND)
    scaled_ND = gradients.scale_queries(tile.rows)
    logits_NN = gradients.multiply(scaled_ND, tile.columns, query_ND.new_empty(pairs, pairs))
    positive_N = tile.sum_positives(logits_NN)
    shift = max(0.0, logits_NN.max().item() - _largest_logit(query_ND))
    values_NN = _exponentiate_(logits_NN, shift, tile)
    sum_2N = query_ND.new_empty(2, pairs)  # of rows and of columns
    torch.sum(values_NN, 1, out=sum_2N[0])
    torch.sum(values_NN, 0, out=sum_2N[1])
    if _underflows(sum_2N):
        one_way, scale = partial(softmax_one_way, low=gradients.low), gradients.scale
        return mean_of_both_ways(query_ND, gradients.key_MD, scale, tile.pairing, gradients.needed, one_way)
    value = (sum_2N.log().sum(0) / 2 + shift - positive_N).mean()
    if gradients.uses_tiles:
        weight_2N = sum_2N.reciprocal_().mul_(0.5 / gradients.divisor)
        values_NN *= weight_2N[0].unsqueeze(1) + weight_2N[1]
        tile.subtract_positives_(values_NN, 1 / gradients.divisor)
        gradients.add_(tile.rows, tile.columns, values_NN, scaled_ND)
    return gradients.finish(value)


def mean_of_both_ways(
    query_ND: Tensor,
    key_MD: Tensor,
    scale: Tensor,
    pairing: Pairing,
    needed: NeededGrads,
    one_way: OneWayKernel = softmax_one_way,
) -> LossAndGrads:
    """Return the mean of a loss from either side, computed one after the other.

    It costs more than `softmax_both_ways`, but is safe at any scale and can use queued keys.

    Queued keys are negatives of the queries only; with any, the keys must be frozen. `one_way` is the loss
    of one side.
    """
    forth = one_way(query_ND, key_MD, scale, pairing, needed)
    unqueued = replace(pairing, column=pairing.row)
    back = one_way(key_MD[: len(query_ND)], query_ND, scale, unqueued, needed.swap()).swap()
    value = (forth.value + back.value) / 2
    return LossAndGrads(
        value, *(_average(one, other) for one, other in zip(forth[1:], back[1:], strict=True))
    )


def _may_look(device: torch.device) -> bool:
    """Return whether a number on a device can be read without waiting for what was launched before."""
    return device.type == "cpu"


def _bound_logits(query_ND: Tensor, key_ND: Tensor, scale: Tensor) -> Tensor:
    """Return by how much the logits may exceed what keeps sums of their exponentials finite.

    By Cauchy-Schwarz no logit exceeds the scale times the largest norms.
    """
    norm = torch.linalg.vector_norm
    largest = scale * norm(query_ND, dim=1).amax() * norm(key_ND, dim=1).amax()
    return largest - _largest_logit(query_ND)


def _largest_logit(like_ND: Tensor) -> float:
    """Return the logit up to which the sum of N exponentials is finite."""
    return math.log(torch.finfo(like_ND.dtype).max) - math.log(len(like_ND)) - 1


def _underflows(sum_N: Tensor) -> bool:
    """Return whether a sum of N exponentials has lost digits to underflow, or is not a number."""
    limits = torch.finfo(sum_N.dtype)
    return not sum_N.amin().item() >= sum_N.shape[-1] * limits.tiny / limits.eps


def _average(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if one is None or other is None else one.add_(other).div_(2)


def _part(space: Tensor, rows: slice, columns: slice, pairs: int, whole: bool = False) -> Tensor:
    """Return the memory of a tile: its place in the whole matrix, or the beginning of the space."""
    if whole:
        return space.view(pairs, pairs)[rows, columns]
    shape = (block_length(rows), block_length(columns))
    return space[: math.prod(shape)].view(shape)


def _exponentiate_(logits_TC: Tensor, shift: float | Tensor, tile: Tile) -> Tensor:
    shifted = isinstance(shift, Tensor) or shift > 0
    values_TC = (logits_TC.sub_(shift) if shifted else logits_TC).exp_()
    tile.mask_ignored_(values_TC)
    return values_TC
