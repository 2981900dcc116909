"""CLIP towers: images, text, and weights in several layouts."""

# B batch, L tokens of the longest text in the batch, D shared width

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import open_clip
import torch
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from torch import Tensor, nn

from geobind.data.readers.text import limit_text, read_text
from geobind.errors import CheckpointError, DataError, RecipeError, did_you_mean
from geobind.hub import hub_or_cache, missing_weights_error
from geobind.towers.architecture import BUILD_ERRORS, check_config
from geobind.towers.mel import hide_broken_torchaudio
from geobind.towers.options import ClipOptions, HeadKind
from geobind.towers.tower import Tower, make_head
from geobind.towers.weights import find_weights_file, load_strictly, read_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


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
    tensors_of_file = read_weights(file)
    tower_tensors = {key: value for key, value in tensors_of_file.items() if key.startswith(prefix)}
    own = from_transformers(tower_tensors, part, str(file))
    if own is not None:
        _check_config(file, part, options, config)
    else:
        bare = {key.removeprefix(prefix): value for key, value in tower_tensors.items()}
        theirs: dict[str, Tensor] = convert_to_custom_text_state_dict(bare)
        own = {key.removeprefix(f"{part}."): theirs[key] for key in theirs if key.startswith(f"{part}.")}
    if not own:
        behind = f" behind '{prefix}'" if prefix else ""
        raise CheckpointError(
            f"{file}: no {part} tower of a CLIP in it{behind}; its keys begin with "
            f"{_key_prefixes(tensors_of_file)}; what fits is open_clip's '{part}.', or "
            f"transformers' '{_BODIES[part][0]}', "
            "also behind another name"
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


def _check_config(file: Path, part: Part, options: ClipOptions, config: Mapping[str, Any]) -> None:
    """Compare the model with transformers' config.json beside the weights.

    Activation and heads leave no trace in the weights: with the wrong ones they load, and mean nothing.
    """
    path = (file if file.is_dir() else file.parent) / "config.json"
    try:
        whole: Any = json.loads(path.read_text(encoding="utf-8"))
        config_of_part: Any = whole.get("vision_config" if part == "visual" else "text_config") or whole
        activation, theirs = config_of_part.get("hidden_act"), config_of_part.get("num_attention_heads")
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


def _key_prefixes(tensors: Mapping[str, Tensor]) -> str:
    prefixes = list(dict.fromkeys(".".join(key.split(".")[:2]) for key in tensors))
    more = f" and {len(prefixes) - _SHOWN} more" if len(prefixes) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in prefixes[:_SHOWN]) + more


# open_clip builds both towers: the one that is thrown away is made as small as it goes.
_NO_TEXT = {"context_length": 4, "vocab_size": 4, "width": 4, "heads": 1, "layers": 1}
_NO_VISION = {"image_size": 4, "patch_size": 4, "width": 4, "head_width": 4, "layers": 1}
_BPE_SIZE = 49_408  # entries of the vocabulary that open_clip carries


class Preparation(NamedTuple):
    """The image preparation that a CLIP expects."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    squash: bool  # the whole image is distorted to a square, instead of cropped to one


def read_architecture(options: ClipOptions) -> dict[str, Any]:
    """Return the architecture as open_clip's JSON spells it.

    Raises:
        RecipeError: open_clip has no such model, or it is not a plain two-tower CLIP of sane values.
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
            f"'{describe_clip(options)}' is a CoCa; its towers give tokens beside the embedding: "
            "choose a CLIP"
        )
    _check(config, "")
    return config


def describe_clip(options: ClipOptions) -> str:
    """Return the name of this CLIP in messages."""
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
    if isinstance(weights, str) and find_tag(options):
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
    config = read_architecture(options)
    section = config if options.projection else _section(config, "vision_cfg", options)
    return int(section["embed_dim"] if options.projection else section.get("width", 768))


