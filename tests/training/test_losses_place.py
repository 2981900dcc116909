"""Pairs of one place as positives of each other, and what is ignored by place, time, or either."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import (
    DIRECTIONS,
    EARTH_RADIUS_M,
    PAIRS,
    SQUARE,
    WIDTH,
    Live,
    dense_one_way,
    embeddings,
    shrink_tiles,
)
from torch import Tensor
from torch.nn import functional as F

from geobind.errors import DataError
from geobind.training.losses import EmbeddingQueue, InfoNCE, LossContext, SigLIP, unit_sphere


def full_masks(context: LossContext) -> tuple[Tensor, Tensor]:
    """The N x N matrices of positive and of ignored pairs, by haversine."""
    xyz, hours, labels = context.xyz_N3, context.hours_N, context.labels_N
    chord = torch.cdist(xyz, xyz, compute_mode="donot_use_mm_for_euclid_dist")
    metres = 2 * torch.asin((chord / 2).clamp(max=1)) * EARTH_RADIUS_M
    positive = torch.eye(len(xyz), dtype=torch.bool)
    if labels is not None:
        positive |= (labels[:, None] == labels) & (labels >= 0)
    if context.same_within_m is not None:
        positive |= metres < context.same_within_m
    rules = []
    if context.ignore_within_m is not None:
        rules.append(metres < context.ignore_within_m)
    if context.ignore_within_h is not None:
        rules.append((hours[:, None] - hours).abs() < context.ignore_within_h)
    near = torch.zeros_like(positive)
    if rules:
        near = torch.stack(rules).all(0) if context.ignore_when == "both" else torch.stack(rules).any(0)
    return positive, near & ~positive


def street(pairs: int, seed: int, **rules) -> LossContext:
    """Pairs along a few streets, so that being of one place is not transitive; some places unknown."""
    generator = torch.Generator().manual_seed(seed)
    town = torch.randint(0, 2, (pairs,), generator=generator) * 10.0
    along = torch.rand(pairs, generator=generator, dtype=torch.float64) * 3e-3  # up to about 330 m
    lat = town + along
    lat[torch.rand(pairs, generator=generator) < 0.1] = math.nan
    hours = torch.rand(pairs, generator=generator, dtype=torch.float64) * 48 + 490_000
    hours[torch.rand(pairs, generator=generator) < 0.1] = math.nan
    return LossContext(xyz_N3=unit_sphere(lat, town), hours_N=hours, **rules)


def dense(loss, anchor: Tensor, other: Tensor, context: LossContext) -> Tensor:
    positive, ignored = full_masks(context)
    logits = loss.temperature.scale * anchor @ other.T
    if isinstance(loss, SigLIP):
        terms = -F.logsigmoid((2.0 * positive - 1) * (logits + loss.bias))
        return terms.masked_fill(ignored, 0).sum() / len(anchor)
    there, back = dense_one_way(logits, positive, ignored), dense_one_way(logits.T, positive.T, ignored.T)
    return {"both": (there + back) / 2, "anchor_to_other": there, "other_to_anchor": back}[loss.direction]


@settings(deadline=None, max_examples=80)
@given(
    pairs=st.integers(2, 14),
    which=st.sampled_from([*DIRECTIONS, "siglip"]),
    same=st.sampled_from([None, 40.0, 120.0]),
    metres=st.sampled_from([None, 200.0]),
    hours=st.sampled_from([None, 6.0]),
    when=st.sampled_from(["both", "either"]),
    labelled=st.booleans(),
    seed=st.integers(0, 1000),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_places_and_times_act_as_full_masks_would(
    pairs, which, same, metres, hours, when, labelled, seed, tile
):
    anchor, other = (side.requires_grad_() for side in embeddings(pairs, 5, seed))
    rules = {"same_within_m": same, "ignore_within_m": metres, "ignore_within_h": hours, "ignore_when": when}
    if labelled:
        rules["labels_N"] = torch.randint(-1, 3, (pairs,), generator=torch.Generator().manual_seed(seed))
    context = street(pairs, seed, **rules)
    loss = (SigLIP(bias=-1.0) if which == "siglip" else InfoNCE(which)).double()
    wanted = [anchor, other, *loss.parameters()]
    with pytest.MonkeyPatch.context() as patch:
        shrink_tiles(patch, *tile)
        patch.setattr("geobind.training.losses.tiling._COUNTED", tile[0])
        value = loss(anchor, other, context)
        found = torch.autograd.grad(value, wanted)
    expected = dense(loss, anchor, other, context)
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)
    for one, two in zip(found, torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)


def test_three_places_in_a_row_have_two_three_and_two_positives():
    # 0, 80 and 160 m along a meridian with a threshold of 100 m: the ends are no positives of each other.
    north = torch.tensor([0.0, 80.0, 160.0], dtype=torch.float64) / EARTH_RADIUS_M
    context = LossContext(xyz_N3=unit_sphere(north.rad2deg(), torch.zeros(3)), same_within_m=100)
    anchor, other = embeddings(3, 4)
    loss = InfoNCE("both").double()
    logits = loss.temperature.scale * anchor @ other.T
    positive = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)
    nothing = torch.zeros_like(positive)
    there, back = dense_one_way(logits, positive, nothing), dense_one_way(logits.T, positive, nothing)
    torch.testing.assert_close(loss(anchor, other, context), (there + back) / 2)


def test_unknown_places_are_positives_of_themselves_alone():
    anchor, other = embeddings(5, 4)
    nowhere = LossContext(xyz_N3=torch.full((5, 3), math.nan, dtype=torch.float64), same_within_m=1e6)
    for loss in (InfoNCE().double(), SigLIP().double(), InfoNCE(hardness=1.0).double()):
        torch.testing.assert_close(loss(anchor, other, nowhere), loss(anchor, other))


def test_the_same_hour_of_another_season_is_no_reason_to_ignore():
    anchor, other = embeddings(2, 3)
    year = LossContext(hours_N=torch.tensor([0.0, 24.0 * 365]), ignore_within_h=12)
    loss = InfoNCE().double()
    torch.testing.assert_close(loss(anchor, other, year), loss(anchor, other))


def test_queued_keys_of_the_same_place_neither_attract_nor_oppose():
    place = unit_sphere(torch.tensor([10.0, 20.0]), torch.tensor([0.0, 0.0]))
    context = LossContext(xyz_N3=place, same_within_m=100)
    anchor, other = embeddings(2, 4)
    queued = InfoNCE("anchor_to_other", queue=EmbeddingQueue(2, width=4)).double()
    queued(anchor, other, context)
    logits = queued.temperature.scale * anchor @ torch.cat([other, other]).T
    logits[0, 2] = logits[1, 3] = -math.inf
    torch.testing.assert_close(queued(anchor, other, context), F.cross_entropy(logits, torch.arange(2)))


@pytest.mark.slow
@pytest.mark.parametrize("loss", [InfoNCE(), SigLIP()], ids=["infonce", "siglip"])
def test_memory_stays_far_below_the_square_of_the_batch(loss):
    anchor, other = (side.requires_grad_() for side in embeddings(PAIRS, WIDTH, dtype=torch.float32))
    degrees = torch.linspace(0, 80, PAIRS)
    context = LossContext(
        xyz_N3=unit_sphere(degrees, degrees),
        hours_N=torch.linspace(0, 1e4, PAIRS, dtype=torch.float64),
        same_within_m=1e3,
        ignore_within_m=1e4,
        ignore_within_h=2,
        ignore_when="either",
    )
    with Live() as live:
        loss(anchor, other, context).backward()
    assert live.peak < SQUARE / 6
    assert live.largest < SQUARE / 12


def test_rules_that_leave_nothing_to_ignore_are_refused():
    place = torch.zeros(2, 3)
    with pytest.raises(DataError, match=r"pairs within 50 m are positives, which leaves none to ignore"):
        LossContext(xyz_N3=place, same_within_m=50, ignore_within_m=50)
    with pytest.raises(DataError, match="same_within_m is given without xyz_N3"):
        LossContext(same_within_m=50)
