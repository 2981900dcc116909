"""What a stage may train of an encoder: all of it, its head, its last blocks, or adapters in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from geobind.recipe.options import Options

Word = Literal["full", "head", "last", "lora"]
_DECAY = "each layer's learning rate is this times that of the layer after it; 1: all alike"


class Full(Options):
    """All of an encoder."""

    part: Literal["full"] = "full"
    layer_decay: float = Field(default=1.0, gt=0, le=1, description=_DECAY)


class Head(Options):
    """The head alone."""

    part: Literal["head"] = "head"


class Last(Options):
    """The last blocks, and all that follows them: norms, a projection, the head."""

    part: Literal["last"] = "last"
    blocks: int = Field(ge=1, description="how many blocks")
    layer_decay: float = Field(default=1.0, gt=0, le=1, description=_DECAY)


class Lora(Options):
    """Low-rank adapters (LoRA, arXiv:2106.09685) in layers that stay as they are, merged after the stage."""

    part: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1, le=4096, description="rank of what is added to a weight")
    alpha: float = Field(default=16.0, gt=0, description="what is added is scaled by alpha / rank")
    targets: Annotated[
        Annotated[Literal["auto"], Tag("a word")]
        | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1), Tag("a list")],
        Discriminator(lambda value: "a list" if isinstance(value, list | tuple) else "a word"),
    ] = Field(default="auto", description="names of layers, or how these end; auto: see docs/recipes.md")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on what an adapter sees")
    head: bool = Field(default=True, description="also train the head, if it has parameters, as a whole")


Part = Full | Head | Last | Lora


def _said(value: object) -> object:
    if value == "last":
        raise ValueError("last of how many blocks? write {part: last, blocks: 2}")
    if isinstance(value, Mapping) and "part" not in value:
        raise ValueError("names no part; write `part: lora`, or full, head, last")
    return value


def _short(value: Literal["full", "head", "lora"] | Part) -> Literal["full", "head"] | Part:
    """Spell what means the same alike, so that it has the same fingerprint."""
    if value in ("full", Full()):
        return "full"
    return Lora() if value == "lora" else "head" if value == Head() else value


# `full`, or a block such as {part: lora, rank: 4}. Tags that are no identifiers stay out of mistakes' paths.
Trains = Annotated[
    Annotated[Literal["full", "head", "lora"], Tag("a word")]
    | Annotated[Annotated[Part, Field(discriminator="part")], Tag("a block")],
    Discriminator(lambda value: "a block" if isinstance(value, Mapping | Options) else "a word"),
    BeforeValidator(_said),
    AfterValidator(_short),
]
Train = Annotated[
    Annotated[list[str], Tag("a list")] | Annotated[dict[str, Trains], Tag("a block")],
    Discriminator(lambda value: "a block" if isinstance(value, Mapping) else "a list"),
]


def options_of(said: Any) -> Part:
    """Return the options that a word, or a block, stands for."""
    return Full() if said == "full" else Head() if said == "head" else said
