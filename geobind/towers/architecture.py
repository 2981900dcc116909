"""Architectures that a recipe or a bundle's card hands on to a library: plain values of bounded size.

Libraries take more than numbers: names of hubs, of folders, of code. None of these gets through.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# Libraries raise these for options that do not fit each other.
BUILD_ERRORS = (
    TypeError,
    ValueError,
    AssertionError,
    RuntimeError,
    LookupError,
    ArithmeticError,
    AttributeError,
)
_MAX_NUMBER = 1_000_000  # a vocabulary is the largest thing that an architecture counts
_MAX_ITEMS = 64
_MAX_DEPTH = 4
_WORD = re.compile(r"[\w.+-]{0,64}")  # no name of a hub, no path, no address


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Check that a value is None, a bool, a number up to a million, a word, or a list or mapping of such.

    Args:
        value: The value.
        where: Its name, for the message.
        depth: How many lists and mappings it is in.

    Raises:
        ValueError: It is something else; the message names the place.
    """
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) > _MAX_NUMBER:
            raise ValueError(f"{where}: must be a finite number up to {_MAX_NUMBER:,}")
    elif isinstance(value, str):
        if not _WORD.fullmatch(value):
            raise ValueError(
                f"{where}: {value[:40]!r} is not a plain word; a path, an address or the name of a hub is "
                "not taken here"
            )
    elif isinstance(value, list | tuple | dict):
        items = cast("dict[Any, Any] | list[Any]", value)
        if len(items) > _MAX_ITEMS or depth == _MAX_DEPTH:
            raise ValueError(f"{where}: holds too much; at most {_MAX_ITEMS} values, {_MAX_DEPTH} deep")
        for key, item in items.items() if isinstance(items, dict) else enumerate(items):
            if not isinstance(key, str | int) or not _WORD.fullmatch(str(key)):
                raise ValueError(f"{where}: {str(key)[:40]!r} is not the name of an option")
            check_plain(item, f"{where}.{key}", depth + 1)
    else:
        raise ValueError(f"{where}: must be a number, a word, or a list or mapping of such")


