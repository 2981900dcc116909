"""Tiles of the similarity matrix, masks of positives and ignored pairs, and gradients summed over tiles.

A loss is one number, so its gradients can be computed in the forward pass: a tile of similarities is used at
once, which saves the matrix product that recomputing it in the backward pass would cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from geobind.utils.geo import EARTH_KM

if TYPE_CHECKING:
    from geobind.training.losses.base import LossContext


# N queries (pairs on all ranks), M >= N keys (the N pairs' own, then queued ones), D width, T x C one tile


class NeededGrads(NamedTuple):
    """Gradients that autograd asks for; a frozen side costs no matrix product."""

    query: bool = False
    key: bool = False
    scale: bool = False
    bias: bool = False

    def swap(self) -> NeededGrads:
        """Return the same flags with query and key exchanged."""
        return self._replace(query=self.key, key=self.query)


class LossAndGrads(NamedTuple):
    """A loss and its gradients; None for those not needed."""

    value: Tensor
    query_ND: Tensor | None = None
    key_MD: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None

    def swap(self) -> LossAndGrads:
        """Return the same values with query and key exchanged."""
        return self._replace(query_ND=self.key_MD, key_MD=self.query_ND)


# A kernel of query, key, scale, bias, needed.
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, NeededGrads], LossAndGrads]


class TiledGradients:
    """The matrix products of a loss, tile by tile: its logits, and its gradients added up in float32.

    Args:
        query_ND: Queries.
        key_MD: Keys.
        scale: Factor on the similarities.
        needed: The gradients to add up. The scale's follows from either side's, so with both sides frozen
            the query's is computed for it.
        low: Half-precision type of the factors of all products (see `choose_product_type`); None: that of
            the embeddings.

    Attributes:
        divisor: What the derivatives of a query's loss by its logits are divided by before `add_`. In
            half precision they are multiplied instead, as float16 has no numbers near 1/N.
        low: As given.
    """

    def __init__(
        self,
        query_ND: Tensor,
        key_MD: Tensor,
        scale: Tensor,
        needed: NeededGrads,
        low: torch.dtype | None = None,
    ) -> None:
        self.query_ND, self.key_MD, self.scale, self.needed = query_ND, key_MD, scale, needed
        self.divisor = len(query_ND) if low is None else 1 / _LOW_FACTOR
        self.low = low
        self._factor_MD = key_MD if low is None else key_MD.to(low)
        self._with_query = needed.query or (needed.scale and not needed.key)
        self._query_ND: Tensor | None = None
        self._key_MD: Tensor | None = None

    @property
    def uses_tiles(self) -> bool:
        """Whether any needed gradient depends on the tiles."""
        return self._with_query or self.needed.key

    def scale_queries(self, rows: slice) -> Tensor:
        """Return the scaled queries of a block, in the type of the products."""
        scaled_TD = self.query_ND[rows] * self.scale
        return scaled_TD if self.low is None else scaled_TD.to(self.low)

    def multiply(self, scaled_TD: Tensor, columns: slice, out_TC: Tensor) -> Tensor:
        """Return the logits of a tile, in `out_TC`."""
        if self.low is None:
            return torch.mm(scaled_TD, self.key_MD[columns].T, out=out_TC)
        return out_TC.copy_(_low_product(scaled_TD, self._factor_MD[columns].T))

    def add_(self, rows: slice, columns: slice, weights_TC: Tensor, scaled_TD: Tensor) -> None:
        """Add one tile, given the derivatives of the loss by its logits and the scaled queries."""
        if self.low is not None:
            weights_TC = weights_TC.to(self.low)
        if self._with_query:
            factor_CD = self._factor_MD[columns]
            self._query_ND = _add_product(self._query_ND, self.query_ND, rows, weights_TC, factor_CD)
        if self.needed.key:
            self._key_MD = _add_product(self._key_MD, self.key_MD, columns, weights_TC.T, scaled_TD)

    def finish(self, value: Tensor, bias: Tensor | None = None) -> LossAndGrads:
        """Return the loss with its finished gradients.

        With logits L = s q.k and weights W = dLoss/dL, the sums so far are W k for the query (its gradient
        still lacks s) and W^T s q for the key; the scale's gradient, the sum of W q.k, is the inner product
        of either with q or k.
        """
        for sum_ND in (self._query_ND, self._key_MD) if self.low is not None else ():
            if sum_ND is not None:
                sum_ND.mul_(self.divisor / len(self.query_ND))
        scale = None
        if self.needed.scale and self._query_ND is not None:
            scale = _inner_product(self._query_ND, self.query_ND)
        elif self.needed.scale and self._key_MD is not None:
            scale = _inner_product(self._key_MD, self.key_MD) / self.scale
        query_ND = (
            self._query_ND.mul_(self.scale) if self._query_ND is not None and self.needed.query else None
        )
        return LossAndGrads(value, query_ND, self._key_MD, scale, bias)


# Largest factor that float16 allows: the weights of a query sum up to 2 at most, and it ends at 65,504.
_LOW_FACTOR = 4096
ProductType = Literal["auto", "float32", "half"]
_WORTH_IT = 0.75  # of the time in float32: less of a gain is not worth the digits


def choose_product_type(embedding_ND: Tensor, products: ProductType) -> torch.dtype | None:
    """Return the half-precision type to multiply tiles in; None for the type of the embeddings.

    Candidates are autocast's type and that of half-precision embeddings. With "auto", an accelerator takes it
    and a CPU takes it if it multiplies faster in it, which is measured once: some have instructions for
    bfloat16 and are slower with them. Only CUDA returns products in float32; elsewhere they would overflow
    in float16, which is left out.
    """
    kind, low = embedding_ND.device.type, embedding_ND.dtype
    if low == torch.float32 and _is_autocast(kind):
        low = torch.get_autocast_dtype(kind)
    if products == "float32" or not (low == torch.bfloat16 or (low == torch.float16 and kind == "cuda")):
        return None
    wanted = products == "half" or kind != "cpu" or _is_faster(torch.get_num_threads())
    return low if wanted else None


@lru_cache
def _is_faster(threads: int) -> bool:
    """Return whether this CPU multiplies tiles faster in bfloat16, with this many threads."""
    generator = torch.Generator().manual_seed(0)  # what training draws must not depend on the machine
    one_TD, other_CD = torch.randn(2, 512, 512, generator=generator)
    out_TC, low = torch.empty(512, 512), torch.bfloat16
    low_CD = other_CD.to(low)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        seconds = (
            _fastest(lambda: out_TC.copy_(_low_product(one_TD.to(low), low_CD.T))),
            _fastest(lambda: torch.mm(one_TD, other_CD.T, out=out_TC)),
        )
    return seconds[0] < _WORTH_IT * seconds[1]


def _fastest(work: Callable[[], object]) -> float:
    seconds: list[float] = []
    for _ in range(6):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _low_product(one_TD: Tensor, other_DC: Tensor) -> Tensor:
    """Return a product of half-precision matrices, summed in float32; on a CPU it is rounded once."""
    if one_TD.device.type == "cuda":
        return torch.mm(one_TD, other_DC, out_dtype=torch.float32)
    return torch.mm(one_TD, other_DC)


def _add_product(
    sum_ND: Tensor | None, like_ND: Tensor, part: slice, one_TC: Tensor, other_CD: Tensor
) -> Tensor:
    """Add a product to a part of a sum, in place, and return the sum; None is a sum of nothing yet."""
    plain = one_TC.dtype == like_ND.dtype
    if sum_ND is None and block_length(part) == len(like_ND):
        return torch.mm(one_TC, other_CD) if plain else _low_product(one_TC, other_CD).to(like_ND.dtype)
    sum_ND = torch.zeros_like(like_ND) if sum_ND is None else sum_ND
    if plain:
        sum_ND[part].addmm_(one_TC, other_CD)
    else:
        sum_ND[part].add_(_low_product(one_TC, other_CD))
    return sum_ND


def tile_blocks(
    query_ND: Tensor, key_MD: Tensor, own: slice | None = None
) -> tuple[list[slice], list[slice]]:
    """Return the row and column blocks whose tiles cover all logits; none straddles the own and queued keys.

    With `own` the tiles cover these queries alone; there is always one block of rows, if an empty one.
    """
    rows_T, columns_C = tile_shape(query_ND.device)
    pairs = len(query_ND)
    first, last = (0, pairs) if own is None else (own.start, own.stop)
    rows = split_range(first, last, rows_T) or [slice(first, first)]
    return rows, split_range(0, pairs, columns_C) + split_range(pairs, len(key_MD), columns_C)


def tile_shape(device: torch.device) -> tuple[int, int]:
    """Return the rows and columns of a tile.

    Tiles fit the cache of a CPU core. An accelerator waits for each operation to be launched, so that it
    gets tiles as large as its memory allows: two of them take a 64th of it, and 512 MiB at most.
    """
    if device.type == "cpu":
        return 512, 1024
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    side = 2048
    while side < _LARGEST_SIDE and 2 * 4 * (2 * side) ** 2 <= memory / 64:
        side *= 2
    return side, side


_LARGEST_SIDE = 8192


def split_range(start: int, stop: int, step: int) -> list[slice]:
    """Return the consecutive slices of at most `step` that cover start to stop."""
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


def block_length(block: slice) -> int:
    """Return the number of rows or columns of a block."""
    return block.stop - block.start


def apply_kernel(
    kernel: Kernel, query_ND: Tensor, key_MD: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return the kernel's loss as a differentiable scalar.

    The forward pass computes the gradients and the first backward pass returns them; a further one (with
    `retain_graph`) computes them again. Half-precision embeddings are widened to float32 and autocast
    is off inside, so sums and gradients accumulate in float32 whatever the precision around; a kernel chooses
    in what type it multiplies (`choose_product_type`). Differentiating twice is not supported and raises.
    """
    bias = scale.new_zeros(()) if bias is None else bias
    if not torch.is_grad_enabled():
        return _run_kernel(kernel, query_ND, key_MD, scale, bias, NeededGrads()).value
    return _KernelFunction.apply(kernel, query_ND, key_MD, scale, bias)  # pyright: ignore[reportReturnType]


