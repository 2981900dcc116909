"""Losses worked out together with their gradients: the bookkeeping that the softmax and sigmoid losses share.

A loss is one number, so its gradients can be worked out beside it: where a tile of similarities is at hand
anyway, using it at once saves the matrix product that recomputing it in the backward pass would cost.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

# N queries (pairs on all ranks), M >= N keys (the N pairs' own, then queued ones), D width, T x C one tile


class Wanted(NamedTuple):
    """Which gradients are needed; a frozen side costs no matrix product."""

    query: bool = False
    key: bool = False
    scale: bool = False
    bias: bool = False

    def swapped(self) -> Wanted:
        """Return the same wish with query and key exchanged."""
        return self._replace(query=self.key, key=self.query)


class Outcome(NamedTuple):
    """A loss and those of its gradients that were wanted."""

    value: Tensor
    query_ND: Tensor | None = None
    key_MD: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None

    def swapped(self) -> Outcome:
        """Return the same outcome with query and key exchanged."""
        return self._replace(query_ND=self.key_MD, key_MD=self.query_ND)


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Wanted], Outcome]  # query, key, scale, bias, wanted


class Gradients:
    """The gradients of a loss with respect to its embeddings and scale, added up tile by tile."""

    def __init__(self, query_ND: Tensor, key_MD: Tensor, scale: Tensor, wanted: Wanted) -> None:
        """Set up zeros for what is wanted.

        The scale's gradient falls out of either side's, so with both sides frozen one of them is worked out
        for it.
        """
        self.query_ND, self.key_MD, self.scale, self.wanted = query_ND, key_MD, scale, wanted
        with_query = wanted.query or (wanted.scale and not wanted.key)
        self._query_ND = torch.zeros_like(query_ND) if with_query else None
        self._key_MD = torch.zeros_like(key_MD) if wanted.key else None

    @property
    def any(self) -> bool:
        """Whether any gradient needs the tiles at all."""
        return self._query_ND is not None or self._key_MD is not None

    def add_(self, rows: slice, columns: slice, weights_TC: Tensor, scaled_TD: Tensor) -> None:
        """Add one tile, given the loss's derivatives by its logits and the queries times the scale."""
        if self._query_ND is not None:
            self._query_ND[rows].addmm_(weights_TC, self.key_MD[columns])
        if self._key_MD is not None:
            self._key_MD[columns].addmm_(weights_TC.T, scaled_TD)

    def outcome(self, value: Tensor, bias: Tensor | None = None) -> Outcome:
        """Return the loss with its finished gradients.

        With logits L = s q.k and weights W = dLoss/dL, the sums so far are W k for the query (its gradient
        still lacks s) and W^T s q for the key; the scale's gradient, the sum of W q.k, is the inner product
        of either with q or k.
        """
        scale = None
        if self.wanted.scale and self._query_ND is not None:
            scale = _inner(self._query_ND, self.query_ND)
        elif self.wanted.scale and self._key_MD is not None:
            scale = _inner(self._key_MD, self.key_MD) / self.scale
        query_ND = (
            self._query_ND.mul_(self.scale) if self._query_ND is not None and self.wanted.query else None
        )
        return Outcome(value, query_ND, self._key_MD, scale, bias)


def grid(query_ND: Tensor, key_MD: Tensor, own: slice | None = None) -> tuple[list[slice], list[slice]]:
    """Return the row and column blocks whose tiles cover all logits; none straddles the own and queued keys.

    Tiles fit the cache of a CPU core; an accelerator gets larger ones, so that each fills it. With `own` the
    tiles cover these queries alone; there is always one block of rows, if an empty one.
    """
    rows_T, columns_C = (512, 1024) if query_ND.device.type == "cpu" else (2048, 4096)
    pairs = len(query_ND)
    first, last = (0, pairs) if own is None else (own.start, own.stop)
    rows = blocks(first, last, rows_T) or [slice(first, first)]
    return rows, blocks(0, pairs, columns_C) + blocks(pairs, len(key_MD), columns_C)


def blocks(start: int, stop: int, step: int) -> list[slice]:
    """Return the consecutive slices of at most `step` that cover start to stop."""
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


def length(block: slice) -> int:
    """Return how many rows or columns a block holds."""
    return block.stop - block.start


def evaluate(
    kernel: Kernel, query_ND: Tensor, key_MD: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return the kernel's loss as a differentiable scalar.

    The gradients are worked out in the forward pass and handed over in the first backward pass; a further one
    (with `retain_graph`) works them out again. Half-precision embeddings are widened to float32 and autocast
    is off inside, so similarities, sums and gradients accumulate in float32 whatever the precision around.
    Differentiating twice is not supported and raises.
    """
    bias = scale.new_zeros(()) if bias is None else bias
    if not torch.is_grad_enabled():
        return _run(kernel, query_ND, key_MD, scale, bias, Wanted()).value
    return _Fused.apply(kernel, query_ND, key_MD, scale, bias)  # pyright: ignore[reportReturnType]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, query_ND: Tensor, key_MD: Tensor, scale: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.kernel, ctx.wanted = kernel, Wanted(*ctx.needs_input_grad[1:])
        ctx.save_for_backward(query_ND, key_MD, scale, bias)
        value, *ctx.gradients = _run(kernel, query_ND, key_MD, scale, bias, ctx.wanted)
        return value

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # autograd turns it on here only to build a graph of the gradients
            raise RuntimeError("a contrastive loss cannot be differentiated twice: leave create_graph out")
        gradients, ctx.gradients = ctx.gradients, None
        query_ND, key_MD, scale, bias = ctx.saved_tensors
        if gradients is None:
            _, *gradients = _run(ctx.kernel, query_ND, key_MD, scale, bias, ctx.wanted)
        # In place: this pass is their only owner, and a copy would double the memory. In half precision only
        # once multiplied by what comes from upstream, where a gradient scaler acts.
        return None, *(
            None if gradient is None else gradient.mul_(upstream[0]).to(given.dtype)
            for gradient, given in zip(gradients, (query_ND, key_MD, scale, bias), strict=True)
        )


def _run(
    kernel: Kernel, query_ND: Tensor, key_MD: Tensor, scale: Tensor, bias: Tensor, wanted: Wanted
) -> Outcome:
    dtype = torch.promote_types(torch.promote_types(query_ND.dtype, key_MD.dtype), torch.float32)
    query, key, factor, offset = (
        given.detach().to(dtype).contiguous() for given in (query_ND, key_MD, scale, bias)
    )
    kind = query_ND.device.type
    cast = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
    with torch.no_grad(), cast:
        return kernel(query, key, factor, offset, wanted)


def _inner(one_ND: Tensor, other_ND: Tensor) -> Tensor:
    """Return the sum of the elementwise product, without a second matrix of that size."""
    parts = [(one_ND[part] * other_ND[part]).sum() for part in blocks(0, len(one_ND), 512)]
    return torch.stack(parts).sum()
