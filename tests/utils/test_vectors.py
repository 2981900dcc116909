"""Unit length: for numbers of any size, or a DataError that says why."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional

from geobind.errors import DataError
from geobind.evaluation import build_prototypes
from geobind.scoring import PairScales, add_embeddings, cosine, probabilities, softmax
from geobind.utils.vectors import require_directions, unit

FAST = settings(max_examples=200, deadline=None, derandomize=True)
floats = st.floats(allow_nan=False, allow_infinity=False, width=32)
rows32 = arrays(np.float32, (3, 4), elements=floats)
rows64 = arrays(np.float64, (3, 4), elements=st.floats(allow_nan=False, allow_infinity=False))


@FAST
@given(st.one_of(rows32, rows64))
def test_every_finite_row_but_zeros_comes_out_at_unit_length(rows):
    made = unit(torch.from_numpy(rows))
    assert made.dtype == torch.float32
    zero = (rows == 0).all(1)
    assert torch.allclose(made.norm(dim=1), torch.from_numpy(~zero).float(), atol=1e-5)


@FAST
@given(arrays(np.float32, (3, 4), elements=st.floats(0.0078125, 1024, width=32)))
def test_ordinary_rows_are_normalised_as_torch_does_to_the_bit(rows):
    row = torch.from_numpy(rows)
    assert torch.equal(unit(row), functional.normalize(row, dim=-1))


@FAST
@given(rows32, st.sampled_from([1e-20, 1.0, 1e15]))
def test_the_length_of_a_row_does_not_matter(rows, factor):
    row = torch.from_numpy(rows).double().clamp(-1e15, 1e15)
    row[row.abs() < 1e-10] = 0
    assert torch.allclose(unit(row), unit(row * factor), atol=1e-5)


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e-16, 1.0, 1e16, 3e38])
def test_gradients_of_unit_length_are_finite_wherever_they_fit_float32(size):
    row = torch.full((2, 3), size, requires_grad=True)
    unit(row)[:, 0].sum().backward()
    assert not torch.isnan(row.grad).any()


def test_nothing_and_half_precision_are_normalised():
    assert unit(torch.zeros(0, 4)).shape == (0, 4)
    assert unit(torch.zeros(1, 4)).eq(0).all()
    half = unit(torch.full((1, 4), 60_000, dtype=torch.float16))
    assert torch.allclose(half, torch.full((1, 4), 0.5))
    assert torch.isnan(unit(torch.tensor([[math.inf, 1.0]]))).any()


@pytest.mark.parametrize(
    ("row", "why"), [([math.nan, 1], "row 1 is not finite"), ([0, 0], "row 1 is all zeros")]
)
def test_rows_without_a_direction_are_named(row, why):
    with pytest.raises(DataError, match=f"photos: {why}"):
        require_directions(torch.tensor([[1.0, 0.0], row]), "photos")


def test_similarity_of_huge_and_tiny_vectors_is_that_of_their_directions():
    a, b = torch.tensor([[1e30, 1e30], [1e-42, 0]]), np.array([[1e300, 0.0]])
    assert cosine(a, b)[:, 0].tolist() == pytest.approx([0.5**0.5, 1.0])
    with pytest.raises(DataError, match="the second embeddings: row 0 is not finite"):
        cosine(a, torch.tensor([[math.nan, 1.0]]))
    with pytest.raises(DataError, match="the first embeddings: row 0 is not finite"):
        cosine(torch.tensor([math.inf, 1.0]), a)


@FAST
@given(
    arrays(np.float32, (2, 5), elements=st.floats(-1, 1, width=32)),
    st.floats(min_value=5e-324, max_value=1e308, exclude_min=False),
)
def test_softmax_is_a_distribution_at_any_temperature(similarity, temperature):
    share = softmax(torch.from_numpy(similarity), temperature)
    assert share.dtype == torch.float32 and not torch.isnan(share).any()
    assert torch.allclose(share.sum(1), torch.ones(2))


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_temperature_that_is_no_divisor_is_refused(temperature):
    with pytest.raises(DataError, match="temperature must be positive"):
        softmax(torch.zeros(1, 2), temperature)


@FAST
@given(st.floats(5e-324, 1 - 1e-16), st.floats(-1, 1))
def test_a_probability_of_a_match_lies_between_0_and_1(prior, similarity):
    scales = PairScales(modalities=("a", "b"), temperature=(0.1, 0.1), scale=1e3, bias=-30, rows=1)
    p = probabilities(torch.tensor([[similarity]]), scales, "a", prior=prior)
    assert 0 <= float(p) <= 1


ONE = {"a": torch.tensor([[0.6, 0.8], [1.0, 0.0]]), "b": torch.tensor([[0.8, 0.6], [-1.0, 0.0]])}


def test_parts_that_cancel_are_refused_with_their_row():
    with pytest.raises(DataError, match=r"input 1: the parts \(a, b\) cancel out"):
        add_embeddings(ONE)
    near = {"a": ONE["a"], "b": -ONE["a"] * (1 + 1e-7)}
    with pytest.raises(DataError, match="input 0: the parts"):
        add_embeddings(near)


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ({"a": math.nan}, "the weight of a is nan"),
        ({"b": math.inf}, "the weight of b is inf"),
        ({"a": 0, "b": 0}, "every weight is 0"),
    ],
)
def test_weights_that_leave_no_sum_are_refused(weights, why):
    with pytest.raises(DataError, match=why):
        add_embeddings(ONE, weights)


@FAST
@given(st.floats(1e-300, 1e300), st.floats(0.1, 10))
def test_sums_have_unit_length_whatever_the_size_of_weights(size, ratio):
    added = add_embeddings(ONE, {"a": size, "b": min(size * ratio, 1e308) * 1.001})
    same = add_embeddings(ONE, {"a": 1, "b": min(size * ratio, 1e308) * 1.001 / size})
    assert torch.allclose(added.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(added, same, atol=1e-4)


def test_examples_of_a_class_that_cancel_leave_a_prototype_of_zeros():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    made = build_prototypes({"x": rows, "y": rows[:1]})
    assert made.class_CD[0].eq(0).all()
