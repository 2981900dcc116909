from __future__ import annotations

import pytest
import torch
from test_losses import embeddings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from geobind.training.losses import Context, InfoNCE, SigLIP, unit_sphere

PAIRS, WIDTH = 8192, 16
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


CASES = {
    "both": (InfoNCE(), False),
    "one way": (InfoNCE("anchor_to_other"), False),
    "siglip": (SigLIP(), False),
    "labels and places": (InfoNCE(), True),
}


def test_the_meter_sees_a_full_matrix_and_its_end():
    anchor, other = embeddings(512, WIDTH, dtype=torch.float32)
    with Live() as live:
        for _ in range(3):
            (anchor @ other.T).sum()
    assert 512 * 512 * 4 <= live.peak < 2 * 512 * 512 * 4


@pytest.mark.parametrize(("loss", "told"), CASES.values(), ids=CASES)
def test_memory_stays_far_below_the_square_of_the_batch(loss, told):
    anchor, other = (part.requires_grad_() for part in embeddings(PAIRS, WIDTH, dtype=torch.float32))
    context = None
    if told:
        degrees = torch.linspace(0, 80, PAIRS)
        context = Context(
            labels_N=torch.arange(PAIRS) // 3, xyz_N3=unit_sphere(degrees, degrees), ignore_within_m=1e4
        )
    with Live() as live:
        loss(anchor, other, context).backward()
    assert anchor.grad.abs().sum() > 0
    assert live.peak < SQUARE / 8
    assert live.largest < SQUARE / 12
