"""The learning rate, step by step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geobind.recipe.stage_options import Constant, Cosine, WarmRestarts
from geobind.training.optimizer import learning_rate


def test_warm_up_climbs_in_a_straight_line_to_the_peak():
    rates = [learning_rate(step, 100, 1.0, Cosine(warmup_steps=4)) for step in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_cosine_ends_at_its_final_share():
    schedule = Cosine(final=0.1)
    assert learning_rate(0, 50, 2.0, schedule) == 2.0
    assert learning_rate(25, 50, 2.0, schedule) == pytest.approx(1.1)
    assert learning_rate(50, 50, 2.0, schedule) == pytest.approx(0.2)


def test_warm_restarts_start_again_at_the_peak_with_longer_periods():
    schedule = WarmRestarts(name="warm_restarts", period=10, multiplier=2)
    assert [learning_rate(step, 100, 1.0, schedule) for step in (0, 10, 30, 70)] == [1.0] * 4
    assert learning_rate(20, 100, 1.0, schedule) == pytest.approx(0.5)
    assert learning_rate(9, 100, 1.0, schedule) == pytest.approx((1 + math.cos(math.pi * 0.9)) / 2)


def test_equal_restarts_far_on_are_as_exact_as_the_first():
    schedule = WarmRestarts(name="warm_restarts", period=3000)
    assert learning_rate(3_000_000_001, 10**10, 1.0, schedule) == learning_rate(1, 10**10, 1.0, schedule)


@given(step=st.integers(0, 500), warm=st.integers(0, 50), final=st.floats(0, 1))
def test_no_schedule_leaves_the_range_from_final_to_peak(step, warm, final):
    for schedule in (
        Constant(name="constant", warmup_steps=warm),
        Cosine(warmup_steps=warm, final=final),
        WarmRestarts(name="warm_restarts", period=17, multiplier=2, warmup_steps=warm, final=final),
    ):
        rate = learning_rate(step, 501, 3.0, schedule)
        assert 0 <= rate <= 3.0 + 1e-9
        if step >= warm and schedule.name != "constant":
            assert rate >= 3.0 * final - 1e-9
