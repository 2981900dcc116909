"""Base class of contrastive losses, the temperature with its clamp, and the metadata of a batch."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from geobind.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Temperature(nn.Module):
    """Scale of the similarities (one over the temperature), learnt or fixed.

    The stored tensor is log(scale), as in CLIP (arXiv:2103.00020, section 2.3). `clamp_` keeps the limits: it
    moves the parameter itself back after an optimiser step. The forward pass never clamps, because a clamp
    there has no gradient beyond its bound: a scale that once crossed it would be stuck for ever.

    Args:
        init: Temperature to start from.
        learn: Whether it is a parameter; otherwise it is a buffer of the same name.
        min_scale: Smallest scale, the highest temperature's inverse.
        max_scale: Largest scale; 100 keeps the softmax stable in half precision.

    Raises:
        RecipeError: If the limits are not a range, or the start lies outside it.
    """

    log_scale: Tensor

    def __init__(
        self, init: float = 0.07, *, learn: bool = True, min_scale: float = 1.0, max_scale: float = 100.0
    ) -> None:
        super().__init__()
        if not 0 < min_scale <= max_scale < math.inf:
            raise RecipeError(
                f"temperature: scale limits {min_scale} to {max_scale} are not a range; "
                "give 0 < min_scale <= max_scale"
            )
        if not (init > 0 and min_scale * (1 - 1e-9) <= 1 / init <= max_scale * (1 + 1e-9)):
            raise RecipeError(
                f"temperature: init {init} lies outside {1 / max_scale:g} to {1 / min_scale:g}; "
                "choose a value inside, or move min_scale or max_scale"
            )
        self.min_scale, self.max_scale = min_scale, max_scale
        log_scale = torch.tensor(-math.log(init))
        if learn:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        """Factor on the similarities, with its gradient."""
        return self.log_scale.exp()

    @property
    def value(self) -> float:
        """Temperature as a plain number, for logs."""
        return math.exp(-self.log_scale.item())

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamp the scale to its limits, in place."""
        self.log_scale.clamp_(math.log(self.min_scale), math.log(self.max_scale))

    def extra_repr(self) -> str:
        """Return the settings shown when the module is printed."""
        learn = isinstance(self.log_scale, nn.Parameter)
        return f"value={self.value:.4g}, {learn=}, scale={self.min_scale:g}..{self.max_scale:g}"


# N pairs on all ranks

UNLABELLED = -1


@dataclass(frozen=True, kw_only=True)
class LossContext:
    """Labels, places and times of N pairs; a vector that is left out plays no part in the loss.

    Pairs of one label are positives of each other, and so are pairs of one place. Pairs that are near are
    *ignored*: neither positives nor negatives, because two sounds recorded ten metres apart should not be
    pushed from each other. A pair is always its own positive, and being positives outweighs nearness.

    Attributes:
        labels_N: Group ids, integers; a negative id means no label (see `hash_labels`).
        xyz_N3: Points on the unit sphere (see `unit_sphere`); a NaN row means place unknown, never ignored.
        hours_N: Times in hours from any fixed origin; NaN means time unknown, never ignored.
        rows_N: Integer id of each pair's data row; its own key in a queue is then ignored. A negative number
            means unknown.
        same_within_m: Pairs whose places lie nearer than this, in metres along the ground, are positives of
            each other. Three places in a row need not all be: the first and the last may lie too far apart.
        ignore_within_m: Ignore pairs whose places lie nearer than this, in metres along the ground.
        ignore_within_h: Ignore pairs whose times lie nearer than this, in hours along the calendar: the same
            hour of another day is a day apart.
        ignore_when: With both thresholds to ignore by, whether a pair must be near in "both" place and time,
            or in "either".

    Raises:
        DataError: If a threshold is not positive or lacks the vector it is measured on, or nothing could be
            ignored.
    """

    labels_N: Tensor | None = None
    xyz_N3: Tensor | None = None
    hours_N: Tensor | None = None
    rows_N: Tensor | None = None
    same_within_m: float | None = None
    ignore_within_m: float | None = None
    ignore_within_h: float | None = None
    ignore_when: Literal["both", "either"] = "both"

    def __post_init__(self) -> None:
        _check_threshold("same_within_m", self.same_within_m, "xyz_N3", self.xyz_N3)
        _check_threshold("ignore_within_m", self.ignore_within_m, "xyz_N3", self.xyz_N3)
        _check_threshold("ignore_within_h", self.ignore_within_h, "hours_N", self.hours_N)
        if self.same_within_m and self.ignore_within_m and self.ignore_within_m <= self.same_within_m:
            raise DataError(
                f"loss context: pairs within {self.same_within_m:g} m are positives, which leaves none to "
                f"ignore within {self.ignore_within_m:g} m; ignore within more, or drop one of the two"
            )

    def check(self, pairs: int) -> None:
        """Check that every vector describes exactly the pairs of the batch.

        Raises:
            DataError: If a vector has another shape or kind than N pairs need.
        """
        for name, vector, shape in (
            ("labels_N", self.labels_N, (pairs,)),
            ("xyz_N3", self.xyz_N3, (pairs, 3)),
            ("hours_N", self.hours_N, (pairs,)),
            ("rows_N", self.rows_N, (pairs,)),
        ):
            if vector is not None and tuple(vector.shape) != shape:
                raise DataError(
                    f"loss context: {name} has shape {tuple(vector.shape)}, but {pairs} pairs need {shape}; "
                    "gather it across ranks as the embeddings are"
                )
        if self.labels_N is not None and (self.labels_N.is_floating_point() or self.labels_N.is_complex()):
            raise DataError(
                f"loss context: labels_N is {self.labels_N.dtype}, but labels are integers; see hash_labels"
            )