def build_preparation(options: ClipOptions) -> Preparation:
    """Return the image preparation of this CLIP: CLIP's own, unless the weights' tag states another."""
    vision = _section(read_architecture(options), "vision_cfg", options)
    size = vision.get("image_size", 224)
    tag: dict[str, Any] = find_tag(options)
    return Preparation(
        size=max(size) if isinstance(size, list | tuple) else int(size),
        mean=tuple(tag.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        std=tuple(tag.get("std", open_clip.OPENAI_DATASET_STD)),
        interpolation=tag.get("interpolation", "bicubic"),
        squash=tag.get("resize_mode", "shortest") == "squash",
    )


def build_tokenizer(options: ClipOptions) -> tuple[Callable[[str], NDArray[np.uint16]], int]:
    """Return the function from a text to its tokens, without start and end, and the context length.

    Raises:
        RecipeError: The model's tokenizer is not the one open_clip carries.
    """
    key = options.model if isinstance(options.model, str) else json.dumps(options.model, default=repr)
    if key not in _tokenizers:  # a text is looked at for less time than the architecture
        config = _section(read_architecture(options), "text_cfg", options)
        if config.get("vocab_size", _BPE_SIZE) < _BPE_SIZE:
            raise RecipeError(
                f"text_cfg.vocab_size must be at least {_BPE_SIZE}, the size of CLIP's vocabulary"
            )
        if len(_tokenizers) >= _TOKENIZERS_KEPT:
            _tokenizers.clear()
        # Its other setting, reduction_mask, drops words at random: not for a pure function.
        clean = (config.get("tokenizer_kwargs") or {}).get("clean", "lower")
        _tokenizers[key] = clean, int(config.get("context_length", 77))
    clean, length = _tokenizers[key]
    return _bpe(clean), length


_tokenizers: dict[str, tuple[str, int]] = {}  # by model: how texts are cleaned, and the context length
_TOKENIZERS_KEPT = 8


def find_tag(options: ClipOptions) -> dict[str, Any]:
    """Return open_clip's record of the weights' tag; empty for a file or random weights.

    Raises:
        RecipeError: The tag's weights were trained with the other of GELU and QuickGELU.
    """
    if not (isinstance(options.model, str) and isinstance(options.pretrained, str)):
        return {}
    tag: dict[str, Any] = open_clip.get_pretrained_cfg(options.model, options.pretrained)
    quick = bool(read_architecture(options).get("quick_gelu", False))
    if tag and bool(tag.get("quick_gelu", False)) != quick:
        base = options.model.removesuffix("-quickgelu")
        raise RecipeError(
            f"the weights '{options.pretrained}' were trained {'without' if quick else 'with'} QuickGELU: "
            f"write model: {base if quick else base + '-quickgelu'}"
        )
    return tag


def _both_towers(options: ClipOptions, part: Part, size: int | None) -> nn.Module:
    config = read_architecture(options)
    vision = _section(config, "vision_cfg", options) if part == "visual" else _NO_VISION
    text = _section(config, "text_cfg", options) if part == "text" else _NO_TEXT
    if part == "text":
        build_tokenizer(options)
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
    except BUILD_ERRORS as error:
        raise RecipeError(f"open_clip cannot build {describe_clip(options)}: {error}") from error


def _from_tag(options: ClipOptions, part: Part, size: int | None) -> nn.Module:
    hide_broken_torchaudio()  # the text tower may come from transformers, which dies of it
    try:
        with hub_or_cache():
            # First by itself: within create_model its failure is logged as well as raised.
            open_clip.download_pretrained(find_tag(options))
            model = open_clip.create_model(
                str(options.model),
                pretrained=str(options.pretrained),
                force_custom_text=True,
                force_image_size=size if part == "visual" else None,
            )
    except (RuntimeError, OSError) as error:
        raise missing_weights_error(
            f"the weights '{options.pretrained}' of {options.model}", error
        ) from error
    return getattr(model, part)


def _projected(tower: nn.Module, options: ClipOptions) -> nn.Module:
    """Remove the projection of a tower if the options ask for it."""
    if not options.projection:
        if not isinstance(getattr(tower, "proj", None), torch.nn.Parameter):
            raise RecipeError(
                "clip.projection: false needs the image tower of a vision transformer, which "
                f"{describe_clip(options)} has not here; leave it out"
            )
        tower.register_parameter("proj", None)
    return tower


def _load_file(model: nn.Module, part: Part, options: ClipOptions, source: str) -> None:
    file = find_weights_file(source)
    if file is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(describe_clip(options))) or "none"
        raise CheckpointError(
            f"'{source}' is neither a file nor a tag of {describe_clip(options)}; its tags: {tags}"
        )
    load_clip(model, part, options, read_architecture(options), file)