Count = Annotated[int, Field(strict=True, ge=1, le=1000)]
Size = Annotated[int, Field(strict=True, ge=1, le=65_536)]
Sides = Size | Annotated[list[Size], Field(min_length=2, max_length=2)]
Factor = Annotated[float, Field(gt=0, le=64, allow_inf_nan=False)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Switch = Annotated[bool, Field(strict=True)]


class _Section(BaseModel):
    """One tower in an open_clip config; what it does not name is open_clip's to check."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    width: Size = 512
    mlp_ratio: Factor = 4.0
    ls_init_value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    # Layers keep these as they are, and would complain of them when they compute.
    act_kwargs: dict[str, Switch | Number | Literal["none", "tanh"]] | None = None
    norm_kwargs: dict[str, Switch | Number] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        for key, value in cast("dict[Any, Any]", data).items() if isinstance(data, dict) else ():
            check_plain(value, str(key)[:40])
        return data


class VisionSection(_Section):
    """The `vision_cfg` of an open_clip config."""

    layers: Count | Annotated[list[Count], Field(min_length=4, max_length=4)] = 12
    head_width: Size = 64
    patch_size: Sides | None = 16
    image_size: Sides = 224
    attn_pooler_queries: Size = 256
    attn_pooler_heads: Size = 8
    patch_dropout: float = Field(default=0, ge=0, lt=1)
    timm_model_name: str | None = None
    timm_model_pretrained: Switch = False


class TextSection(_Section):
    """The `text_cfg` of an open_clip config whose tokens are CLIP's own."""

    context_length: int = Field(default=77, strict=True, ge=3, le=8192)
    vocab_size: int = Field(default=49_408, strict=True, ge=1, le=_MAX_NUMBER)
    heads: Count = 8
    layers: Count = 12
    tokenizer_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _known_cleaning(self) -> TextSection:
        clean = (self.tokenizer_kwargs or {}).get("clean", "lower")
        if clean not in ("lower", "whitespace", "canonicalize"):
            raise ValueError("tokenizer_kwargs.clean must be lower, whitespace or canonicalize")
        return self


class _Whole(BaseModel):
    """The keys of an open_clip config that concern both towers."""

    model_config = ConfigDict(extra="allow", frozen=True)

    embed_dim: Size
    quick_gelu: Switch = False


_SECTIONS: dict[str, type[BaseModel]] = {"": _Whole, "vision_cfg": VisionSection, "text_cfg": TextSection}


def check_config(config: dict[str, Any], section: Literal["", "vision_cfg", "text_cfg"]) -> None:
    """Check an open_clip config, or one of its towers.

    Args:
        config: The values.
        section: Which part of the config they are; empty for the whole, without its towers.

    Raises:
        ValueError: A value is of another type, out of range, or names something to fetch or to read.
    """
    try:
        _SECTIONS[section].model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""  # what follows names branches of the type
        where = ".".join(filter(None, ("clip.model", section, name)))
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def check_clip_config(config: dict[str, Any]) -> None:
    """Check an open_clip config with its towers, as far as this can be done before one of them is chosen.

    A text tower that needs files of a hub may stand beside an image tower; it is refused where it is built.

    Raises:
        ValueError: A value is of another type, out of range, or names something to fetch or to read.
    """
    check_config({key: value for key, value in config.items() if key not in _TOWERS}, "")
    for section in _TOWERS:
        tower = config.get(section)
        if isinstance(tower, dict) and not _HUB_TEXT & tower.keys():
            check_config(cast("dict[str, Any]", tower), section)


_TOWERS: tuple[Literal["vision_cfg", "text_cfg"], ...] = ("vision_cfg", "text_cfg")
_HUB_TEXT = {"hf_model_name", "hf_tokenizer_name"}


_OF_THE_TOWER = frozenset(
    {"pretrained", "in_chans", "num_classes", "checkpoint_path", "cache_dir", "pretrained_cfg"}
)
# They change what comes out, or where weights come from.
_OF_TIMM = frozenset(
    {"pretrained_cfg_overlay", "pretrained_strict", "features_only", "feature_cfg", "out_indices",
     "scriptable", "exportable", "no_jit", "state_dict"}
)  # fmt: skip


def check_timm_options(options: dict[str, Any]) -> None:
    """Check further arguments of `timm.create_model`.

    Raises:
        ValueError: The tower sets one itself, or cannot use it, or it is no plain value.
    """
    if taken := sorted(_OF_THE_TOWER & options.keys()):
        raise ValueError(f"options cannot hold {', '.join(taken)}: the tower sets it")
    if taken := sorted(_OF_TIMM & options.keys()):
        raise ValueError(
            f"options cannot hold {', '.join(taken)}: the tower needs a backbone's features alone"
        )
    check_plain(options, "options")
    size = options.get("img_size", 224)
    if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 4096:
        raise ValueError("options.img_size must be the pixels of a side, from 8 to 4096")


# Fields of transformers.ClapAudioConfig itself; those of its base name implementations to fetch.
_OF_HTSAT = frozenset(
    {"window_size", "num_mel_bins", "spec_size", "hidden_act", "patch_size", "patch_stride", "num_classes",
     "hidden_size", "projection_dim", "depths", "num_attention_heads", "hidden_dropout_prob", "fusion_type",
     "patch_embed_input_channels", "flatten_patch_embeds", "patch_embeds_hidden_size",
     "enable_patch_layer_norm", "drop_path_rate", "attention_probs_dropout_prob", "qkv_bias", "mlp_ratio",
     "aff_block_r", "num_hidden_layers", "projection_hidden_act", "layer_norm_eps", "initializer_factor"}
)  # fmt: skip


def check_htsat_config(config: dict[str, Any]) -> None:
    """Check arguments of `transformers.ClapAudioConfig`.

    Raises:
        ValueError: It has no such field, or a value is no plain one.
    """
    if "enable_fusion" in config:
        raise ValueError("config cannot hold enable_fusion: write fused: true")
    if unknown := sorted(map(str, config.keys() - _OF_HTSAT)):
        raise ValueError(f"config: HTSAT has no {', '.join(unknown)[:80]}")
    check_plain(config, "config")
