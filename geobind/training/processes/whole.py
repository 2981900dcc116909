"""Tensors as a whole, wherever their parts lie: the one place where sharded weights are put together."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor as a whole; every rank must ask, because those that hold a part of it send theirs."""
    parts: Any = tensor.detach()
    return parts.full_tensor() if hasattr(parts, "full_tensor") else parts
