"""Unit-length vectors: scaling that neither overflows nor vanishes, and the checks around it."""

# N rows, D width

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from geobind.errors import DataError

# Rows beyond these bounds are moved by a power of two first, so that squares stay inside float32. A power of
# two changes no digit: rows of ordinary length come out the same to the bit.
_HUGE, _TINY = 1e15, 1e-15
_SHIFT = 2.0**100
_FLOAT32 = (1e-30, 1e30)  # rows of float64 beyond these are scaled before they become float32
_SHORTEST = 1e-30  # below any length that is left after the shift, zero apart
CANCELLED = 1e-5  # a sum this short beside its parts is rounding: its direction means nothing


def unit(raw_BD: Tensor) -> Tensor:
    """Scale embeddings to unit length, in float32: the one place where geobind normalises.

    A row of zeros stays zero, and a row that is not finite becomes NaN: nothing is checked here, since
    training passes through (`require_directions` checks).
    """
    if raw_BD.dtype == torch.float64 and raw_BD.numel():
        largest = raw_BD.detach().abs().amax(-1, keepdim=True)
        outside = ((largest < _FLOAT32[0]) | (largest > _FLOAT32[1])) & (largest > 0)
        raw_BD = raw_BD / torch.where(outside, largest, 1.0)
    row_BD = raw_BD.float()
    if not row_BD.numel():
        return row_BD
    largest = row_BD.detach().abs().amax(-1, keepdim=True)
    shift = torch.where(largest > _HUGE, 1 / _SHIFT, torch.where(largest < _TINY, _SHIFT, 1.0))
    return functional.normalize(row_BD * shift, dim=-1, eps=_SHORTEST)


def require_finite(rows_ND: Tensor, name: str) -> Tensor:
    """Return rows whose every value is a number.

    Raises:
        DataError: One holds NaN or infinity.
    """
    wrong_N = ~torch.isfinite(rows_ND).all(dim=-1)
    if bool(wrong_N.any()):
        row = int(wrong_N.nonzero()[0, 0])
        raise DataError(
            f"{name}: row {row} is not finite (NaN or infinity); look at the input it was made of"
        )
    return rows_ND


def require_directions(rows_ND: Tensor, name: str) -> Tensor:
    """Return rows that have a direction: finite, and not all zeros.

    Raises:
        DataError: One has none.
    """
    zero_N = (require_finite(rows_ND, name) == 0).all(dim=-1)
    if bool(zero_N.any()):
        row = int(zero_N.nonzero()[0, 0])
        raise DataError(f"{name}: row {row} is all zeros, which has no direction and no unit length")
    return rows_ND