def _section(
    config: dict[str, Any], section: Literal["vision_cfg", "text_cfg"], options: ClipOptions
) -> dict[str, Any]:
    values = config.get(section)
    if not isinstance(values, dict):
        raise RecipeError(f"{describe_clip(options)} has no {section}; this modality needs it")
    if section == "text_cfg" and (values.get("hf_tokenizer_name") or values.get("hf_model_name")):
        raise RecipeError(
            f"the text tower of {describe_clip(options)} needs files from a hub; "
            "choose one with CLIP's own tokens"
        )
    _check(values, section)
    return values


def _check(config: dict[str, Any], section: Literal["", "vision_cfg", "text_cfg"]) -> None:
    try:
        check_config(config, section)
    except ValueError as error:
        raise RecipeError(str(error)) from None


_WORDS_KEPT = 20_000
_TEXTS_KEPT, _SHORT = 30_000, 500  # texts whose tokens are kept, and their longest length
_MARKS_OF_TEXT = ("<start_of_text>", "<end_of_text>")  # never split into pieces


@lru_cache(maxsize=4)
def _bpe(clean: str) -> Callable[[str], NDArray[np.uint16]]:
    tokenizer: Any = open_clip.SimpleTokenizer(clean=clean)

    def encode(text: str) -> NDArray[np.uint16]:
        if len(tokenizer.cache) > _WORDS_KEPT:  # it keeps every word it ever saw
            tokenizer.cache = {mark: mark for mark in _MARKS_OF_TEXT}
        # The last two of the vocabulary mark start and end: a text that spells one must not end itself.
        return np.array([token for token in tokenizer.encode(text) if token < _BPE_SIZE - 2], dtype=np.uint16)

    # A text comes again every epoch, and its tokens take a tenth of a millisecond and a hundred bytes.
    known = lru_cache(maxsize=_TEXTS_KEPT)(encode)
    return lambda text: (known if len(text) <= _SHORT else encode)(text)


_START, _END = 49_406, 49_407  # of CLIP's vocabulary
_STEP = 8  # token counts are rounded up to this, so that a GPU meets few shapes


def text_encoder(
    options: ClipOptions, width: int, *, head: HeadKind, pretrained: bool, new_head: bool = True
) -> Tower:
    """Build the text tower of a CLIP, with a head where the widths differ; as `image_encoder`."""
    trunk = TextTrunk(clip_tower(options, "text", pretrained=pretrained))
    features = int(read_architecture(options)["embed_dim"])
    new = new_head or options.pretrained is False or not pretrained
    return Tower(trunk, make_head(head, features, width, what=describe_clip(options), new_allowed=new))


def prepare_text(raw: Any, options: ClipOptions) -> Tensor:
    """Turn a text into (context length,) token ids: start, words, end, then zeros.

    A text that is too long loses its last words, never the end mark: CLIP reads its embedding there.

    Raises:
        DataError: There is no text, or none that the tokenizer keeps.
    """
    encode, length = build_tokenizer(options)
    text = read_text(raw)
    words = encode(limit_text(text, length))[: length - 2]
    if not len(words):
        raise DataError(f"the text {text[:40]!r} has no words that CLIP's tokenizer knows; leave the row out")
    token_L = np.zeros(length, dtype=np.int64)
    token_L[0], token_L[1 : len(words) + 1], token_L[len(words) + 1] = _START, words, _END
    return torch.from_numpy(token_L)


class TextTrunk(nn.Module):
    """open_clip's text tower, which does not compute the padding behind the longest text of a batch."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        # Cutting is exact only where no token looks ahead and the embedding is read at the end mark.
        self.cuts = tower.pool_type == "argmax" and tower.attn_mask is not None and tower.cls_emb is None

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode (B, context length) tokens to (B, features)."""
        if not self.cuts or torch.compiler.is_exporting():  # a graph's lengths cannot depend on values
            return self.tower(tokens)
        ends_B = tokens.argmax(dim=-1)
        length = min(-(-(int(ends_B.max()) + 1) // _STEP) * _STEP, tokens.shape[1])
        tower = self.tower
        dtype = tower.transformer.get_cast_dtype()
        x_BLF = tower.token_embedding(tokens[:, :length]).to(dtype) + tower.positional_embedding[:length].to(
            dtype
        )
        x_BLF = tower.ln_final(tower.transformer(x_BLF, attn_mask=tower.attn_mask[:length, :length]))
        x_BF = x_BLF[torch.arange(len(tokens), device=tokens.device), ends_B]
        projection = tower.text_projection
        if projection is None:
            return x_BF
        return projection(x_BF) if isinstance(projection, nn.Module) else x_BF @ projection
