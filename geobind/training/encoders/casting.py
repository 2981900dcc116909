"""Encoders in another type while a stage runs (`bf16-true`, `64-true`), and in their own again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geobind.recipe.parts import Full, Part
from geobind.training.encoders.freezing import loose_names

_TYPES = {"bf16-true": torch.bfloat16, "64-true": torch.float64}


class Cast:
    """Turns encoders to the type that a precision computes in; nothing happens if that is float32.

    Args:
        encoders: By modality; their weights change type in place.
        parts: What is trained of each.
        precision: As Fabric names it.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], parts: Mapping[str, Part], precision: str) -> None:
        self.type = _TYPES.get(precision)
        self._kept: dict[str, dict[str, Tensor]] = {}  # what comes back as it was
        self._types: dict[str, dict[str, torch.dtype]] = {}  # of what was trained
        if self.type is None:
            return
        for name, encoder in encoders.items():
            moves = _moving(encoder, parts.get(name))
            there = dict(_floats(encoder))
            self._kept[name] = {
                k: t.detach().to("cpu", copy=True) for k, t in there.items() if k not in moves
            }
            self._types[name] = {k: t.dtype for k, t in there.items() if k in moves}
            encoder.to(self.type)

    def undo(self, encoders: Mapping[str, nn.Module]) -> None:
        """Give frozen weights back to the bit, and trained ones in the type that they had."""
        for name, kept in self._kept.items():
            for key, tensor in _floats(encoders[name]):
                there = tensor.data
                tensor.data = kept[key].to(there.device) if key in kept else there.to(self._types[name][key])


class InFloat32(nn.ModuleDict):
    """Modules that stay in float32 when what they are part of is cast to another type.

    A temperature in bfloat16 would not move: its steps are smaller than the type can tell apart.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def moved(tensor: Tensor) -> Tensor:
            like = fn(tensor)
            return tensor.to(like.device) if like.dtype != tensor.dtype else like

        return super()._apply(moved, recurse)


def _floats(encoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All floating-point parameters and buffers, those included that are not in the state dict."""
    for key, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
        if tensor.is_floating_point():
            yield key, tensor


def _moving(encoder: nn.Module, part: Part | None) -> set[str]:
    """Name what a stage changes."""
    return set(encoder.state_dict()) if isinstance(part, Full) else set(loose_names(encoder, part))
