"""The gradient of one step: how the losses of a batch reach what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_fabric import Fabric
from torch import Tensor

from geobind.training.bind import About, Bind, Losses


class Gradients(NamedTuple):
    """Leaves the gradient of a step's losses in the parameters.

    Args:
        fabric: Where the stage runs.
        bind: What is differentiated.
        module: The same as Fabric set it up.
    """

    fabric: Fabric
    bind: Bind
    module: Any

    def __call__(self, batches: Mapping[str, Any], present_BM: Tensor | None, about: About) -> Losses:
        """Embed a batch, take the losses and go back through all of it at once.

        Args:
            batches: The prepared inputs of each modality: of the rows that have it, in their order.
            present_BM: Which rows have which modality; None: all have all.
            about: What is known of the rows of all ranks.
        """
        found = self.module(self.fabric.to_device(batches), present_BM, about)
        self.fabric.backward(found.total)
        self.bind.rest(found.idle)
        return found
