"""The probabilistic loss: the dense formula in float64, the authors' formula, its heads, its memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import PAIRS, SQUARE, WIDTH, Live, context_of, embeddings, masks, shrink_tiles
from torch import Tensor
from torch.nn import functional as F

from geobind.errors import CheckpointError, DataError, RecipeError
from geobind.training.losses import (
    PCME,
    LossContext,
    Temperature,
    Uncertainty,
    read_uncertainties,
    uncertainties,
    unit_sphere,
)
from geobind.utils import files


def pcme(width: int, seed: int = 0, pseudo: float = 0.1, vib: float = 1e-2, temperature: float = 0.2) -> PCME:
    """A loss whose heads say something: as they start, all variances are nearly alike."""
    torch.manual_seed(seed)
    loss = PCME(width, Temperature(temperature), shift=1.0, pseudo=pseudo, vib=vib).double()
    with torch.no_grad():
        for head in (loss.anchor, loss.other):
            head.weight_DD.normal_()
            head.bias_D.normal_().sub_(2)
    return loss


def dense(loss: PCME, anchor: Tensor, other: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    """As it is written: all N x N differences of means and sums of variances, one by one."""
    log_anchor, log_other = loss.anchor(anchor), loss.other(other)
    distance = (anchor[:, None] - other).square().sum(-1) + (log_anchor.exp()[:, None] + log_other.exp()).sum(
        -1
    )
    logits = -loss.temperature.scale * distance + loss.shift
    own = logits.diagonal()
    targets = [positive, positive | (logits >= own[:, None]), positive | (logits >= own)]
    weights = [2.0, loss.pseudo, loss.pseudo]
    entropy = sum(
        weight * F.binary_cross_entropy_with_logits(logits, target.double(), reduction="none")
        for weight, target in zip(weights, targets, strict=True)
    )
    bottleneck = sum(
        -0.5 * (1 + log - mean.square() - log.exp()).mean()
        for mean, log in ((anchor, log_anchor), (other, log_other))
    )
    return entropy.masked_fill(ignored, 0).mean() + loss.vib * bottleneck


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.integers(2, 14),
    pseudo=st.sampled_from([0.0, 0.1, 2.0]),
    labelled=st.booleans(),
    metres=st.sampled_from([None, 150.0]),
    trained=st.sampled_from([(True, True), (True, False), (False, False)]),
    seed=st.integers(0, 1000),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_the_loss_and_its_gradients_equal_the_dense_formula(
    pairs, pseudo, labelled, metres, trained, seed, tile
):
    sides = embeddings(pairs, 5, seed)
    anchor, other = (side.requires_grad_(learns) for side, learns in zip(sides, trained, strict=True))
    context = context_of(pairs, seed, labelled=labelled, metres=metres, hours=None)
    loss = pcme(5, seed, pseudo)
    wanted = [part for part in (anchor, other, *loss.parameters()) if part.requires_grad]
    with pytest.MonkeyPatch.context() as patch:
        shrink_tiles(patch, *tile)
        value = loss(anchor, other, context)
        found = torch.autograd.grad(value, wanted)
    expected = dense(loss, anchor, other, *masks(context))
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)
    for one, two in zip(found, torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)


def test_the_distance_is_the_mean_squared_distance_of_two_draws():
    anchor, other = embeddings(3, 4)
    loss = pcme(4)
    draws = torch.Generator().manual_seed(0)
    drawn = [
        mean
        + (head(mean) / 2).exp() * torch.randn(200_000, *mean.shape, generator=draws, dtype=torch.float64)
        for mean, head in ((anchor, loss.anchor), (other, loss.other))
    ]
    sampled = (drawn[0] - drawn[1]).square().sum(-1).mean(0)
    closed = (anchor - other).square().sum(1) + loss.anchor.variance(anchor) + loss.other.variance(other)
    torch.testing.assert_close(sampled, closed, rtol=1e-2, atol=0)


def test_float32_at_the_true_tile_size_equals_the_dense_formula_in_float64():
    exact = [side.requires_grad_() for side in embeddings(1100, 16)]
    nothing = torch.zeros(1100, 1100, dtype=torch.bool)
    loss = pcme(16, pseudo=0.0)
    expected = dense(loss, *exact, torch.eye(1100, dtype=torch.bool), nothing)
    found = torch.autograd.grad(expected, exact)
    rough = [side.detach().float().requires_grad_() for side in exact]
    value = loss.float()(*rough)
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=2e-6)
    for one, two in zip(torch.autograd.grad(value, rough), found, strict=True):
        assert (one - two).norm() < 1e-5 * two.norm()


@settings(deadline=None, max_examples=20)
@given(pairs=st.integers(2, 12), seed=st.integers(0, 1000))
def test_the_order_of_the_pairs_does_not_matter(pairs, seed):
    anchor, other = embeddings(pairs, 6, seed)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    loss = pcme(6)
    torch.testing.assert_close(loss(anchor[order], other[order]), loss(anchor, other))


def test_labels_say_which_rows_match():
    anchor, other = embeddings(4, 3)
    loss = pcme(3)
    alike = LossContext(labels_N=torch.tensor([7, 7, 3, -1]))
    positive = torch.eye(4, dtype=torch.bool)
    positive[0, 1] = positive[1, 0] = True
    expected = dense(loss, anchor, other, positive, torch.zeros_like(positive))
    torch.testing.assert_close(loss(anchor, other, alike), expected)


def trained(loss: PCME, anchor: Tensor, other: Tensor, steps: int) -> PCME:
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(anchor, other).backward()
        optimiser.step()
        loss.clamp_temperature()
    return loss


def test_what_could_match_many_becomes_the_uncertain():
    """Eight places look each like itself, eight all alike, so that nothing tells which is whose."""
    seen = torch.cat([torch.eye(9)[:8], torch.eye(9)[8:].expand(8, -1)])
    torch.manual_seed(0)
    loss = trained(PCME(9, vib=0.0, pseudo=0.0), seen, seen, steps=60)
    clear, vague = loss.anchor.variance(seen)[:8], loss.anchor.variance(seen)[8:]
    assert vague.min() > 1.5 * clear.max()


def test_the_bottleneck_draws_the_variance_of_every_axis_to_one():
    anchor, other = embeddings(8, 4, dtype=torch.float32)
    torch.manual_seed(0)
    loss = trained(PCME(4, vib=1000.0), anchor, other, steps=300)
    torch.testing.assert_close(loss.anchor(anchor).exp(), torch.ones(8, 4), rtol=0.1, atol=0)


def test_half_precision_embeddings_are_judged_in_float32_even_under_autocast():
    anchor, other = (side.requires_grad_() for side in embeddings(40, 16, dtype=torch.bfloat16))
    loss = PCME(16)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(anchor, other)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(anchor.detach().float(), other.detach().float()))
    value.backward()
    assert anchor.grad.dtype == torch.bfloat16 and anchor.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_embedding_that_is_not_finite_makes_the_loss_nan_or_infinite(bad):
    anchor, other = embeddings(6, 4)
    anchor[2, 1] = bad
    assert not pcme(4)(anchor, other).isfinite()


def test_memory_stays_far_below_the_square_of_the_batch():
    anchor, other = (side.requires_grad_() for side in embeddings(PAIRS, WIDTH, dtype=torch.float32))
    degrees = torch.linspace(0, 80, PAIRS)
    context = LossContext(xyz_N3=unit_sphere(degrees, degrees), ignore_within_m=1e4)
    with Live() as live:
        PCME(WIDTH)(anchor, other, context).backward()
    assert live.peak < SQUARE / 6
    assert live.largest < SQUARE / 12


def test_heads_are_read_as_they_were_left(tmp_path):
    losses = {"hub-rim": pcme(4, seed=1), "hub-spoke": pcme(4, seed=2)}
    files.write_tensors(tmp_path / "uncertainty.safetensors", uncertainties(losses))
    heads = read_uncertainties(tmp_path / "uncertainty.safetensors")
    assert set(heads) == {"hub-rim.anchor", "hub-rim.other", "hub-spoke.anchor", "hub-spoke.other"}
    anchor, _ = embeddings(3, 4, dtype=torch.float32)
    expected = losses["hub-spoke"].other.float().variance(anchor)
    torch.testing.assert_close(heads["hub-spoke.other"].variance(anchor), expected)


def test_a_file_of_other_weights_is_refused(tmp_path):
    half = {"a-b.anchor.bias_D": torch.zeros(3)}
    files.write_tensors(tmp_path / "half.safetensors", half)
    with pytest.raises(
        CheckpointError, match=r"half\.safetensors: does not hold the uncertainties of a stage"
    ):
        read_uncertainties(tmp_path / "half.safetensors")


def test_what_makes_no_sense_is_refused():
    with pytest.raises(RecipeError, match=r"weights pseudo -1 and vib 0\.0001 must be 0 or positive"):
        PCME(4, pseudo=-1)
    with pytest.raises(DataError, match="a batch of 1 has nothing to contrast"):
        PCME(4)(*embeddings(1, 4))
    assert Uncertainty(512).variance(F.normalize(torch.ones(1, 512))).item() == pytest.approx(0.1, rel=0.05)
