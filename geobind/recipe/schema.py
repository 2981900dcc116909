"""What a recipe says: the fields of a recipe and of its stages, their defaults and their limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from geobind.data.options import DataOptions
from geobind.modality import Modality, Role

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]
Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"]
Part = Literal["full", "head"]  # what a stage trains of an encoder


class Options(BaseModel):
    """A block of a recipe: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class InfoNCE(Options):
    """Softmax contrastive loss over the batch (arXiv:1807.03748; GeoBind eqs. 1-4)."""

    name: Literal["infonce"] = "infonce"
    direction: Literal["both", "anchor_to_other", "other_to_anchor"] = Field(
        default="both", description="which side queries the other; both is the mean of the two"
    )
    temperature: Temperature = Temperature()
    positives: Literal["pair", "label"] = Field(
        default="pair", description="a row's positives: its own pair alone, or every row of its label"
    )
    ignore_within_m: float | None = Field(
        default=None, gt=0, description="rows of places nearer than this many metres are no negatives"
    )


class SigLIP(Options):
    """Pairwise sigmoid loss (arXiv:2303.15343)."""

    name: Literal["siglip"]
    temperature: Temperature = Temperature(init=0.1)
    bias: float = Field(default=-10.0, description="added to every logit at the start; learned")


class AdamW(Options):
    """AdamW; the defaults are CLIP's, with a learning rate for small models."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(default=5e-4, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="decay of the two moments")
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(
        default=0.2, ge=0, description="not applied to biases, norms and the temperature"
    )


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


class Stage(Options):
    """One sentence: align this modality with the anchor, train these encoders."""

    name: Name
    align: str = Field(description="the modality to align with the anchor")
    anchor: str | None = Field(
        default=None, description="the modality aligned with; default: the recipe's anchor"
    )
    train: list[str] | dict[str, Part] = Field(description="the encoders to train, whole or by their head")
    data: DataOptions | None = Field(
        default=None, description="default: the aligned modality's data, or the recipe's"
    )
    split: str = Field(default="train", description="the rows of the data to train on")
    batch_size: int = Field(ge=2, description="pairs per step over all devices together, as negatives are")
    epochs: int | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    loss: Annotated[InfoNCE | SigLIP, Field(discriminator="name")] = InfoNCE()
    optimizer: AdamW = AdamW()
    schedule: Annotated[Constant | Cosine | WarmRestarts, Field(discriminator="name")] = Cosine()
    precision: Precision | None = Field(default=None, description="default: the recipe's")
    clip_norm: float | None = Field(
        default=1.0, gt=0, description="largest norm of the gradient; null: no clipping"
    )
    checkpoint_seconds: float = Field(
        default=60.0, ge=0, description="least time between two checkpoints; 0: every step"
    )

    @property
    def parts(self) -> dict[str, Part]:
        """What is trained of each encoder, by modality."""
        return dict.fromkeys(self.train, "full") if isinstance(self.train, list) else dict(self.train)


class Fabric(Options):
    """Where to run, as Lightning Fabric understands it."""

    accelerator: str = "auto"
    devices: int | Literal["auto"] = "auto"
    num_nodes: int = Field(default=1, ge=1)
    strategy: str = "auto"
    precision: Precision = "32-true"


class Evaluation(Options):
    """What is measured after the last stage: retrieval for every ordered pair of modalities."""

    data: DataOptions | None = Field(default=None, description="default: the recipe's data")
    split: str = Field(default="test", description="rows no stage has trained on")
    by: Literal["row", "label"] = Field(
        default="row", description="the right answer to a query: its own row, or any row of its class"
    )
    limit: int | None = Field(default=None, gt=1, description="at most this many rows, the first ones")


class Entry(BaseModel):
    """One modality of a recipe: two words for the core, the rest are the modality's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Role | None = Field(default=None, description="overrides the plugin's role, in plain sight")
    data: DataOptions | None = Field(default=None, description="where its pairs with the anchor come from")

    @property
    def options(self) -> dict[str, Any]:
        """The options that belong to the modality."""
        return dict(self.model_extra or {})


class Recipe(Options):
    """Modalities, and the stages that bind them."""

    name: Name
    seed: int = Field(default=0, ge=0, lt=2**32)
    width: int = Field(default=512, ge=2, le=65536, description="length of an embedding in the shared space")
    anchor: str = Field(
        default="satellite", description="the modality that stages align with unless they say otherwise"
    )
    modalities: dict[str, Entry] = Field(min_length=1)
    data: DataOptions | None = Field(
        default=None, description="rows for every stage that names none of its own"
    )
    fabric: Fabric = Fabric()
    workers: int | Literal["auto"] = Field(default="auto", description="processes that load data; 0: none")
    max_broken: float = Field(
        default=0.01, ge=0, le=1, description="share of broken samples past which a stage stops"
    )
    stages: list[Stage] = Field(min_length=1)
    evaluate: Evaluation | None = None

    _written: dict[str, Any] = PrivateAttr(default_factory=dict)
    _base: Path = PrivateAttr(default_factory=Path)
    _built: dict[str, Modality] = PrivateAttr(default_factory=dict)

    @property
    def written(self) -> dict[str, Any]:
        """The recipe as plain JSON, overrides applied and interpolation resolved."""
        return self._written

    @property
    def base(self) -> Path:
        """The folder that relative paths of the recipe start from."""
        return self._base

    @property
    def built(self) -> dict[str, Modality]:
        """The modalities, constructed with their options."""
        return self._built

    def role(self, name: str) -> Role:
        """Whether the modality may be trained: the recipe's word, else its plugin's."""
        return self.modalities[name].role or self._built[name].role

    def anchor_of(self, stage: Stage) -> str:
        """The modality that a stage aligns with."""
        return stage.anchor or self.anchor

    def data_of(self, stage: Stage) -> DataOptions | None:
        """The rows a stage trains on: its own, else its modality's, else the recipe's."""
        return stage.data or self.modalities[stage.align].data or self.data
