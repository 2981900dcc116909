"""The two towers of a CLIP, one at a time, from open_clip."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import open_clip
import torch

from geobind.errors import CheckpointError, RecipeError, did_you_mean
from geobind.hub import hub_or_cache, no_weights
from geobind.towers.converting import Part, load_clip
from geobind.towers.mel import hide_broken_torchaudio
from geobind.towers.options import ClipOptions
from geobind.towers.weights import file_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

# open_clip builds both towers: the one that is thrown away is made as small as it goes.
_NO_TEXT = {"context_length": 4, "vocab_size": 4, "width": 4, "heads": 1, "layers": 1}
_NO_VISION = {"image_size": 4, "patch_size": 4, "width": 4, "head_width": 4, "layers": 1}
_BPE_SIZE = 49_408  # entries of the vocabulary that open_clip carries


class Preparation(NamedTuple):
    """How a CLIP wants its images."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    squash: bool  # the whole image is distorted to a square, instead of cropped to one


def config_of(options: ClipOptions) -> dict[str, Any]:
    """Return the architecture as open_clip's JSON spells it.

    Raises:
        RecipeError: open_clip has no such model, or it is not a plain two-tower CLIP.
    """
    if isinstance(options.model, dict):
        config: dict[str, Any] | None = copy.deepcopy(options.model)
    elif ":" in options.model:
        raise RecipeError(f"clip.model '{options.model}': fetch its open_clip_config.json and name that file")
    else:
        config = open_clip.get_model_config(options.model)
    if config is None:
        hint = did_you_mean(str(options.model), open_clip.list_models(), "see open_clip.list_models()")
        raise RecipeError(f"open_clip has no model '{options.model}'; {hint}")
    if "multimodal_cfg" in config:
        raise RecipeError(
            f"'{name_of(options)}' is a CoCa; its towers give tokens beside the embedding: choose a CLIP"
        )
    return config


def name_of(options: ClipOptions) -> str:
    """Return what messages call this CLIP."""
    return options.model if isinstance(options.model, str) else "the CLIP of this config"


def clip_tower(options: ClipOptions, part: Part, *, pretrained: bool, size: int | None = None) -> nn.Module:
    """Build the image or the text tower of a CLIP; it gives `clip_features(options)` numbers.

    Args:
        options: Which CLIP, and its weights.
        part: visual or text.
        pretrained: False builds the same tower with random weights, without the network.
        size: Pixels a side, where they are not the model's own; position embeddings are interpolated.

    Raises:
        RecipeError: The model, its config or its tag does not exist.
        CheckpointError: The weights cannot be had, or are another model's.
    """
    weights = options.pretrained if pretrained else False
    if isinstance(weights, str) and tag_of(options):
        return _projected(_from_tag(options, part, size), options)
    model = _both_towers(options, part, size)
    tower: Any = _projected(getattr(model, part), options)
    if isinstance(weights, str):
        _load_file(model, part, options, weights)
    if part == "visual" and size is not None and hasattr(tower, "set_input_size"):
        tower.set_input_size(size)
    return tower


def clip_features(options: ClipOptions) -> int:
    """Return how many numbers the image tower of this CLIP gives, before any head."""
    config = config_of(options)
    section = config if options.projection else _section(config, "vision_cfg", options)
    return int(section["embed_dim"] if options.projection else section.get("width", 768))


