"""Trainable parts of encoders, parameter groups, checks of frozen weights, and precision casts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from geobind.errors import RecipeError, TrainingError
from geobind.precision import float32_attention
from geobind.recipe.stage_options import AdamW, Full, Head, Last, Lora, Part
from geobind.training.blocks import compute_lr_scales, iter_last_parameters
from geobind.training.distributed import broadcast_tensors
from geobind.training.encoder_transforms import disable_checkpointing, explain_compile_errors, uncompile
from geobind.training.fabric import Fabric
from geobind.training.fsdp import unshard
from geobind.training.lora import (
    build_adapter_state,
    check_lora,
    collect_factors,
    insert_adapters,
    merge_adapters,
    remove_adapters,
    set_adapters_trainable,
)
from geobind.training.sync_batchnorm import unsync_batch_norms
from geobind.utils import files
from geobind.utils.hashing import derive_seed
from geobind.utils.system import hash_module

if TYPE_CHECKING:
    from geobind.training.stage import StageRun


def set_trainable(name: str, encoder: nn.Module, part: Part | None) -> None:
    """Make an encoder trainable: as a whole, in part, or not at all.

    Frozen modules have no gradients and are in eval mode, so that neither batch statistics nor dropout
    change them or add noise.

    Raises:
        RecipeError: It has no such part.
    """
    encoder.requires_grad_(isinstance(part, Full))
    encoder.train(isinstance(part, Full))
    if isinstance(part, Last):
        for parameter in iter_last_parameters(name, encoder, part.blocks):
            parameter.requires_grad_(True)
        _train_with_parameters(encoder)
    if isinstance(part, Lora):
        set_adapters_trainable(encoder)
    if isinstance(part, Head) or (isinstance(part, Lora) and part.head and _has_head(encoder)):
        head = get_head(name, encoder)
        head.requires_grad_(True)
        head.train()


def get_head(name: str, encoder: nn.Module) -> nn.Module:
    """Return the head of an encoder.

    Raises:
        RecipeError: It has none, or one without parameters.
    """
    if not _has_head(encoder):
        raise RecipeError(
            f"the encoder of '{name}' has no head with parameters to train; "
            "give it an attribute `head`, an nn.Module (built-in modalities have one by `head: linear`), or "
            "train it whole"
        )
    return encoder.get_submodule("head")


def hash_frozen(encoders: Mapping[str, nn.Module], parts: Mapping[str, Part]) -> dict[str, str]:
    """Hash the weights that a stage must not change, by modality; adapters must have been removed."""
    return {
        name: hash_module(encoder, but=list_trainable_names(encoder, parts.get(name)))
        for name, encoder in encoders.items()
        if not isinstance(parts.get(name), Full)
    }


def check_frozen(before: Mapping[str, str], after: Mapping[str, str], stage: str) -> None:
    """Check that all frozen weights are bit-equal to before.

    Raises:
        TrainingError: An encoder changed; its plugin updates weights or buffers in its forward pass.
    """
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise TrainingError(
            f"stage '{stage}': frozen weights of {', '.join(changed)} changed; the plugin's encoder updates "
            f"parameters or buffers in forward even in eval mode, which its contract forbids"
        )


def build_parameter_groups(
    module: nn.Module, options: AdamW, shares: Mapping[nn.Parameter, float] | None = None
) -> list[dict[str, list[Tensor] | float]]:
    """Build AdamW's parameter groups: no weight decay on biases, norms and the loss's own scalars.

    Args:
        module: The module in training.
        options: Options of the optimizer.
        shares: Factors on the learning rate, of the parameters whose factor is not 1.

    Returns:
        Groups for torch; `share` is the group's factor on the learning rate.
    """
    groups: dict[tuple[bool, float, bool], list[Tensor]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            share = (shares or {}).get(parameter, 1.0)
            # torch cannot mix shards and whole tensors in one operation.
            key = (parameter.ndim < 2, share, isinstance(parameter, DTensor))
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": groups[key], "weight_decay": 0.0 if key[0] else options.weight_decay, "share": key[1]}
        for key in sorted(groups)
    ]


def _has_head(encoder: nn.Module) -> bool:
    head = getattr(encoder, "head", None)
    return isinstance(head, nn.Module) and any(True for _ in head.parameters())


def _train_with_parameters(module: nn.Module) -> None:
    """Put every module whose parameters are all trainable in training mode, with its children."""
    if any(True for _ in module.parameters()):
        if all(parameter.requires_grad for parameter in module.parameters()):
            module.train()
        else:
            for child in module.children():
                _train_with_parameters(child)


def list_trainable_names(encoder: nn.Module, part: Part | None) -> list[str]:
    """Return the names of the state that may change in an encoder that is trained in part."""
    if isinstance(part, Last):
        loose = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
        for name, module in encoder.named_modules():
            if module.training:
                loose |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers(recurse=False)}
        return sorted(loose)
    if isinstance(part, Head) or (isinstance(part, Lora) and part.head):
        return [key for key in encoder.state_dict() if key.startswith("head.")]
    return []


_TYPES = {"bf16-true": torch.bfloat16, "64-true": torch.float64}


class PrecisionCast:
    """Cast encoders to the dtype of a precision, and back; float32 needs no cast.

    Args:
        encoders: By modality; their weights are cast in place.
        parts: The trained part of each.
        precision: Fabric's name of the precision.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], parts: Mapping[str, Part], precision: str) -> None:
        self.type = _TYPES.get(precision)
        self._frozen: dict[str, dict[str, Tensor]] = {}  # copies, restored to the bit
        self._types: dict[str, dict[str, torch.dtype]] = {}  # dtypes of the trained tensors
        if self.type is None:
            return
        for name, encoder in encoders.items():
            trained = _list_changed_names(encoder, parts.get(name))
            tensors = dict(_iter_floats(encoder))
            self._frozen[name] = {
                k: t.detach().to("cpu", copy=True) for k, t in tensors.items() if k not in trained
            }
            self._types[name] = {k: t.dtype for k, t in tensors.items() if k in trained}
            encoder.to(self.type)

    def undo(self, encoders: Mapping[str, nn.Module]) -> None:
        """Restore frozen weights to the bit, and cast trained ones back to their dtype."""
        for name, frozen in self._frozen.items():
            for key, tensor in _iter_floats(encoders[name]):
                data = tensor.data
                tensor.data = (
                    frozen[key].to(data.device) if key in frozen else data.to(self._types[name][key])
                )


