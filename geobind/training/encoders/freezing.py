"""What a stage may change, and the proof that it changed nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from geobind.errors import RecipeError, TrainingError
from geobind.recipe.options import AdamW
from geobind.recipe.parts import Full, Head, Last, Lora, Part
from geobind.training.encoders.adapters import set_adapters_trainable
from geobind.training.encoders.depth import last_parameters
from geobind.utils.system import digest


def set_trainable(name: str, encoder: nn.Module, part: Part | None) -> None:
    """Make an encoder trainable: as a whole, in part, or not at all.

    What is not trained has no gradients and is in eval mode, so that neither batch statistics nor dropout
    change it or make it noisy.

    Raises:
        RecipeError: It has no such part.
    """
    encoder.requires_grad_(isinstance(part, Full))
    encoder.train(isinstance(part, Full))
    if isinstance(part, Last):
        for parameter in last_parameters(name, encoder, part.blocks):
            parameter.requires_grad_(True)
        _train_with_parameters(encoder)
    if isinstance(part, Lora):
        set_adapters_trainable(encoder)
    if isinstance(part, Head) or (isinstance(part, Lora) and part.head and _has_head(encoder)):
        head = head_of(name, encoder)
        head.requires_grad_(True)
        head.train()


def head_of(name: str, encoder: nn.Module) -> nn.Module:
    """Return the head of an encoder.

    Raises:
        RecipeError: It has none, or one without parameters.
    """
    if not _has_head(encoder):
        raise RecipeError(
            f"the encoder of '{name}' has no head with parameters to train; "
            f"give the modality a head (for built-in ones `head: linear`) or train it whole"
        )
    return encoder.get_submodule("head")


def frozen_digests(encoders: Mapping[str, nn.Module], parts: Mapping[str, Part]) -> dict[str, str]:
    """Hash what a stage must not change, by modality; an encoder with adapters must be without them."""
    return {
        name: digest(encoder, but=loose_names(encoder, parts.get(name)))
        for name, encoder in encoders.items()
        if not isinstance(parts.get(name), Full)
    }


def check_frozen(before: Mapping[str, str], after: Mapping[str, str], stage: str) -> None:
    """Check that everything frozen is bit-equal to what it was.

    Raises:
        TrainingError: An encoder changed; its plugin updates weights or buffers in its forward pass.
    """
    moved = [name for name in before if before[name] != after[name]]
    if moved:
        raise TrainingError(
            f"stage '{stage}': frozen weights of {', '.join(moved)} changed; the plugin's encoder updates "
            f"parameters or buffers in forward even in eval mode, which its contract forbids"
        )


def parameter_groups(
    module: nn.Module, options: AdamW, shares: Mapping[nn.Parameter, float] | None = None
) -> list[dict[str, list[Tensor] | float]]:
    """Group what is trained for AdamW: no weight decay on biases, norms and the loss's own scalars.

    Args:
        module: What is trained.
        options: The optimiser's.
        shares: The share of the learning rate that a parameter gets, for those that do not get all of it.

    Returns:
        Groups as torch takes them; `share` is the group's share of the learning rate.
    """
    groups: dict[tuple[bool, float, bool], list[Tensor]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            share = (shares or {}).get(parameter, 1.0)
            # torch takes no shards and whole tensors in one operation.
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
    """Put the modules in training mode whose parameters are all trained, with all that is inside."""
    if any(True for _ in module.parameters()):
        if all(parameter.requires_grad for parameter in module.parameters()):
            module.train()
        else:
            for child in module.children():
                _train_with_parameters(child)


def loose_names(encoder: nn.Module, part: Part | None) -> list[str]:
    """Name what may change of an encoder that is not trained as a whole."""
    if isinstance(part, Last):
        loose = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
        for name, module in encoder.named_modules():
            if module.training:
                loose |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers(recurse=False)}
        return sorted(loose)
    if isinstance(part, Head) or (isinstance(part, Lora) and part.head):
        return [key for key in encoder.state_dict() if key.startswith("head.")]
    return []
