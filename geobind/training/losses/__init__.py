"""Contrastive losses, computed tile by tile: exact at any batch size.

base: the temperature, its clamp, and the metadata of a batch. infonce, siglip: the losses and their kernels.
hard_negatives: their variants with weighted negatives. queue: a memory bank. tiling: tiles and gradients.

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
