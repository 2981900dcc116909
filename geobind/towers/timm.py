"""Backbones from timm, without their classifier."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import timm
from timm.models import adapt_input_conv
from torch import Tensor, nn

from geobind.errors import RecipeError, did_you_mean
from geobind.hub import hub_or_cache, missing_weights_error
from geobind.pretrained import locate_packaged
from geobind.towers.architecture import BUILD_ERRORS
from geobind.towers.options import TimmOptions
from geobind.towers.weights import load_strictly, read_weights


def backbone_config(options: TimmOptions) -> Any:
    """Return timm's record of a model: input size, mean, std, interpolation.

    Raises:
        RecipeError: timm has no such model.
    """
    architecture = options.model.split(".")[0]
    config = (
        timm.get_pretrained_cfg(options.model, allow_unregistered=False)
        if timm.is_model(architecture)
        else None
    )
    if config is None:
        known = timm.list_models() + timm.list_pretrained()
        hint = did_you_mean(options.model, known, "see timm.list_models()")
        raise RecipeError(f"timm has no model '{options.model}'; {hint}")
    return config


def backbone(
    options: TimmOptions, *, channels: int, size: int | tuple[int, int] | None, pretrained: bool
) -> nn.Module:
    """Build a backbone that maps (B, channels, H, W) to (B, features).

    Args:
        options: Which model, and its weights.
        channels: Bands of an image; weights for three are repeated and scaled to fit (timm's rule).
        size: Pixels a side, or height and width, for models that must know; None keeps the model's own.
        pretrained: False builds it with random weights, without the network.

    Raises:
        RecipeError: timm cannot build it.
        CheckpointError: The weights cannot be had, or are another model's.
    """
    config = backbone_config(options)
    extra = dict(options.options)
    if size is not None and config.fixed_input_size:
        extra.setdefault("img_size", size)
    weights = options.pretrained if pretrained else False
    try:
        with hub_or_cache() if weights is True else nullcontext():
            model = timm.create_model(
                options.model, pretrained=weights is True, in_chans=channels, num_classes=0, **extra
            )
    except OSError as error:  # what the hub raises without a network
        raise missing_weights_error(f"timm's weights of {options.model}", error) from error
    except BUILD_ERRORS as error:
        raise RecipeError(
            f"timm cannot build {options.model} with {extra or 'its defaults'}: {error}"
        ) from error
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if size is not None and config.fixed_input_size and patch and not extra.get("dynamic_img_pad"):
        sides = (size, size) if isinstance(size, int) else size
        if any(side % step for side, step in zip(sides, patch, strict=True)):
            raise RecipeError(
                f"{options.model} cuts patches of {patch}, which do not divide its input of {sides}"
            )
    if isinstance(weights, str):
        _load_file(model, config, channels, weights)
    return model


def count_features(model: nn.Module) -> int:
    """Return how many numbers a backbone gives; some widen them after what timm calls its features."""
    return int(getattr(model, "head_hidden_size", None) or model.num_features)  # pyright: ignore[reportArgumentType]


def _load_file(model: nn.Module, config: Any, channels: int, source: str) -> None:
    classifiers = (config.classifier,) if isinstance(config.classifier, str) else config.classifier or ()
    dropped = tuple(f"{name}." for name in classifiers)
    held = read_weights(locate_packaged(source) or source)
    tensors: dict[str, Tensor] = {
        key: value for key, value in held.items() if not (dropped and key.startswith(dropped))
    }
    stems = (config.first_conv,) if isinstance(config.first_conv, str) else config.first_conv or ()
    for key in (f"{stem}.weight" for stem in stems):
        weight = tensors.get(key)
        if weight is not None and weight.ndim == 4 and weight.shape[1] != channels:
            tensors[key] = adapt_input_conv(channels, weight)
    load_strictly(model, tensors, source)
