"""Intervals: closed forms, borders, clusters, classes, paired differences, and what they cover."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geobind.evaluation.intervals import (
    Estimate,
    bound_median,
    compare_means,
    compare_medians,
    estimate_repeated_share,
    estimate_share,
    hold_after_holm,
    median_p_value,
    student_inside,
    student_quantile,
)

FAST = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.30265), (7, 2.36462), (30, 2.04227), (math.inf, 1.95996)]
)
def test_student_s_quantiles_are_those_of_the_tables(freedom, t):
    assert student_quantile(0.95, freedom) == pytest.approx(t, abs=1e-4)
    assert student_inside(t, freedom) == pytest.approx(0.95, abs=1e-5)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (50, 100, 0.4038, 0.5962)]
)
def test_the_interval_of_a_share_is_wilson_s(hits, count, low, high):
    value = np.arange(count) < hits
    assert estimate_share(value.astype(float)).bounds() == pytest.approx((low, high), abs=2e-4)


@FAST
@given(
    arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)),
    st.sampled_from([None, 2, 3, 7]),
    st.sampled_from([None, 1, 3]),
    st.floats(0, 1),
)
def test_an_interval_contains_its_value_and_agrees_with_its_test(value, units, classes, null):
    rows = np.arange(len(value))
    one = estimate_share(
        value, None if units is None else rows % units, None if classes is None else rows % classes
    )
    low, high = one.bounds(0.95)
    assert 0 <= low <= one.value <= high <= 1
    if abs(null - low) > 1e-6 and abs(null - high) > 1e-6 and abs(null - one.value) > 1e-6:
        assert (one.p_value(null) >= 0.05 - 1e-6) == (low <= null <= high)


def test_clusters_of_one_query_change_nothing():
    value = np.random.default_rng(1).random(50)
    assert estimate_share(value, np.arange(50)) == estimate_share(value)


def test_ten_copies_of_a_query_are_about_one_query_when_they_are_a_cluster():
    value = (np.random.default_rng(0).random(40) < 0.5).astype(float)
    alone, together = (
        estimate_share(value),
        estimate_share(np.repeat(value, 10), np.repeat(np.arange(40), 10)),
    )
    assert together.value == alone.value
    assert together.effective == pytest.approx(40, rel=0.1)
    assert estimate_share(np.repeat(value, 10)).effective == pytest.approx(400)


def test_one_cluster_tells_nothing():
    assert estimate_share(np.ones(30), np.zeros(30, dtype=int)).bounds() == (0, 1)
    assert bound_median(np.arange(30.0), (1, 500), np.zeros(30, dtype=int)) == (1, 500)


def test_few_misses_in_clusters_are_not_taken_for_many_independent_ones():
    value, unit = np.ones(200), np.repeat(np.arange(10), 20)
    value[:2] = 0
    assert estimate_share(value, unit).effective < estimate_share(value).effective
    assert estimate_share(np.ones(200), unit).effective < 40


def test_queries_without_a_score_are_left_out():
    assert estimate_share(np.array([1, np.nan, 0, np.nan])) == estimate_share(np.array([1.0, 0.0]))


def test_a_mean_over_classes_weighs_a_rare_class_as_much_as_a_common_one():
    class_Q = np.repeat([0, 1], [90, 10])
    value = np.where(class_Q == 0, 1.0, np.arange(100) % 2)
    one = estimate_share(value, class_Q=class_Q)
    assert one.value == pytest.approx(0.75)
    assert one.effective < 60  # the ten queries decide
    single = estimate_share(np.array([1.0, 0.0, 1.0]), class_Q=np.array([0, 0, 1]))
    assert 0 <= single.bounds()[0] < 0.75 < single.bounds()[1] <= 1


def test_repeats_that_differ_widen_the_interval():
    same = np.full((5, 200), 0.5)
    apart = np.repeat(np.array([0.1, 0.3, 0.5, 0.7, 0.9])[:, None], 200, axis=1)
    widths = [np.ptp(estimate_repeated_share(value).bounds()) for value in (same, apart)]
    assert widths[0] < 0.02 and widths[1] > 0.3


def test_the_bounds_of_a_median_are_order_statistics():
    assert bound_median(np.arange(1.0, 21.0), (1, 100)) == (6, 15)
    assert median_p_value(np.arange(1.0, 21.0), 10.5) == 1
    assert median_p_value(np.arange(1.0, 21.0), 19) < 0.001


def test_a_paired_difference_is_student_s():
    apart = np.array([0.1, 0.3, 0.2, 0.4, 0.0])
    found = compare_means(apart)
    half = 2.77645 * apart.std(ddof=1) / math.sqrt(5)
    assert (found.difference, found.low) == pytest.approx((0.2, 0.2 - half), abs=1e-4)
    assert (found.p < 0.05) == (found.low > 0)
    assert compare_means(np.zeros(8)) == (0, 0, 0, 1)
    assert compare_means(apart, np.zeros(5, dtype=int)).p > 0.9


def test_medians_of_the_same_queries_are_compared_on_the_same_draws():
    rank = np.random.default_rng(0).integers(1, 100, 200).astype(float)
    better = compare_medians(rank - 3, rank)
    assert (better.difference, better.low, better.high, better.p) == (-3, -3, -3, 0)
    shuffled = np.random.default_rng(1).permutation(rank)
    assert compare_medians(rank, shuffled).p > 0.5
    assert compare_medians(rank, shuffled) == compare_medians(rank, shuffled)


@pytest.mark.parametrize(
    ("p", "held"),
    [
        ([], []),
        ([0.04, 0.01], [True, True]),
        ([0.03, 0.04], [False, False]),
        ([0.9, 0.02, 0.01, 0.03], [False, False, True, False]),
    ],
)
def test_holm_names_what_holds_among_so_many_tests(p, held):
    assert hold_after_holm(p) == held


def test_an_estimate_of_which_nothing_is_known_refutes_nothing():
    assert Estimate(0.9, 0, 1).p_value(0.1) == 1


@pytest.fixture
def simulation(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import intervals

    yield intervals
    sys.modules.pop("intervals", None)


@pytest.mark.slow
def test_intervals_cover_what_they_promise(simulation):
    for one in simulation.SCENARIOS:
        found = simulation.measure_coverage(one, 1000)
        assert min(found.values()) >= 0.92, (one.name, found)  # 0.014 of it is chance of 1,000 draws
        if "near 0.5" in one.name:
            assert 0.93 <= found["R@10"] <= 0.98, (one.name, found)
    assert max(simulation.measure_false_alarms(simulation.SCENARIOS[9], 300).values()) < 0.09
