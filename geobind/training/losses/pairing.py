"""Which pairs attract and which are left out, as vectors: an N x M mask is never made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from geobind.training.losses.context import Context

# N pairs, M keys (the N pairs' own, then queued ones)

EARTH_RADIUS_M = 6_371_008.8  # mean radius of WGS 84


@dataclass(frozen=True)
class Traits:
    """What is known of each row or column of the similarities: group, unit-sphere point, hours, data row."""

    ids: Tensor | None = None
    xyz: Tensor | None = None
    hours: Tensor | None = None
    rows: Tensor | None = None

    def followed_by(self, other: Traits) -> Traits:
        """Return the traits of these rows and then of the other's; a trait only one side knows is dropped."""
        return Traits(
            _append(self.ids, other.ids),
            _append(self.xyz, other.xyz),
            _append(self.hours, other.hours),
            _append(self.rows, other.rows),
        )


@dataclass(frozen=True)
class Pairing:
    """How N rows relate to M >= N columns: equal indices are a pair; columns from N on are negatives only.

    Attributes:
        pairs: N.
        row: Traits of the N rows.
        column: Traits of the M columns.
        same_dot: Unit-sphere dot product above which two places are the same; None for no such rule.
        min_dot: The same above which two places are too near to oppose; None for no such rule.
        min_hours: Time difference below which two pairs are too near to oppose; None for no such rule.
        either: Whether one of the last two rules is enough, where there are both.
        own: The rows that are looked at, as losses of single rows are added up over processes; None: all.
    """

    pairs: int
    row: Traits = Traits()
    column: Traits = Traits()
    same_dot: float | None = None
    min_dot: float | None = None
    min_hours: float | None = None
    either: bool = False
    own: slice | None = None

    @staticmethod
    def of(
        pairs: int,
        context: Context | None,
        device: torch.device,
        queued: Traits | None = None,
        own: slice | None = None,
    ) -> Pairing:
        """Return the pairing of a batch, its columns followed by those of a queue if there is one."""
        if context is None:
            return Pairing(pairs, own=own)
        row = Traits(
            None if context.labels_N is None else _own_ids(context.labels_N.to(device)),
            None if context.xyz_N3 is None else context.xyz_N3.to(device, torch.float64),
            None if context.hours_N is None else context.hours_N.to(device, torch.float64),
            None if context.rows_N is None else _own_ids(context.rows_N.to(device)),
        )
        column = row if queued is None else row.followed_by(queued)
        return Pairing(
            pairs,
            row,
            column,
            _dot_at(context.same_within_m),
            _dot_at(context.ignore_within_m),
            context.ignore_within_h,
            context.ignore_when == "either",
            own,
        )

    @property
    def uneven(self) -> bool:
        """Whether two positives of each other can have different numbers of positives."""
        return self.same_dot is not None


def _dot_at(metres: float | None) -> float | None:
    """Return the dot product of two unit-sphere points this far apart along the ground."""
    return None if metres is None else math.cos(min(metres / EARTH_RADIUS_M, math.pi))


def _own_ids(labels_N: Tensor) -> Tensor:
    """Give each unlabelled pair a group of its own, below -1 so that no unlabelled queued key equals it."""
    alone_N = -2 - torch.arange(len(labels_N), device=labels_N.device)
    return torch.where(labels_N < 0, alone_N, labels_N.long())


def _append(own: Tensor | None, queued: Tensor | None) -> Tensor | None:
    return None if own is None or queued is None else torch.cat([own, queued])
