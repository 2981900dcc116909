"""What the losses know of pairs beyond embeddings: which belong together, which are too near to oppose."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from geobind.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

# N pairs on all ranks

UNLABELLED = -1


@dataclass(frozen=True, kw_only=True)
class Context:
    """The labels, places and times of N pairs; whatever is left out plays no part in the loss.

    Pairs of one label are positives of each other, and so are pairs of one place. Pairs that are near are
    *ignored*: neither positives nor negatives, because two sounds recorded ten metres apart should not be
    pushed from each other. A pair is always its own positive, and being positives outweighs nearness.

    Attributes:
        labels_N: Group ids, integers; a negative id means no label (see `label_ids`).
        xyz_N3: Points on the unit sphere (see `unit_sphere`); a NaN row means place unknown, never ignored.
        hours_N: Times in hours from any fixed origin; NaN means time unknown, never ignored.
        rows_N: Which row of the data each pair is, integers; its own key in a queue is then ignored. A
            negative number means unknown.
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
        """Refuse vectors that do not describe exactly the pairs of the batch.

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
                f"loss context: labels_N is {self.labels_N.dtype}, but labels are integers; see label_ids"
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


def label_ids(labels: Sequence[str | None]) -> Tensor:
    """Return one integer per label, the same on every rank and in every run; None becomes "no label".

    The id is 62 bits of a BLAKE2b digest, so ranks agree without talking to each other.
    """
    return torch.tensor([_label_id(label) for label in labels], dtype=torch.int64)


def _label_id(label: str | None) -> int:
    if label is None:
        return UNLABELLED
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "big") >> 2
