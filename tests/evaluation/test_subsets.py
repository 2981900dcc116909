"""Subsets of inputs: how many are measured."""

import numpy as np
import torch

from geobind.evaluation import subsets
from geobind.evaluation.embedded import EmbeddedRows
from geobind.utils.vectors import unit


def test_no_subset_beyond_the_most_is_measured(monkeypatch):
    made = torch.Generator().manual_seed(0)
    names = ("tile", "photo", "sound", "words", "place")
    embedded = {name: EmbeddedRows(np.arange(8), unit(torch.randn(8, 4, generator=made))) for name in names}
    every = subsets.evaluate_subsets(embedded)
    assert len(every) == 5 * (6 + 4 + 1)
    measured, fuse = [], subsets.fuse
    monkeypatch.setattr(subsets, "fuse", lambda *given: measured.append(given) or fuse(*given))
    monkeypatch.setattr(subsets, "MOST_SUBSETS", 3)
    assert subsets.evaluate_subsets(embedded) == every[:3]
    assert len(measured) == 3
