"""Texts about a place, in the space of a CLIP that is not trained further."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

import geobind
from geobind.modality import Modality, Role, Widget
from geobind.towers.options import ClipOptions, HeadKind

if TYPE_CHECKING:
    from torch import Tensor, nn


class Text(Modality):
    """A text about a place: a caption, a description, a query."""

    name: ClassVar[str] = "text"
    role: ClassVar[Role] = "frozen"
    accepts: ClassVar[str] = "a string, or the path or bytes of a UTF-8 file"
    widget: ClassVar[Widget] = "text"

    clip: ClipOptions = Field(
        default=ClipOptions(model="ViT-B-32-quickgelu", pretrained="openai"),
        description="Encode with the text tower of this CLIP.",
    )
    head: HeadKind = Field(
        default="auto",
        description="What maps the tower to the shared width; auto: nothing where it fits, else linear.",
    )

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build the text tower of a CLIP."""
        from geobind.towers.clip import text_encoder

        return text_encoder(self.clip, width, head=self.head, pretrained=pretrained, new_head=False)

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a text into the token ids of CLIP, (context length,)."""
        from geobind.towers.clip import prepare_text

        return prepare_text(raw, self.clip)


@geobind.hookimpl
def geobind_modalities() -> list[type[Modality]]:
    """Provide the modality of this module."""
    return [Text]
