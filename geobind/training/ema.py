"""Exponential moving average (EMA) of the trained weights, used for evaluation and as the result."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from geobind.recipe.schema import EmaOptions


class WeightAverage(nn.Module):
    """The exponential moving average of a stage's weights (Polyak and Juditsky, 1992).

    After each move of the weights w: mean = d * mean + (1 - d) * w, with d the decay, or with a warm-up
    min(decay, (1 + n) / (10 + n)) after n moves before it. It is kept in float32, or the weights' own type
    where that is finer, as buffers: a checkpoint that holds this module goes on with it to the bit. Buffers
    of the encoders, such as batch statistics, are not averaged: they are means already, and the result takes
    them as they are. What belongs to a loss, its temperature above all, is not averaged either.

    Args:
        encoders: Of the stage, by modality; all their parameters in training are averaged.
        options: The recipe's; None: nothing is averaged, and all methods do nothing.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], options: EmaOptions | None) -> None:
        super().__init__()
        self.options = options
        self._weights = [*_trained_parameters(encoders)] if options else []
        self.register_buffer("moves", torch.zeros((), dtype=torch.int64))
        for number, weight in enumerate(self._weights):
            self.register_buffer(
                f"mean_{number}", weight.detach().clone().to(_at_least_float32(weight.dtype))
            )

    @property
    def means(self) -> list[Tensor]:
        """The mean of each parameter."""
        return [self.get_buffer(f"mean_{number}") for number in range(len(self._weights))]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after an optimizer step."""
        if self.options is None:
            return
        moves = int(self.get_buffer("moves"))
        decay = self.options.decay
        if self.options.warmup:
            decay = min(decay, (1 + moves) / (10 + moves))
        for mean, weight in zip(self.means, self._weights, strict=True):
            mean.lerp_(weight.detach().to(mean.dtype), 1 - decay)
        self.get_buffer("moves").add_(1)

    @contextmanager
    def swapped_in(self) -> Generator[None]:
        """Use the average as weights inside the block, and restore the weights exactly."""
        kept = [weight.detach().clone() for weight in self._weights]
        self.copy_to_weights()
        try:
            yield
        finally:
            _copy(kept, self._weights)

    def copy_to_weights(self) -> None:
        """Copy the average into the weights."""
        if self._weights:
            _copy(self.means, self._weights)


def _trained_parameters(encoders: Mapping[str, nn.Module]) -> Iterable[nn.Parameter]:
    parameters = {id(p): p for encoder in encoders.values() for p in encoder.parameters() if p.requires_grad}
    return parameters.values()


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@torch.no_grad()
def _copy(values: Iterable[Tensor], targets: Iterable[nn.Parameter]) -> None:
    # Into the same memory: optimizers, DDP and sharded modules hold on to it.
    for value, target in zip(values, targets, strict=True):
        target.copy_(value)
