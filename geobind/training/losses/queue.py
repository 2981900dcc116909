"""Memory bank of negatives: a first-in, first-out queue of a frozen side's embeddings (MoCo)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from geobind.errors import DataError, RecipeError
from geobind.training.losses.base import UNLABELLED
from geobind.training.losses.tiling import PairTraits

if TYPE_CHECKING:
    from geobind.training.losses.base import LossContext

# N pairs on all ranks, Q places in the queue, F <= Q of them filled, D width


class EmbeddingQueue(nn.Module):
    """The last `size` embeddings of a frozen side, as additional negatives (MoCo, arXiv:1911.05722).

    Only a frozen side may be queued: keys of a side in training would be stale. Labels, places, times and
    data rows are queued with their keys, so the rules of a `LossContext` hold against them too. Keep the
    queue shorter than an epoch: a longer one holds keys twice, and without rows in the context a pair would
    meet its own key as a negative. Everything is kept in buffers: a checkpoint holds it.

    Args:
        size: Number of embeddings to keep.
        width: Width D of an embedding.

    Raises:
        RecipeError: If size or width is not positive.
    """

    keys_QD: Tensor
    labels_Q: Tensor
    xyz_Q3: Tensor
    hours_Q: Tensor
    rows_Q: Tensor
    seen: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1 or width < 1:
            raise RecipeError(
                f"queue: size {size} and width {width} must be positive; leave the queue out for none"
            )
        self.register_buffer("keys_QD", torch.zeros(size, width))
        self.register_buffer("labels_Q", torch.full((size,), UNLABELLED))
        self.register_buffer("xyz_Q3", torch.full((size, 3), math.nan, dtype=torch.float64))
        self.register_buffer("hours_Q", torch.full((size,), math.nan, dtype=torch.float64))
        self.register_buffer("rows_Q", torch.full((size,), UNLABELLED))
        # Embeddings ever pushed, which also gives the place of the next.
        self.register_buffer("seen", torch.tensor(0))
        self._full = False

    def __len__(self) -> int:
        """Return the number of embeddings held."""
        size = len(self.keys_QD)
        if self._full:  # and stays so: the device that counts is no longer waited for
            return size
        seen = int(self.seen)
        self._full = seen >= size
        return min(seen, size)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._full = False
        super()._load_from_state_dict(*args, **kwargs)

    def keys(self, like: Tensor) -> Tensor:
        """Return the held embeddings, as (F, D), in the dtype and on the device of `like`."""
        return self.keys_QD[: len(self)].to(like)

    def traits(self) -> PairTraits:
        """Return the labels, places, times and rows of the held embeddings; unknown ones match nothing."""
        filled = slice(0, len(self))
        return PairTraits(
            self.labels_Q[filled], self.xyz_Q3[filled], self.hours_Q[filled], self.rows_Q[filled]
        )

    @torch.no_grad()
    def push(self, key_ND: Tensor, context: LossContext | None = None) -> None:
        """Append embeddings in place of the oldest ones.

        Raises:
            DataError: If the embeddings have another width than the queue.
        """
        size, width = self.keys_QD.shape
        if key_ND.ndim != 2 or key_ND.shape[1] != width:
            raise DataError(f"queue: embeddings of shape {tuple(key_ND.shape)} in a queue of width {width}")
        newest = slice(max(0, len(key_ND) - size), len(key_ND))
        place_N = (torch.arange(newest.start, newest.stop, device=self.seen.device) + self.seen) % size
        self.keys_QD[place_N] = key_ND[newest].to(self.keys_QD)
        for memory, values, unknown in (
            (self.labels_Q, None if context is None else context.labels_N, UNLABELLED),
            (self.xyz_Q3, None if context is None else context.xyz_N3, math.nan),
            (self.hours_Q, None if context is None else context.hours_N, math.nan),
            (self.rows_Q, None if context is None else context.rows_N, UNLABELLED),
        ):
            memory[place_N] = unknown if values is None else values[newest].to(memory)
        self.seen += len(key_ND)
