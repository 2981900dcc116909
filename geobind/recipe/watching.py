"""What a recipe says of watching a stage: evaluation on held-out rows, averaged weights, loggers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from geobind.data.options import DataOptions
from geobind.recipe.options import Options

_ONE, _BLOCK = "one value", "a block"  # no identifiers: they are left out of a mistake's path


class Watch(Options):
    """Evaluate a stage on held-out rows while it runs, keep the best weights, stop when none get better."""

    every: int = Field(
        gt=0, description="steps between two evaluations; there is one after the last step too"
    )
    split: str = Field(default="val", description="rows no stage trains on and nothing else is measured on")
    data: DataOptions | None = Field(default=None, description="default: the stage's own data")
    limit: int | None = Field(
        default=500, gt=1, description="at most this many rows, taken at even distances; null: all"
    )
    by: Literal["row", "label"] = Field(
        default="row", description="the right answer to a query: its own row, or any row of its class"
    )
    measure: Annotated[str, Field(pattern=r"^(R@[1-9][0-9]{0,4}|loss)$")] = Field(
        default="R@10", description="what is to get better: recall, as R@1 or R@10, or the loss"
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="which weights the stage ends with: of the best evaluation, or the last"
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop after so many evaluations in a row without a gain; null: never"
    )
    least: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="a gain smaller than this does not count as one"
    )

    @property
    def cutoff(self) -> int:
        """The k of the recall that is taken."""
        return 10 if self.measure == "loss" else int(self.measure.removeprefix("R@"))


class Average(Options):
    """An exponential moving average of the weights in training, which evaluations and the result take."""

    decay: float = Field(gt=0, lt=1, description="share of the old average that each step keeps")
    warmup: bool = Field(
        default=True, description="keep less of it at first: (1 + n) / (10 + n) after n steps, up to `decay`"
    )


def _is_block(value: object) -> str:
    return _BLOCK if isinstance(value, Mapping | Options) else _ONE


def average_of(said: float | Average | None) -> Average | None:
    """Return the options that a number, or a block, stands for."""
    return said if said is None or isinstance(said, Average) else Average(decay=said)


# 0.999, or {decay: 0.999, warmup: false}
Ema = Annotated[
    Annotated[Annotated[float, Field(gt=0, lt=1)] | None, Tag(_ONE)] | Annotated[Average, Tag(_BLOCK)],
    Discriminator(_is_block),
    AfterValidator(average_of),  # what means the same is spelt alike, so that it has the same fingerprint
]


class LoggerEntry(BaseModel):
    """A logger of a recipe: its name is the core's, the rest are the logger's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str


# tensorboard, or {name: wandb, project: sounds}
Logs = Annotated[
    Annotated[str, Tag(_ONE)] | Annotated[LoggerEntry, Tag(_BLOCK)],
    Discriminator(lambda value: _BLOCK if isinstance(value, Mapping | LoggerEntry) else _ONE),
]
