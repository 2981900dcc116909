"""Text encoders of transformers (BERT and its kin, such as MiniLM) with their own tokenizers.

The folder of a model is read once: its config and tokenizer are options, which a bundle carries with it.
"""

# B batch, L tokens of the longest text in the batch, F features

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geobind.data.readers.text import limit_text, read_text
from geobind.errors import CheckpointError, DataError, PluginError, RecipeError
from geobind.extras import INSTALL
from geobind.pretrained import locate_packaged
from geobind.towers.mel import hide_broken_torchaudio
from geobind.towers.options import HeadKind, TransformerOptions, unpack_tokenizer
from geobind.towers.tower import Tower, make_head
from geobind.towers.weights import load_strictly, read_weights, weight_files

_STEP = 8  # token counts are rounded up to this, so that a GPU meets few shapes
PAD = -1  # no token has this number
_NOT_OURS = ("pooler.", "cls.", "lm_head.", "classifier.", "qa_outputs.", "discriminator_predictions.")


def transformer_encoder(
    options: TransformerOptions, width: int, *, head: HeadKind, pretrained: bool, new_head: bool = True
) -> Tower:
    """Build a transformer that embeds texts, with a head where the widths differ.

    Raises:
        PluginError: transformers is not installed.
        RecipeError: The config cannot be built, or the head does not fit the width.
        CheckpointError: The folder has no safetensors weights, or another model's.
    """
    model = _build(options)
    pretrained = pretrained and options.pretrained
    if pretrained:
        _load(model, locate_packaged(options.folder) or Path(options.folder))
    trunk = TransformerTrunk(model, options.pooling)
    new = new_head or not pretrained
    what = f"the transformer of {Path(options.folder).name}"
    return Tower(trunk, make_head(head, int(model.config.hidden_size), width, what=what, new_allowed=new))


def prepare_tokens(raw: Any, options: TransformerOptions) -> Tensor:
    """Turn a text into (length,) numbers of tokens, -1 behind its end; a long text loses its last words.

    Raises:
        DataError: There is no text, or none that the tokenizer keeps.
    """
    text = read_text(raw)
    length = options.read_length
    try:
        encoded = _tokenizer(options.tokenizer, length).encode(limit_text(text, length))
    except DataError:
        raise
    except Exception as error:  # the library's errors have no class of their own
        raise DataError(f"the text {text[:40]!r} cannot be tokenised: {error}") from error
    ids = [
        token for token, special in zip(encoded.ids, encoded.special_tokens_mask, strict=True) if not special
    ]
    if not ids:
        raise DataError(f"the text {text[:40]!r} has no words that its tokenizer knows; leave the row out")
    vocabulary = int(options.config.get("vocab_size", 30_522))
    if max(encoded.ids) >= vocabulary:
        raise DataError(f"the tokenizer gives number {max(encoded.ids)}, the model has {vocabulary}")
    tokens = torch.full((length,), PAD, dtype=torch.long)
    tokens[: len(encoded.ids)] = torch.tensor(encoded.ids)
    return tokens


class TransformerTrunk(nn.Module):
    """A transformer whose embedding is the mean of its tokens', or the first one's."""

    def __init__(self, model: Any, pooling: str | None) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode (B, length) tokens, -1 behind the end of each text, to (B, F)."""
        known_BL = tokens != PAD
        longest = tokens.shape[1]
        if not torch.compiler.is_exporting():  # a graph's lengths cannot depend on values
            longest = min(-(-int(known_BL.sum(dim=1).max()) // _STEP) * _STEP, longest)
        known_BL = known_BL[:, :longest]
        pad = self.model.config.pad_token_id or 0  # RoBERTa counts positions from it
        ids_BL = tokens[:, :longest].masked_fill(~known_BL, pad)
        x_BLF = self.model(input_ids=ids_BL, attention_mask=known_BL.long()).last_hidden_state
        if self.pooling == "cls":
            return x_BLF[:, 0]
        weight_BL1 = known_BL[..., None].to(x_BLF.dtype)
        return (x_BLF * weight_BL1).sum(dim=1) / weight_BL1.sum(dim=1)


@lru_cache(maxsize=4)
def _tokenizer(packed: str, length: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise PluginError(f"this text encoder needs transformers: {INSTALL['transformers']}") from error
    try:
        tokenizer = Tokenizer.from_str(unpack_tokenizer(packed))
        tokenizer.no_padding()
        tokenizer.enable_truncation(length)
    except Exception as error:  # the library's errors have no class of their own
        raise DataError(f"the tokenizer of this text encoder cannot be read: {error}") from error
    return tokenizer


def _build(options: TransformerOptions) -> Any:
    hide_broken_torchaudio()  # transformers would die of a broken one
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise PluginError(
            f"this text encoder needs transformers ({error}): {INSTALL['transformers']}"
        ) from error
    try:
        model: Any = AutoModel.from_config(AutoConfig.for_model(**options.config), trust_remote_code=False)
    except Exception as error:  # transformers' strict configs raise classes of their own
        raise RecipeError(
            f"transformers cannot build the text encoder of {options.folder}: {error}"
        ) from error
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # its output is not read, so that no gradient would reach it
    return model.float()


def _load(model: Any, folder: Path) -> None:
    files = weight_files(folder)
    if any(file.suffix != ".safetensors" for file in files):
        raise CheckpointError(
            f"{folder}: its weights are no safetensors; write them again with model.save_pretrained(FOLDER)"
        )
    tensors = read_weights(folder)
    prefix = f"{model.base_model_prefix}."
    if any(key.startswith(prefix) for key in tensors):  # saved with a head for another task
        tensors = {
            key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
        }
    own = {
        key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
        for key, value in tensors.items()
        if not key.startswith(_NOT_OURS) and not key.endswith(("position_ids", "token_type_ids"))
    }
    load_strictly(model, own, str(folder))