class _KernelFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, query_ND: Tensor, key_MD: Tensor, scale: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.kernel, ctx.needed = kernel, NeededGrads(*ctx.needs_input_grad[1:])
        ctx.save_for_backward(query_ND, key_MD, scale, bias)
        value, *ctx.gradients = _run_kernel(kernel, query_ND, key_MD, scale, bias, ctx.needed)
        return value

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # autograd turns it on here only to build a graph of the gradients
            raise RuntimeError("a contrastive loss cannot be differentiated twice: leave create_graph out")
        gradients, ctx.gradients = ctx.gradients, None
        query_ND, key_MD, scale, bias = ctx.saved_tensors
        if gradients is None:
            _, *gradients = _run_kernel(ctx.kernel, query_ND, key_MD, scale, bias, ctx.needed)
        # In place: this pass is their only owner, and a copy would double the memory. In half precision only
        # once multiplied by what comes from upstream, where a gradient scaler acts.
        factor = upstream[0]
        same = factor.device.type == "cpu" and factor.item() == 1  # of a loss that nothing was done with
        return None, *(
            None if gradient is None else (gradient if same else gradient.mul_(factor)).to(given.dtype)
            for gradient, given in zip(gradients, (query_ND, key_MD, scale, bias), strict=True)
        )


def _run_kernel(
    kernel: Kernel, query_ND: Tensor, key_MD: Tensor, scale: Tensor, bias: Tensor, needed: NeededGrads
) -> LossAndGrads:
    dtype = torch.promote_types(torch.promote_types(query_ND.dtype, key_MD.dtype), torch.float32)
    query, key, factor, offset = (
        given.detach().to(dtype).contiguous() for given in (query_ND, key_MD, scale, bias)
    )
    kind = query_ND.device.type
    cast = torch.autocast(kind, enabled=False) if _is_autocast(kind) else nullcontext()
    with torch.no_grad(), cast:
        return kernel(query, key, factor, offset, needed)


