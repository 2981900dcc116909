"""Which pairs attract, which are left out: worked out tile by tile from vectors, never as an N x M mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from geobind.training.losses.context import Context

# N pairs, M keys (the N pairs' own, then queued ones), T rows and C columns of a tile

EARTH_RADIUS_M = 6_371_008.8  # mean radius of WGS 84


@dataclass(frozen=True)
class Traits:
    """What is known of each row or column of the similarities: group id, unit-sphere point, hours."""

    ids: Tensor | None = None
    xyz: Tensor | None = None
    hours: Tensor | None = None

    def followed_by(self, other: Traits) -> Traits:
        """Return the traits of these rows and then of the other's; a trait only one side knows is dropped."""
        return Traits(
            _append(self.ids, other.ids), _append(self.xyz, other.xyz), _append(self.hours, other.hours)
        )


@dataclass(frozen=True)
class Pairing:
    """How N rows relate to M >= N columns: equal indices are a pair; columns from N on are negatives only.

    Attributes:
        pairs: N.
        row: Traits of the N rows.
        column: Traits of the M columns.
        min_dot: Unit-sphere dot product above which two places are too near to oppose; None for no such rule.
        min_hours: Time difference below which two pairs are too near to oppose; None for no such rule.
    """

    pairs: int
    row: Traits = Traits()
    column: Traits = Traits()
    min_dot: float | None = None
    min_hours: float | None = None

    @staticmethod
    def of(
        pairs: int, context: Context | None, device: torch.device, queued: Traits | None = None
    ) -> Pairing:
        """Return the pairing of a batch, its columns followed by those of a queue if there is one."""
        if context is None:
            return Pairing(pairs)
        row = Traits(
            None if context.labels_N is None else _own_ids(context.labels_N.to(device)),
            None if context.xyz_N3 is None else context.xyz_N3.to(device, torch.float64),
            None if context.hours_N is None else context.hours_N.to(device, torch.float64),
        )
        column = row if queued is None else row.followed_by(queued)
        metres = context.ignore_within_m
        return Pairing(
            pairs, row, column, None if metres is None else _dot_at(metres), context.ignore_within_h
        )

    def shares(self, dtype: torch.dtype) -> Tensor | None:
        """Return one over the number of positives of each row, as (N, 1); None when each has one."""
        if self.row.ids is None:
            return None
        _, group_N, count_G = self.row.ids.unique(return_inverse=True, return_counts=True)
        return count_G[group_N].to(dtype).reciprocal().unsqueeze(1)


@dataclass(frozen=True)
class Tile:
    """The part of a pairing inside one tile; its columns must not straddle N.

    Attributes:
        pairing: The whole it is part of.
        rows: Its rows.
        columns: Its columns.
        share_N1: The weight of each positive of a row (see `Pairing.shares`); None for weight 1.
    """

    pairing: Pairing
    rows: slice
    columns: slice
    share_N1: Tensor | None = None

    def positives(self, logits_TC: Tensor) -> Tensor:
        """Return each row's sum of positive logits in this tile, weighted by their share."""
        mask_TC = self._positive_TC
        if mask_TC is not None:
            total_T = torch.where(mask_TC, logits_TC, 0.0).sum(1)
            return total_T if self.share_N1 is None else total_T * self.share_N1[self.rows, 0]
        sums_T = logits_TC.new_zeros(len(logits_TC))
        if self._holds_own:
            own = logits_TC.diagonal(self._offset)
            first = max(0, -self._offset)
            sums_T[first : first + len(own)] = own
        return sums_T

    def drop_(self, values_TC: Tensor, fill: float = 0.0) -> None:
        """Overwrite the ignored entries in place."""
        if self._ignored_TC is not None:
            values_TC.masked_fill_(self._ignored_TC, fill)

    def subtract_(self, weights_TC: Tensor, amount: float) -> None:
        """Subtract `amount` times its share from every positive entry, in place."""
        mask_TC = self._positive_TC
        if mask_TC is not None:
            share = amount if self.share_N1 is None else self.share_N1[self.rows] * amount
            weights_TC.sub_(mask_TC.to(weights_TC.dtype).mul_(share))
        elif self._holds_own:
            weights_TC.diagonal(self._offset).sub_(amount)

    @property
    def _offset(self) -> int:
        """Column minus row, inside the tile, of the entries that are a pair's own."""
        return self.rows.start - self.columns.start

    @property
    def _holds_own(self) -> bool:
        return self.rows.start < self.columns.stop and self.columns.start < self.rows.stop

    @cached_property
    def _alike_TC(self) -> Tensor | None:
        """True where row and column have the same group; None when no groups are known."""
        row, column = self.pairing.row.ids, self.pairing.column.ids
        return None if row is None or column is None else row[self.rows, None] == column[self.columns]

    @property
    def _queued(self) -> bool:
        return self.columns.start >= self.pairing.pairs

    @property
    def _positive_TC(self) -> Tensor | None:
        """True where row and column belong together; None when that is at most a pair's own entry."""
        return None if self._queued else self._alike_TC

    @cached_property
    def _ignored_TC(self) -> Tensor | None:
        """True where an entry is neither positive nor negative; None when none is."""
        near_TC = self._near()
        if self._queued:  # stale keys of the row's own group neither attract nor oppose
            return near_TC if self._alike_TC is None else _either(near_TC, self._alike_TC)
        if near_TC is not None and self._alike_TC is not None:
            near_TC &= ~self._alike_TC
        elif near_TC is not None and self._holds_own:
            near_TC.diagonal(self._offset).fill_(False)
        return near_TC

    def _near(self) -> Tensor | None:
        """True where two pairs are nearer than every threshold; None when there is no threshold."""
        pairing, near_TC = self.pairing, None
        if pairing.min_dot is not None and pairing.row.xyz is not None and pairing.column.xyz is not None:
            near_TC = pairing.row.xyz[self.rows] @ pairing.column.xyz[self.columns].T > pairing.min_dot
        if (
            pairing.min_hours is not None
            and pairing.row.hours is not None
            and pairing.column.hours is not None
        ):
            apart_TC = pairing.row.hours[self.rows, None] - pairing.column.hours[self.columns]
            soon_TC = apart_TC.abs_() < pairing.min_hours
            near_TC = soon_TC if near_TC is None else near_TC & soon_TC
        return near_TC


def _either(near_TC: Tensor | None, alike_TC: Tensor) -> Tensor:
    return alike_TC if near_TC is None else near_TC | alike_TC


def _dot_at(metres: float) -> float:
    """Return the dot product of two unit-sphere points this far apart along the ground."""
    return math.cos(min(metres / EARTH_RADIUS_M, math.pi))


def _own_ids(labels_N: Tensor) -> Tensor:
    """Give each unlabelled pair a group of its own, below -1 so that no unlabelled queued key equals it."""
    alone_N = -2 - torch.arange(len(labels_N), device=labels_N.device)
    return torch.where(labels_N < 0, alone_N, labels_N.long())


def _append(own: Tensor | None, queued: Tensor | None) -> Tensor | None:
    return None if own is None or queued is None else torch.cat([own, queued])
