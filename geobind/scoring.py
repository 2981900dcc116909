"""Scores of embeddings: cosine similarities and calibrated probabilities."""

# N and M embeddings, B of a batch, D width of the space

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from geobind.errors import DataError
from geobind.utils.arrays import as_array, check_tensor, is_array
from geobind.utils.vectors import CANCELLED, require_directions, require_finite, unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_MODEST = 1e-6  # weights between this and its inverse are taken as they are
CLIP_TEMPERATURE = 0.01  # what CLIP's own training ends at, taken where nothing was fitted


class PairScales(BaseModel):
    """Scales that turn similarities between two modalities into probabilities."""

    model_config = ConfigDict(frozen=True)

    modalities: tuple[str, str]
    temperature: tuple[Positive, Positive] = Field(
        description="of the softmax over a gallery: of the first's queries, of the second's"
    )
    scale: float = Field(ge=0, allow_inf_nan=False, description="log odds of a match for each unit of cosine")
    bias: float = Field(
        allow_inf_nan=False, description="log odds at a cosine of 0, matches being half of all"
    )
    rows: int = Field(ge=1, description="rows that the scales were fitted on")


class Calibration(BaseModel):
    """Scales fitted on held-out rows, one for each pair of modalities with enough rows."""

    model_config = ConfigDict(frozen=True)

    fitted_on: str = Field(description="the rows, such as split 'val' of places.csv")
    by: str = Field("row", description="what counts as a match: the same row, or the same label")
    pairs: tuple[PairScales, ...] = ()

    def of(self, one: str, two: str) -> PairScales | None:
        """Return the scales of two modalities in either order; None if none were fitted."""
        return next((pair for pair in self.pairs if set(pair.modalities) == {one, two}), None)

    def temperature(self, query: str, gallery: str) -> float | None:
        """Return the softmax temperature of queries of one modality over a gallery of another."""
        pair = self.of(query, gallery)
        return None if pair is None else pair.temperature[pair.modalities.index(query)]


class SoftmaxTemperature(NamedTuple):
    """A temperature and its origin in words."""

    value: float
    source: str


def as_rows(embeddings: Tensor | NDArray[Any]) -> Tensor:
    """Return embeddings as a tensor (N, D); one embedding is one row, a list of them is stacked."""
    given: Any = embeddings
    if isinstance(given, list | tuple):
        parts = [check_tensor(part, "embeddings") if isinstance(part, Tensor) else part for part in given]
        try:
            given = torch.stack(parts) if parts and isinstance(parts[0], Tensor) else np.array(parts)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"embeddings in a list must be of one length: {error}") from error
    if not is_array(given):
        raise DataError(f"embeddings must be a tensor or an array (N, D), not a {type(given).__name__}")
    if isinstance(given, Tensor):
        rows = check_tensor(given, "embeddings")
    else:
        values = as_array(given, "embeddings")
        kept = values.dtype if values.dtype.str[1:] in ("f2", "f4", "f8") else np.dtype(np.float64)
        rows = torch.from_numpy(np.require(values, kept, ["C", "W"]))
    if rows.ndim not in (1, 2):
        raise DataError(f"embeddings must be (N, D), not of shape {tuple(rows.shape)}")
    return rows[None] if rows.ndim == 1 else rows


def cosine(a_ND: Tensor | NDArray[Any], b_MD: Tensor | NDArray[Any]) -> Tensor:
    """Compute the cosine similarity of every row of `a_ND` with every row of `b_MD`: (N, M) in [-1, 1].

    A row of zeros, which has no direction, is 0 to everything.

    Raises:
        DataError: The two are of different widths, no embeddings, or a row is not finite.
    """
    a_ND, b_MD = as_rows(a_ND), as_rows(b_MD)
    if a_ND.shape[1] != b_MD.shape[1]:
        raise DataError(f"embeddings of different widths: {a_ND.shape[1]} and {b_MD.shape[1]}")
    a_ND, b_MD = require_finite(a_ND, "the first embeddings"), require_finite(b_MD, "the second embeddings")
    return (unit(a_ND) @ unit(b_MD).T.to(a_ND.device)).clamp(-1, 1)


