"""Contrastive losses, exact at any batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind.training.losses import InfoNCE as InfoNCE
    from geobind.training.losses import LossContext as LossContext
    from geobind.training.losses import SigLIP as SigLIP
    from geobind.training.losses import Temperature as Temperature
    from geobind.training.losses import hash_labels as hash_labels
    from geobind.training.losses import unit_sphere as unit_sphere

_HOMES = {
    "InfoNCE": "geobind.training.losses",
    "LossContext": "geobind.training.losses",
    "SigLIP": "geobind.training.losses",
    "Temperature": "geobind.training.losses",
    "hash_labels": "geobind.training.losses",
    "unit_sphere": "geobind.training.losses",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
