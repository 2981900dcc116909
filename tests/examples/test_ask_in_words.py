"""The measure of examples/real_earth: areas under curves, and their intervals over blocks."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy")
FILE = Path(__file__).parents[2] / "examples" / "real_earth" / "ask_in_words.py"
spec = importlib.util.spec_from_file_location("ask_in_words", FILE)
ask_in_words = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ask_in_words)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=30))
def test_the_area_is_the_share_of_ordered_pairs_ties_half(rows):
    score_N = np.array([score for score, _ in rows], float)
    true_N = np.array([true for _, true in rows])
    pairs = [(a > b) + (a == b) / 2 for a in score_N[true_N] for b in score_N[~true_N]]
    area = ask_in_words.area_under_curve(score_N, true_N)
    assert area == pytest.approx(np.mean(pairs)) if pairs else np.isnan(area)


def test_dependent_places_widen_the_interval():
    generator = np.random.default_rng(0)
    block_N = np.repeat(np.arange(10), 40)
    true_N = generator.random(400) < 0.5
    alone_N = true_N + generator.normal(0, 2, 400)
    together_N = alone_N + np.repeat(generator.normal(0, 4, 10), 40) * np.where(true_N, 1, -1)

    def width(score_N):
        low, high = ask_in_words.bound_by_blocks(score_N, true_N, block_N)
        return high - low

    assert width(together_N) > 2 * width(alone_N)
