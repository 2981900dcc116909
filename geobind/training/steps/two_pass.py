"""Steps in two passes: the gradient of a large batch in the memory of a small one (arXiv:2101.06983).

The first pass embeds the batch a few rows at a time and keeps nothing but the embeddings. The losses of all
of them give the gradient of each embedding. The second pass embeds the same rows again, a few at a time, and
goes back from those gradients. The last rows of the first pass keep what it takes to go back, so that they
are embedded once; so do all rows where the head alone is trained, as that is little.
"""

# B rows on this rank, P of them embedded together, D width

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from geobind.training.bind import Bind, Compared, Losses
from geobind.training.losses import Context
from geobind.training.steps.chunks import Draws, buffers_kept, chunks, count_of, rows_of


def apart(fabric: Fabric, module: Any) -> AbstractContextManager[Any]:
    """Let each rank keep the gradients that it adds up, until a backward pass outside puts them together.

    Strategies that shard parameters put gradients together in every pass, for no rank has room for all.
    """
    return fabric.no_backward_sync(module) if _waits(fabric) else nullcontext()


def _waits(fabric: Fabric) -> bool:
    """Whether ranks put gradients together when each of them has the last of all."""
    return isinstance(fabric.strategy, DDPStrategy)


class TwoPass(NamedTuple):
    """Leaves the gradient of a step in the parameters, with a few rows in work at a time.

    All that is embedded goes through `module`, so that Fabric's precision and strategy hold, and gradients
    come from sums of products with constants, which a gradient scaler scales as it would a loss.

    Args:
        fabric: Where the stage runs.
        bind: What is differentiated.
        module: The same as Fabric set it up.
        chunk: How many rows of this rank are embedded together at most, P.
    """

    fabric: Fabric
    bind: Bind
    module: Any
    chunk: int

    def __call__(
        self,
        batches: Mapping[str, Any],
        present_BM: Tensor | None,
        context: Context | None,
        *,
        share: float = 1.0,
        sync: bool = True,
    ) -> Losses:
        """Embed a batch, take the losses, embed it again and go back.

        Args:
            batches: The prepared inputs of each modality: of the rows that have it, in their order.
            present_BM: Which rows have which modality; None: all have all.
            context: What is known of the rows of all ranks.
            share: What the gradient is multiplied by.
            sync: Whether the ranks put their gradients together.
        """
        compared = self.bind.compared(present_BM)
        with apart(self.fabric, self.module):
            sides = {name: self._side(name, batches.get(name)) for name in compared.names}
            whole = {name: side.whole_BD for name, side in sides.items()}
            seen: _Seen = self.module(None, part=partial(_contrast, whole, compared, context, share))
            for name, side in sides.items():
                if side.kept_PD is not None:
                    self.fabric.backward(_product(side.kept_PD, seen.grads[name][-len(side.kept_PD) :]))
            for name, side in sides.items():
                for piece in side.again:
                    piece.draws.again(self.fabric.device)
                    part = partial(_embed_back, name, seen.grads[name][piece.rows])
                    self.fabric.backward(self.module(self._inputs(batches[name], piece.rows), part=part))
        with nullcontext() if sync else apart(self.fabric, self.module):
            zeros = _waits(self.fabric) or not compared.rows  # as a step in one pass gives
            rest = self.module(None, part=partial(_rest, seen.of_losses, zeros))
            if rest.requires_grad:
                self.fabric.backward(rest)
        return seen.losses

    def _side(self, name: str, batch: Any) -> _Side:
        """Embed the rows of a modality; those that are embedded once remember how to go back."""
        encoder, pieces = self.bind.encoders[name], chunks(count_of(batch), self.chunk)
        trained = [key for key, parameter in encoder.named_parameters() if parameter.requires_grad]
        light = all(key.startswith("head.") for key in trained)
        once = 0 if not trained else len(pieces) if light else min(1, len(pieces))
        twice = len(pieces) - once
        again: list[_Piece] = []
        found = [torch.zeros(0, self.bind.width, device=self.fabric.device)]  # a rank may have no rows
        with torch.no_grad(), buffers_kept(encoder):
            for rows in pieces[:twice]:
                again.append(_Piece(rows, Draws.now(self.fabric.device)))
                found.append(self._embed(name, batch, rows))
        kept = [self._embed(name, batch, rows) for rows in pieces[twice:]]
        whole_BD = torch.cat([*found, *(kept_PD.detach() for kept_PD in kept)])
        whole_BD.requires_grad_(bool(trained))
        return _Side(whole_BD, again if trained else [], torch.cat(kept) if kept else None)

    def _embed(self, name: str, batch: Any, rows: slice) -> Tensor:
        return self.module(self._inputs(batch, rows), part=lambda bind, inputs: bind.embed(name, inputs))

    def _inputs(self, batch: Any, rows: slice) -> Any:
        return self.fabric.to_device(rows_of(batch, rows))


class _Piece(NamedTuple):
    """Rows that are embedded a second time."""

    rows: slice
    draws: Draws  # before the first time


class _Side(NamedTuple):
    """A modality after the first pass."""

    whole_BD: Tensor  # its embeddings, apart from what made them
    again: list[_Piece]  # what is embedded again
    kept_PD: Tensor | None  # the last of its embeddings, with what made them


class _Seen(NamedTuple):
    """What the losses of all embeddings came to."""

    losses: Losses
    grads: dict[str, Tensor]  # of each trained modality's embeddings (B, D)
    of_losses: list[tuple[nn.Parameter, Tensor]]  # what is trained of the losses, with its gradient


def _contrast(
    whole: Mapping[str, Tensor], compared: Compared, context: Context | None, share: float, bind: Bind, _: Any
) -> _Seen:
    """Take the losses of all embeddings, and their gradients."""
    with torch.enable_grad():
        found = bind.contrast(whole, compared, context)
        sides = {name: whole_BD for name, whole_BD in whole.items() if whole_BD.requires_grad}
        learnt = [parameter for parameter in bind.losses.parameters() if parameter.requires_grad]
        wanted = [*sides.values(), *learnt]
        grads = torch.autograd.grad(share * found.total, wanted, materialize_grads=True)
    of_losses = list(zip(learnt, grads[len(sides) :], strict=True))
    return _Seen(found._replace(total=found.total.detach()), dict(zip(sides, grads, strict=False)), of_losses)


def _embed_back(name: str, grad_PD: Tensor, bind: Bind, inputs: Any) -> Tensor:
    return _product(bind.embed(name, inputs), grad_PD)


def _rest(of_losses: list[tuple[nn.Parameter, Tensor]], zeros: bool, bind: Bind, _: Any) -> Tensor:
    """What is left to go back through: the losses' own parameters, and all others if they are given zeros."""
    rest = [_product(parameter, grad) for parameter, grad in of_losses]
    if zeros:
        rest.append(bind.nothing())
    return torch.stack(rest).sum() if rest else torch.zeros(())


def _product(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum()
