"""Gradient accumulation, and gradient caching (GradCache, arXiv:2101.06983) for large batches.

GradCache computes the gradient of a large batch in the memory of a small one. The first pass embeds the batch
chunk by chunk and keeps the embeddings alone. Their losses give the gradient of each embedding. The second
pass embeds the same rows again, chunk by chunk, and backpropagates from those gradients. The last chunk of
the first pass keeps its graph, so that it is embedded once; so do all chunks where the head alone is trained,
because its graph is small.
"""

# B rows on this rank, P of them embedded together, D width

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from geobind.inference import copy_ahead, to_device
from geobind.training.fabric import DDPStrategy, Fabric
from geobind.training.losses import LossContext
from geobind.training.module import ContrastiveModule, EmbeddingGrads, StepLosses, Uncast, product_sum
from geobind.utils.logs import rank_zero_logger

_log = rank_zero_logger(__name__)

if TYPE_CHECKING:
    from geobind.data.sources import BatchMeta
    from geobind.recipe import Stage


def chunk_slices(count: int, max_rows: int) -> list[slice]:
    """Split `count` rows into slices of at most `most` rows, of nearly equal length."""
    parts = -(-count // max_rows)
    return [slice(part * count // parts, (part + 1) * count // parts) for part in range(parts)]


def select_rows(batch: Any, rows: slice) -> Any:
    """Return some rows of prepared inputs: of a tensor, or of every tensor in a structure."""
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim else batch
    if isinstance(batch, Mapping):
        return {name: select_rows(part, rows) for name, part in cast("Mapping[Any, Any]", batch).items()}
    if isinstance(batch, list | tuple):
        parts = [select_rows(part, rows) for part in cast("list[Any]", batch)]
        return parts if isinstance(batch, list) else tuple(parts)
    return batch


def count_rows(batch: Any) -> int:
    """Return how many rows prepared inputs have."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return max((count_rows(part) for part in cast("list[Any]", parts)), default=0)


class RngState(NamedTuple):
    """The state of torch's random generators, so that recomputation draws the same dropout."""

    host_S: Tensor
    device_S: Tensor | None  # None on a CPU

    @staticmethod
    def capture(device: torch.device) -> RngState:
        """Return the current state."""
        host_S = torch.get_rng_state()
        return RngState(
            host_S, None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
        )

    def restore(self, device: torch.device) -> None:
        """Set the generators to this state."""
        torch.set_rng_state(self.host_S)
        if self.device_S is not None:
            torch.get_device_module(device).set_rng_state(self.device_S)


@contextmanager
def preserve_buffers(encoder: nn.Module) -> Generator[None]:
    """Restore running statistics afterwards: of two passes over the same rows, the second counts."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in encoder.modules()
        if module.training
        for name, buffer in module.named_buffers(recurse=False)
    ]
    yield
    for module, name, buffer, before in kept:
        setattr(module, name, buffer.copy_(before))


def batch_norm_encoders(encoders: nn.ModuleDict) -> list[str]:
    """Return the names of encoders with BatchNorm in training mode."""
    return [
        name
        for name, encoder in encoders.items()
        if any(isinstance(module, _BatchNorm) and module.training for module in encoder.modules())
    ]


def no_grad_sync(fabric: Fabric, wrapped: Any) -> AbstractContextManager[Any]:
    """Return a context without gradient synchronisation (no_sync), where the strategy allows it.

    Strategies that shard parameters put gradients together in every pass, for no rank has room for all.
    """
    return fabric.no_backward_sync(wrapped) if _syncs_in_backward(fabric) else nullcontext()


def _syncs_in_backward(fabric: Fabric) -> bool:
    """Whether the strategy synchronises gradients in the backward pass (DDP)."""
    return isinstance(fabric.strategy, DDPStrategy)


class GradCache(NamedTuple):
    """Accumulates the gradient of a step with a few rows in memory at a time.

    All that is embedded goes through `wrapped`, so that Fabric's precision and strategy hold, and gradients
    come from sums of products with constants, which a gradient scaler scales as it would a loss.

    Args:
        fabric: Where the stage runs.
        module: What is differentiated.
        wrapped: The same as Fabric set it up.
        chunk: How many rows of this rank are embedded together at most, P.
    """

    fabric: Fabric
    module: ContrastiveModule
    wrapped: Any
    chunk: int

    def __call__(
        self,
        batches: Mapping[str, Any],
        present_BM: Tensor | None,
        context: LossContext | None,
        *,
        share: float = 1.0,
        sync: bool = True,
    ) -> StepLosses:
        """Compute losses of all embeddings, then embed again chunk by chunk and backpropagate.

        Args:
            batches: The prepared inputs of each modality: of the rows that have it, in their order.
            present_BM: Which rows have which modality; None: all have all.
            context: The metadata of the rows of all ranks.
            share: What the gradient is multiplied by.
            sync: Whether the ranks put their gradients together.
        """
        pairs = self.module.active_pairs(present_BM)
        with no_grad_sync(self.fabric, self.wrapped):
            sides = {name: self._first_pass(name, batches.get(name)) for name in pairs.names}
            embedded = {name: side.embedded_BD for name, side in sides.items()}
            step: EmbeddingGrads = self.wrapped(
                "embedding_grads", Uncast(embedded), Uncast(pairs), Uncast(context), share
            )
            for name, side in sides.items():
                if side.kept_PD is not None:
                    self.fabric.backward(product_sum(side.kept_PD, step.grads[name][-len(side.kept_PD) :]))
            for name, side in sides.items():
                inputs_of_chunks = self._copy_chunks(batches.get(name), (chunk.rows for chunk in side.again))
                for chunk, (_, inputs) in zip(side.again, inputs_of_chunks, strict=True):
                    chunk.rng.restore(self.fabric.device)
                    grad_PD = step.grads[name][chunk.rows]
                    self.fabric.backward(self.wrapped("embedding_surrogate", name, inputs, Uncast(grad_PD)))
        with nullcontext() if sync else no_grad_sync(self.fabric, self.wrapped):
            zeros = _syncs_in_backward(self.fabric) or not pairs.rows  # as a step in one pass gives
            rest = self.wrapped("loss_surrogate", Uncast(step.of_losses), zeros)
            if rest.requires_grad:
                self.fabric.backward(rest)
        return step.losses

    def _first_pass(self, name: str, batch: Any) -> _FirstPass:
        """Embed the rows of a modality; the last chunk keeps its graph."""
        encoder, pieces = self.module.encoders[name], chunk_slices(count_rows(batch), self.chunk)
        trained = [key for key, parameter in encoder.named_parameters() if parameter.requires_grad]
        light = all(key.startswith("head.") for key in trained)
        once = 0 if not trained else len(pieces) if light else min(1, len(pieces))
        twice = len(pieces) - once
        again: list[_Recomputed] = []
        embedded = [torch.zeros(0, self.module.width, device=self.fabric.device)]  # a rank may have no rows
        with torch.no_grad(), preserve_buffers(encoder):
            for rows, inputs in self._copy_chunks(batch, pieces[:twice]):
                again.append(_Recomputed(rows, RngState.capture(self.fabric.device)))
                embedded.append(self.wrapped("embed", name, inputs))
        kept = [self.wrapped("embed", name, inputs) for _, inputs in self._copy_chunks(batch, pieces[twice:])]
        embedded_BD = torch.cat([*embedded, *(kept_PD.detach() for kept_PD in kept)])
        embedded_BD.requires_grad_(bool(trained))
        return _FirstPass(embedded_BD, again if trained else [], torch.cat(kept) if kept else None)

    def _copy_chunks(self, batch: Any, chunks: Iterable[slice]) -> Iterator[tuple[slice, Any]]:
        """Yield chunks of a batch on the device: for the whole of it there may be no room."""
        return copy_ahead(((rows, select_rows(batch, rows)) for rows in chunks), self.fabric.device)


class _Recomputed(NamedTuple):
    """A chunk of rows that is embedded a second time."""

    rows: slice
    rng: RngState  # before the first time


class _FirstPass(NamedTuple):
    """The embeddings of one modality after the first pass."""

    embedded_BD: Tensor  # its embeddings, apart from what made them
    again: list[_Recomputed]  # what is embedded again
    kept_PD: Tensor | None  # the last of its embeddings, with what made them


class AccumulationStep(NamedTuple):
    """The position of a step among those whose gradients are accumulated."""

    number: int = 0
    of: int = 1

    @property
    def last(self) -> bool:
        """Whether the optimizer steps now."""
        return self.number + 1 == self.of


def accumulation_step(step: int, every: int, steps: int) -> AccumulationStep:
    """Return a step's position among the `every` accumulated ones; the last group may be shorter."""
    first = step - step % every
    return AccumulationStep(step - first, min(every, steps - first))


def chunk_rows(stage: Stage, world: int) -> int | None:
    """Return how many rows of a rank are embedded at a time; None: all rows of a step."""
    if not isinstance(stage.chunk, int) or stage.chunk * world >= stage.batch_size:
        return None
    return stage.chunk


class GradientAccumulator:
    """Accumulates the gradients of steps in the parameters.

    Args:
        fabric: Where the stage runs.
        module: What is differentiated.
        wrapped: The same as Fabric set it up.
        chunk: How many rows are embedded at a time; None: all.
    """

    def __init__(
        self, fabric: Fabric, module: ContrastiveModule, wrapped: Any, chunk: int | None = None
    ) -> None:
        self.fabric, self.module, self.wrapped = fabric, module, wrapped
        self.two_pass = None if chunk is None else GradCache(fabric, module, wrapped, chunk)
        self._idle: set[str] | None = None  # what no step of this turn has trained; None: no step was taken

    @property
    def input_device(self) -> torch.device:
        """The device that batches should be on: chunks are copied from the CPU one by one."""
        return self.fabric.device if self.two_pass is None else torch.device("cpu")

    def __call__(
        self,
        batches: Mapping[str, Any],
        present_BM: Tensor | None = None,
        context: LossContext | None = None,
        turn: AccumulationStep | None = None,
    ) -> StepLosses:
        """Compute the losses of a batch and backpropagate.

        Args:
            batches: The prepared inputs of each modality: of the rows that have it, in their order.
            present_BM: Which rows have which modality; None: all have all.
            context: The metadata of the rows of all ranks.
            turn: The step's place among those whose mean gradient moves the weights; None: it is alone.
        """
        turn = turn or AccumulationStep()
        if self.two_pass is not None:
            share = 1 / turn.of
            losses = self.two_pass(batches, present_BM, context, share=share, sync=turn.last)
        else:
            with nullcontext() if turn.last else no_grad_sync(self.fabric, self.wrapped):
                inputs = to_device(batches, self.fabric.device)  # mostly there already
                losses = self.wrapped("compute_losses", inputs, present_BM, Uncast(context))
                self.fabric.backward(losses.total if turn.of == 1 else losses.total / turn.of)
        self._idle = {*losses.idle} if self._idle is None else self._idle & {*losses.idle}
        if turn.last:
            self.module.clear_idle_grads(self._idle)
            self._idle = None
        return losses


def build_presence(module: ContrastiveModule, meta: BatchMeta) -> Tensor | None:
    """Return which rows have which modality; None where no row of the stage lacks one."""
    if not module.partial:
        return None
    if meta.present_BM is None:
        return torch.ones(len(meta.keys), len(module.encoders), dtype=torch.bool)
    return torch.from_numpy(meta.present_BM)


def build_accumulator(
    fabric: Fabric, stage: Stage, module: ContrastiveModule, wrapped: Any
) -> GradientAccumulator:
    """Build the gradient accumulator of a stage; warn where chunks change batch statistics."""
    chunk = chunk_rows(stage, fabric.world_size)
    names = batch_norm_encoders(module.encoders) if chunk else []
    if names:
        _log.warning(
            "stage '%s': %s trains BatchNorm, whose statistics with `chunk` are those of %s rows and not of "
            "the batch, which makes another result; take a backbone with LayerNorm, GroupNorm or no norm, or "
            "train its `head` or `lora`, which leave BatchNorm as it is",
            stage.name,
            ", ".join(names),
            chunk,
        )
    return GradientAccumulator(fabric, module, wrapped, chunk)
