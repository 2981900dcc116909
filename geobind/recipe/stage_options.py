"""Options of a stage: optimizer, schedule, loss, trainable parts, batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from geobind.data.options import NeighbourOptions


class RecipeBlock(BaseModel):
    """Base of a recipe's blocks: unknown keys, infinity and NaN are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# Beyond these, float32 overflows or nothing changes any more, so that only a slip of the pen can be meant.
Steps = Annotated[int, Field(ge=1, le=10**12)]
Warmup = Annotated[int, Field(ge=0, le=10**12, description="steps in which the learning rate rises from 0")]
Metres = Annotated[float, Field(ge=1e-3, le=2.1e7)]  # up to the other side of the Earth
MAX_ROWS = 2**31 - 1  # of a batch, a queue or a table


class CachedViews(RecipeBlock):
    """A cache of several augmented views of each input of a frozen encoder."""

    views: int = Field(ge=1, le=1000, description="augmented views of each input, of which one is drawn")


def _cache_word(value: object) -> object:
    # YAML takes `off` and `on` for false and true.
    return {False: "off", True: "auto"}.get(value, value) if isinstance(value, bool) else value


def _number_or_auto(value: object) -> object:
    if isinstance(value, str) and value != "auto" and not value.strip().isdigit():
        raise ValueError("Input should be a valid integer or 'auto'")
    return value


_WORD, _BLOCK = "a word", "a block"  # no identifiers: they are left out of a mistake's path
CacheSpec = Annotated[
    Annotated[Literal["auto", "off"], BeforeValidator(_cache_word), Tag(_WORD)]
    | Annotated[CachedViews, Tag(_BLOCK)],
    Discriminator(lambda value: _BLOCK if isinstance(value, Mapping | CachedViews) else _WORD),
]
_NUMBER = "a number"
Chunk = Annotated[
    Annotated[int, Field(ge=2, le=MAX_ROWS), Tag(_NUMBER)] | Annotated[Literal["auto"], Tag(_WORD)],
    Discriminator(lambda value: _WORD if value == "auto" else _NUMBER),
    BeforeValidator(_number_or_auto),
]
if TYPE_CHECKING:
    # `auto` is resolved before a stage begins, so that all other code sees a number.
    BatchSize = int
