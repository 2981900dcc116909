"""Any subset in, any modality out: products of von Mises-Fisher experts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Left, Right, registry, view

from geobind import plugins
from geobind.binder import Binder
from geobind.bundles.bundle import build_card
from geobind.errors import DataError, PluginError
from geobind.fusion import fuse
from geobind.scoring import Calibration, PairScales, add_embeddings
from geobind.utils.vectors import unit


def rows(count, seed, width=6):
    return unit(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def scales(one, two, forth, back):
    return PairScales(modalities=(one, two), temperature=(forth, back), scale=1, bias=0, rows=20)


FITTED = Calibration(
    fitted_on="val", pairs=(scales("tile", "sound", 0.1, 0.2), scales("words", "sound", 0.5, 0.3))
)


def test_without_calibration_it_is_the_plain_sum_and_says_so():
    given_parts = {"tile": rows(5, 0), "words": rows(5, 1)}
    found = fuse(given_parts, "sound")
    assert torch.allclose(found.mean_ND, add_embeddings(given_parts), atol=1e-6)
    assert not found.calibrated and "equal weights" in found.note


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_the_product_ranks_a_gallery_as_the_product_of_fitted_softmaxes(seed):
    tile, words, gallery = rows(4, seed), rows(4, seed + 1), rows(9, seed + 2)
    found = fuse({"tile": tile, "words": words}, "sound", FITTED)
    expected = (tile @ gallery.T / 0.1 + words @ gallery.T / 0.5).softmax(1)
    made = (found.concentration_N[:, None] * (found.mean_ND @ gallery.T)).softmax(1)
    assert found.calibrated
    assert torch.allclose(made, expected, atol=1e-4)


def test_a_pair_without_a_temperature_makes_all_weights_equal():
    given_parts = {"tile": rows(3, 0), "map": rows(3, 1)}
    found = fuse(given_parts, "sound", FITTED)
    assert not found.calibrated
    assert torch.allclose(found.mean_ND, add_embeddings(given_parts), atol=1e-6)


def test_agreeing_inputs_are_surer_than_ones_that_disagree():
    one = rows(1, 0)
    agree = fuse({"tile": one, "words": one}, "sound", FITTED)
    differ = fuse({"tile": one, "words": -one}, "sound", FITTED)
    assert agree.concentration_N > differ.concentration_N > 0


def test_a_missing_input_counts_for_nothing_and_a_row_without_any_is_zero():
    tile, words = rows(3, 0), rows(3, 1)
    there = {"tile": torch.tensor([True, False, False]), "words": torch.tensor([True, True, False])}
    found = fuse({"tile": tile, "words": words}, "sound", FITTED, there)
    assert torch.allclose(found.mean_ND[1], words[1], atol=1e-6)
    assert torch.equal(found.mean_ND[2], torch.zeros(6)) and found.concentration_N[2] == 0


def test_a_given_modality_stays_as_it_is_where_it_is_there():
    tile, sound = rows(2, 0), rows(2, 1)
    found = fuse({"tile": tile, "sound": sound}, "sound", FITTED, {"sound": torch.tensor([True, False])})
    assert torch.equal(found.mean_ND[0], sound[0]) and found.concentration_N[0] == torch.inf
    assert torch.allclose(found.mean_ND[1], tile[1], atol=1e-6)


@pytest.mark.parametrize(
    ("parts", "message"), [({}, "nothing to infer"), ({"a": rows(2, 0), "b": rows(3, 0)}, "equally many")]
)
def test_what_cannot_be_fused_is_refused(parts, message):
    with pytest.raises(DataError, match=message):
        fuse(parts, "sound")


@pytest.fixture
def binder(monkeypatch):
    monkeypatch.setattr(plugins, "registry", registry)
    made = Binder({"left": Left(), "right": Right()}, 8, seed=0)
    made.card = build_card(made)
    return made


def test_a_binder_infers_every_modality_whatever_is_missing(binder):
    lefts = [view(i, "left") for i in range(3)]
    found = binder.infer({"left": [lefts[0], None, lefts[2]], "right": [None, None, view(1, "right")]})
    assert set(found) == {"left", "right"}
    assert found["left"].mean_ND.shape == (3, 8)
    assert torch.allclose(found["left"].mean_ND[0], binder.embed("left", lefts[0])[0], atol=1e-6)
    assert torch.allclose(found["right"].mean_ND[0], binder.embed("left", lefts[0])[0], atol=1e-6)
    assert found["right"].concentration_N[1] == 0
    alone = binder.infer({"left": lefts[0], "right": None}, to=["right"])
    assert set(alone) == {"right"} and alone["right"].inputs == ("left",)


def test_unknown_names_and_no_inputs_at_all_are_refused(binder):
    with pytest.raises(PluginError, match="no modality 'lift'; did you mean 'left'"):
        binder.infer({"lift": view(0, "left")})
    with pytest.raises(PluginError, match="no modality 'sonar'; it has left, right"):
        binder.infer({"left": view(0, "left")}, to=["sonar"])
    for parts in ({}, {"left": None}, {"left": [None, None]}):
        with pytest.raises(DataError, match="nothing to infer"):
            binder.infer(parts)
