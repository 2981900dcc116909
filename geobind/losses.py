"""Contrastive losses, exact at any batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind.training.losses import Context as Context
    from geobind.training.losses import InfoNCE as InfoNCE
    from geobind.training.losses import SigLIP as SigLIP
    from geobind.training.losses import Temperature as Temperature

_HOMES = {
    "Context": "geobind.training.losses",
    "InfoNCE": "geobind.training.losses",
    "SigLIP": "geobind.training.losses",
    "Temperature": "geobind.training.losses",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