def check_temperature(temperature: float) -> float:
    """Return a temperature that can be divided by.

    Raises:
        DataError: It is not positive.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise DataError(f"temperature must be positive, not {temperature}")
    return temperature


def softmax(similarity_NM: Tensor, temperature: float) -> Tensor:
    """Compute the softmax over each row of similarities divided by the temperature.

    The largest of a row is taken off before the division, in float64, so that no temperature overflows.
    """
    below_NM = similarity_NM.double() - similarity_NM.double().amax(dim=-1, keepdim=True)
    return (below_NM / check_temperature(temperature)).softmax(dim=-1).to(similarity_NM.dtype)


def probabilities(
    similarity_NM: Tensor,
    scales: PairScales,
    query: str,
    over: Literal["pair", "gallery"] = "pair",
    prior: float = 0.5,
) -> Tensor:
    """Turn similarities into probabilities of a match.

    Args:
        similarity_NM: Cosine similarities.
        scales: Fitted on as many matches as mismatches.
        query: The modality of the rows.
        over: `pair`: each cell on its own (Platt, 1999); `gallery`: a softmax over each row, which shares 1.
        prior: For `pair`, share of matches among the pairs compared; the log odds move from one half to it.

    Raises:
        DataError: The prior is not between 0 and 1.
    """
    if over == "gallery":
        return softmax(similarity_NM, scales.temperature[scales.modalities.index(query)])
    if not 0 < prior < 1:
        raise DataError(f"prior must lie between 0 and 1, not {prior}: it is the share of pairs that match")
    return torch.sigmoid(scales.scale * similarity_NM + scales.bias + math.log(prior / (1 - prior)))


def add_embeddings(parts: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Tensor:
    """Add embeddings of several modalities, row by row, and scale the sums to unit length (N, D).

    Raises:
        DataError: Nothing to add, a weight without a part or not finite, parts of different numbers of rows,
            or a sum of length 0.
    """
    if not parts:
        raise DataError("nothing to compose: name at least one modality and its input")
    if unknown := set(weights or ()) - set(parts):
        raise DataError(f"a weight for {', '.join(sorted(unknown))}, but no input of it")
    counts = {name: len(rows) for name, rows in parts.items()}
    if len(set(counts.values())) != 1:
        raise DataError(f"the parts must have equally many inputs, not {counts}")
    weight_of = {name: float((weights or {}).get(name, 1.0)) for name in parts}
    for name, weight in weight_of.items():
        if not math.isfinite(weight):
            raise DataError(f"the weight of {name} is {weight}; give a number")
    heaviest = max(map(abs, weight_of.values()))
    if heaviest == 0:
        raise DataError(f"every weight is 0 ({', '.join(parts)}); give at least one part another weight")
    if len(parts) == 1 and heaviest == next(iter(weight_of.values())):
        name, rows_ND = next(iter(parts.items()))
        return unit(require_directions(rows_ND, name))
    if not _MODEST < heaviest < 1 / _MODEST:  # their ratios count alone
        weight_of = {name: weight / heaviest for name, weight in weight_of.items()}
    part_ND = [weight_of[name] * require_finite(rows, name).double() for name, rows in parts.items()]
    sum_ND, length_N = torch.stack(part_ND).sum(0), torch.stack([one.norm(dim=-1) for one in part_ND]).sum(0)
    cancelled_N = sum_ND.norm(dim=-1) <= CANCELLED * length_N
    if bool(cancelled_N.any()):
        raise DataError(
            f"input {int(cancelled_N.nonzero()[0, 0])}: the parts ({', '.join(parts)}) cancel out, so their "
            "sum has no direction; change the weights"
        )
    return unit(require_directions(sum_ND, "the sum"))


def require_scales(known: Calibration | None, one: str, two: str) -> PairScales:
    """Return the scales of two modalities.

    Raises:
        DataError: None were fitted; the message says how to.
    """
    scales = known.of(one, two) if known else None
    if scales is None:
        known_pairs = ", ".join(" and ".join(pair.modalities) for pair in known.pairs) if known else ""
        raise DataError(
            f"no calibration of {one} and {two} is known, so a similarity is no probability"
            f"{f' (known: {known_pairs})' if known_pairs else ''}; fit one on held-out rows: "
            "`evaluate: {calibrate: SPLIT}` in the recipe, or "
            "`geobind eval BUNDLE --data DATA --calibrate SPLIT --keep`"
        )
    return scales


def is_fitted(known: Calibration | None, query: str, gallery: str) -> bool:
    """Return whether a temperature was fitted for two modalities."""
    return known is not None and known.temperature(query, gallery) is not None


def find_temperature(known: Calibration | None, query: str, gallery: str) -> SoftmaxTemperature:
    """Return the fitted temperature of two modalities, or CLIP's where none was fitted."""
    fitted = known.temperature(query, gallery) if known else None
    if known is None or fitted is None:
        return SoftmaxTemperature(CLIP_TEMPERATURE, "CLIP's; none was fitted for these modalities")
    return SoftmaxTemperature(fitted, f"fitted on {known.fitted_on}")