def preparation(options: ClipOptions) -> Preparation:
    """Tell how images are prepared for this CLIP: CLIP's own way, unless the weights' tag says otherwise."""
    vision = _section(config_of(options), "vision_cfg", options)
    size = vision.get("image_size", 224)
    told: dict[str, Any] = tag_of(options)
    return Preparation(
        size=max(size) if isinstance(size, list | tuple) else int(size),
        mean=tuple(told.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        std=tuple(told.get("std", open_clip.OPENAI_DATASET_STD)),
        interpolation=told.get("interpolation", "bicubic"),
        squash=told.get("resize_mode", "shortest") == "squash",
    )


def tokenizer_of(options: ClipOptions) -> tuple[Callable[[str], list[int]], int]:
    """Return the function from a text to its tokens, without start and end, and the context length.

    Raises:
        RecipeError: The model's tokenizer is not the one open_clip carries.
    """
    config = _section(config_of(options), "text_cfg", options)
    if config.get("hf_tokenizer_name") or config.get("hf_model_name"):
        raise RecipeError(
            f"the text tower of {name_of(options)} needs files from a hub; choose one with CLIP's own tokens"
        )
    if config.get("vocab_size", _BPE_SIZE) < _BPE_SIZE:
        raise RecipeError(f"text_cfg.vocab_size must be at least {_BPE_SIZE}, the size of CLIP's vocabulary")
    # Its other setting, reduction_mask, drops words at random: not for a pure function.
    clean = config.get("tokenizer_kwargs", {}).get("clean", "lower")
    return _bpe(clean), int(config.get("context_length", 77))


def tag_of(options: ClipOptions) -> dict[str, Any]:
    """Return what open_clip knows of the weights' tag; nothing where they are a file, or random.

    Raises:
        RecipeError: The tag's weights were trained with the other of GELU and QuickGELU.
    """
    if not (isinstance(options.model, str) and isinstance(options.pretrained, str)):
        return {}
    tag: dict[str, Any] = open_clip.get_pretrained_cfg(options.model, options.pretrained)
    quick = bool(config_of(options).get("quick_gelu", False))
    if tag and bool(tag.get("quick_gelu", False)) != quick:
        base = options.model.removesuffix("-quickgelu")
        raise RecipeError(
            f"the weights '{options.pretrained}' were trained {'without' if quick else 'with'} QuickGELU: "
            f"write model: {base if quick else base + '-quickgelu'}"
        )
    return tag


def _both_towers(options: ClipOptions, part: Part, size: int | None) -> nn.Module:
    config = config_of(options)
    vision = _section(config, "vision_cfg", options) if part == "visual" else _NO_VISION
    text = _section(config, "text_cfg", options) if part == "text" else _NO_TEXT
    if part == "text":
        tokenizer_of(options)
    vision = {**vision, "timm_model_pretrained": False} if "timm_model_name" in vision else dict(vision)
    if part == "visual" and size is not None:
        vision["image_size"] = size
    try:
        return open_clip.CustomTextCLIP(
            embed_dim=config["embed_dim"],
            vision_cfg=vision,  # pyright: ignore[reportArgumentType]  # a dict is turned into the dataclass
            text_cfg=dict(text),  # pyright: ignore[reportArgumentType]
            quick_gelu=config.get("quick_gelu", False),
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise RecipeError(f"open_clip cannot build {name_of(options)}: {error}") from error


def _from_tag(options: ClipOptions, part: Part, size: int | None) -> nn.Module:
    hide_broken_torchaudio()  # the text tower may come from transformers, which dies of it
    try:
        with hub_or_cache():
            # First by itself: within create_model its failure is logged as well as raised.
            open_clip.download_pretrained(tag_of(options))
            model = open_clip.create_model(
                str(options.model),
                pretrained=str(options.pretrained),
                force_custom_text=True,
                force_image_size=size if part == "visual" else None,
            )
    except (RuntimeError, OSError) as error:
        raise no_weights(f"the weights '{options.pretrained}' of {options.model}", error) from error
    return getattr(model, part)


def _projected(tower: nn.Module, options: ClipOptions) -> nn.Module:
    """Take the projection off a tower, if the options ask for it."""
    if not options.projection:
        if not isinstance(getattr(tower, "proj", None), torch.nn.Parameter):
            raise RecipeError(
                "clip.projection: false needs the image tower of a vision transformer, which "
                f"{name_of(options)} has not here; leave it out"
            )
        tower.register_parameter("proj", None)
    return tower


def _load_file(model: nn.Module, part: Part, options: ClipOptions, source: str) -> None:
    file = file_of(source)
    if file is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name_of(options))) or "none"
        raise CheckpointError(
            f"'{source}' is neither a file nor a tag of {name_of(options)}; its tags: {tags}"
        )
    load_clip(model, part, options, config_of(options), file)


def _section(config: dict[str, Any], section: str, options: ClipOptions) -> dict[str, Any]:
    values = config.get(section)
    if not isinstance(values, dict):
        raise RecipeError(f"{name_of(options)} has no {section}; this modality needs it")
    return values


@lru_cache(maxsize=4)
def _bpe(clean: str) -> Callable[[str], list[int]]:
    tokenizer: Any = open_clip.SimpleTokenizer(clean=clean)

    def encode(text: str) -> list[int]:
        # The last two of the vocabulary mark start and end: a text that spells one must not end itself.
        return [token for token in tokenizer.encode(text) if token < _BPE_SIZE - 2]

    return encode
