"""Embeddings, dense references and instruments that the tests of losses share."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from geobind.training.losses import LossContext, tiling, unit_sphere

DIRECTIONS = ["both", "anchor_to_other", "other_to_anchor"]


def embeddings(
    pairs: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Two unit-length matrices whose rows are related, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randn(pairs, width, generator=generator, dtype=torch.float64)
    other = anchor + torch.randn(pairs, width, generator=generator, dtype=torch.float64)
    return F.normalize(anchor, dim=1).to(dtype), F.normalize(other, dim=1).to(dtype)


def shrink_tiles(monkeypatch, rows: int = 3, columns: int = 5) -> None:
    def tile_blocks(query: Tensor, key: Tensor, own: slice | None = None) -> tuple[list[slice], list[slice]]:
        first, last = (0, len(query)) if own is None else (own.start, own.stop)
        keys = tiling.split_range(0, len(query), columns) + tiling.split_range(len(query), len(key), columns)
        return tiling.split_range(first, last, rows) or [slice(first, first)], keys

    monkeypatch.setattr(tiling, "tile_blocks", tile_blocks)
    monkeypatch.setattr("geobind.training.losses.infonce._KEPT", 0)
    for kernel in ("infonce", "siglip", "hard_negatives"):
        monkeypatch.setattr(f"geobind.training.losses.{kernel}.tile_blocks", tile_blocks)


EARTH_RADIUS_M = 6_371_008.8


def masks(context: LossContext) -> tuple[Tensor, Tensor]:
    """The N x N matrices of positive and of ignored pairs, by haversine rather than by chord."""
    count = len(context.xyz_N3)
    labels, hours, xyz = context.labels_N, context.hours_N, context.xyz_N3
    positive = torch.eye(count, dtype=torch.bool)
    if labels is not None:
        positive |= (labels[:, None] == labels) & (labels >= 0)
    angle = 2 * torch.asin(
        (torch.cdist(xyz, xyz, compute_mode="donot_use_mm_for_euclid_dist") / 2).clamp(max=1)
    )
    near = torch.ones(count, count, dtype=torch.bool)
    if context.ignore_within_m is not None:
        near &= angle * EARTH_RADIUS_M < context.ignore_within_m
    if context.ignore_within_h is not None:
        near &= (hours[:, None] - hours).abs() < context.ignore_within_h
    if context.ignore_within_m is None and context.ignore_within_h is None:
        near &= False
    return positive, near & ~positive


def dense_one_way(logits: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    log_probability = logits - logits.masked_fill(ignored, -math.inf).logsumexp(1, keepdim=True)
    return -(log_probability.where(positive, 0).sum(1) / positive.sum(1)).mean()


def context_of(
    pairs: int, seed: int, *, labelled: bool, metres: float | None, hours: float | None
) -> LossContext:
    """Pairs in a few towns, days and classes, some with label or time unknown."""
    generator = torch.Generator().manual_seed(seed)
    town = torch.randint(0, 3, (pairs,), generator=generator) * 10.0
    street = torch.rand(2, pairs, generator=generator, dtype=torch.float64) * 2e-3  # up to about 200 m
    labels = torch.randint(-1, 3, (pairs,), generator=generator)
    time = torch.rand(pairs, generator=generator, dtype=torch.float64) * 48 + 490_000
    time[torch.rand(pairs, generator=generator) < 0.1] = math.nan
    return LossContext(
        labels_N=labels if labelled else None,
        xyz_N3=unit_sphere(town + street[0], town + street[1]),
        hours_N=time,
        ignore_within_m=metres,
        ignore_within_h=hours,
    )


PAIRS = 8192


WIDTH = 16


SQUARE = PAIRS * PAIRS * 4  # bytes of one N x N matrix of similarities


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors alive that were made inside it, and their peak."""

    def __init__(self):
        super().__init__()
        self.sizes, self.peak, self.largest = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return made

    def _note(self, storage):
        self.sizes = {key: value for key, value in self.sizes.items() if not value[0].expired()}
        self.sizes[storage._cdata] = (
            torch.multiprocessing.reductions.StorageWeakRef(storage),
            storage.nbytes(),
        )
        self.peak = max(self.peak, sum(size for _, size in self.sizes.values()))
        self.largest = max(self.largest, storage.nbytes())
