"""What is kept of an encoder's work: its embedding, or the features that its head is given."""

# B inputs of a batch, F numbers of a row, D width of the space

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from geobind.binder import unit
from geobind.frozen.address import Part
from geobind.frozen.contents import Uncacheable
from geobind.inputs import moved, still

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Encoding:
    """Runs the part of an encoder that is kept, without gradients and in eval mode.

    The features of a trunk are what its encoder's `head` is called with, whatever the encoder does before.

    Args:
        encoder: The whole encoder, on its device.
        part: The whole gives unit-length embeddings (B, D), the trunk the head's input (B, F).
        context: The precision to compute in.
        device: Where it computes.
    """

    def __init__(
        self,
        encoder: nn.Module,
        part: Part,
        context: Callable[[], AbstractContextManager[Any]],
        device: torch.device,
    ) -> None:
        self.encoder, self.part, self.context, self.device = encoder, part, context, device
        self._trusted = False

    def __call__(self, batch: Any) -> NDArray[np.float32]:
        """Return a row for each input of a prepared batch.

        Raises:
            Uncacheable: The encoder gives more than an embedding, does more after its head, or gives the head
                something else than features.
        """
        with still(self.encoder), self.context():
            x = moved(batch, self.device)
            if self.part == "whole":
                output = self.encoder(x)
                if not isinstance(output, Tensor):
                    raise Uncacheable("its encoder gives more than an embedding")
                value_BF = unit(output)
            else:
                value_BF, output_BD = self._features(x)
                if not self._trusted:
                    self._check(value_BF, output_BD)
            return value_BF.float().cpu().numpy()

    def _features(self, x: Any) -> tuple[Tensor, Tensor]:
        given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.append((args, kwargs))

        hook = self._head.register_forward_pre_hook(listen, with_kwargs=True)
        try:
            output_BD = self.encoder(x)
        finally:
            hook.remove()
        if len(given) != 1 or given[0][1] or len(given[0][0]) != 1 or not isinstance(given[0][0][0], Tensor):
            raise Uncacheable("its head is not called once with one tensor")
        features_BF = given[0][0][0]
        if features_BF.ndim < 2 or len(features_BF) != len(output_BD):
            raise Uncacheable("its head is not given one row of features for each input")
        return features_BF, output_BD

    @property
    def _head(self) -> nn.Module:
        head = self.encoder.head
        return head if isinstance(head, nn.Module) else nn.Identity()

    def _check(self, features_BF: Tensor, output_BD: Tensor) -> None:
        """Check that nothing follows the head."""
        again_BD = self._head(features_BF)
        if not isinstance(output_BD, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise Uncacheable("its encoder gives more than an embedding")
        if again_BD.shape != output_BD.shape or not torch.allclose(
            again_BD.float(), output_BD.float(), rtol=1e-3, atol=1e-5, equal_nan=True
        ):
            raise Uncacheable("its encoder does more after its head")
        self._trusted = True
