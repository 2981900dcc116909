"""Vectors of numbers known of a place: covariates, coordinates, embeddings that others computed."""

# S numbers of a vector

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

import geobind
from geobind.errors import DataError, RecipeError
from geobind.modality import Modality, Role, Widget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn


_HIDDEN = (256,)


class Vector(Modality):
    """A vector of numbers: climate, coordinates, or an embedding that another model computed."""

    name: ClassVar[str] = "vector"
    role: ClassVar[Role] = "trainable"
    widget: ClassVar[Widget] = "numbers"
    accepts: ClassVar[str] = "numbers: a list, an array, a tensor, or the path or bytes of a .npy file"

    size: int = Field(ge=1, le=65_536, description="Numbers of a vector.")
    mean: tuple[float, ...] = Field(
        default=(0.0,), min_length=1, description="Subtracted from the numbers: one value, or one for each."
    )
    std: tuple[float, ...] = Field(
        default=(1.0,), min_length=1, description="Divides the numbers then: one value, or one for each."
    )
    missing: bool = Field(
        default=False,
        description="Whether numbers may be missing (NaN): each counts as the mean, and the encoder is told.",
    )
    hidden: tuple[int, ...] | None = Field(
        default=None, description="Widths of the layers between the numbers and the head; default: [256]."
    )
    identity: bool = Field(
        default=False,
        description="Take the numbers themselves for the embedding, as of a frozen model; width = size.",
    )

    @model_validator(mode="after")
    def _fit(self) -> Self:
        for option in ("mean", "std"):
            if len(getattr(self, option)) not in (1, self.size):
                raise ValueError(f"`{option}` has {len(getattr(self, option))} values; give 1 or {self.size}")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError("`mean` and `std` must be finite, and `std` above 0")
        if any(not 1 <= layer <= 65_536 for layer in self.hidden or ()):
            raise ValueError("`hidden` must be widths from 1 to 65536")
        if self.identity and (self.missing or self.hidden is not None):
            raise ValueError("`identity` has no layers; leave `hidden` and `missing` out")
        return self

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build the layers from the numbers to the shared width, or none for `identity`.

        Raises:
            RecipeError: `identity` vectors are not as long as the shared space is wide.
        """
        from torch import nn

        from geobind.towers.tower import Tower

        if self.identity:
            if width != self.size:
                raise RecipeError(f"vector: identity of {self.size} numbers needs `width: {self.size}`")
            return nn.Identity()
        sizes = (self.size * (2 if self.missing else 1), *(_HIDDEN if self.hidden is None else self.hidden))
        layers: list[nn.Module] = [nn.Flatten()]
        for given, made in pairwise(sizes):
            layers += [nn.Linear(given, made), nn.GELU()]
        return Tower(nn.Sequential(*layers), nn.Linear(sizes[-1], width))

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Turn a vector into standardised numbers (S,).

        With `missing` it is (2, S): the numbers, and 1 for each that is there.

        Raises:
            DataError: It is no vector of `size` finite numbers.
        """
        import numpy as np
        import torch

        values_S = self._read(raw)
        is_there_S = ~np.isnan(values_S)
        if not is_there_S.all() and not self.missing:
            place = int(np.argmin(is_there_S))
            raise DataError(f"number {place} of a vector is missing (NaN); fill it, or set `missing: true`")
        standard_S = (values_S - np.asarray(self.mean)) / np.asarray(self.std)
        standard_S = np.where(is_there_S, standard_S, 0.0)
        if np.abs(standard_S).max() > np.finfo(np.float32).max:
            raise DataError("a vector holds a number that is too large; scale it, or set `mean` and `std`")
        rows = np.stack([standard_S, is_there_S]) if self.missing else standard_S
        return torch.from_numpy(rows.astype(np.float32))

    def _read(self, raw: Any) -> NDArray[np.float64]:
        import numpy as np

        from geobind.data import read_numbers

        try:
            values_S = read_numbers(raw)
        except DataError as error:
            raise DataError(f"{error}; give {self.accepts}") from error
        if values_S.shape != (self.size,) or np.isinf(values_S).any():
            holds = "infinite numbers" if values_S.shape == (self.size,) else f"shape {values_S.shape}"
            raise DataError(f"a vector of {self.size} finite numbers is wanted, not {holds}")
        if np.isnan(values_S).all():
            raise DataError("a vector holds nothing but NaN; leave the cell empty")
        return values_S


@geobind.hookimpl
def geobind_modalities() -> list[type[Modality]]:
    """Provide the modality of this module."""
    return [Vector]
