from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import DIRECTIONS, embeddings, shrink_tiles
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from geobind.errors import DataError, RecipeError
from geobind.training.losses import (
    EmbeddingQueue,
    InfoNCE,
    LossContext,
    SigLIP,
    Temperature,
    infonce,
    tiling,
    unit_sphere,
)


def dense_infonce(anchor: Tensor, other: Tensor, scale: Tensor, direction: str) -> Tensor:
    logits, own = scale * anchor @ other.T, torch.arange(len(anchor))
    there, back = F.cross_entropy(logits, own), F.cross_entropy(logits.T, own)
    return {"both": (there + back) / 2, "anchor_to_other": there, "other_to_anchor": back}[direction]


def dense_siglip(anchor: Tensor, other: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(anchor), dtype=anchor.dtype) - 1
    return -F.logsigmoid(signs * (scale * anchor @ other.T + bias)).sum() / len(anchor)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 3 x 5, so that small batches have whole, cut and off-diagonal tiles."""
    shrink_tiles(monkeypatch)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return function(*args, **(kwargs or {}))


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


cases = given(
    pairs=st.integers(2, 17),
    width=st.integers(1, 9),
    direction=st.sampled_from(DIRECTIONS),
    trained=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]),
    temperature=st.sampled_from([1.0, 0.07, 0.01]),
    seed=st.integers(0, 1000),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=120)
@cases
def test_infonce_and_its_gradients_equal_the_dense_formula(
    pairs, width, direction, trained, temperature, seed, tile
):
    anchor, other = embeddings(pairs, width, seed)
    anchor, other = anchor.requires_grad_(trained[0]), other.requires_grad_(trained[1])
    loss = InfoNCE(direction, Temperature(temperature)).double()
    wanted = [part for part in (anchor, other, loss.temperature.log_scale) if part.requires_grad]
    with pytest.MonkeyPatch.context() as patch:
        shrink_tiles(patch, *tile)
        value = loss(anchor, other)
        found = gradients(value, wanted)
    expected = dense_infonce(anchor, other, loss.temperature.scale, direction)
    torch.testing.assert_close(value, expected)
    for one, two in zip(found, gradients(expected, wanted), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)


@settings(deadline=None, max_examples=60)
@cases
def test_siglip_and_its_gradients_equal_the_dense_formula(
    pairs, width, direction, trained, temperature, seed, tile
):
    anchor, other = embeddings(pairs, width, seed)
    anchor, other = anchor.requires_grad_(trained[0]), other.requires_grad_(trained[1])
    loss = SigLIP(Temperature(temperature), bias=-3.0).double()
    wanted = [part for part in (anchor, other, loss.temperature.log_scale, loss.bias) if part.requires_grad]
    with pytest.MonkeyPatch.context() as patch:
        shrink_tiles(patch, *tile)
        value = loss(anchor, other)
        found = gradients(value, wanted)
    expected = dense_siglip(anchor, other, loss.temperature.scale, loss.bias)
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-8)
    for one, two in zip(found, gradients(expected, wanted), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("loss", [*map(InfoNCE, DIRECTIONS), SigLIP()], ids=[*DIRECTIONS, "siglip"])
def test_float32_at_the_true_tile_size_equals_the_dense_formula_in_float64(loss, trained):
    anchor, other = embeddings(1100, 32)  # three row blocks, two column blocks, both with a remainder
    exact = [
        part.clone().requires_grad_(learns) for part, learns in zip((anchor, other), trained, strict=True)
    ]
    rough = [
        part.detach().float().requires_grad_(learns)
        for part, learns in zip((anchor, other), trained, strict=True)
    ]
    value = loss(*rough)
    scale = loss.temperature.scale.double()
    if isinstance(loss, SigLIP):
        expected = dense_siglip(*exact, scale, loss.bias.double())
    else:
        expected = dense_infonce(*exact, scale, loss.direction)
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=2e-6)
    found = gradients(value, [part for part in rough if part.requires_grad])
    for one, two in zip(
        found, gradients(expected, [part for part in exact if part.requires_grad]), strict=True
    ):
        assert (one - two).norm() < 3e-6 * two.norm()


@pytest.mark.parametrize("loss", [*map(InfoNCE, DIRECTIONS), SigLIP(bias=-1.0)], ids=[*DIRECTIONS, "siglip"])
def test_gradients_agree_with_finite_differences(loss, small_tiles):
    anchor, other = embeddings(7, 4)
    loss = loss.double()
    names = [name for name, _ in loss.named_parameters()]

    def value(anchor: Tensor, other: Tensor, *scalars: Tensor) -> Tensor:
        return torch.func.functional_call(loss, dict(zip(names, scalars, strict=True)), (anchor, other))

    scalars = [scalar.detach().clone().requires_grad_() for scalar in loss.parameters()]
    assert torch.autograd.gradcheck(value, (anchor.requires_grad_(), other.requires_grad_(), *scalars))
    loss.float()


@settings(deadline=None, max_examples=30)
@given(pairs=st.integers(2, 12), direction=st.sampled_from(DIRECTIONS), seed=st.integers(0, 1000))
def test_the_order_of_the_pairs_does_not_matter(pairs, direction, seed):
    anchor, other = embeddings(pairs, 6, seed)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    for loss in (InfoNCE(direction).double(), SigLIP().double()):
        torch.testing.assert_close(loss(anchor[order], other[order]), loss(anchor, other))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_constant_embedding_costs_log_n(direction):
    constant = F.normalize(torch.ones(1000, 16), dim=1)
    assert InfoNCE(direction)(constant, constant).item() == pytest.approx(math.log(1000), abs=2e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_identical_orthonormal_pairs_at_a_high_scale_cost_nothing(direction):
    basis = torch.eye(64)
    assert InfoNCE(direction, Temperature(0.01))(basis, basis).item() == pytest.approx(0, abs=1e-6)


def test_both_directions_are_the_mean_of_the_two():
    anchor, other = embeddings(9, 5)
    both, there, back = (InfoNCE(direction).double()(anchor, other) for direction in DIRECTIONS)
    torch.testing.assert_close(both, (there + back) / 2)


def test_rows_that_would_underflow_at_a_high_scale_are_still_exact(monkeypatch):
    # Row 0 opposes everything, another row meets its like: logits span 200, more than float32 exponents do.
    anchor = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    called = []
    apart = infonce.mean_of_both_ways
    monkeypatch.setattr(infonce, "mean_of_both_ways", lambda *given: called.append(1) or apart(*given))
    value = InfoNCE("both", Temperature(0.01))(anchor, other)
    expected = dense_infonce(anchor.double(), other.double(), torch.tensor(100.0).double(), "both")
    assert called
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)


def test_ordinary_embeddings_at_the_highest_scale_keep_to_the_fast_path(monkeypatch):
    monkeypatch.setattr(infonce, "mean_of_both_ways", None)
    anchor, other = embeddings(600, 32, dtype=torch.float32)
    value = InfoNCE("both", Temperature(0.01))(anchor, other)
    expected = dense_infonce(anchor.double(), other.double(), torch.tensor(100.0).double(), "both")
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "loss",
    [
        InfoNCE(products="float32"),
        InfoNCE("anchor_to_other", products="float32"),
        SigLIP(products="float32"),
    ],
)
def test_float32_products_of_half_precision_embeddings_are_exact_even_under_autocast(loss, dtype):
    anchor, other = (part.requires_grad_() for part in embeddings(40, 16, dtype=dtype))
    wide = [part.detach().float().requires_grad_() for part in (anchor, other)]
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(anchor, other)
    expected = loss(*wide)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    (value * 1024).backward()
    (expected * 1024).backward()
    for narrow, full in zip((anchor, other), wide, strict=True):
        assert narrow.grad.dtype == dtype and torch.equal(narrow.grad, full.grad.to(dtype))


@pytest.mark.parametrize("loss", [*map(InfoNCE, DIRECTIONS), SigLIP()], ids=[*DIRECTIONS, "siglip"])
def test_a_second_backward_pass_gives_the_same_gradients(loss):
    anchor, other = (part.requires_grad_() for part in embeddings(6, 4))
    value = 3 * loss(anchor, other)
    first = torch.autograd.grad(value, [anchor, other], retain_graph=True)
    second = torch.autograd.grad(value, [anchor, other])
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_differentiating_twice_is_refused():
    anchor, other = (part.requires_grad_() for part in embeddings(6, 4))
    with pytest.raises(RuntimeError, match="cannot be differentiated twice: leave create_graph out"):
        torch.autograd.grad(InfoNCE()(anchor, other), anchor, create_graph=True)


@pytest.mark.parametrize("loss", [InfoNCE(), InfoNCE("other_to_anchor"), SigLIP()])
def test_without_gradients_no_gradient_is_worked_out(loss, monkeypatch):
    monkeypatch.setattr(tiling.TiledGradients, "add_", None)
    anchor, other = (part.requires_grad_() for part in embeddings(6, 4, dtype=torch.float32))
    with torch.no_grad():
        assert not loss(anchor, other).requires_grad


def test_a_frozen_side_gets_no_matrix_product(monkeypatch):
    monkeypatch.setattr(infonce, "_KEPT", 0)
    anchor, other = embeddings(600, 8, dtype=torch.float32)
    for loss in (InfoNCE("anchor_to_other"), InfoNCE(), SigLIP()):
        counts = {}
        for trained in ((False, True), (True, False), (True, True)):
            sides = [
                part.clone().requires_grad_(learns)
                for part, learns in zip((anchor, other), trained, strict=True)
            ]
            with Products() as products:
                loss(*sides).backward()
            counts[trained] = products.count
        tiles, similarities = 2, 2 if getattr(loss, "direction", None) == "both" else 1
        assert counts[True, True] == tiles * (similarities + 2)
        assert counts[True, False] == counts[False, True] == tiles * (similarities + 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("loss", [*map(InfoNCE, DIRECTIONS), SigLIP()], ids=[*DIRECTIONS, "siglip"])
def test_an_embedding_that_is_not_finite_makes_the_loss_nan(loss, bad):
    anchor, other = embeddings(6, 4, dtype=torch.float32)
    anchor[2, 1] = bad
    assert loss(anchor, other).isnan()


@pytest.mark.parametrize("loss", [InfoNCE(), SigLIP()], ids=["infonce", "siglip"])
@pytest.mark.parametrize(
    ("anchor", "other", "message"),
    [
        ((3, 4), (3, 5), r"embeddings \(3, 4\) and \(3, 5\) must both be \(N, D\), one row per pair"),
        ((3, 4), (2, 4), r"embeddings \(3, 4\) and \(2, 4\) must both be"),
        ((3,), (3,), r"embeddings \(3,\) and \(3,\) must both be"),
        ((1, 4), (1, 4), "a batch of 1 has nothing to contrast; use at least 2 pairs over all devices"),
    ],
)
def test_a_batch_that_cannot_be_contrasted_is_refused(loss, anchor, other, message):
    with pytest.raises(DataError, match=message):
        loss(torch.zeros(anchor), torch.zeros(other))


def test_embeddings_of_whole_numbers_are_refused():
    with pytest.raises(DataError, match=r"embeddings are torch\.int64 and torch\.int64, not real numbers"):
        InfoNCE()(torch.ones(3, 2, dtype=torch.int64), torch.ones(3, 2, dtype=torch.int64))


def test_an_unknown_direction_is_refused_with_the_known_ones():
    with pytest.raises(
        RecipeError, match="no direction 'up'; choose from both, anchor_to_other, other_to_anchor"
    ):
        InfoNCE("up")  # pyright: ignore[reportArgumentType]


def test_the_temperature_returns_within_its_limits_and_still_learns_there():
    loss = InfoNCE(temperature=Temperature(0.011, max_scale=100))
    anchor, _ = embeddings(8, 8, dtype=torch.float32)
    optimiser = torch.optim.SGD(loss.parameters(), lr=1e3)
    for sign, limit in ((-1, 1.0), (1, 100.0), (-1, 1.0)):  # push past one end, then back across to the other
        optimiser.zero_grad()
        loss.temperature.log_scale.grad = torch.tensor(-1.0 * sign)
        optimiser.step()
        loss.clamp_temperature()
        assert loss.temperature.scale.item() == pytest.approx(limit, rel=1e-6)
    optimiser.zero_grad()
    loss(anchor, anchor.flip(0)).backward()
    assert loss.temperature.log_scale.grad.abs() > 1e-3


def test_a_fixed_temperature_is_no_parameter_and_lands_in_the_checkpoint_all_the_same():
    temperature = Temperature(0.05, learn=False)
    assert list(temperature.parameters()) == []
    assert temperature.value == pytest.approx(0.05)
    learnt = Temperature(0.2)
    learnt.load_state_dict(temperature.state_dict())
    assert learnt.value == pytest.approx(0.05)


def test_a_temperature_out_of_range_is_refused():
    with pytest.raises(RecipeError, match=r"init 0\.001 lies outside 0\.01 to 1; choose a value inside"):
        Temperature(0.001)
    with pytest.raises(RecipeError, match="are not a range"):
        Temperature(min_scale=10, max_scale=1)


# Parts of several processes

RIVALS = [
    lambda local: InfoNCE("both", local=local),
    lambda local: InfoNCE("anchor_to_other", local=local),
    lambda local: InfoNCE("other_to_anchor", local=local),
    lambda local: InfoNCE("both", hardness=0.5, local=local),
    lambda local: SigLIP(local=local),
    lambda local: SigLIP(hardness=0.5, local=local),
]


@pytest.mark.parametrize("make", RIVALS)
@pytest.mark.parametrize("about", ["pairs", "labels", "places"])
@pytest.mark.parametrize("cuts", [(0, 7, 14), (0, 3, 3, 14)])
def test_parts_of_own_rows_and_their_gradients_add_up_to_the_loss(make, about, cuts, monkeypatch):
    shrink_tiles(monkeypatch)
    loss, part = make(False).double(), make(True).double()
    anchor, other = (side.requires_grad_() for side in embeddings(14, 6))
    context = {
        "pairs": None,
        "labels": LossContext(labels_N=torch.arange(14) % 4),
        "places": LossContext(
            xyz_N3=unit_sphere(torch.arange(14) // 3, torch.zeros(14)), same_within_m=1e5, ignore_within_m=2e5
        ),
    }[about]
    whole = loss(anchor, other, context)
    parts = [part(anchor, other, context, slice(*cut)) for cut in itertools.pairwise(cuts)]
    assert (part.local, loss.local) == (True, False)
    assert torch.allclose(sum(parts), whole)
    for wanted in ((anchor, other), tuple(loss.parameters())):
        others = wanted if wanted[0] is anchor else tuple(part.parameters())
        expected = torch.autograd.grad(whole, wanted, retain_graph=True)
        added = [torch.autograd.grad(one, others, retain_graph=True) for one in parts]
        for value, *each in zip(expected, *added, strict=True):
            assert torch.allclose(sum(each), value, atol=1e-10)


def test_a_part_looks_among_queued_keys_as_the_whole_does():
    losses = [InfoNCE("anchor_to_other", queue=EmbeddingQueue(10, 6), local=local) for local in (False, True)]
    for loss in losses:
        loss.queue.push(embeddings(8, 6, seed=1, dtype=torch.float32)[0])
        loss.eval()
    anchor, other = embeddings(6, 6, dtype=torch.float32)
    whole = losses[0](anchor.requires_grad_(), other)
    parts = [losses[1](anchor, other, None, slice(first, first + 3)) for first in (0, 3)]
    assert torch.allclose(sum(parts), whole)
    expected = torch.autograd.grad(whole, anchor)[0]
    assert torch.allclose(torch.autograd.grad(sum(parts), anchor)[0], expected, atol=1e-6)


def test_a_part_of_half_the_rows_takes_half_the_products(monkeypatch):
    shrink_tiles(monkeypatch, 2, 8)
    anchor, other = (side.requires_grad_() for side in embeddings(8, 4))
    counts = []
    for own in (slice(0, 8), slice(0, 4)):
        with Products() as products:
            SigLIP(local=True).double()(anchor, other, None, own)
        counts.append(products.count)
    assert counts[0] == 2 * counts[1]
