"""What a recipe says of the time after the last stage: what is measured, and what its model card says."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from geobind.data.options import DataOptions
from geobind.recipe.options import Options


class Evaluation(Options):
    """What is measured after the last stage: retrieval for every ordered pair of modalities."""

    data: DataOptions | None = Field(default=None, description="default: the recipe's data")
    split: str = Field(default="test", description="rows no stage has trained on")
    by: Literal["row", "label"] = Field(
        default="row", description="the right answer to a query: its own row, or any row of its class"
    )
    limit: int | None = Field(default=None, gt=1, description="at most this many rows, the first ones")
    clusters: Literal["cell", "group"] | None = Field(
        default=None,
        description="rows that are no independent queries: of one cell of a degree, or of one `group`; "
        "intervals then draw whole clusters",
    )
    calibrate: str | None = Field(
        default=None,
        description="split, neither trained nor measured on, that makes similarities probabilities",
    )
    sums: tuple[str, ...] = Field(
        default=(),
        description="embedding arithmetic, as `ONE+TWO:GALLERY`: do sums find what holds what both say?",
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.calibrate == self.split:
            raise ValueError(
                f"`calibrate` and `split` are both '{self.split}': what is fitted on the rows that it is "
                "measured on looks better than it is; name a validation split"
            )
        return self


class CardOptions(Options):
    """What only its author can say of a model; it goes into the model card."""

    use: str | None = Field(default=None, description="what the model is meant for")
    not_for: str | None = Field(default=None, description="what it should not be used for")
    licence: str | None = Field(
        default=None, description="licence under which the weights are published, such as CC-BY-4.0"
    )
    weights: dict[str, str] = Field(
        default_factory=dict, description="licence of the pretrained weights that a modality starts from"
    )
