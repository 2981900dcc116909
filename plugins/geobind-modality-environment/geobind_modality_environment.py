"""Environmental covariates of a place as a modality: climate, soil, land cover; values may be missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

import geobind
from geobind_vector import Vector

if TYPE_CHECKING:
    from torch import Tensor


class Environment(Vector):
    """Numbers that describe the environment of a place."""

    name: ClassVar[str] = "environment"

    missing: bool = Field(
        default=True,
        description="whether numbers may be missing (NaN): each counts as the mean, and is marked",
    )
    noise: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="standard deviation of noise on standardised numbers in training",
    )
    drop: float = Field(default=0.0, ge=0, lt=1, description="share of numbers left out in training")

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Standardise a vector; training adds noise and leaves numbers out.

        Raises:
            DataError: It is no vector of `size` numbers.
        """
        import torch

        values = super().prepare(raw)
        if training and self.noise:
            values = values.clone()
            known = values[1] if self.missing else torch.ones_like(values)
            numbers = values[0] if self.missing else values
            numbers += self.noise * torch.randn_like(numbers) * known
        if training and self.drop:
            keep = (torch.rand(self.size) >= self.drop).to(values.dtype)
            values = values * keep
        return values


@geobind.hookimpl
def geobind_modalities() -> list[type[geobind.Modality]]:
    """Provide the modality of this package."""
    return [Environment]
