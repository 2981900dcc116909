"""Contrastive losses: exact at any batch size, tile by tile, aware of frozen sides, labels and nearness.

A loss owns its temperature. It is called with the unit-length embeddings of all ranks, `loss(anchor_ND,
other_ND, context)`, and `loss.after_step()` follows each optimiser step. Double backward is not supported.
"""

from geobind.training.losses.base import Context, ContrastiveLoss, Temperature, label_ids, unit_sphere
from geobind.training.losses.infonce import Direction, InfoNCE
from geobind.training.losses.pcme import PCME, Uncertainty, read_uncertainties, uncertainties
from geobind.training.losses.queue import QueueOf
from geobind.training.losses.siglip import SigLIP

__all__ = [
    "PCME",
    "Context",
    "ContrastiveLoss",
    "Direction",
    "InfoNCE",
    "QueueOf",
    "SigLIP",
    "Temperature",
    "Uncertainty",
    "label_ids",
    "read_uncertainties",
    "uncertainties",
    "unit_sphere",
]
