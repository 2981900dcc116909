"""Losses whose matrix products are in half precision, and what an accelerator must not wait for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import DIRECTIONS, embeddings, shrink_tiles
from torch.utils._python_dispatch import TorchDispatchMode

from geobind.training.losses import InfoNCE, SigLIP, Temperature, infonce, siglip, tiling

# What products may cost of the value and of a gradient's norm: a CPU rounds them to bfloat16, an accelerator
# rounds their factors alone.
BOUNDS = {"cpu": 1.5e-2, "bfloat16": 1.5e-2, "float16": 2e-3}


def build(direction, products="half", temperature=0.07):
    if direction == "siglip":
        return SigLIP(Temperature(temperature), bias=-5.0, products=products)
    return InfoNCE(direction, Temperature(temperature), products=products)


def compute(loss, sides, autocast=False):
    """The loss and the gradients of both sides and of the scale."""
    sides = [side.clone().requires_grad_() for side in sides]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(*sides)
    return value.detach(), torch.autograd.grad(value, [*sides, loss.temperature.log_scale])


def multiply_as(patch, where):
    """Make products those of a CPU, or those of an accelerator in one of the two types."""
    if where != "cpu":
        patch.setattr(tiling, "_low_product", lambda one, other: one.float() @ other.float())
        for kernel in (infonce, siglip):
            patch.setattr(kernel, "choose_product_type", lambda *_: getattr(torch, where))


@settings(deadline=None, max_examples=40)
@given(
    pairs=st.integers(2, 60),
    width=st.integers(8, 64),
    direction=st.sampled_from([*DIRECTIONS, "siglip"]),
    where=st.sampled_from([*BOUNDS]),
    temperature=st.sampled_from([1.0, 0.07, 0.02]),
    seed=st.integers(0, 1000),
    tile=st.tuples(st.integers(1, 64), st.integers(1, 64)),
)
def test_half_precision_products_keep_to_their_bounds(
    pairs, width, direction, where, temperature, seed, tile
):
    sides = embeddings(pairs, width, seed)
    exact, exact_grads = compute(build(direction, temperature=temperature).double(), sides)
    with pytest.MonkeyPatch.context() as patch:
        shrink_tiles(patch, *tile)
        multiply_as(patch, where)
        loss = build(direction, temperature=temperature)
        value, grads = compute(loss, [side.float() for side in sides], autocast=True)
    assert value.dtype == torch.float32
    assert abs(value - exact) <= BOUNDS[where] * (1 + abs(exact))
    # Beside the gradient of a loss that is not nearly zero, which has nearly none.
    largest = [1 / temperature / pairs**0.5] * 2 + [max(1.0, abs(exact.item()))]
    for found, wanted, most in zip(grads, exact_grads, largest, strict=True):
        assert (found - wanted).norm() <= BOUNDS[where] * (wanted.norm() + most)


@pytest.mark.parametrize("direction", [*DIRECTIONS, "siglip"])
@pytest.mark.parametrize(("where", "bound"), [("cpu", 2e-2), ("bfloat16", 6e-3), ("float16", 8e-4)])
def test_half_precision_gradients_of_ordinary_batches_are_close(monkeypatch, direction, where, bound):
    sides = embeddings(1100, 64)
    _, wanted = compute(build(direction).double(), sides)
    multiply_as(monkeypatch, where)
    _, found = compute(build(direction), [side.float() for side in sides], autocast=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < bound * other.norm()


@pytest.mark.parametrize("direction", ["both", "siglip"])
def test_tiny_gradients_of_many_pairs_survive_in_float16(monkeypatch, direction):
    # A weight of one over the number of pairs squared is below what float16 can hold.
    sides = embeddings(3000, 4)
    _, wanted = compute(build(direction, temperature=1.0).double(), sides)
    multiply_as(monkeypatch, "float16")
    _, found = compute(build(direction, temperature=1.0), [side.float() for side in sides])
    assert (found[0] - wanted[0]).norm() < 1e-3 * wanted[0].norm()


@pytest.mark.parametrize("faster", [True, False])
def test_a_cpu_multiplies_in_half_precision_only_where_it_is_faster(monkeypatch, faster):
    monkeypatch.setattr(tiling, "_is_faster", lambda *_: faster)
    sides = [side.float() for side in embeddings(40, 16)]
    value, _ = compute(build("both", "auto"), sides, autocast=True)
    same_as = "half" if faster else "float32"
    assert torch.equal(value, compute(build("both", same_as), sides, autocast=True)[0])
    assert not torch.equal(
        value, compute(build("both", "float32" if faster else "half"), sides, autocast=True)[0]
    )


@pytest.mark.parametrize("products", ["auto", "half", "float32"])
def test_without_half_precision_around_products_stay_as_they_are(monkeypatch, products):
    monkeypatch.setattr(tiling, "_is_faster", lambda *_: True)
    for dtype in (torch.float32, torch.float64):
        assert tiling.choose_product_type(torch.zeros(2, 2, dtype=dtype), products) is None


def test_float16_products_which_a_cpu_would_round_are_left_to_cuda():
    assert tiling.choose_product_type(torch.zeros(2, 2, dtype=torch.float16), "half") is None


def test_a_cpu_is_measured_once_and_no_random_number_is_drawn_for_it():
    tiling._is_faster.cache_clear()
    before = torch.get_rng_state()
    assert tiling._is_faster(1) == tiling._is_faster(1)
    assert tiling._is_faster.cache_info().misses == 1 and torch.equal(before, torch.get_rng_state())


# On an accelerator


class Launches(TorchDispatchMode):
    """Counts what is launched, views apart."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [InfoNCE, lambda: InfoNCE("anchor_to_other"), SigLIP])
@pytest.mark.parametrize(("side", "most"), [(8192, 400)])
def test_on_a_device_nothing_is_read_back_and_tiles_bound_the_launches(monkeypatch, make, side, most):
    # Tensors without data: whatever looked at one would raise.
    monkeypatch.setattr(tiling, "tile_shape", lambda _: (side, side))
    loss = make().to("meta")
    anchor, other = (torch.empty(32_768, 512, device="meta", requires_grad=True) for _ in range(2))
    with Launches() as launches:
        loss(anchor, other).backward()
    assert launches.count < most


def test_tiles_grow_with_the_memory_of_the_device(monkeypatch):
    memory = 0
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda _: type("Gpu", (), {"total_memory": memory})
    )
    sides = []
    for gib in (4, 24, 80, 200):
        memory = gib * 2**30
        sides.append(tiling.tile_shape(torch.device("cuda"))[0])
    assert sides == [2048, 4096, 8192, 8192]
    assert tiling.tile_shape(torch.device("cpu")) == (512, 1024)


@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_what_an_accelerator_computes_without_looking_equals_the_exact_loss(monkeypatch, temperature):
    sides = embeddings(40, 8)
    exact, exact_grads = compute(build("both", temperature=temperature).double(), sides)
    monkeypatch.setattr(infonce, "_may_look", lambda _: False)
    value, grads = compute(build("both", temperature=temperature), [side.float() for side in sides])
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-5)


def test_a_row_that_underflows_on_an_accelerator_leaves_the_loss_finite(monkeypatch):
    monkeypatch.setattr(infonce, "_may_look", lambda _: False)
    anchor = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    value, grads = compute(build("both", temperature=0.01), (anchor, other))
    assert value.isfinite() and all(grad.isfinite().all() for grad in grads)
    assert (grads[0][0] * other[0]).sum() < 0  # it still moves towards its pair