def _check_threshold(name: str, threshold: float | None, needed: str, vector: Tensor | None) -> None:
    if threshold is None:
        return
    if not threshold > 0:
        raise DataError(f"loss context: {name} is {threshold}; give a positive number, or leave it out")
    if vector is None:
        raise DataError(f"loss context: {name} is given without {needed}; give both or neither")


def unit_sphere(lat_N: Tensor, lon_N: Tensor) -> Tensor:
    """Return the points of the unit sphere at these latitudes and longitudes, as (N, 3) in float64.

    float64 because the losses compare dot products: float32 would blur distances below about two kilometres.

    Args:
        lat_N: Latitudes in degrees.
        lon_N: Longitudes in degrees.
    """
    lat, lon = torch.deg2rad(lat_N.double()), torch.deg2rad(lon_N.double())
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=1)


def hash_labels(labels: Sequence[str | None]) -> Tensor:
    """Return an integer id for each label, the same on every rank and in every run; None means no label.

    The id is 62 bits of a BLAKE2b digest, so ranks agree without talking to each other.
    """
    return torch.tensor([_hash_label(label) for label in labels], dtype=torch.int64)


def _hash_label(label: str | None) -> int:
    if label is None:
        return UNLABELLED
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "big") >> 2


# N pairs on all ranks, D width


class ContrastiveLoss(nn.Module):
    """Base of losses over the embeddings of N pairs from all ranks; equal rows of the two sides are a pair.

    A subclass computes its loss in `forward`.

    Attributes:
        temperature: Scale of the similarities.
        local: Whether each process computes the part of its own rows, `loss(anchor_ND, other_ND, context,
            own)`; the parts of all processes add up to the loss, and so do their gradients.
    """

    temperature: Temperature
    local: bool = False

    def clamp_temperature(self) -> None:
        """Clamp the temperature to its limits; call this after every optimiser step."""
        self.temperature.clamp_()


def check_batch(anchor_ND: Tensor, other_ND: Tensor, context: LossContext | None) -> None:
    """Check that a contrastive loss of the batch is defined.

    Raises:
        DataError: If the shapes differ or are not (N, D), there are fewer than two pairs, or the context does
            not fit.
    """
    if anchor_ND.ndim != 2 or anchor_ND.shape != other_ND.shape:
        raise DataError(
            f"contrastive loss: embeddings {tuple(anchor_ND.shape)} and {tuple(other_ND.shape)} must both be "
            "(N, D), one row per pair"
        )
    if not (anchor_ND.is_floating_point() and other_ND.is_floating_point()):
        raise DataError(
            f"contrastive loss: embeddings are {anchor_ND.dtype} and {other_ND.dtype}, not real numbers"
        )
    if len(anchor_ND) < 2:
        raise DataError(
            f"contrastive loss: a batch of {len(anchor_ND)} has nothing to contrast; "
            "use at least 2 pairs over all devices, or drop the last, short batch"
        )
    if context is not None:
        context.check(len(anchor_ND))


def check_hardness(hardness: float) -> float:
    """Return `hardness` after checking it.

    Raises:
        RecipeError: It is negative or not finite.
    """
    if not 0 <= hardness < math.inf:
        raise RecipeError(f"hardness {hardness}: give 0 for none, or a positive number")
    return hardness