class Float32Modules(nn.ModuleDict):
    """Modules that stay in float32 when their parent is cast to another dtype.

    A temperature in bfloat16 would not move: its steps are smaller than the dtype's resolution.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_dtype(tensor: Tensor) -> Tensor:
            like = fn(tensor)
            return tensor.to(like.device) if like.dtype != tensor.dtype else like

        return super()._apply(keep_dtype, recurse)


def _iter_floats(encoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all floating-point parameters and buffers, including those not in the state dict."""
    for key, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
        if tensor.is_floating_point():
            yield key, tensor


def _list_changed_names(encoder: nn.Module, part: Part | None) -> set[str]:
    """Return the names of the state that a stage changes."""
    return set(encoder.state_dict()) if isinstance(part, Full) else set(list_trainable_names(encoder, part))


ADAPTER_FILE = "adapter.safetensors"


def check_part(name: str, encoder: nn.Module, part: Part) -> None:
    """Check that an encoder has the part that a stage trains.

    Raises:
        RecipeError: It has no such head, blocks or layers.
        PluginError: A library that it needs is not installed.
    """
    if isinstance(part, Head):
        get_head(name, encoder)
    elif isinstance(part, Lora):
        check_lora(name, encoder, part)
    elif isinstance(part, Last):
        list(iter_last_parameters(name, encoder, part.blocks))
    if isinstance(part, Full | Last) and part.layer_decay < 1:
        compute_lr_scales(name, encoder, part.layer_decay)


