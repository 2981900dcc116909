"""Calibrated probabilities: fitted scales and measured reliability."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.errors import DataError
from geobind.evaluation.bootstrap import Resampling
from geobind.evaluation.calibration import (
    MIN_TEMPERATURE,
    calibrate,
    fit_scales,
    fit_temperature,
    measure_calibration,
    measure_reliability,
    smoothed_loss,
)
from geobind.evaluation.embedded import EmbeddedRows, build_pair_sides

FEW = Resampling(200)


def world(rows, noise=2.0, seed=0, names="abc", width=64):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(rows, width))
    made = {name: torch.tensor(hidden + noise * random.normal(size=hidden.shape)) for name in names}
    return {
        name: EmbeddedRows(np.arange(rows), torch.nn.functional.normalize(x, dim=1).float())
        for name, x in made.items()
    }


def test_fitted_probabilities_are_reliable_on_other_rows_and_cold_ones_are_not():
    calibration = calibrate(world(400), "val")
    found = measure_calibration(calibration, world(400, seed=1), "test", options=FEW)
    assert [(one.query, one.gallery) for one in found.choices] == [
        ("a", "b"),
        ("b", "a"),
        ("a", "c"),
        ("c", "a"),
        ("b", "c"),
        ("c", "b"),
    ]
    for one in found.choices:
        assert one.fitted.equal_width.low < 0.02
        assert one.fitted.equal_width.value < one.before.equal_width.value / 5
        assert one.fitted.log_loss < one.before.log_loss
    for one in found.matchings:
        assert one.fitted.equal_width.low < 0.02
        assert one.fitted.predicted == pytest.approx(0.5, abs=0.05)
        assert one.fitted.log_loss < np.log(2)
    assert json.loads(json.dumps(found.to_dict()))["fitted_on"] == "val"


def test_the_temperature_is_the_one_the_similarities_were_made_with():
    random = np.random.default_rng(0)
    similarity = random.uniform(-1, 1, (2000, 20))
    chance = np.exp(similarity / 0.3)
    drawn = [random.choice(20, p=p) for p in chance / chance.sum(1, keepdims=True)]
    right = np.eye(20, dtype=bool)[drawn]
    assert fit_temperature(similarity, right) == pytest.approx(0.3, rel=0.1)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_no_other_temperature_has_a_smaller_loss(seed):
    found = world(40, 1.0, seed, "ab", 16)
    there = build_pair_sides(found, "a", "b")
    similarity = (there.query_QD @ there.gallery_GD.T).double().numpy()
    best = fit_temperature(similarity, there.right_QG)
    losses = [smoothed_loss(similarity, there.right_QG, best * factor) for factor in (0.5, 0.9, 1.1, 2.0)]
    assert smoothed_loss(similarity, there.right_QG, best) <= min(losses)


def test_a_few_queries_that_all_find_their_answer_make_nothing_certain():
    temperature = fit_temperature(np.eye(20), np.eye(20, dtype=bool))
    assert temperature > 10 * MIN_TEMPERATURE
    p = 1 / (1 + 19 * np.exp(-1 / temperature))
    assert 0.9 < p < 0.99


def test_the_scales_are_those_of_the_odds_the_similarities_were_made_with():
    random = np.random.default_rng(0)
    similarity = random.uniform(-1, 1, 60_000)
    matches = random.random(60_000) < 1 / (1 + np.exp(-(4 * similarity - 1)))
    scale, bias = fit_scales(similarity[matches], similarity[~matches])
    prior = np.log(matches.mean() / (1 - matches.mean()))  # both kinds weigh the same in the fit
    assert scale == pytest.approx(4, rel=0.05)
    assert bias == pytest.approx(-1 - prior, abs=0.05)


def test_similarities_that_part_cleanly_have_a_finite_scale_and_those_that_say_nothing_none():
    scale, bias = fit_scales(np.full(30, 0.9), np.full(300, 0.1))
    assert np.isfinite([scale, bias]).all()
    assert fit_scales(np.zeros(30), np.full(300, 0.5)) == (0.0, 0.0)


def test_a_constant_embedding_is_calibrated_at_chance():
    same = EmbeddedRows(np.arange(50), torch.ones(50, 4) / 2)
    found = measure_calibration(calibrate({"a": same, "b": same}, "val"), {"a": same, "b": same}, "test")
    for one in found.choices:
        assert one.fitted.happened == pytest.approx(1 / 50)
        assert one.fitted.equal_width.value == pytest.approx(0, abs=1e-9)


def test_labels_make_any_row_of_a_class_right():
    labels = ["x", "y"] * 40
    found = world(80, 0.1, names="ab")
    calibration = calibrate(found, "val", labels)
    assert calibration.by == "label"
    there = build_pair_sides(found, "a", "b", labels)
    assert there.right_QG.sum() == 80 * 40
    assert measure_calibration(calibration, found, "test", labels, options=FEW).choices[0].gallery_size == 80


def test_a_pair_with_few_rows_has_no_scales():
    found = world(60, names="ab")
    found["c"] = EmbeddedRows(np.arange(5), found["a"].embedding_QD[:5])
    assert [pair.modalities for pair in calibrate(found, "val").pairs] == [("a", "b")]


def test_sides_hold_the_rows_that_both_have():
    found = {
        "a": EmbeddedRows(np.array([0, 2, 5]), torch.eye(3)),
        "b": EmbeddedRows(np.array([2, 3, 5]), torch.eye(3)),
    }
    there = build_pair_sides(found, "a", "b")
    assert torch.equal(there.query_QD, torch.eye(3)[[1, 2]])
    assert torch.equal(there.gallery_GD, torch.eye(3)[[0, 2]])
    assert build_pair_sides(found, "a", "b", [None] * 6) is None


def brute_error(p, happened, bins=15):
    total = 0.0
    for low in range(bins):
        inside = (p * bins >= low) & ((p * bins < low + 1) | (low == bins - 1))
        total += abs(p[inside].sum() - happened[inside].sum())
    return total / len(p)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 60))
def test_the_error_is_what_its_definition_says(seed, rows):
    random = np.random.default_rng(seed)
    p, happened = random.random(rows), (random.random(rows) < 0.5).astype(float)
    found = measure_reliability(p, happened, options=Resampling(20))
    assert found.equal_width.value == pytest.approx(brute_error(p, happened))
    assert 0 <= found.equal_width.low <= found.equal_width.value <= found.equal_width.high
    assert sum(one.share for one in found.bins) == pytest.approx(1)


def test_intervals_tell_perfect_probabilities_from_wrong_ones():
    random = np.random.default_rng(0)
    p = random.beta(1, 3, 500)
    perfect = measure_reliability(p, (random.random(500) < p).astype(float)).equal_width
    wrong = measure_reliability(p, (random.random(500) < p / 2).astype(float)).equal_width
    assert (perfect.low, perfect.perfect > 0.02) == (0.0, True)
    assert wrong.low > 0.05


def test_numbers_that_are_no_probabilities_are_told():
    with pytest.raises(DataError, match="probabilities, each from 0 to 1"):
        measure_reliability(np.array([1.2]), np.array([1.0]))
