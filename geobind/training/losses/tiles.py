"""Which pairs attract and which are left out inside one tile, worked out from the vectors of a pairing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geobind.training.losses.fused import blocks, length

if TYPE_CHECKING:
    from geobind.training.losses.pairing import Pairing

# N pairs, M keys (the N pairs' own, then queued ones), T rows and C columns of a tile

_COUNTED = 1024  # rows and columns of a tile in which positives are counted


@dataclass(frozen=True)
class Tile:
    """The part of a pairing inside one tile; its columns must not straddle N.

    Attributes:
        pairing: The whole it is part of.
        rows: Its rows.
        columns: Its columns.
        share_N1: The weight of each positive of a row (see `shares`); None for weight 1.
        mutual: Whether a positive's weight is the mean of its row's and its column's, for losses that look
            from both sides at once. Only where the pairing is uneven does that make a difference.
    """

    pairing: Pairing
    rows: slice
    columns: slice
    share_N1: Tensor | None = None
    mutual: bool = False

    def positive_mask(self, like_TC: Tensor) -> Tensor | None:
        """Return where the positives are, or None if there are none in this tile."""
        if self._positive_TC is not None or not self._holds_own:
            return self._positive_TC
        own_TC = torch.zeros_like(like_TC, dtype=torch.bool)
        own_TC.diagonal(self._offset).fill_(True)
        return own_TC

    def positives(self, logits_TC: Tensor) -> Tensor:
        """Return each row's sum of positive logits in this tile, weighted by their share."""
        mask_TC = self._positive_TC
        if mask_TC is not None:
            share = self._share
            return torch.where(mask_TC, logits_TC if share is None else logits_TC * share, 0.0).sum(1)
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
            share = self._share
            weights_TC.sub_(mask_TC.to(weights_TC.dtype).mul_(amount if share is None else share * amount))
        elif self._holds_own:
            weights_TC.diagonal(self._offset).sub_(amount)

    @property
    def _share(self) -> Tensor | None:
        """The weight of each positive, one for each row or for each entry; None for weight 1."""
        if self.share_N1 is None:
            return None
        row_T1 = self.share_N1[self.rows]
        return (row_T1 + self.share_N1[self.columns, 0]) / 2 if self.mutual else row_T1

    @property
    def _offset(self) -> int:
        """Column minus row, inside the tile, of the entries that are a pair's own."""
        return self.rows.start - self.columns.start

    @property
    def _holds_own(self) -> bool:
        return self.rows.start < self.columns.stop and self.columns.start < self.rows.stop

    @cached_property
    def _alike_TC(self) -> Tensor | None:
        """True where row and column have the same group or the same place; None when no rule says so."""
        row, column = self.pairing.row.ids, self.pairing.column.ids
        kin_TC = None if row is None or column is None else row[self.rows, None] == column[self.columns]
        if self.pairing.same_dot is None or self._dot_TC is None:
            return kin_TC
        here_TC = _either(self._dot_TC > self.pairing.same_dot, kin_TC)
        if self._holds_own:  # itself even where its place is unknown
            here_TC.diagonal(self._offset).fill_(True)
        return here_TC

    @cached_property
    def _dot_TC(self) -> Tensor | None:
        """Dot products of the places on the unit sphere; None when places are not known."""
        row, column = self.pairing.row.xyz, self.pairing.column.xyz
        return None if row is None or column is None else row[self.rows] @ column[self.columns].T

    @property
    def _same_TC(self) -> Tensor | None:
        """True where row and column are the same row of the data; None when rows are not known."""
        row, column = self.pairing.row.rows, self.pairing.column.rows
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
        if self._queued:  # stale keys of the row itself, or of its group, neither attract nor oppose
            for kin_TC in (self._alike_TC, self._same_TC):
                near_TC = near_TC if kin_TC is None else _either(kin_TC, near_TC)
            return near_TC
        if near_TC is not None and self._alike_TC is not None:
            near_TC &= ~self._alike_TC
        elif near_TC is not None and self._holds_own:
            near_TC.diagonal(self._offset).fill_(False)
        return near_TC

    def _near(self) -> Tensor | None:
        """True where two pairs are near by the thresholds there are; None when there is none."""
        pairing, near_TC, soon_TC = self.pairing, None, None
        if pairing.min_dot is not None and self._dot_TC is not None:
            near_TC = self._dot_TC > pairing.min_dot
        row, column = pairing.row.hours, pairing.column.hours
        if pairing.min_hours is not None and row is not None and column is not None:
            soon_TC = (row[self.rows, None] - column[self.columns]).abs_() < pairing.min_hours
        if near_TC is None or soon_TC is None:
            return soon_TC if near_TC is None else near_TC
        return near_TC | soon_TC if pairing.either else near_TC & soon_TC


def _either(one_TC: Tensor, other_TC: Tensor | None) -> Tensor:
    return one_TC if other_TC is None else one_TC | other_TC


def shares(pairing: Pairing, like_ND: Tensor) -> Tensor | None:
    """Return one over the number of positives of each row, as (N, 1); None when each has one.

    Where a pairing looks at some rows only, no others are counted.
    """
    if pairing.uneven:
        parts, own = blocks(0, pairing.pairs, _COUNTED), pairing.own or slice(0, pairing.pairs)
        count_N = like_ND.new_ones(pairing.pairs)
        for rows in blocks(own.start, own.stop, _COUNTED):
            count_N[rows] = _positives_of(pairing, rows, parts, like_ND)
    elif pairing.row.ids is not None:
        _, group_N, count_G = pairing.row.ids.unique(return_inverse=True, return_counts=True)
        count_N = count_G[group_N].to(like_ND.dtype)
    else:
        return None
    return count_N.reciprocal().unsqueeze(1)


def _positives_of(pairing: Pairing, rows: slice, parts: list[slice], like_ND: Tensor) -> Tensor:
    """Count the positives of some rows."""
    count_T = like_ND.new_zeros(length(rows))
    for columns in parts:
        count_T += Tile(pairing, rows, columns).positives(like_ND.new_ones(length(rows), length(columns)))
    return count_T
