from __future__ import annotations

import pytest
import torch
from loss_cases import PAIRS, SQUARE, WIDTH, Live, embeddings

from geobind.training.losses import InfoNCE, LossContext, SigLIP, unit_sphere

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


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "told"), CASES.values(), ids=CASES)
def test_memory_stays_far_below_the_square_of_the_batch(loss, told):
    anchor, other = (part.requires_grad_() for part in embeddings(PAIRS, WIDTH, dtype=torch.float32))
    context = None
    if told:
        degrees = torch.linspace(0, 80, PAIRS)
        context = LossContext(
            labels_N=torch.arange(PAIRS) // 3, xyz_N3=unit_sphere(degrees, degrees), ignore_within_m=1e4
        )
    with Live() as live:
        loss(anchor, other, context).backward()
    assert anchor.grad.abs().sum() > 0
    assert live.peak < SQUARE / 8
    assert live.largest < SQUARE / 12
