"""LoRA adapters (arXiv:2106.09685): inserted into frozen layers before a stage, merged after it."""

# E width of the attention, R rank

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from geobind.bundles.delta import add_factors, name_factors
from geobind.errors import PluginError, RecipeError
from geobind.extras import INSTALL
from geobind.recipe.stage_options import Lora
from geobind.towers.mel import hide_broken_torchaudio
from geobind.training.blocks import find_blocks

_NAMED = 12  # layers named in a message
_LAYERS = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
LoraChanges = dict[str, tuple[Tensor, Tensor]]  # by weight: (R, N) and (M, R), scaled


def check_lora(name: str, encoder: nn.Module, options: Lora) -> None:
    """Check that an encoder can take the adapters that a stage asks for.

    Raises:
        PluginError: peft is not installed.
        RecipeError: A target does not exist, or does not support dropout.
    """
    _import_peft()
    targets = find_target_layers(name, encoder, options)
    fused = [n for n in targets if isinstance(encoder.get_submodule(n), nn.MultiheadAttention)]
    if options.dropout and fused:
        raise RecipeError(
            f"'{name}': {fused[0]} is fused attention, which sees no dropout of adapters; "
            f"set dropout: 0 or name other targets"
        )


def insert_adapters(name: str, encoder: nn.Module, options: Lora, seed: int) -> None:
    """Insert adapters into an encoder; its output stays the same until they are trained.

    Args:
        name: Its modality.
        encoder: The encoder; its layers are wrapped in place.
        options: The target layers and the adapters' size.
        seed: Seed of the adapters' initial values.

    Raises:
        PluginError: peft is not installed.
        RecipeError: A target does not exist.
    """
    check_lora(name, encoder, options)
    peft = _import_peft()
    from geobind.training.lora_attention import LoraFusedAttention  # imports peft

    targets = find_target_layers(name, encoder, options)
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        # Given a list, peft also adapts layers whose names merely end in one of its items.
        target_modules="|".join(re.escape(target) for target in targets),
    )
    config._register_custom_module({nn.MultiheadAttention: LoraFusedAttention})
    torch.manual_seed(seed)
    peft.inject_adapter_in_model(config, encoder)


def set_adapters_trainable(encoder: nn.Module) -> None:
    """Make the adapters of an encoder trainable, if it has any."""
    for _, parameter in _adapter_parameters(encoder):
        parameter.requires_grad_(True)
    for name, module in encoder.named_modules():
        if name.endswith(".lora_dropout"):
            module.train()


def build_adapter_state(encoder: nn.Module) -> nn.Module:
    """Return the adapters, and the head if it is trained, as a module for a checkpoint."""
    # A parameter's name cannot have dots in it.
    adapters = nn.ParameterDict({n.replace(".", "/"): p for n, p in _adapter_parameters(encoder)})
    state = nn.ModuleDict({"adapters": adapters})
    head = getattr(encoder, "head", None)
    if isinstance(head, nn.Module) and any(p.requires_grad for p in head.parameters()):
        state["head"] = head
    return state


