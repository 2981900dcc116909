"""Contrastive losses: exact at any batch size, tile by tile, aware of frozen sides, labels and nearness.

A loss owns its temperature. Call it with the unit-length embeddings of all ranks, `loss(anchor_ND, other_ND,
context)`, and call `loss.clamp_temperature()` after each optimiser step. Double backward is not supported.
"""

from geobind.training.losses.base import ContrastiveLoss, LossContext, Temperature, hash_labels, unit_sphere
from geobind.training.losses.infonce import Direction, InfoNCE
from geobind.training.losses.queue import EmbeddingQueue
from geobind.training.losses.siglip import SigLIP

__all__ = [
    "ContrastiveLoss",
    "Direction",
    "EmbeddingQueue",
    "InfoNCE",
    "LossContext",
    "SigLIP",
    "Temperature",
    "hash_labels",
    "unit_sphere",
]
