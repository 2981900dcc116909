"""Texts about a place: in the space of a CLIP that is not trained further, or of a transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import geobind
from geobind.modality import Modality, Role, Widget
from geobind.towers.options import ClipOptions, TextOptions

if TYPE_CHECKING:
    from torch import Tensor, nn


class Text(TextOptions, Modality):
    """A text about a place: a caption, a description, a query."""

    name: ClassVar[str] = "text"
    role: ClassVar[Role] = "frozen"
    accepts: ClassVar[str] = "a string, or the path or bytes of a UTF-8 file"
    widget: ClassVar[Widget] = "text"

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build the text tower of a CLIP, or a transformer."""
        if self.transformer is not None:
            from geobind.towers.transformer import transformer_encoder

            return transformer_encoder(
                self.transformer, width, head=self.head, pretrained=pretrained, new_head=False
            )
        from geobind.towers.clip import text_encoder

        clip = cast("ClipOptions", self.clip)
        return text_encoder(clip, width, head=self.head, pretrained=pretrained, new_head=False)

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a text into the numbers of its tokens, (length,)."""
        if self.transformer is not None:
            from geobind.towers.transformer import prepare_tokens

            return prepare_tokens(raw, self.transformer)
        from geobind.towers.clip import prepare_text

        return prepare_text(raw, cast("ClipOptions", self.clip))


@geobind.hookimpl
def geobind_modalities() -> list[type[Modality]]:
    """Provide the modality of this module."""
    return [Text]
