"""Synchronised batch norm, also for ranks without rows.

arXiv:1502.03167; means and variances of parts are put together as in Chan, Golub and LeVeque (1983), eq. 2.1.

A process that has no row for an encoder where others have: it runs beside them, without a trace.

Sharded weights are sent, and statistics of a batch put together, by every process or by none. So the encoder
runs on a row of which nothing is kept.
"""

# N rows of this process, C channels, P processes, S numbers that each tells the others

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cache
from threading import local
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm as Fused
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode

from geobind.data.table import first_observation
from geobind.errors import DataError, TrainingError
from geobind.inference import collate
from geobind.training.fabric import Fabric
from geobind.training.fsdp import is_sharded

if TYPE_CHECKING:
    from geobind.data.sampler import MixedDataset
    from geobind.embedding_cache.build import CachedColumn
    from geobind.modality import Modality


_ALONE = "_geobind_alone_class"


class DummyPass(local):
    """Whether this rank runs an encoder on a dummy row, for the collectives alone."""

    here = False


DUMMY_PASS = DummyPass()


def sync_batch_norms(encoder: nn.Module, *, fused: bool = False) -> None:
    """Synchronise the training batch norms of an encoder over all ranks.

    Those that are frozen, in eval mode, stay as they are. Structure and names of weights stay too.

    Args:
        encoder: The encoder.
        fused: Use torch's kernels for accelerators, which cannot do with a process that has no row.
    """
    for module in encoder.modules():
        own = isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
        if own and module.training and not is_synced(module):
            cast(Any, module).__class__ = _synced_class(type(module), fused)


def unsync_batch_norms(encoder: nn.Module) -> None:
    """Restore the plain classes of batch norms."""
    for module in encoder.modules():
        if is_synced(module):
            module.__class__ = getattr(type(module), _ALONE)


def is_synced(module: nn.Module) -> bool:
    """Whether a module is a synchronised batch norm."""
    return hasattr(type(module), _ALONE)


@cache
def _synced_class(kind: type[nn.Module], fused: bool) -> type[nn.Module]:
    """Return a subclass of a batch norm class with statistics over all ranks."""

    @torch.compiler.disable
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return kind.forward(self, *args, **kwargs)
        with _SyncMode(fused) as shared:
            normed = kind.forward(self, *args, **kwargs)
        if not shared.asked:
            raise TrainingError(
                f"{kind.__module__}.{kind.__name__} takes statistics of a batch in a way of its own, so that "
                f"those of several processes cannot be put together; say `fabric: {{sync_batchnorm: false}}` "
                f"to let each process have its own, or train with one"
            )
        return normed

    return type(kind.__name__, (kind,), {"forward": forward, _ALONE: kind, "__module__": kind.__module__})


class _SyncMode(TorchFunctionMode):
    """Replaces the statistics inside `F.batch_norm` by those of all ranks.

    A subclass of BatchNorm may do more besides, as timm's, which has an activation in it.
    """

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.asked = fused, False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is not F.batch_norm or not options["training"]:
            return func(*args, **options)
        self.asked = True
        x, mean_C, var_C = cast("tuple[Tensor, Tensor | None, Tensor | None]", args)
        more = options["weight"], options["bias"], options["momentum"], options["eps"], self.fused
        return _sync_batch_norm(x, mean_C, var_C, *more)


def _sync_batch_norm(
    x: Tensor,
    running_mean_C: Tensor | None,
    running_var_C: Tensor | None,
    weight_C: Tensor | None,
    bias_C: Tensor | None,
    momentum: float,
    eps: float,
    fused: bool,
) -> Tensor:
    """Normalise (N, C, ...) by the statistics of all ranks and update the running ones."""
    if fused and x.is_cuda:
        group = dist.group.WORLD
        of_torch: Any = Fused.apply
        world = dist.get_world_size()
        return of_torch(x, weight_C, bias_C, running_mean_C, running_var_C, eps, momentum, group, world)
    apply: Any = _SyncBatchNorm.apply
    rows = x[:0] if DUMMY_PASS.here else x
    normed, mean_C, var_C, count = cast("tuple[Tensor, ...]", apply(rows, weight_C, bias_C, eps))
    if running_mean_C is not None and running_var_C is not None:
        _update_running(running_mean_C, mean_C, momentum)
        _update_running(running_var_C, var_C * (count / (count - 1).clamp(min=1)), momentum)
    if not DUMMY_PASS.here:
        return normed
    # What counts for nobody must be finite all the same, whatever the weights are: its own statistics do.
    return normed.sum() + torch.batch_norm(x, weight_C, bias_C, None, None, True, 0.0, eps, False)


def _update_running(running_C: Tensor, now_C: Tensor, momentum: float) -> None:
    """Move a running statistic towards the one of this batch."""
    running_C.copy_((1 - momentum) * running_C.to(now_C.dtype) + momentum * now_C)


