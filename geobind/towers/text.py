"""Texts to tokens, and the text tower of a CLIP."""

# B batch, L tokens of the longest text in the batch, D shared width
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from geobind.data.readers.text import read_text
from geobind.errors import DataError
from geobind.towers.clip import clip_tower, config_of, name_of, tokenizer_of
from geobind.towers.options import ClipOptions, HeadKind
from geobind.towers.tower import Tower, make_head

_START, _END = 49_406, 49_407  # of CLIP's vocabulary
_STEP = 8  # token counts are rounded up to this, so that a GPU meets few shapes


def text_encoder(
    options: ClipOptions, width: int, *, head: HeadKind, pretrained: bool, new_head: bool = True
) -> Tower:
    """Build the text tower of a CLIP, with a head where the widths differ; as `image_encoder`."""
    trunk = TextTrunk(clip_tower(options, "text", pretrained=pretrained))
    features = int(config_of(options)["embed_dim"])
    new = new_head or options.pretrained is False or not pretrained
    return Tower(trunk, make_head(head, features, width, what=name_of(options), new_allowed=new))


def prepare_text(raw: Any, options: ClipOptions) -> Tensor:
    """Turn a text into (context length,) token ids: start, words, end, then zeros.

    A text that is too long loses its last words, never the end mark: CLIP reads its embedding there.

    Raises:
        DataError: There is no text, or none that the tokenizer keeps.
    """
    encode, length = tokenizer_of(options)
    text = read_text(raw)
    words = encode(text)[: length - 2]
    if not words:
        raise DataError(f"the text {text[:40]!r} has no words that CLIP's tokenizer knows; leave the row out")
    tokens = torch.zeros(length, dtype=torch.long)
    tokens[: len(words) + 2] = torch.tensor([_START, *words, _END])
    return tokens


class TextTrunk(nn.Module):
    """open_clip's text tower, which does not compute the padding behind the longest text of a batch."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        # Cutting is exact only where no token looks ahead and the embedding is read at the end mark.
        self.cuts = tower.pool_type == "argmax" and tower.attn_mask is not None and tower.cls_emb is None

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode (B, context length) tokens to (B, features)."""
        if not self.cuts:
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
