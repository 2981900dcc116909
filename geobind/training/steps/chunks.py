"""A batch a few rows at a time, and what must be as it was when the same rows are embedded again."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]


def chunks(count: int, most: int) -> list[slice]:
    """Cut rows into runs of at most so many, all of one length or of two that differ by one."""
    parts = -(-count // most)
    return [slice(part * count // parts, (part + 1) * count // parts) for part in range(parts)]


def rows_of(batch: Any, rows: slice) -> Any:
    """Return some rows of prepared inputs: of a tensor, or of each tensor that a structure holds."""
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim else batch
    if isinstance(batch, Mapping):
        return {name: rows_of(part, rows) for name, part in cast("Mapping[Any, Any]", batch).items()}
    if isinstance(batch, list | tuple):
        parts = [rows_of(part, rows) for part in cast("list[Any]", batch)]
        return parts if isinstance(batch, list) else tuple(parts)
    return batch


def count_of(batch: Any) -> int:
    """Return how many rows prepared inputs have."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return max((count_of(part) for part in cast("list[Any]", parts)), default=0)


class Draws(NamedTuple):
    """Where torch's random numbers stand, so that dropout draws the same again."""

    host_S: Tensor
    device_S: Tensor | None  # None on a CPU

    @staticmethod
    def now(device: torch.device) -> Draws:
        """Remember where they stand."""
        host_S = torch.get_rng_state()
        return Draws(
            host_S, None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
        )

    def again(self, device: torch.device) -> None:
        """Go back to there."""
        torch.set_rng_state(self.host_S)
        if self.device_S is not None:
            torch.get_device_module(device).set_rng_state(self.device_S)


@contextmanager
def buffers_kept(encoder: nn.Module) -> Generator[None]:
    """Leave running statistics as they are: of what is embedded twice, the second time counts."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in encoder.modules()
        if module.training
        for name, buffer in module.named_buffers(recurse=False)
    ]
    yield
    for module, name, buffer, before in kept:
        setattr(module, name, buffer.copy_(before))


def batch_statistics(encoders: nn.ModuleDict) -> list[str]:
    """Name the encoders whose embeddings depend on the rows beside them: BatchNorm in training mode."""
    return [
        name
        for name, encoder in encoders.items()
        if any(isinstance(module, _BatchNorm) and module.training for module in encoder.modules())
    ]