else:
    BatchSize = Chunk


Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamW(RecipeBlock):
    """AdamW; the defaults are CLIP's, with a learning rate for small models."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(default=5e-4, ge=1e-12, le=100, description="peak learning rate")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.98), description="decay of the two moments")
    eps: float = Field(default=1e-6, ge=1e-20, le=1, description="added to the root of the second moment")
    weight_decay: float = Field(
        default=0.2, ge=0, le=1000, description="not applied to biases, norms and the temperature"
    )


class NeighbourBatches(RecipeBlock):
    """Batches with groups of neighbours, which are harder to distinguish than distant places."""

    near_km: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=1e-3, le=20_000)]] = Field(
        description="the smallest and largest distance between neighbours"
    )
    share: float = Field(
        default=0.5, ge=1e-3, le=1, description="how much of a batch comes in groups of neighbours"
    )
    together: int = Field(default=8, ge=2, le=10_000, description="neighbours of a group, at most")

    @property
    def neighbours(self) -> NeighbourOptions:
        """The options of the sampler."""
        return NeighbourOptions(*self.near_km, self.share, self.together)

    @model_validator(mode="after")
    def _wide(self) -> Self:
        least, most = self.near_km
        if most < 4 * least:
            raise ValueError(
                f"near_km: {least:g} to {most:g} is too narrow a ring to find groups in; the second number "
                f"must be at least four times the first, {4 * least:g}"
            )
        return self


class Constant(RecipeBlock):
    """A constant learning rate after a linear warm-up."""

    name: Literal["constant"]
    warmup_steps: Warmup = 0


class Cosine(RecipeBlock):
    """Linear warm-up, then cosine decay from the peak to `final` times the peak."""

    name: Literal["cosine"] = "cosine"
    warmup_steps: Warmup = 0
    final: float = Field(
        default=0.0, ge=0, le=1, description="learning rate at the end, as a share of the peak"
    )


class WarmRestarts(RecipeBlock):
    """Cosine annealing with warm restarts (SGDR, arXiv:1608.03983 eq. 5)."""

    name: Literal["warm_restarts"]
    period: Steps = Field(description="steps of the first period")
    multiplier: int = Field(
        default=1, ge=1, le=1000, description="each period is this many times as long as the one before"
    )
    warmup_steps: Warmup = 0
    final: float = Field(
        default=0.0, ge=0, le=1, description="learning rate at a period's end, as a share of the peak"
    )


PartName = Literal["full", "head", "last", "lora"]
_DECAY = "each layer's learning rate is this times that of the layer after it; 1: all alike"


class Full(RecipeBlock):
    """All of an encoder."""

    part: Literal["full"] = "full"
    layer_decay: float = Field(default=1.0, ge=1e-3, le=1, description=_DECAY)


class Head(RecipeBlock):
    """The head alone."""

    part: Literal["head"] = "head"


class Last(RecipeBlock):
    """The last blocks, and everything after them: norms, projection, head."""

    part: Literal["last"] = "last"
    blocks: int = Field(ge=1, le=10_000, description="how many blocks")
    layer_decay: float = Field(default=1.0, ge=1e-3, le=1, description=_DECAY)


class Lora(RecipeBlock):
    """Low-rank adapters (LoRA, arXiv:2106.09685) in frozen layers, merged after the stage."""

    part: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1, le=4096, description="rank of what is added to a weight")
    alpha: float = Field(default=16.0, ge=1e-3, le=1e5, description="what is added is scaled by alpha / rank")
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
    """Return the shortest spelling, so that equal options have equal fingerprints."""
    if value in ("full", Full()):
        return "full"
    return Lora() if value == "lora" else "head" if value == Head() else value


# `full`, or a block such as {part: lora, rank: 4}. Tags that are no identifiers stay out of mistakes' paths.
PartSpec = Annotated[
    Annotated[Literal["full", "head", "lora"], Tag("a word")]
    | Annotated[Annotated[Part, Field(discriminator="part")], Tag("a block")],
    Discriminator(lambda value: "a block" if isinstance(value, Mapping | RecipeBlock) else "a word"),
    BeforeValidator(_said),
    AfterValidator(_short),
]
TrainSpec = Annotated[
    Annotated[list[str], Tag("a list")] | Annotated[dict[str, PartSpec], Tag("a block")],
    Discriminator(lambda value: "a block" if isinstance(value, Mapping) else "a list"),
]


def to_part(said: Any) -> Part:
    """Return the part that a word or a block names."""
    return Full() if said == "full" else Head() if said == "head" else said


class TemperatureOptions(RecipeBlock):
    """The temperature of a contrastive loss, which divides the similarities."""

    init: float = Field(default=0.07, ge=1e-4, le=10, description="value at the start of the stage")
    learn: bool = Field(default=True, description="whether the stage trains it")
    minimum: float = Field(
        default=0.01,
        ge=1e-4,  # the loss of half precision overflows not far below
        description="lower bound; CLIP's logit scale of at most 100 is 0.01",
    )
    maximum: float = Field(default=1.0, gt=0, le=1e4, description="upper bound")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.minimum <= self.init <= self.maximum:
            raise ValueError(
                f"needs minimum <= init <= maximum, not {self.minimum}, {self.init}, {self.maximum}"
            )
        return self


class ContrastiveLossOptions(RecipeBlock):
    """Options of every contrastive loss: which rows are positives, and which are ignored."""

    positives: Literal["pair", "label", "place"] = Field(
        default="pair",
        description="a row's positives: its own pair alone, or every row of its label, or of its place",
    )
    same_within_m: Metres | None = Field(
        default=None, description="with `positives: place`, rows nearer than this belong to one place"
    )
    ignore_within_m: Metres | None = Field(
        default=None, description="rows nearer than this many metres are not negatives"
    )
    ignore_within_hours: float | None = Field(
        default=None,
        ge=1e-6,
        le=1e7,
        description="rows of times nearer than this are no negatives; a year later, the season is the same "
        "but the time is not",
    )
    ignore_when: Literal["both", "either"] = Field(
        default="both", description="with both thresholds: rows near in place and time, or in one of them"
    )

    @property
    def needs_places(self) -> bool:
        """Whether rows must have a place."""
        return self.same_within_m is not None or self.ignore_within_m is not None

    @property
    def needs_times(self) -> bool:
        """Whether rows must have a time."""
        return self.ignore_within_hours is not None

    @model_validator(mode="after")
    def _near_serves(self) -> Self:
        if (self.positives == "place") != (self.same_within_m is not None):
            raise ValueError("`positives: place` and `same_within_m` go together; give both or neither")
        if self.same_within_m and self.ignore_within_m and self.ignore_within_m <= self.same_within_m:
            raise ValueError(
                f"rows within {self.same_within_m:g} m are positives, which leaves none to ignore within "
                f"{self.ignore_within_m:g} m; raise ignore_within_m, or drop it"
            )
        if self.ignore_when == "either" and not (self.ignore_within_m and self.ignore_within_hours):
            raise ValueError(
                "`ignore_when: either` is about ignore_within_m and ignore_within_hours; "
                "give both, or drop it"
            )
        return self


class HardNegativeOptions(ContrastiveLossOptions):
    """Options of losses that can weight hard negatives more."""

    hardness: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="weigh negatives by exp(hardness * logit), so that those count more that resemble the "
        "query (beta of arXiv:2010.04592); 0: all count alike",
    )
    local: bool = Field(
        default=True,
        description="each of several processes takes the losses of its own rows against the rows of all; the "
        "gradient is the same, the work is shared",
    )
    products: Literal["auto", "float32", "half"] = Field(
        default="auto",
        description="type of the loss's matrix products under bf16 and fp16: that type where it is faster, "
        "or float32, or that type anywhere; sums are in float32",
    )


class InfoNCEOptions(HardNegativeOptions):
    """Softmax contrastive loss over the batch (arXiv:1807.03748; GeoBind eqs. 1-4)."""

    name: Literal["infonce"] = "infonce"
    direction: Literal["both", "anchor_to_other", "other_to_anchor"] = Field(
        default="both", description="which side queries the other; both is the mean of the two"
    )
    temperature: TemperatureOptions = TemperatureOptions()
    queue: int | None = Field(
        default=None,
        ge=1,
        le=MAX_ROWS,
        description="this many embeddings of the aligned modality, kept from earlier batches, as further "
        "negatives of the anchors; it must be frozen in the stage",
    )

    @model_validator(mode="after")
    def _queue_serves(self) -> Self:
        if self.queue and self.direction == "other_to_anchor":
            raise ValueError(
                "queue: holds the aligned modality, but other_to_anchor looks among anchors; drop the queue "
                "or choose another direction"
            )
        return self


class SigLIPOptions(HardNegativeOptions):
    """Pairwise sigmoid loss (arXiv:2303.15343)."""

    name: Literal["siglip"]
    temperature: TemperatureOptions = TemperatureOptions(init=0.1)
    bias: float = Field(
        default=-10.0, ge=-1000, le=1000, description="added to every logit at the start; learned"
    )


LossOptions = Annotated[InfoNCEOptions | SigLIPOptions, Field(discriminator="name")]
