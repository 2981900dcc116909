"""The temperature of a contrastive loss: how sharply similarities are told apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from geobind.errors import RecipeError


class Temperature(nn.Module):
    """A scale (one over the temperature) that multiplies similarities, learnt or fixed.

    What is stored is log(scale), as in CLIP (arXiv:2103.00020, section 2.3). The limits are kept by `clamp_`,
    which moves the parameter itself back after an optimiser step. The forward pass never clamps: a clamp
    there has no gradient beyond its bound, so a scale that once crossed it would be stuck for ever.

    Args:
        init: Temperature to start from.
        learn: Whether it is a parameter; if not, it is a buffer of the same name.
        min_scale: Smallest scale, the highest temperature's inverse.
        max_scale: Largest scale; 100 keeps the softmax of half-precision training stable.

    Raises:
        RecipeError: If the limits or the start make no sense.
    """

    log_scale: Tensor

    def __init__(
        self, init: float = 0.07, *, learn: bool = True, min_scale: float = 1.0, max_scale: float = 100.0
    ) -> None:
        super().__init__()
        if not 0 < min_scale <= max_scale < math.inf:
            raise RecipeError(
                f"temperature: scale limits {min_scale} to {max_scale} are not a range; "
                "give 0 < min_scale <= max_scale"
            )
        if not (init > 0 and min_scale * (1 - 1e-9) <= 1 / init <= max_scale * (1 + 1e-9)):
            raise RecipeError(
                f"temperature: init {init} lies outside {1 / max_scale:g} to {1 / min_scale:g}; "
                "choose a value inside, or move min_scale or max_scale"
            )
        self.min_scale, self.max_scale = min_scale, max_scale
        log_scale = torch.tensor(-math.log(init))
        if learn:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        """The factor on similarities, with its gradient."""
        return self.log_scale.exp()

    @property
    def value(self) -> float:
        """The temperature as a plain number, for logs."""
        return math.exp(-self.log_scale.item())

    @torch.no_grad()
    def clamp_(self) -> None:
        """Move the scale back within its limits."""
        self.log_scale.clamp_(math.log(self.min_scale), math.log(self.max_scale))

    def extra_repr(self) -> str:
        """Return the settings shown when the module is printed."""
        learn = isinstance(self.log_scale, nn.Parameter)
        return f"value={self.value:.4g}, {learn=}, scale={self.min_scale:g}..{self.max_scale:g}"