@contextmanager
def prepare_encoders(fabric: Fabric, job: StageRun) -> Generator[dict[str, str]]:
    """Make the encoders of a stage trainable for a while, and restore them afterwards.

    On leaving, adapters are merged into their weights, and also written to the stage's folder. Where the
    block fails, they are removed.

    Yields:
        The hash of the weights that must not change, by modality.

    Raises:
        TrainingError: Frozen weights changed.
        RecipeError: An encoder has no such part.
        PluginError: A library that it needs is not installed.
    """
    encoders, trained = job.encoders, job.stage.trained
    adapted = {name: part for name, part in trained.items() if isinstance(part, Lora)}
    for name, encoder in encoders.items():
        set_trainable(name, encoder, trained.get(name))
    before = expected = hash_frozen(encoders, trained)
    cast = PrecisionCast(encoders, trained, job.recipe.precision_of(job.stage))
    if cast.type is not None:
        expected = hash_frozen(encoders, trained)
    for name, part in adapted.items():
        insert_adapters(
            name, encoders[name], part, derive_seed(job.recipe.seed, job.stage.name, "adapter", name)
        )
        set_trainable(name, encoders[name], part)

    try:
        with explain_compile_errors(job.stage.name), float32_attention():
            yield before
    except Exception:
        if fabric.world_size == 1:  # whoever measures goes on; among several, this process goes down
            _restore_encoders(fabric, job)
            for name in adapted:
                remove_adapters(encoders[name])
            cast.undo(encoders)
            for name, encoder in encoders.items():
                set_trainable(name, encoder, None)
        raise

    encoders = _restore_encoders(fabric, job)
    changes = {name: remove_adapters(encoders[name]) for name in adapted}
    check_frozen(expected, hash_frozen(encoders, trained), job.stage.name)
    cast.undo(encoders)
    for name, change in changes.items():
        merge_adapters(encoders[name], change)
    for name, encoder in encoders.items():
        set_trainable(name, encoder, None)
    if changes and fabric.is_global_zero:
        small: dict[str, Tensor] = {}
        for name, change in changes.items():
            head = encoders[name].state_dict() if adapted[name].head else {}
            learnt = collect_factors(change) | {k: v for k, v in head.items() if k.startswith("head.")}
            small |= {f"{name}.{key}": tensor for key, tensor in learnt.items()}
        files.write_tensors(job.folder / ADAPTER_FILE, small)


def _restore_encoders(fabric: Fabric, job: StageRun) -> dict[str, nn.Module]:
    """Undo sharding, compilation, checkpointing and shared batch norm; return the encoders."""
    unshard(job.binder.encoders)
    for name, encoder in job.encoders.items():
        uncompile(encoder)
        disable_checkpointing(encoder)
        unsync_batch_norms(encoder)
        if name in job.stage.parts:
            broadcast_tensors(fabric, encoder.buffers())
    return job.encoders


def collect_lr_scales(
    encoders: Mapping[str, nn.Module], trained: Mapping[str, Part]
) -> dict[nn.Parameter, float]:
    """Return the factor on the learning rate of each parameter whose factor is not 1."""
    shares: dict[nn.Parameter, float] = {}
    for name, part in trained.items():
        if isinstance(part, Full | Last) and part.layer_decay < 1:
            shares |= compute_lr_scales(name, encoders[name], part.layer_decay)
    return shares


def collect_trained_states(
    encoders: Mapping[str, nn.Module], trained: Mapping[str, Part]
) -> dict[str, nn.Module]:
    """Return the module of each trained encoder that a checkpoint must hold, by modality."""
    return {
        name: build_adapter_state(encoders[name]) if isinstance(part, Lora) else encoders[name]
        for name, part in trained.items()
    }
