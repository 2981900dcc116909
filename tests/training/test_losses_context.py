from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import DIRECTIONS, EARTH_RADIUS_M, context_of, dense_one_way, embeddings, masks, shrink_tiles
from torch import Tensor
from torch.nn import functional as F

from geobind.errors import DataError, RecipeError
from geobind.training.losses import EmbeddingQueue, InfoNCE, LossContext, SigLIP, hash_labels, unit_sphere


def dense_infonce(
    anchor: Tensor, other: Tensor, scale: Tensor, direction: str, context: LossContext
) -> Tensor:
    logits = scale * anchor @ other.T
    positive, ignored = masks(context)
    there, back = dense_one_way(logits, positive, ignored), dense_one_way(logits.T, positive.T, ignored.T)
    return {"both": (there + back) / 2, "anchor_to_other": there, "other_to_anchor": back}[direction]


def dense_siglip(anchor: Tensor, other: Tensor, scale: Tensor, bias: Tensor, context: LossContext) -> Tensor:
    positive, ignored = masks(context)
    terms = -F.logsigmoid((2.0 * positive - 1) * (scale * anchor @ other.T + bias))
    return terms.masked_fill(ignored, 0).sum() / len(anchor)


@settings(deadline=None, max_examples=120)
@given(
    pairs=st.integers(2, 14),
    direction=st.sampled_from([*DIRECTIONS, "siglip"]),
    labelled=st.booleans(),
    metres=st.sampled_from([None, 60.0, 150.0, 3e7]),
    hours=st.sampled_from([None, 6.0]),
    seed=st.integers(0, 1000),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_labels_places_and_times_act_as_full_masks_would(
    pairs, direction, labelled, metres, hours, seed, tile
):
    anchor, other = (part.requires_grad_() for part in embeddings(pairs, 5, seed))
    context = context_of(pairs, seed, labelled=labelled, metres=metres, hours=hours)
    loss = (SigLIP(bias=-1.0) if direction == "siglip" else InfoNCE(direction)).double()
    scale = loss.temperature.scale
    with pytest.MonkeyPatch.context() as patch:
        shrink_tiles(patch, *tile)
        value = loss(anchor, other, context)
        found = torch.autograd.grad(value, [anchor, other, *loss.parameters()])
    if isinstance(loss, SigLIP):
        expected = dense_siglip(anchor, other, scale, loss.bias, context)
    else:
        expected = dense_infonce(anchor, other, scale, direction, context)
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)
    for one, two in zip(
        found, torch.autograd.grad(expected, [anchor, other, *loss.parameters()]), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("loss", [*map(InfoNCE, DIRECTIONS), SigLIP()], ids=[*DIRECTIONS, "siglip"])
def test_ignored_pairs_have_exactly_no_influence_on_each_other(loss):
    # Pairs 0 and 1 share a place; 2 is on the other side of the Earth. Embedding i lies along axis i, so the
    # gradient of an anchor along another's axis can only come from the entry between the two.
    place = unit_sphere(torch.tensor([47.0, 47.0, -47.0]), torch.tensor([8.0, 8.0, -172.0]))
    context = LossContext(xyz_N3=place, ignore_within_m=100)
    anchor, other = torch.eye(3).requires_grad_(), torch.eye(3).requires_grad_()
    loss(anchor, other, context).backward()
    for gradient in (anchor.grad, other.grad):
        assert gradient[0, 1] == 0 and gradient[1, 0] == 0
        assert gradient[0, 2] != 0 and gradient[2, 1] != 0


def test_a_place_or_time_that_is_unknown_is_never_ignored():
    anchor, other = embeddings(4, 3)
    nowhere = torch.full((4, 3), math.nan)
    never = torch.full((4,), math.nan)
    context = LossContext(xyz_N3=nowhere, hours_N=never, ignore_within_m=3e7, ignore_within_h=1e9)
    loss = InfoNCE().double()
    torch.testing.assert_close(loss(anchor, other, context), loss(anchor, other))


def test_if_all_but_its_own_pair_are_ignored_nothing_is_lost():
    anchor, other = embeddings(5, 3)
    context = LossContext(hours_N=torch.zeros(5), ignore_within_h=1)
    for direction in DIRECTIONS:
        assert InfoNCE(direction).double()(anchor, other, context).item() == pytest.approx(0, abs=1e-12)


def test_the_threshold_is_the_distance_along_the_ground_to_a_tenth_of_a_metre():
    anchor, other = embeddings(2, 3)
    loss = InfoNCE().double()
    north = math.degrees(50.0 / EARTH_RADIUS_M)  # 50 m to the north
    place = unit_sphere(torch.tensor([60.0, 60.0 + north], dtype=torch.float64), torch.tensor([25.0, 25.0]))
    outside = loss(anchor, other, LossContext(xyz_N3=place, ignore_within_m=49.9))
    inside = loss(anchor, other, LossContext(xyz_N3=place, ignore_within_m=50.1))
    torch.testing.assert_close(outside, loss(anchor, other))
    assert inside.item() == pytest.approx(0, abs=1e-12)


def test_unlabelled_pairs_are_positives_of_themselves_alone():
    anchor, other = embeddings(6, 3)
    loss = InfoNCE().double()
    torch.testing.assert_close(
        loss(anchor, other, LossContext(labels_N=hash_labels([None] * 6))), loss(anchor, other)
    )


def test_label_ids_are_fixed_for_ever():
    ids = hash_labels(["church bells", None, "church bells", "a bird"]).tolist()
    assert ids[0] == ids[2] == 2834988982272805705
    assert ids[1] == -1
    assert ids[3] not in ids[:3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_within_m": 10.0}, "ignore_within_m is given without xyz_N3; give both or neither"),
        ({"ignore_within_h": 10.0}, "ignore_within_h is given without hours_N; give both or neither"),
        (
            {"ignore_within_h": -1.0, "hours_N": torch.zeros(2)},
            r"ignore_within_h is -1\.0; give a positive number",
        ),
    ],
)
def test_a_threshold_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(DataError, match=message):
        LossContext(**options)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (
            LossContext(labels_N=torch.zeros(3, dtype=torch.int64)),
            r"labels_N has shape \(3,\), but 4 pairs need \(4,\)",
        ),
        (LossContext(xyz_N3=torch.zeros(4, 2)), r"xyz_N3 has shape \(4, 2\), but 4 pairs need \(4, 3\)"),
        (
            LossContext(labels_N=torch.zeros(4)),
            r"labels_N is torch\.float32, but labels are integers; see hash_labels",
        ),
    ],
)
def test_a_context_of_other_pairs_is_refused(context, message):
    for loss in (InfoNCE(), SigLIP()):
        with pytest.raises(DataError, match=message):
            loss(*embeddings(4, 3), context)


