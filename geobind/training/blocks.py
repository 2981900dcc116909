"""Layer depths of an encoder's parameters: stem, blocks, and what follows the blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

from torch import nn

from geobind.errors import RecipeError

# Where a weight is used is not where it is registered: CLIP's projections are parameters of the whole tower,
# and HTSAT's norm of its input is the last of its layers.
_AFTER = re.compile(r"^head\.|(^|\.)(text_)?proj(ection)?$")
_STEM = re.compile(r"(^|\.)audio_encoder\.batch_norm\.")


class LayerDepths(NamedTuple):
    """Depth of every parameter: 0 in the stem, 1 to `blocks` in a block, `blocks` + 1 after them."""

    layers: Mapping[str, int]
    blocks: int


def find_depths(name: str, encoder: nn.Module) -> LayerDepths:
    """Return the depth of each parameter of an encoder.

    A timm model knows its layers. In any other, the blocks are the innermost numbered modules with several
    children (transformer blocks, residual blocks), or, if there are none, the single layers.

    Args:
        name: The encoder's modality, for the message.
        encoder: The encoder.

    Raises:
        RecipeError: It has no blocks.
    """
    depths = _find_depths_by_timm(encoder) or _find_depths_by_structure(encoder)
    if depths is None:
        raise RecipeError(f"the encoder of '{name}' has no blocks or layers; train it whole")
    return depths


def iter_last_parameters(name: str, encoder: nn.Module, blocks: int) -> Iterator[nn.Parameter]:
    """Yield the parameters of the last blocks and of everything after them.

    Raises:
        RecipeError: The encoder has no blocks, or fewer.
    """
    depths = find_depths(name, encoder)
    if blocks > depths.blocks:
        raise RecipeError(
            f"the encoder of '{name}' has {depths.blocks} blocks, not {blocks}; choose fewer, or all"
        )
    for parameter_name, parameter in encoder.named_parameters():
        if depths.layers[parameter_name] > depths.blocks - blocks:
            yield parameter


def compute_lr_scales(name: str, encoder: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Return each parameter's factor on the learning rate: 1 after the blocks, times `decay` per layer down.

    BEiT's layer-wise decay (arXiv:2106.08254): decay ** (blocks + 1 - depth).

    Raises:
        RecipeError: The encoder has no blocks.
    """
    depths = find_depths(name, encoder)
    return {p: decay ** (depths.blocks + 1 - depths.layers[n]) for n, p in encoder.named_parameters()}


def find_blocks(encoder: nn.Module) -> list[str]:
    """Return the blocks of an encoder in order: its innermost numbered modules with several children."""
    names = [
        name
        for name, module in encoder.named_modules()
        if name.rpartition(".")[2].isdigit()
        and any(True for _ in module.children())
        and any(True for _ in module.parameters())
        and not _AFTER.search(f"{name}.")
    ]
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def _find_depths_by_timm(encoder: nn.Module) -> LayerDepths | None:
    """Return the depths that a timm model defines by its layer patterns, None for other encoders."""
    models = ((n, m) for n, m in encoder.named_modules() if callable(getattr(m, "group_matcher", None)))
    prefix, model = next(models, ("", None))
    matcher: Any = cast(Any, model).group_matcher(coarse=False) if model is not None else None
    if not isinstance(matcher, dict):
        return None
    from timm.models import group_parameters

    groups = cast("dict[str, int]", group_parameters(cast(nn.Module, model), matcher, reverse=True))
    specs = cast("dict[str, Any]", matcher)
    stem = {n for n in groups if _matches(specs.get("stem"), n)}
    loose = {n for n in groups if not any(_matches(spec, n) for spec in specs.values())}
    numbers = sorted({group for n, group in groups.items() if n not in stem | loose})
    if not numbers:
        return None
    inside = {n: numbers.index(group) + 1 for n, group in groups.items() if n not in stem | loose}
    inside |= dict.fromkeys(stem, 0) | dict.fromkeys(loose, len(numbers) + 1)
    own = f"{prefix}." if prefix else ""
    layers: dict[str, int] = {}
    outside = 0
    for n, _ in encoder.named_parameters():
        if n.startswith(own):
            layers[n], outside = inside[n.removeprefix(own)], len(numbers) + 1
        else:
            layers[n] = outside
    return LayerDepths(layers, len(numbers))


def _matches(spec: Any, name: str) -> bool:
    """Return whether timm's specification of a layer matches a parameter's name."""
    patterns: list[Any] = [] if spec is None else [spec] if isinstance(spec, str) else [s[0] for s in spec]
    return any(re.match(pattern, name) for pattern in patterns)


def _find_depths_by_structure(encoder: nn.Module) -> LayerDepths | None:
    """Return the depths by the order in which modules were registered, None without layers."""
    blocks = find_blocks(encoder) or list(_iter_single_layers(encoder))
    if not blocks:
        return None
    number = {f"{block}.": place for place, block in enumerate(blocks, start=1)}
    own_block = {n: _block_number(n, number) for n, _ in encoder.named_parameters()}
    layers: dict[str, int] = {}
    last = max((place for place, n in enumerate(own_block) if own_block[n]), default=-1)
    at = 0
    for place, (n, block) in enumerate(own_block.items()):
        at = block or at
        if _AFTER.search(n) or (place > last and not _STEM.search(n)):
            layers[n] = len(blocks) + 1
        else:
            layers[n] = 0 if _STEM.search(n) else at
    return LayerDepths(layers, len(blocks))


def _block_number(name: str, blocks: Mapping[str, int]) -> int:
    return next((number for block, number in blocks.items() if name.startswith(block)), 0)


def _iter_single_layers(encoder: nn.Module) -> Iterator[str]:
    for name, module in encoder.named_modules():
        weight = getattr(module, "weight", None)
        if name and isinstance(weight, nn.Parameter) and weight.ndim > 1 and not _AFTER.search(f"{name}."):
            yield name
