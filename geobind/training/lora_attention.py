"""LoRA for `nn.MultiheadAttention`, whose projections are one parameter and never called as layers."""

# E width of the attention, R rank

from __future__ import annotations

from typing import Any

from peft.tuners.lora.layer import MultiheadAttention
from torch import Tensor
from torch.func import functional_call  # pyright: ignore[reportPrivateImportUsage]


class LoraFusedAttention(MultiheadAttention):
    """peft's layer for fused attention, but one that never touches the weights it adapts.

    peft's own adds the change to the weights before each forward pass and subtracts it afterwards, which
    leaves them a rounding away from what they were: no longer frozen, and different after a resume.
    """

    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Attend with the weights plus their changes."""
        base: Any = self.get_base_layer()
        adapted = {
            "in_proj_weight": base.in_proj_weight + self._change(self),
            "out_proj.base_layer.weight": base.out_proj.weight + self._change(base.out_proj),
        }
        return functional_call(base, adapted, (query, *args), kwargs)

    def _restore_weights(self) -> None:
        """Leave the parameters alone: nothing took them away."""

    @staticmethod
    def _change(layer: Any) -> Tensor:
        (name,) = layer.active_adapters
        return layer.lora_B[name].weight @ layer.lora_A[name].weight * layer.scaling[name]
