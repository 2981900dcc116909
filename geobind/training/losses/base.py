"""What every contrastive loss does: check the batch, own the temperature, tidy up after a step."""

from __future__ import annotations

import math

from torch import Tensor, nn

from geobind.errors import DataError, RecipeError
from geobind.training.losses.context import Context
from geobind.training.losses.temperature import Temperature

# N pairs on all ranks, D width


class ContrastiveLoss(nn.Module):
    """A loss over the embeddings of N pairs from all ranks; equal rows of the two sides belong together.

    Attributes:
        temperature: Its temperature.
        local: Whether each process takes the part of its own rows, `loss(anchor_ND, other_ND, context, own)`;
            the parts of all processes add up to the loss, and so do their gradients.
    """

    temperature: Temperature
    local: bool = False

    def after_step(self) -> None:
        """Bring the temperature back within its limits; call it after every optimiser step."""
        self.temperature.clamp_()


def check_batch(anchor_ND: Tensor, other_ND: Tensor, context: Context | None) -> None:
    """Refuse a batch no contrastive loss can be taken of.

    Raises:
        DataError: If the shapes differ or are not (N, D), there are fewer than two pairs, or the context does
            not fit.
    """
    if anchor_ND.ndim != 2 or anchor_ND.shape != other_ND.shape:
        raise DataError(
            f"contrastive loss: embeddings {tuple(anchor_ND.shape)} and {tuple(other_ND.shape)} must both be "
            "(N, D), one row per pair"
        )
    if not (anchor_ND.is_floating_point() and other_ND.is_floating_point()):
        raise DataError(
            f"contrastive loss: embeddings are {anchor_ND.dtype} and {other_ND.dtype}, not real numbers"
        )
    if len(anchor_ND) < 2:
        raise DataError(
            f"contrastive loss: a batch of {len(anchor_ND)} has nothing to contrast; "
            "use at least 2 pairs over all devices, or drop the last, short batch"
        )
    if context is not None:
        context.check(len(anchor_ND))


def checked_hardness(hardness: float) -> float:
    """Return the hardness of a loss.

    Raises:
        RecipeError: It is negative or not finite.
    """
    if not 0 <= hardness < math.inf:
        raise RecipeError(f"hardness {hardness}: give 0 for none, or a positive number")
    return hardness
