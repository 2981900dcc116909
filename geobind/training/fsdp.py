"""Fully sharded data parallelism (FSDP2) of encoders, and its reversal."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from geobind.training.blocks import find_blocks
from geobind.training.distributed import full_tensor
from geobind.training.fabric import Fabric, ModelParallelStrategy

# Of each sharded module a copy of its structure, into which the whole weights go.
_PLAIN_COPIES: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def build_fsdp2_strategy() -> ModelParallelStrategy:
    """Return the Fabric strategy that shards encoders."""
    return ModelParallelStrategy(parallelize_fn=cast(Any, _shard_encoders))


def is_sharded(fabric: Fabric) -> bool:
    """Whether Fabric shards what it sets up."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def local_shard(tensor: Tensor) -> Tensor:
    """Return the local shard of a tensor; changes in place reach the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(target: Tensor, whole: Tensor) -> Tensor:
    """Return the local shard of a full tensor, laid out as `target`."""
    if not isinstance(target, DTensor):
        return whole
    moved = whole.to(target.device)
    # None: every process has all of it already, so that nothing is sent.
    return distribute_tensor(moved, target.device_mesh, target.placements, src_data_rank=None)


def unshard(encoders: nn.ModuleDict) -> None:
    """Replace sharded encoders by plain ones with all weights; every rank must call it."""
    for path, module in list(_sharded(encoders)):
        encoders.set_submodule(path, _unsharded(module))


def _sharded(encoders: nn.ModuleDict) -> Iterator[tuple[str, nn.Module]]:
    return ((path, module) for path, module in encoders.named_modules() if module in _PLAIN_COPIES)


def _shard_encoders(bind: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard every encoder with trained parameters; the others and the losses are replicated."""
    encoders, losses = bind.get_submodule("encoders"), bind.get_submodule("losses")
    # Fabric's mesh has an axis for nodes and one for their processes; shards go over all of them alike.
    line = init_device_mesh(mesh.device_type, (mesh.size(),))
    here = _device(mesh.device_type)
    for encoder in encoders.children():
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            _PLAIN_COPIES[encoder] = _plain_copy(encoder)
            _shard(encoder, line, here)
        else:
            encoder.to(here)
    losses.to(here)
    return bind


def _shard(encoder: nn.Module, mesh: DeviceMesh, device: torch.device) -> None:
    """Shard the blocks of an encoder one by one, then the rest."""
    plain = list(encoder.parameters())
    whole_ones = {parameter for parameter in plain if parameter.ndim == 0}  # a number has no shards
    for parameter in plain:
        parameter.data = parameter.data.contiguous()
        if parameter in whole_ones:
            parameter.data = parameter.data.to(device)
    for name in find_blocks(encoder):
        fully_shard(encoder.get_submodule(name), mesh=mesh, ignored_params=whole_ones)
    fully_shard(encoder, mesh=mesh, ignored_params=whole_ones)
    _free(plain, but=whole_ones)


def _plain_copy(module: nn.Module) -> nn.Module:
    """Copy a module's structure; its parameters and buffers are those of the module."""
    tensors: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, tensors)


def _unsharded(module: nn.Module) -> nn.Module:
    """Return the plain copy of a sharded module, with all weights."""
    hull = _PLAIN_COPIES[module]
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # after a forward pass without a backward one the outermost is not
    with torch.no_grad():
        for (_, sharded), (_, plain) in zip(module.named_parameters(), hull.named_parameters(), strict=True):
            if sharded is not plain:
                plain.data = full_tensor(sharded)
        for (_, live), (_, kept) in zip(module.named_buffers(), hull.named_buffers(), strict=True):
            kept.data = live.data
    return hull


def _free(parameters: Iterable[nn.Parameter], but: set[nn.Parameter]) -> None:
    """Free the memory of parameters."""
    for parameter in parameters:
        if parameter not in but:
            parameter.data = parameter.data.new_empty(0)


def _device(kind: str) -> torch.device:
    return (
        torch.device(kind) if kind == "cpu" else torch.device(kind, torch.accelerator.current_device_index())
    )
