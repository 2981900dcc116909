"""Load one tower of a CLIP from a file, in the layout of open_clip or of transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from torch import Tensor, nn

from geobind.errors import CheckpointError
from geobind.towers.options import ClipOptions
from geobind.towers.weights import load_strictly, read_weights

Part = Literal["visual", "text"]

# What only one tower of transformers has, what it is called there, and where its projection lies beside it.
_MARKS = {"visual": "embeddings.class_embedding", "text": "embeddings.token_embedding.weight"}
_BODIES = {
    "visual": ("vision_model.", "visual_projection.weight"),
    "text": ("text_model.", "text_projection.weight"),
}
_PROJECTIONS = {"visual": "proj", "text": "text_projection"}
_NAMES = (
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^embeddings\.patch_embedding\.", "conv1."),
    (r"^embeddings\.", ""),  # class_embedding, token_embedding
    (r"^pre_layrnorm\.", "ln_pre."),
    (r"^post_layernorm\.", "ln_post."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_THIRD = re.compile(r"(.*\.attn\.)([qkv])_proj\.(weight|bias)")
_SHOWN = 6  # beginnings of keys listed in a message


def load_clip(
    model: nn.Module, part: Part, options: ClipOptions, config: Mapping[str, Any], file: Path
) -> None:
    """Load the weights of one tower into a model of open_clip.

    Args:
        model: What holds the tower, under the name of `part`.
        part: Which tower.
        options: Where in the file it lies, and whether its projection is wanted.
        config: The model's architecture, as open_clip spells it.
        file: The weights, or their folder.

    Raises:
        CheckpointError: The file holds no such tower, several, or another model's.
    """
    prefix = f"{options.prefix.removesuffix('.')}." if options.prefix else ""
    held = read_weights(file)
    given = {key: value for key, value in held.items() if key.startswith(prefix)}
    own = from_transformers(given, part, str(file))
    if own is not None:
        _check_told(file, part, options, config)
    else:
        bare = {key.removeprefix(prefix): value for key, value in given.items()}
        theirs: dict[str, Tensor] = convert_to_custom_text_state_dict(bare)
        own = {key.removeprefix(f"{part}."): theirs[key] for key in theirs if key.startswith(f"{part}.")}
    if not own:
        behind = f" behind '{prefix}'" if prefix else ""
        raise CheckpointError(
            f"{file}: no {part} tower of a CLIP in it{behind}; its keys begin with {_beginnings(held)}; what "
            f"fits is open_clip's '{part}.', or transformers' '{_BODIES[part][0]}', also behind another name"
        )
    tower, projection = getattr(model, part), _PROJECTIONS[part]
    if projection in tower.state_dict() and projection not in own:
        raise CheckpointError(
            f"{file}: its tower has no projection to the shared space, as transformers' CLIPVisionModel: "
            "write `projection: false` under `clip` and `head: linear` (or mlp), and train it"
        )
    if not options.projection:
        own.pop(projection, None)
    if part == "visual":
        resized = {f"{part}.{key}": value for key, value in own.items()}
        resize_pos_embed(resized, model)
        own = {key.removeprefix(f"{part}."): value for key, value in resized.items()}
    load_strictly(tower, own, str(file))


def from_transformers(tensors: Mapping[str, Tensor], part: Part, source: str) -> dict[str, Tensor] | None:
    """Rename one tower of transformers' CLIP, wherever in a checkpoint it lies, as open_clip calls it.

    `CLIPVisionModel` and `CLIPTextModel` have no projection, their `...WithProjection` and `CLIPModel` have;
    a Lightning module that holds one puts its own name before the keys.

    Returns:
        The tower's weights; None if the tensors are not transformers'.

    Raises:
        CheckpointError: There are several such towers.
    """
    mark = _MARKS[part]
    tops = sorted(key.removesuffix(mark) for key in tensors if key.endswith(mark))
    if not tops:
        return None
    body, projection = _BODIES[part]
    if len(tops) > 1:
        names = [top.removesuffix(body).removesuffix(".") or top for top in tops]
        raise CheckpointError(
            f"{source}: holds {len(tops)} such towers, {', '.join(names)}: name the one that is meant, such "
            f"as `prefix: {names[-1]}`, under `clip`"
        )
    (top,) = tops
    renamed, thirds = dict[str, Tensor](), dict[str, dict[str, Tensor]]()
    for key, value in tensors.items():
        name = key.removeprefix(top)
        if not key.startswith(top) or name in (projection, "embeddings.position_ids"):
            continue
        for pattern, ours in _NAMES:
            name = re.sub(pattern, ours, name)
        third = _THIRD.fullmatch(name)
        if third:  # open_clip keeps query, key and value as one
            thirds.setdefault(f"{third[1]}in_proj_{third[3]}", {})[third[2]] = value
        else:
            renamed[name] = value
    renamed |= {
        name: torch.cat([of[letter] for letter in "qkv"]) for name, of in thirds.items() if len(of) == 3
    }
    weight = tensors.get(top.removesuffix(body) + projection)
    if weight is not None:
        renamed[_PROJECTIONS[part]] = weight.T.contiguous()
    return renamed


def _check_told(file: Path, part: Part, options: ClipOptions, config: Mapping[str, Any]) -> None:
    """Compare the model with what transformers' config.json beside the weights says of theirs.

    Activation and heads leave no trace in the weights: with the wrong ones they load, and mean nothing.
    """
    path = (file if file.is_dir() else file.parent) / "config.json"
    try:
        whole: Any = json.loads(path.read_text(encoding="utf-8"))
        told: Any = whole.get("vision_config" if part == "visual" else "text_config") or whole
        activation, theirs = told.get("hidden_act"), told.get("num_attention_heads")
    except (OSError, ValueError, AttributeError):
        return
    quick = bool(config.get("quick_gelu", False))
    if activation in ("gelu", "quick_gelu") and (activation == "quick_gelu") != quick:
        fix = f"write quick_gelu: {str(not quick).lower()}"
        if isinstance(options.model, str):
            base = options.model.removesuffix("-quickgelu")
            fix = f"write model: {base if quick else base + '-quickgelu'}"
        raise CheckpointError(f"{path}: its weights were trained with {activation}: {fix}")
    section = config["vision_cfg" if part == "visual" else "text_cfg"]
    wide = section.get("width", 768) // section.get("head_width", 64)
    heads = wide if part == "visual" else section.get("heads", 8)
    if isinstance(theirs, int) and theirs != heads:
        raise CheckpointError(
            f"{path}: its tower has {theirs} attention heads, the model asked for has {heads}: choose its own"
        )


def _beginnings(tensors: Mapping[str, Tensor]) -> str:
    found = list(dict.fromkeys(".".join(key.split(".")[:2]) for key in tensors))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in found[:_SHOWN]) + more
