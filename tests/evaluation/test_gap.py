"""The modality gap: zero without a gap, closed forms with one."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.evaluation.bootstrap import Resampling
from geobind.evaluation.embedded import EmbeddedRows
from geobind.evaluation.gap import measure_uniformity, modality_gap

FEW = Resampling(200)


def two(shift, rows=300, width=16, seed=0, noise=1.0):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(rows, width))
    made = [hidden + noise * random.normal(size=hidden.shape) for _ in "ab"]
    made[1][:, 0] += shift
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in made]
    return {
        name: EmbeddedRows(np.arange(rows), torch.tensor(x).float())
        for name, x in zip("ab", unit, strict=True)
    }


def test_modalities_drawn_alike_have_no_gap():
    (pair,) = modality_gap(two(0.0), options=FEW).pairs
    assert pair.distance.low == 0
    assert pair.distance.value < 1.5 * pair.distance.chance
    assert pair.separable.low < 0.5 < pair.separable.high
    assert pair.alignment.high < pair.alignment.chance


def test_a_shift_is_a_gap_that_a_line_sees():
    (pair,) = modality_gap(two(4.0), options=FEW).pairs
    assert pair.distance.low > 2 * pair.distance.chance
    assert pair.separable.low > 0.8


def test_the_figures_are_what_their_definitions_say():
    found = two(1.0, rows=40)
    a, b = (one.embedding_QD.double().numpy() for one in found.values())
    (pair,) = modality_gap(found, options=FEW).pairs
    assert pair.distance.value == pytest.approx(np.linalg.norm(a.mean(0) - b.mean(0)))
    square = ((a[:, None] - b) ** 2).sum(-1)
    assert pair.alignment.value == pytest.approx(np.diag(square).mean())
    assert pair.alignment.chance == pytest.approx(square[~np.eye(40, dtype=bool)].mean())


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), rows=st.integers(3, 30))
def test_uniformity_is_what_its_definition_says(seed, rows):
    x = two(0.0, rows, 5, seed)["a"].embedding_QD.double().numpy()
    square = ((x[:, None] - x) ** 2).sum(-1)[~np.eye(rows, dtype=bool)]
    assert measure_uniformity(x).value == pytest.approx(np.log(np.exp(-2 * square).mean()))


def test_points_drawn_evenly_reach_the_uniformity_of_chance_and_one_point_has_none():
    random = np.random.default_rng(0)
    x = random.normal(size=(2000, 8))
    even = measure_uniformity(x / np.linalg.norm(x, axis=1, keepdims=True))
    assert even.low < even.chance < even.high
    assert measure_uniformity(np.tile([[1.0, 0.0]], (20, 1))).value == pytest.approx(0)


def test_modalities_with_few_rows_are_left_out_and_the_rest_is_plain_json():
    found = two(0.0)
    found["c"] = EmbeddedRows(np.arange(3), found["a"].embedding_QD[:3])
    plain = json.loads(json.dumps(modality_gap(found, options=FEW).to_dict()))
    assert [pair["modalities"] for pair in plain["pairs"]] == [["a", "b"]]
    assert [one["modality"] for one in plain["spreads"]] == ["a", "b"]