def _adapter_parameters(encoder: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((n, p) for n, p in encoder.named_parameters() if ".lora_A." in n or ".lora_B." in n)


def remove_adapters(encoder: nn.Module) -> LoraChanges:
    """Remove the adapters, which restores the encoder to the bit, and return their changes."""
    from peft.tuners.lora import LoraLayer

    changes: LoraChanges = {}
    layers: list[tuple[str, Any]] = [
        (name, module) for name, module in encoder.named_modules() if isinstance(module, LoraLayer)
    ]
    # From the inside out: fused attention holds a wrapped projection.
    for name, layer in reversed(layers):
        base = layer.get_base_layer()
        weight = "in_proj_weight" if isinstance(base, nn.MultiheadAttention) else "weight"
        down, up = (part["default"].weight.detach().flatten(1) for part in (layer.lora_A, layer.lora_B))
        changes[f"{name.replace('.base_layer', '')}.{weight}"] = (down, up * layer.scaling["default"])
        encoder.set_submodule(name, base)
    return dict(reversed(changes.items()))


def merge_adapters(encoder: nn.Module, changes: LoraChanges) -> None:
    """Add changes to the weights of an encoder."""
    with torch.no_grad():
        for name, (down_RN, up_MR) in changes.items():
            parameter = encoder.get_parameter(name)
            parameter.copy_(add_factors(parameter, down_RN, up_MR))


def collect_factors(changes: LoraChanges) -> dict[str, Tensor]:
    """Return the factors of all changes as tensors to save."""
    return {
        key: tensor for name, pair in changes.items() for key, tensor in name_factors(name, *pair).items()
    }


def find_target_layers(name: str, encoder: nn.Module, options: Lora) -> list[str]:
    """Return the names of the layers that get an adapter.

    `auto` means the linear layers and fused attentions of the blocks (attention and MLP), or the convolutions
    of an encoder that has none there.

    Raises:
        RecipeError: There is no such layer.
    """
    layers = {n: layer for n, layer in _iter_candidates(encoder) if not (options.head and _in_head(n))}
    if options.targets == "auto":
        targets = _find_auto_targets(encoder, layers)
        if not targets:
            raise RecipeError(f"the encoder of '{name}' has no layers that LoRA can adapt; train it whole")
        return targets
    matches = {target: [n for n in layers if f".{n}".endswith(f".{target}")] for target in options.targets}
    absent = [target for target, names in matches.items() if not names]
    if absent:
        known = dict.fromkeys(_last_name(n) for n in layers)
        raise RecipeError(
            f"the encoder of '{name}' has no layer {absent[0]!r} that LoRA can adapt; "
            f"it has {_list_some(list(known)) or 'none: train it whole'}"
        )
    chosen = {n for names in matches.values() for n in names}
    return [n for n in layers if n in chosen]


def _find_auto_targets(encoder: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    blocks = tuple(f"{block}." for block in find_blocks(encoder))
    body = {n: layer for n, layer in layers.items() if not _in_head(n)}
    inside = {n: layer for n, layer in body.items() if not blocks or f"{n}.".startswith(blocks)}
    for layers_of in (inside, body):
        for kind in ((nn.Linear, nn.MultiheadAttention), nn.Conv2d):
            names = [n for n, layer in layers_of.items() if isinstance(layer, kind)]
            if names:
                return names
    return []


def _iter_candidates(encoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers whose weight can take a low-rank change, in order."""
    inside: list[str] = []
    for name, module in encoder.named_modules():
        if name and not name.startswith(tuple(inside)) and _is_plain(module):
            yield name, module
        if isinstance(module, nn.MultiheadAttention):
            inside.append(f"{name}.")  # it reads the weight of its projection, and never calls it


def _is_plain(module: nn.Module) -> bool:
    """Return whether a layer uses its weight as torch does; otherwise no adapter can be merged into it."""
    kind = next((kind for kind in _LAYERS if isinstance(module, kind)), None)
    if kind is None or type(module).forward is not kind.forward or is_parametrized(module):
        return False
    if isinstance(module, nn.MultiheadAttention):
        return module._qkv_same_embed_dim  # pyright: ignore[reportPrivateUsage]
    if isinstance(module, nn.Conv2d):
        # peft's adapters know neither groups nor dilation.
        return module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
    return True


def _in_head(name: str) -> bool:
    return f"{name}.".startswith("head.")


def _last_name(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _list_some(names: list[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


def _import_peft() -> Any:
    hide_broken_torchaudio()  # peft imports transformers, which fails on a broken torchaudio
    try:
        import peft
    except ImportError as error:
        raise PluginError(f"LoRA needs peft ({error}): {INSTALL['peft']}") from error
    return peft
