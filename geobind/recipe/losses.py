"""What a recipe can ask of a loss: which rows attract, which are left out, which count more."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from geobind.recipe.options import Options


class Temperature(Options):
    """The temperature of a contrastive loss: similarities are divided by it."""

    init: float = Field(default=0.07, gt=0, le=10, description="value at the start of the stage")
    learn: bool = Field(default=True, description="whether the stage trains it")
    minimum: float = Field(
        default=0.01, gt=0, description="lower bound; CLIP's logit scale of at most 100 is 0.01"
    )
    maximum: float = Field(default=1.0, gt=0, description="upper bound")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.minimum <= self.init <= self.maximum:
            raise ValueError(
                f"needs minimum <= init <= maximum, not {self.minimum}, {self.init}, {self.maximum}"
            )
        return self


class Told(Options):
    """What every loss can be told of its rows: which belong together, and which are too near to oppose."""

    positives: Literal["pair", "label", "place"] = Field(
        default="pair",
        description="a row's positives: its own pair alone, or every row of its label, or of its place",
    )
    same_within_m: float | None = Field(
        default=None, gt=0, description="with `positives: place`, rows nearer than this are of one place"
    )
    ignore_within_m: float | None = Field(
        default=None, gt=0, description="rows of places nearer than this many metres are no negatives"
    )
    ignore_within_hours: float | None = Field(
        default=None,
        gt=0,
        description="rows of times nearer than this are no negatives; a year later, the season is the same "
        "but the time is not",
    )
    ignore_when: Literal["both", "either"] = Field(
        default="both", description="with both thresholds: rows near in place and time, or in one of them"
    )

    @property
    def needs_places(self) -> bool:
        """Whether rows must say where they are."""
        return self.same_within_m is not None or self.ignore_within_m is not None

    @property
    def needs_times(self) -> bool:
        """Whether rows must say when they were."""
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


class Hard(Told):
    """Losses that can give hard negatives more weight."""

    hardness: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="weigh negatives by exp(hardness * logit), so that those count more that resemble the "
        "query (beta of arXiv:2010.04592); 0: all count alike",
    )
    local: bool = Field(
        default=False,
        description="each process takes the losses of its own rows against the rows of all; the gradient "
        "is the same, the work is shared",
    )


class InfoNCE(Hard):
    """Softmax contrastive loss over the batch (arXiv:1807.03748; GeoBind eqs. 1-4)."""

    name: Literal["infonce"] = "infonce"
    direction: Literal["both", "anchor_to_other", "other_to_anchor"] = Field(
        default="both", description="which side queries the other; both is the mean of the two"
    )
    temperature: Temperature = Temperature()
    queue: int | None = Field(
        default=None,
        ge=1,
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


class SigLIP(Hard):
    """Pairwise sigmoid loss (arXiv:2303.15343)."""

    name: Literal["siglip"]
    temperature: Temperature = Temperature(init=0.1)
    bias: float = Field(default=-10.0, description="added to every logit at the start; learned")


class PCME(Told):
    """Probabilistic matching of Gaussians whose variances are learned (PCME++, arXiv:2305.18171)."""

    name: Literal["pcme"]
    temperature: Temperature = Temperature(init=0.2)
    shift: float = Field(
        default=5.0, description="what distances over the temperature are taken from, at the start; learned"
    )
    pseudo_positives: float = Field(
        default=0.1,
        ge=0,
        description="weight of a second loss in which rows at least as near as the pair count as pairs too",
    )
    vib: float = Field(
        default=1e-4, ge=0, description="weight of the bottleneck that keeps variances from collapsing"
    )