class _SyncBatchNorm(torch.autograd.Function):
    """Batch norm over the rows of all ranks; a rank may have none.

    Gradients of weight and bias are those of this process's rows: whoever averages gradients over processes
    averages them too.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the normalised values, and mean, variance and count of each channel."""
        mean_C, var_C, count = _statistics(x)
        weight_C, bias_C = (None if one is None else one.to(mean_C.dtype) for one in (weight_C, bias_C))
        ctx.save_for_backward(x, weight_C, mean_C, var_C, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean_C, var_C, count)
        # With given statistics it is the kernel of eval mode.
        normed = torch.batch_norm(x, weight_C, bias_C, mean_C, var_C, False, 0.0, eps, False)
        return normed, mean_C, var_C, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Backpropagate through the normalisation and the statistics of all ranks."""
        x, weight_C, mean_C, var_C, count = ctx.saved_tensors
        scale_C = torch.ones_like(mean_C) if weight_C is None else weight_C
        grad, sum_of_normed_C, sum_C = grads[0], torch.zeros_like(mean_C), torch.zeros_like(mean_C)
        if len(x):  # the kernel does not take no rows
            # As if the statistics were given; the gradients of weight and bias are the sums that they need.
            kernel: Any = torch.ops.aten.native_batch_norm_backward
            given = (scale_C, mean_C, var_C, None, None, False, ctx.eps, [True, True, True])
            grad, sum_of_normed_C, sum_C = kernel(grads[0], x, *given)
        of_weight_C, of_bias_C = (sum_of_normed_C, sum_C) if weight_C is not None else (None, None)
        if ctx.needs_input_grad[0]:
            inverse_C = (var_C + ctx.eps).rsqrt()
            both_C2 = torch.stack([sum_C, sum_of_normed_C * inverse_C], dim=1)
            _all_reduce(both_C2)
            first_C, second_C = (both_C2 * (scale_C * inverse_C / count)[:, None]).unbind(1)
            around = x - _along(mean_C, x)
            grad = (grad - around.mul_(_along(second_C, x)).add_(_along(first_C, x))).to(x.dtype)
        return grad if ctx.needs_input_grad[0] else None, of_weight_C, of_bias_C, None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and count of each channel over all ranks."""
    kind = torch.promote_types(x.dtype, torch.float32)
    axes, width = [0, *range(2, x.ndim)], x.shape[1]
    count = x.numel() // width
    mean_C = x.mean(axes, dtype=kind) if count else x.new_zeros(width, dtype=kind)
    squares_C = (x - _along(mean_C, x)).square_().sum(axes)
    told_PS = _all_gather(torch.cat([mean_C, squares_C, mean_C.new_full((1,), count)]))
    mean_PC, squares_PC, count_P1 = told_PS[:, :width], told_PS[:, width:-1], told_PS[:, -1:]
    total = count_P1.sum()
    # A process without rows tells zeros, and counts for nothing.
    whole_C = (mean_PC * (count_P1 / total)).sum(0)
    between_C = ((mean_PC - whole_C).square() * count_P1).sum(0)
    return whole_C, (squares_PC.sum(0) + between_C) / total, total


def _along(value_C: Tensor, x: Tensor) -> Tensor:
    return value_C.view(-1, *[1] * (x.ndim - 2))


def _all_gather(own_S: Tensor) -> Tensor:
    """Gather the numbers of all ranks, in rank order (P, S)."""
    gathered = [torch.empty_like(own_S) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own_S)
    return torch.stack(gathered)


def _all_reduce(tensor: Tensor) -> None:
    """Sum a tensor over all ranks in place."""
    dist.all_reduce(tensor)


def build_dummy_rows(
    fabric: Fabric,
    rows: MixedDataset,
    encoders: Mapping[str, nn.Module],
    modalities: Mapping[str, Modality],
    stored: Mapping[str, CachedColumn],
) -> dict[str, Any]:
    """Build a prepared batch of one row for each modality whose encoder all ranks must run together.

    Args:
        fabric: Where the stage runs.
        rows: The rows of the stage, of which some lack a modality.
        encoders: What the stage computes of each encoder in training, as Fabric set it up.
        modalities: By name.
        stored: The modalities that are read from the embedding cache.
    """
    bound = {
        name: encoder
        for name, encoder in encoders.items()
        if is_sharded(fabric) or any(map(is_synced, encoder.modules()))
    }
    return {
        name: fabric.to_device(
            torch.zeros(1, *stored[name].rows.shape)
            if name in stored
            else _first_usable_row(rows, modalities[name], name)
        )
        for name in bound
    }


@contextmanager
def dummy_pass(encoder: nn.Module) -> Generator[None]:
    """Run an encoder for its collectives alone: no random draws, no statistics of its rows."""
    modes = [(module, module.training) for module in encoder.modules()]
    for module, _ in modes:
        module.training = module.training and is_synced(module)  # those update with the others' rows
    DUMMY_PASS.here = True
    try:
        yield
    finally:
        DUMMY_PASS.here = False
        for module, training in modes:
            module.training = training


def _first_usable_row(rows: MixedDataset, modality: Modality, name: str) -> Any:
    """Return the first readable row of a modality, as a batch."""
    for source in rows.sources:
        for row in source.rows.rows_with([name]):
            try:
                raw = source.rows[int(row)].raws[name]
                return collate([modality.prepare(first_observation(raw))])
            except DataError:
                continue  # the loader tells of it when its turn comes
    raise DataError(f"no row has a '{name}' that can be read")
