"""Hard negatives that count more: the dense formula in float64, its limits, its memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import DIRECTIONS, PAIRS, SQUARE, WIDTH, Live, context_of, embeddings, masks, shrink_tiles
from torch import Tensor
from torch.nn import functional as F

from geobind.errors import RecipeError
from geobind.training.losses import EmbeddingQueue, InfoNCE, LossContext, SigLIP, Temperature, unit_sphere


def weighted(logits: Tensor, negative: Tensor, beta: float) -> Tensor:
    """The weights of a query's negatives, as the authors' code has them: exp(beta l) over its mean."""
    importance = (beta * logits).exp() * negative
    count = negative.sum(1, keepdim=True)
    return importance * count / importance.sum(1, keepdim=True).clamp(min=1e-300)


def dense_softmax(logits: Tensor, positive: Tensor, ignored: Tensor, beta: float) -> Tensor:
    negative = ~positive & ~ignored
    rivals = (weighted(logits, negative, beta) * logits.exp()).sum(1)
    kin = (logits.exp() * positive).sum(1)
    attraction = (logits * positive).sum(1) / positive.sum(1)
    return ((kin + rivals).log() - attraction).mean()


def dense_sigmoid(logits: Tensor, positive: Tensor, ignored: Tensor, beta: float) -> Tensor:
    weights = weighted(logits, ~positive & ~ignored, beta)
    return (positive * F.softplus(-logits) + weights * F.softplus(logits)).sum() / len(logits)


def dense(loss, anchor: Tensor, other: Tensor, beta: float, context: LossContext) -> Tensor:
    scale, (positive, ignored) = loss.temperature.scale, masks(context)
    if isinstance(loss, SigLIP):
        logits, formula = scale * anchor @ other.T + loss.bias, dense_sigmoid
    else:
        logits, formula = scale * anchor @ other.T, dense_softmax
    there = formula(logits, positive, ignored, beta)
    back = formula(logits.T, positive.T, ignored.T, beta)
    direction = getattr(loss, "direction", "both")
    return {"both": (there + back) / 2, "anchor_to_other": there, "other_to_anchor": back}[direction]


def hard(which: str, beta: float, temperature: float = 0.2):
    temperature_ = Temperature(temperature)
    if which == "siglip":
        return SigLIP(temperature_, bias=-1.0, hardness=beta).double()
    return InfoNCE(which, temperature_, hardness=beta).double()


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.integers(2, 14),
    which=st.sampled_from([*DIRECTIONS, "siglip"]),
    beta=st.sampled_from([0.1, 1.0, 2.5]),
    labelled=st.booleans(),
    metres=st.sampled_from([None, 150.0, 3e7]),
    trained=st.sampled_from([(True, True), (True, False), (False, True)]),
    seed=st.integers(0, 1000),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_a_hard_loss_and_its_gradients_equal_the_dense_formula(
    pairs, which, beta, labelled, metres, trained, seed, tile
):
    sides = embeddings(pairs, 5, seed)
    anchor, other = (side.requires_grad_(learns) for side, learns in zip(sides, trained, strict=True))
    context = context_of(pairs, seed, labelled=labelled, metres=metres, hours=None)
    loss = hard(which, beta)
    wanted = [part for part in (anchor, other, *loss.parameters()) if part.requires_grad]
    with pytest.MonkeyPatch.context() as patch:
        shrink_tiles(patch, *tile)
        value = loss(anchor, other, context)
        found = torch.autograd.grad(value, wanted)
    expected = dense(loss, anchor, other, beta, context)
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)
    for one, two in zip(found, torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("which", [*DIRECTIONS, "siglip"])
def test_float32_at_the_true_tile_size_equals_the_dense_formula_in_float64(which):
    exact = [side.requires_grad_() for side in embeddings(1100, 32)]
    rough = [side.detach().float().requires_grad_() for side in exact]
    loss = hard(which, 1.0, temperature=0.07)
    nothing = LossContext(xyz_N3=torch.full((1100, 3), math.nan))
    expected = dense(loss, *exact, 1.0, nothing)
    value = loss.float()(*rough)
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=2e-6)
    for one, two in zip(torch.autograd.grad(value, rough), torch.autograd.grad(expected, exact), strict=True):
        assert (one - two).norm() < 5e-6 * two.norm()


@pytest.mark.parametrize("which", [*DIRECTIONS, "siglip"])
def test_hardness_near_zero_is_the_plain_loss(which):
    anchor, other = embeddings(9, 5)
    torch.testing.assert_close(hard(which, 1e-9)(anchor, other), hard(which, 0.0)(anchor, other))


@pytest.mark.parametrize("which", [*DIRECTIONS, "siglip"])
def test_harder_losses_cost_more_and_reach_the_loss_of_the_hardest_negative(which):
    anchor, other = embeddings(9, 5)
    costs = [hard(which, beta)(anchor, other).item() for beta in (0.0, 0.5, 1.0, 2.0, 5.0, 2000.0, 4000.0)]
    assert costs == sorted(costs)
    assert costs[-1] == pytest.approx(costs[-2], rel=1e-3)
    if which == "anchor_to_other":
        logits = 5 * anchor @ other.T
        hardest = logits.masked_fill(torch.eye(9, dtype=torch.bool), -math.inf).amax(1)
        own = logits.diagonal()
        limit = (torch.logaddexp(own, math.log(8) + hardest) - own).mean()
        assert costs[-1] == pytest.approx(limit.item(), rel=1e-3)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("which", [*DIRECTIONS, "siglip"])
def test_no_scale_overflows_in_float32(which, temperature):
    anchor, other = (side.requires_grad_() for side in embeddings(40, 8, dtype=torch.float32))
    value = hard(which, 3.0, temperature).float()(anchor, other)
    value.backward()
    assert value.isfinite() and anchor.grad.isfinite().all() and other.grad.isfinite().all()


@pytest.mark.parametrize("which", [*DIRECTIONS, "siglip"])
def test_a_pair_without_negatives_costs_what_its_own_entry_costs(which):
    anchor, other = (side.requires_grad_() for side in embeddings(5, 3))
    everywhere = LossContext(hours_N=torch.zeros(5), ignore_within_h=1)
    value = hard(which, 1.0)(anchor, other, everywhere)
    own = 5 * (anchor * other).sum(1) - 1.0
    expected = F.softplus(-own).mean() if which == "siglip" else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)
    value.backward()
    assert anchor.grad.isfinite().all()


@settings(deadline=None, max_examples=30)
@given(pairs=st.integers(2, 12), which=st.sampled_from([*DIRECTIONS, "siglip"]), seed=st.integers(0, 1000))
def test_the_order_of_the_pairs_does_not_matter(pairs, which, seed):
    anchor, other = embeddings(pairs, 6, seed)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    loss = hard(which, 1.5)
    torch.testing.assert_close(loss(anchor[order], other[order]), loss(anchor, other))


def test_queued_embeddings_are_weighed_with_the_rest():
    loss = InfoNCE("anchor_to_other", Temperature(0.2), EmbeddingQueue(7, width=4), hardness=1.0).double()
    old_anchor, old = embeddings(5, 4, seed=1)
    loss(old_anchor, old)
    anchor, other = embeddings(3, 4, seed=2)
    anchor.requires_grad_()
    logits = loss.temperature.scale * anchor @ torch.cat([other, old]).T
    positive = torch.eye(3, 8, dtype=torch.bool)
    expected = dense_softmax(logits, positive, torch.zeros_like(positive), 1.0)
    value = loss(anchor, other)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, anchor), torch.autograd.grad(expected, anchor))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [*DIRECTIONS, "siglip"])
def test_an_embedding_that_is_not_finite_makes_the_loss_nan(which, bad):
    anchor, other = embeddings(6, 4)
    anchor[2, 1] = bad
    assert hard(which, 1.0)(anchor, other).isnan()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["anchor_to_other", "siglip"])
def test_memory_stays_far_below_the_square_of_the_batch(which):
    anchor, other = (side.requires_grad_() for side in embeddings(PAIRS, WIDTH, dtype=torch.float32))
    degrees = torch.linspace(0, 80, PAIRS)
    context = LossContext(xyz_N3=unit_sphere(degrees, degrees), same_within_m=1e3, ignore_within_m=1e4)
    with Live() as live:
        hard(which, 1.0).float()(anchor, other, context).backward()
    assert live.peak < SQUARE / 6
    assert live.largest < SQUARE / 12


def test_a_negative_hardness_is_refused():
    for make in (InfoNCE, SigLIP):
        with pytest.raises(RecipeError, match=r"hardness -1: give 0 for none, or a positive number"):
            make(hardness=-1)