def _is_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _inner_product(one_ND: Tensor, other_ND: Tensor) -> Tensor:
    """Return the sum of the elementwise product, without a second matrix of that size."""
    rows = tile_shape(one_ND.device)[0]
    parts = [(one_ND[part] * other_ND[part]).sum() for part in split_range(0, len(one_ND), rows)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


# N pairs, M keys (the N pairs' own, then queued ones), T rows and C columns of a tile

_COUNTED = 1024  # rows and columns of a tile in which positives are counted


@dataclass(frozen=True)
class Tile:
    """Part of a pairing inside one tile; its columns must not straddle N.

    Attributes:
        pairing: The whole pairing.
        rows: Its rows.
        columns: Its columns.
        share_N1: The weight of each positive of a row (see `compute_positive_shares`); None for weight 1.
        mutual: Whether a positive's weight is the mean of its row's and its column's, for losses that look
            from both sides at once. It makes a difference only where the pairing is uneven.
    """

    pairing: Pairing
    rows: slice
    columns: slice
    share_N1: Tensor | None = None
    mutual: bool = False

    def positive_mask(self, like_TC: Tensor) -> Tensor | None:
        """Return a mask of the positives, or None if this tile has none."""
        if self._positive_TC is not None or not self._holds_own:
            return self._positive_TC
        own_TC = torch.zeros_like(like_TC, dtype=torch.bool)
        own_TC.diagonal(self._offset).fill_(True)
        return own_TC

    def sum_positives(self, logits_TC: Tensor) -> Tensor:
        """Return each row's sum of positive logits in this tile, weighted by their share."""
        mask_TC = self._positive_TC
        if mask_TC is not None:
            share = self._share
            return torch.where(mask_TC, logits_TC if share is None else logits_TC * share, 0.0).sum(1)
        if self._holds_own and not self._offset and logits_TC.shape[0] == logits_TC.shape[1]:
            return logits_TC.diagonal().clone()
        sums_T = logits_TC.new_zeros(len(logits_TC))
        if self._holds_own:
            own = logits_TC.diagonal(self._offset)
            first = max(0, -self._offset)
            sums_T[first : first + len(own)] = own
        return sums_T

    def mask_ignored_(self, values_TC: Tensor, fill: float = 0.0) -> None:
        """Overwrite the ignored entries in place."""
        if self._ignored_TC is not None:
            values_TC.masked_fill_(self._ignored_TC, fill)

    def subtract_positives_(self, weights_TC: Tensor, amount: float) -> None:
        """Subtract `amount` times its share from every positive entry, in place."""
        mask_TC = self._positive_TC
        if mask_TC is not None:
            share = self._share
            weights_TC.sub_(mask_TC.to(weights_TC.dtype).mul_(amount if share is None else share * amount))
        elif self._holds_own:
            weights_TC.diagonal(self._offset).sub_(amount)

    @property
    def _share(self) -> Tensor | None:
        """The weight of each positive, one for each row or for each entry; None for weight 1."""
        if self.share_N1 is None:
            return None
        row_T1 = self.share_N1[self.rows]
        return (row_T1 + self.share_N1[self.columns, 0]) / 2 if self.mutual else row_T1

    @property
    def _offset(self) -> int:
        """Column minus row, inside the tile, of the entries that are a pair's own."""
        return self.rows.start - self.columns.start

    @property
    def _holds_own(self) -> bool:
        return self.rows.start < self.columns.stop and self.columns.start < self.rows.stop

    @cached_property
    def _related_TC(self) -> Tensor | None:
        """True where row and column have the same group or place; None without such a rule."""
        row, column = self.pairing.row.ids, self.pairing.column.ids
        kin_TC = None if row is None or column is None else row[self.rows, None] == column[self.columns]
        if self.pairing.same_dot is None or self._dot_TC is None:
            return kin_TC
        here_TC = _union(self._dot_TC > self.pairing.same_dot, kin_TC)
        if self._holds_own:  # itself even where its place is unknown
            here_TC.diagonal(self._offset).fill_(True)
        return here_TC

    @cached_property
    def _dot_TC(self) -> Tensor | None:
        """Dot products of the places on the unit sphere; None without places."""
        row, column = self.pairing.row.xyz, self.pairing.column.xyz
        return None if row is None or column is None else row[self.rows] @ column[self.columns].T

    @property
    def _same_row_TC(self) -> Tensor | None:
        """True where row and column are the same row of the data; None without rows."""
        row, column = self.pairing.row.rows, self.pairing.column.rows
        return None if row is None or column is None else row[self.rows, None] == column[self.columns]

    @property
    def _queued(self) -> bool:
        return self.columns.start >= self.pairing.pairs

    @property
    def _positive_TC(self) -> Tensor | None:
        """True at positives; None when these are at most each pair's own entry."""
        return None if self._queued else self._related_TC

    @cached_property
    def _ignored_TC(self) -> Tensor | None:
        """True where an entry is neither positive nor negative; None when none is."""
        near_TC = self._find_near()
        if self._queued:  # stale keys of the row itself, or of its group, neither attract nor oppose
            for kin_TC in (self._related_TC, self._same_row_TC):
                near_TC = near_TC if kin_TC is None else _union(kin_TC, near_TC)
            return near_TC
        if near_TC is not None and self._related_TC is not None:
            near_TC &= ~self._related_TC
        elif near_TC is not None and self._holds_own:
            near_TC.diagonal(self._offset).fill_(False)
        return near_TC

    def _find_near(self) -> Tensor | None:
        """Return True where two pairs are near by the given thresholds; None without thresholds."""
        pairing, near_TC, soon_TC = self.pairing, None, None
        if pairing.min_dot is not None and self._dot_TC is not None:
            near_TC = self._dot_TC > pairing.min_dot
        row, column = pairing.row.hours, pairing.column.hours
        if pairing.min_hours is not None and row is not None and column is not None:
            soon_TC = (row[self.rows, None] - column[self.columns]).abs_() < pairing.min_hours
        if near_TC is None or soon_TC is None:
            return soon_TC if near_TC is None else near_TC
        return near_TC | soon_TC if pairing.either else near_TC & soon_TC


def _union(one_TC: Tensor, other_TC: Tensor | None) -> Tensor:
    return one_TC if other_TC is None else one_TC | other_TC


def compute_positive_shares(pairing: Pairing, like_ND: Tensor) -> Tensor | None:
    """Return one over the number of positives of each row, as (N, 1); None when each has one.

    If the pairing is limited to some rows, only these are counted.
    """
    if pairing.uneven:
        parts, own = split_range(0, pairing.pairs, _COUNTED), pairing.own or slice(0, pairing.pairs)
        count_N = like_ND.new_ones(pairing.pairs)
        for rows in split_range(own.start, own.stop, _COUNTED):
            count_N[rows] = _count_positives(pairing, rows, parts, like_ND)
    elif pairing.row.ids is not None:
        # Not by `unique`, whose number of groups an accelerator would be waited for.
        id_N = pairing.row.ids.contiguous()
        sorted_N = id_N.sort().values
        first_N, after_N = (torch.searchsorted(sorted_N, id_N, right=right) for right in (False, True))
        count_N = (after_N - first_N).to(like_ND.dtype)
    else:
        return None
    return count_N.reciprocal().unsqueeze(1)


def _count_positives(pairing: Pairing, rows: slice, parts: list[slice], like_ND: Tensor) -> Tensor:
    """Return the number of positives of each of these rows."""
    count_T = like_ND.new_zeros(block_length(rows))
    for columns in parts:
        count_T += Tile(pairing, rows, columns).sum_positives(
            like_ND.new_ones(block_length(rows), block_length(columns))
        )
    return count_T


# N pairs, M keys (the N pairs' own, then queued ones)

EARTH_RADIUS_M = EARTH_KM * 1000


@dataclass(frozen=True)
class PairTraits:
    """Metadata of each row or column of the similarities: group, unit-sphere point, hours, data row."""

    ids: Tensor | None = None
    xyz: Tensor | None = None
    hours: Tensor | None = None
    rows: Tensor | None = None

    def concat(self, other: PairTraits) -> PairTraits:
        """Return the traits of both, one after the other; a trait that one of them lacks is dropped."""
        return PairTraits(
            _append(self.ids, other.ids),
            _append(self.xyz, other.xyz),
            _append(self.hours, other.hours),
            _append(self.rows, other.rows),
        )


@dataclass(frozen=True)
class Pairing:
    """Relation of N rows to M >= N columns: equal indices are a pair, columns from N on only negatives.

    Attributes:
        pairs: N.
        row: Traits of the N rows.
        column: Traits of the M columns.
        same_dot: Unit-sphere dot product above which two places are the same; None for no such rule.
        min_dot: The same above which two places are too near to oppose; None for no such rule.
        min_hours: Time difference below which two pairs are too near to oppose; None for no such rule.
        either: Whether one of the last two rules is enough, where there are both.
        own: The rows of this process, where the losses of rows are summed over processes; None: all.
    """

    pairs: int
    row: PairTraits = PairTraits()
    column: PairTraits = PairTraits()
    same_dot: float | None = None
    min_dot: float | None = None
    min_hours: float | None = None
    either: bool = False
    own: slice | None = None

    @staticmethod
    def from_context(
        pairs: int,
        context: LossContext | None,
        device: torch.device,
        queued: PairTraits | None = None,
        own: slice | None = None,
    ) -> Pairing:
        """Return the pairing of a batch, its columns followed by those of a queue if there is one."""
        if context is None:
            return Pairing(pairs, own=own)
        row = PairTraits(
            None if context.labels_N is None else _fill_unlabelled(context.labels_N.to(device)),
            None if context.xyz_N3 is None else context.xyz_N3.to(device, torch.float64),
            None if context.hours_N is None else context.hours_N.to(device, torch.float64),
            None if context.rows_N is None else _fill_unlabelled(context.rows_N.to(device)),
        )
        column = row if queued is None else row.concat(queued)
        return Pairing(
            pairs,
            row,
            column,
            _dot_at_distance(context.same_within_m),
            _dot_at_distance(context.ignore_within_m),
            context.ignore_within_h,
            context.ignore_when == "either",
            own,
        )

    @property
    def uneven(self) -> bool:
        """Whether two positives of each other can have different numbers of positives."""
        return self.same_dot is not None


def _dot_at_distance(metres: float | None) -> float | None:
    """Return the dot product of two unit-sphere points this far apart along the ground."""
    return None if metres is None else math.cos(min(metres / EARTH_RADIUS_M, math.pi))


def _fill_unlabelled(labels_N: Tensor) -> Tensor:
    """Give each unlabelled pair a group of its own, below -1 so that no unlabelled queued key equals it."""
    alone_N = -2 - torch.arange(len(labels_N), device=labels_N.device)
    return torch.where(labels_N < 0, alone_N, labels_N.long())


def _append(own: Tensor | None, queued: Tensor | None) -> Tensor | None:
    return None if own is None or queued is None else torch.cat([own, queued])