def test_a_queue_holds_the_newest_embeddings_and_forgets_the_oldest():
    queue = EmbeddingQueue(5, width=1)
    rows = torch.arange(12.0).unsqueeze(1)
    for batch in rows.split(3):
        queue.push(batch)
    assert len(queue) == 5
    assert sorted(queue.keys(rows).flatten().tolist()) == [7, 8, 9, 10, 11]
    queue.push(rows)  # more than it can hold
    assert sorted(queue.keys(rows).flatten().tolist()) == [7, 8, 9, 10, 11]


def test_a_queue_in_a_checkpoint_comes_back_whole():
    queue, fresh = EmbeddingQueue(4, width=3), EmbeddingQueue(4, width=3)
    keys, _ = embeddings(3, 3)
    queue.push(keys, LossContext(labels_N=torch.tensor([1, 2, 3])))
    fresh.load_state_dict(queue.state_dict())
    assert torch.equal(fresh.keys(keys), queue.keys(keys)) and torch.equal(fresh.labels_Q, queue.labels_Q)


@pytest.mark.parametrize("direction", ["both", "anchor_to_other"])
def test_queued_embeddings_are_negatives_of_the_anchors_only(direction):
    loss = InfoNCE(direction, queue=EmbeddingQueue(7, width=4)).double()
    old_anchor, old = embeddings(5, 4, seed=1)
    loss(old_anchor, old)
    anchor, other = embeddings(3, 4, seed=2)
    anchor.requires_grad_()
    scale, own = loss.temperature.scale, torch.arange(3)
    there = F.cross_entropy(scale * anchor @ torch.cat([other, old]).T, own)
    back = F.cross_entropy(scale * other @ anchor.T, own)
    expected = (there + back) / 2 if direction == "both" else there
    value = loss(anchor, other)
    torch.testing.assert_close(value, expected)
    inputs = [anchor, loss.temperature.log_scale]
    for one, two in zip(
        torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(one, two)


def test_queued_embeddings_of_the_same_label_or_place_do_not_oppose():
    labels, place = torch.tensor([4, 5]), unit_sphere(torch.tensor([10.0, 20.0]), torch.tensor([0.0, 0.0]))
    anchor, other = embeddings(2, 4)
    plain = InfoNCE("anchor_to_other").double()
    for context in (LossContext(labels_N=labels), LossContext(xyz_N3=place, ignore_within_m=100)):
        queued = InfoNCE("anchor_to_other", queue=EmbeddingQueue(2, width=4)).double()
        queued(anchor, other, context)
        with_both_queued = queued(anchor, other, context)
        keys = torch.cat([other, other])
        logits = plain.temperature.scale * anchor @ keys.T
        logits = logits.masked_fill(
            torch.eye(2).bool().repeat(1, 2).index_fill(1, torch.arange(2), False), -math.inf
        )
        torch.testing.assert_close(with_both_queued, F.cross_entropy(logits, torch.arange(2)))


def test_a_queue_grows_in_training_only():
    loss = InfoNCE("anchor_to_other", queue=EmbeddingQueue(8, width=4)).eval()
    loss(*embeddings(3, 4, dtype=torch.float32))
    assert len(loss.queue) == 0
    loss.train()(*embeddings(3, 4, dtype=torch.float32))
    assert len(loss.queue) == 3


def test_a_queue_where_it_cannot_serve_is_refused():
    with pytest.raises(RecipeError, match="drop the queue or choose another direction"):
        InfoNCE("other_to_anchor", queue=EmbeddingQueue(8, width=4))
    with pytest.raises(RecipeError, match="size 0 and width 4 must be positive"):
        EmbeddingQueue(0, width=4)
    anchor, other = embeddings(3, 4)
    with pytest.raises(DataError, match="the other side is in training, so its queued embeddings are stale"):
        InfoNCE(queue=EmbeddingQueue(8, width=4))(anchor, other.requires_grad_())
    with pytest.raises(DataError, match=r"embeddings of shape \(3, 4\) in a queue of width 5"):
        EmbeddingQueue(8, width=5).push(anchor)
