"""What every block of a recipe is, and the blocks that say how weights move: optimizer and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from geobind.data.neighbours import Ring


class Options(BaseModel):
    """A block of a recipe: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Views(Options):
    """Keep augmented views of what a stage does not train."""

    views: int = Field(ge=1, le=1000, description="augmented views of each input, of which one is drawn")


def _cache_word(value: object) -> object:
    # YAML takes `off` and `on` for false and true.
    return {False: "off", True: "auto"}.get(value, value) if isinstance(value, bool) else value


def _number_or_auto(value: object) -> object:
    if isinstance(value, str) and value != "auto" and not value.strip().isdigit():
        raise ValueError("Input should be a valid integer or 'auto'")
    return value


_WORD, _BLOCK = "a word", "a block"  # no identifiers: they are left out of a mistake's path
Cache = Annotated[
    Annotated[Literal["auto", "off"], BeforeValidator(_cache_word), Tag(_WORD)]
    | Annotated[Views, Tag(_BLOCK)],
    Discriminator(lambda value: _BLOCK if isinstance(value, Mapping | Views) else _WORD),
]
_NUMBER = "a number"
Chunk = Annotated[
    Annotated[int, Field(ge=2), Tag(_NUMBER)] | Annotated[Literal["auto"], Tag(_WORD)],
    Discriminator(lambda value: _WORD if value == "auto" else _NUMBER),
    BeforeValidator(_number_or_auto),
]
if TYPE_CHECKING:
    # `auto` is settled before a stage begins, and refused otherwise: whatever computes with it has a number.
    BatchSize = int
else:
    BatchSize = Chunk


class AdamW(Options):
    """AdamW; the defaults are CLIP's, with a learning rate for small models."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(default=5e-4, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="decay of the two moments")
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(
        default=0.2, ge=0, description="not applied to biases, norms and the temperature"
    )


class Batches(Options):
    """Batches that hold neighbours, which are harder to tell apart than places far from each other."""

    near_km: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0, le=20_000)]] = Field(
        description="how far neighbours are from each other, at least and at most"
    )
    share: float = Field(
        default=0.5, gt=0, le=1, description="how much of a batch comes in groups of neighbours"
    )
    together: int = Field(default=8, ge=2, description="neighbours of a group, at most")

    @property
    def ring(self) -> Ring:
        """The same for the rows of a stage."""
        return Ring(*self.near_km, self.share, self.together)

    @model_validator(mode="after")
    def _wide(self) -> Self:
        least, most = self.near_km
        if most < 4 * least:
            raise ValueError(
                f"near_km: {least:g} to {most:g} is too narrow a ring to find groups in; the second number "
                f"must be at least four times the first, {4 * least:g}"
            )
        return self


class Constant(Options):
    """The peak learning rate throughout, after a linear warm-up."""

    name: Literal["constant"]
    warmup_steps: int = Field(default=0, ge=0)


class Cosine(Options):
    """Linear warm-up, then half a cosine from the peak down to `final` times the peak."""

    name: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    final: float = Field(
        default=0.0, ge=0, le=1, description="learning rate at the end, as a share of the peak"
    )


class WarmRestarts(Options):
    """Cosine annealing with warm restarts (SGDR, arXiv:1608.03983 eq. 5)."""

    name: Literal["warm_restarts"]
    period: int = Field(gt=0, description="steps of the first period")
    multiplier: int = Field(
        default=1, ge=1, description="each period is this many times as long as the one before"
    )
    warmup_steps: int = Field(default=0, ge=0)
    final: float = Field(
        default=0.0, ge=0, le=1, description="learning rate at a period's end, as a share of the peak"
    )
