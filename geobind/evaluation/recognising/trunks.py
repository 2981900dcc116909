"""What an encoder knows before its head: its features, of unit length like embeddings."""

# B batch, F features

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from geobind.binder import Binder, unit


class Trunk(Binder):
    """One encoder without its head: `embed` gives its features, as many as there are.

    A head is what the contract calls so, an attribute of the encoder that can be trained alone; an encoder
    without one gives its embeddings.
    """

    def forward(self, name: str, batch: Any) -> Tensor:
        """Turn a prepared batch into unit-length float32 features (B, F)."""
        return unit(self.encoders[name](batch).flatten(1))


def trunk_of(binder: Binder, name: str) -> Trunk:
    """Copy an encoder as it is now, without its head; untrained, if no stage has trained the binder.

    Raises:
        PluginError: The binder has no such modality.
    """
    trunk = Trunk({name: binder.modality(name)}, binder.width, pretrained=False)
    trunk.encoders[name].load_state_dict(binder.encoders[name].state_dict())
    return _headless(trunk.to(binder.device))


def random_trunk(binder: Binder, name: str, seed: int) -> Trunk:
    """Build an encoder anew with random weights, without its head: what the architecture alone gives.

    Raises:
        PluginError: The binder has no such modality.
    """
    return _headless(Trunk({name: binder.modality(name)}, binder.width, pretrained=False, seed=seed))


def _headless(trunk: Trunk) -> Trunk:
    for encoder in trunk.encoders.values():
        if isinstance(getattr(encoder, "head", None), nn.Module):
            encoder.head = nn.Identity()
    return trunk.eval()
