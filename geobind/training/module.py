"""The encoders of a stage and the losses of its pairs as one module: what a step differentiates."""

# B rows on this rank, N rows on all ranks, R of them that have both of a pair, M modalities, D width

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from geobind.inference import to_device
from geobind.recipe.schema import ModalityPair
from geobind.training.distributed import Ranks
from geobind.training.losses import ContrastiveLoss, LossContext
from geobind.training.sync_batchnorm import dummy_pass
from geobind.utils.vectors import unit

_MIN_ROWS = 2  # rows with both of a pair: one alone has nothing to be told from


Mode = Literal["compute_losses", "embed", "embedding_grads", "embedding_surrogate", "loss_surrogate"]


class Uncast:
    """An argument of `forward` that Fabric passes on as it is.

    Fabric casts tensors inside of collections to its precision, which would blur places and gradients, and it
    refuses frozen dataclasses.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


class StepLosses(NamedTuple):
    """Losses of one step, identical on all ranks."""

    total: Tensor  # the sum of the pairs' losses, each times its weight
    pairs: dict[str, Tensor]  # without gradients; only pairs that at least two rows have
    idle: tuple[str, ...]  # parts that are trained, but not by this step


class ActivePairs(NamedTuple):
    """The pairs that a step compares, identical on all ranks except for `present_BM`."""

    rows: dict[str, Tensor | None]  # rows (R,) of all ranks that have both of a pair; None: all have
    names: tuple[str, ...]  # the modalities of those pairs; pairs that fewer than two rows have are left out
    present_BM: Tensor | None  # which of this rank's rows have which modality; None: all have all


class EmbeddingGrads(NamedTuple):
    """The losses of given embeddings, and their gradients."""

    losses: StepLosses
    grads: dict[str, Tensor]  # of each trained modality's embeddings (B, D)
    of_losses: list[Tensor]  # of each trained parameter of the losses; Fabric would hook the parameters


class ContrastiveModule(nn.Module):
    """Embed every modality of a batch once, gather all ranks' embeddings, and take the loss of every pair.

    Its parts can be called on their own: `active_pairs` returns the pairs of a step, `embed` embeds inputs of
    one modality, and `contrast` computes the losses of given embeddings. One module holds all encoders, as
    DDP rejects a module without trained parameters, such as a frozen encoder.

    Args:
        encoders: By modality.
        losses: By name of a pair. Each pair has its own, because temperatures differ.
        pairs: The pairs to compare.
        ranks: The processes that train together.
        width: Length D of an embedding.
        partial: Whether rows may lack modalities.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        losses: Mapping[str, ContrastiveLoss],
        pairs: Sequence[ModalityPair],
        ranks: Ranks,
        width: int,
        *,
        partial: bool = False,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.column = {name: column for column, name in enumerate(encoders)}
        self.losses = nn.ModuleDict(dict(losses))
        self.pairs = tuple(pairs)
        self.ranks = ranks
        self.width = width
        self.partial = partial
        self.dummy_rows: dict[str, Any] = {}  # a row for each encoder that all ranks must run, or none

    def forward(self, mode: Mode, *args: Any) -> Any:
        """Run one of the methods under Fabric's precision and strategy, which wrap this method alone.

        Args:
            mode: The method's name.
            args: Its arguments; Fabric casts tensors among them that are not `Uncast`.
        """
        return getattr(self, mode)(*(arg.value if isinstance(arg, Uncast) else arg for arg in args))

    def compute_losses(
        self,
        batches: Mapping[str, Any],
        present_BM: Tensor | None = None,
        context: LossContext | None = None,
    ) -> StepLosses:
        """Return the losses over all ranks' rows.

        Args:
            batches: The prepared inputs of each modality: of the rows that have it, in their order.
            present_BM: Which rows have which modality, in the encoders' order; needed if rows may lack some.
            context: The metadata of the rows of all ranks.
        """
        pairs = self.active_pairs(present_BM)
        names = (name for name in pairs.names if name in batches or name in self.dummy_rows)
        # On all ranks in one order, for they may wait for each other inside the encoders.
        embedded = {n: self.embed(n, batches[n]) if n in batches else self._run_dummy_row(n) for n in names}
        return self.contrast(embedded, pairs, context)

    def embedding_grads(
        self, embedded: Mapping[str, Tensor], pairs: ActivePairs, context: LossContext | None, share: float
    ) -> EmbeddingGrads:
        """Return the losses of embeddings, and their gradients times `share`."""
        with torch.enable_grad():
            losses = self.contrast(embedded, pairs, context)
            trained = {name: tensor for name, tensor in embedded.items() if tensor.requires_grad}
            wanted = [*trained.values(), *self._loss_parameters()]
            grads = torch.autograd.grad(share * losses.total, wanted, materialize_grads=True)
        of_embeddings, of_losses = dict(zip(trained, grads, strict=False)), list(grads[len(trained) :])
        return EmbeddingGrads(losses._replace(total=losses.total.detach()), of_embeddings, of_losses)

    def embedding_surrogate(self, name: str, batch: Any, grad_PD: Tensor) -> Tensor:
        """Return a scalar whose gradient is that of the losses, by way of the embeddings of a batch."""
        return product_sum(self.embed(name, batch), grad_PD)

    def loss_surrogate(self, of_losses: Sequence[Tensor], zeros: bool) -> Tensor:
        """Return a scalar whose gradient is that of the losses' own parameters.

        Args:
            of_losses: The gradient of each of them.
            zeros: Whether everything else that is trained gets a gradient of zeros.
        """
        terms = [product_sum(one, grad) for one, grad in zip(self._loss_parameters(), of_losses, strict=True)]
        if zeros:
            terms.append(self.zero_loss())
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def _loss_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.losses.parameters() if parameter.requires_grad]

    def active_pairs(self, present_BM: Tensor | None = None) -> ActivePairs:
        """Return the pairs that a step compares; every rank must call it."""
        if not self.partial or present_BM is None:
            return ActivePairs({pair.name: None for pair in self.pairs}, tuple(self.encoders), None)
        alone = self.ranks.world == 1  # then nothing waits for the accelerator
        present_NM = self.ranks(present_BM if alone else present_BM.to(_device(self))).cpu()
        rows: dict[str, Tensor | None] = {}
        for pair in self.pairs:
            both_N = present_NM[:, self.column[pair.anchor]] & present_NM[:, self.column[pair.other]]
            if both_N.sum() >= _MIN_ROWS:
                rows[pair.name] = None if both_N.all() else both_N.nonzero().flatten()
        wanted = {name for pair in self.pairs if pair.name in rows for name in pair.both}
        return ActivePairs(rows, tuple(name for name in self.encoders if name in wanted), present_BM)

    def embed(self, name: str, batch: Any) -> Tensor:
        """Embed prepared inputs of one modality as unit-length float32 (B, D)."""
        return unit(self.encoders[name](batch))

    def _run_dummy_row(self, name: str) -> Tensor:
        """Run the encoder on a dummy row so that collectives match; return (0, D), attached to its graph."""
        with dummy_pass(self.encoders[name]):
            return self.embed(name, self.dummy_rows[name])[:0]

    def contrast(
        self, embedded: Mapping[str, Tensor], active: ActivePairs, context: LossContext | None = None
    ) -> StepLosses:
        """Return the losses of this rank's embeddings among those of all ranks."""
        local = {name: self._local(name, embedded, active.present_BM) for name in active.names}
        gathered = {name: self.ranks(local_BD) for name, local_BD in local.items()}
        losses: dict[str, Tensor] = {}
        for pair in (pair for pair in self.pairs if pair.name in active.rows):
            row_R, sides = active.rows[pair.name], (gathered[pair.anchor], gathered[pair.other])
            own = self.ranks.own(len(local[pair.anchor]), row_R)
            if row_R is not None:
                row_R = to_device(row_R, sides[0].device)
                sides = (sides[0][row_R], sides[1][row_R])
            losses[pair.name] = self._loss(pair.name, sides, _select_context(context, row_R), own)
        idle = tuple(self._trained(but=gathered.keys() | losses.keys()))
        total = self._total(losses, idle)
        return StepLosses(
            total, {name: loss.detach() for name, loss in losses.items()}, idle if losses else ()
        )

    def zero_loss(self) -> Tensor:
        """Return zero, with a gradient of zeros for every trained parameter."""
        return torch.stack([_zero_loss(self._part(name)) for name in self._trained()]).sum()

    def clear_idle_grads(self, idle: Iterable[str]) -> None:
        """Remove the zero gradients of idle parts, so that the optimizer leaves them alone."""
        for name in idle:
            for parameter in self._part(name).parameters():
                parameter.grad = None

    def _loss(
        self, name: str, sides: tuple[Tensor, Tensor], context: LossContext | None, own: slice
    ) -> Tensor:
        """Return the loss of a pair; if each rank computes a part, the sum of all parts."""
        loss = self.losses[name]
        if not loss.local or self.ranks.world == 1:
            return loss(*sides, context)
        part = loss(*sides, context, own)
        # Gradients are averaged over ranks, but parts are to be added.
        share, whole = self.ranks.world * part, self.ranks(part.detach()[None]).sum()
        return share + (whole - share).detach()

    def _local(self, name: str, embedded: Mapping[str, Tensor], present_BM: Tensor | None) -> Tensor:
        """Return this rank's embeddings of a modality, zeros where a row lacks it (B, D)."""
        if present_BM is None:
            return embedded[name]
        there_B = present_BM[:, self.column[name]]
        if name in embedded and len(embedded[name]) == len(there_B):
            return embedded[name]
        empty_BD = torch.zeros(len(there_B), self.width, device=_device(self), dtype=torch.float32)
        if name not in embedded:
            # Gradients are gathered in turn, for which every rank must wait for them.
            return empty_BD + _zero_loss(self.encoders[name])
        row = to_device(there_B.nonzero().flatten(), empty_BD.device)
        return empty_BD.index_copy(0, row, embedded[name])

    def _total(self, found: Mapping[str, Tensor], idle: Iterable[str]) -> Tensor:
        parts = [
            found[pair.name] if pair.weight == 1 else pair.weight * found[pair.name]
            for pair in self.pairs
            if pair.name in found
        ]
        if self.ranks.world > 1 or not parts:
            # DDP waits for the gradient of everything it trains.
            parts += [_zero_loss(self._part(name)) for name in idle]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def _trained(self, but: Collection[str] = ()) -> list[str]:
        return [
            name
            for name in (*self.encoders, *self.losses)
            if name not in but and any(one.requires_grad for one in self._part(name).parameters())
        ]

    def _part(self, name: str) -> nn.Module:
        # A pair's name has a dash in it, and no modality's has.
        return self.losses[name] if name in self.losses else self.encoders[name]


def product_sum(one: Tensor, other: Tensor) -> Tensor:
    """Return the sum of the elementwise product: its gradient by one factor is the other."""
    return (one * other).sum()


def _zero_loss(module: nn.Module) -> Tensor:
    """Return zero, with a gradient of zeros for the trained parameters of a module."""
    # Sharded parameters need none: their gradients are reduced where the module ran.
    trained = [one for one in module.parameters() if one.requires_grad and not isinstance(one, DTensor)]
    nothing = [parameter[None][:0].sum().float() for parameter in trained]
    return torch.stack(nothing).sum() if nothing else torch.zeros(())


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _select_context(context: LossContext | None, row_R: Tensor | None) -> LossContext | None:
    """Return the loss context of some of the rows."""
    if context is None or row_R is None:
        return context
    known = {field.name: getattr(context, field.name) for field in fields(context)}
    return replace(
        context,
        **{name: value[row_R] for name, value in known.items() if isinstance(value, Tensor)},
    )
