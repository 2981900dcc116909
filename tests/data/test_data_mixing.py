"""Rows of several sources: which of them a step takes, in what share, by the seed and the step alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data.sampler import BatchSampler, MixedDataset, WeightedSource, batch_indices, draw_replacement
from geobind.data.sources import PluginPairs
from geobind.errors import DataError
from geobind.modality import Pair


def source(name, rows, weight=None):
    return WeightedSource(
        name, PluginPairs([Pair(i, i, f"{name}{i}") for i in range(rows)], "a", "b"), weight
    )


sizes = st.lists(st.integers(8, 40), min_size=2, max_size=4)


@pytest.mark.slow
@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(4, 40), st.integers(0, 2**63), st.integers(0, 20), st.integers(1, 4))
def test_one_source_is_gone_through_as_without_a_plan(rows, seed, step, attempt):
    sampler = BatchSampler((rows,), 4, seed)
    assert sampler.rows(step).tolist() == batch_indices(rows, 4, step, seed).tolist()
    row = int(sampler.rows(step)[0])
    assert sampler.replacement(step, row, attempt) == draw_replacement(rows, 4, step, seed, row, attempt)
    assert sampler.steps_per_epoch == rows // 4


@settings(deadline=None, max_examples=30, derandomize=True)
@given(sizes, st.integers(0, 2**63))
def test_each_batch_is_of_one_source_and_each_source_goes_through_its_own_epochs(sizes, seed):
    sampler = BatchSampler(tuple(sizes), 4, seed, tuple(size / sum(sizes) for size in sizes))
    starts = np.cumsum([0, *sizes])
    seen = [Counter() for _ in sizes]
    for step in range(3 * sampler.steps_per_epoch):
        rows, of = sampler.rows(step), sampler.source(step)
        assert ((starts[of] <= rows) & (rows < starts[of + 1])).all()
        assert len(set(rows.tolist())) == 4
        seen[of].update(rows.tolist())
        standin = sampler.replacement(step, int(rows[0]), 1)
        assert starts[of] <= standin < starts[of + 1]
        assert standin not in rows or sizes[of] == 4
    for counts, size in zip(seen, sizes, strict=True):
        if len(counts) == size:  # no row much oftener than another: at most once more for each epoch begun
            assert max(counts.values()) - min(counts.values()) <= 1 + sum(counts.values()) // (
                size - size % 4
            )


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.3, 0.5)])
def test_steps_alternate_in_the_shares_asked_for_at_any_length(shares):
    sampler = BatchSampler((100,) * len(shares), 10, 3, shares)
    taken = [sampler.source(step) for step in range(3000)]
    for length in (100, 1000, 3000):
        for of, share in enumerate(shares):
            assert taken[:length].count(of) / length == pytest.approx(share, abs=2.5 / length)


def test_the_sources_of_early_steps_do_not_depend_on_how_many_follow():
    sampler = BatchSampler((100, 50), 10, 3, (0.6, 0.4))
    early = [sampler.rows(step).tolist() for step in range(20)]
    sampler.rows(5000)
    assert early == [sampler.rows(step).tolist() for step in range(20)]
    assert early != [BatchSampler((100, 50), 10, 4, (0.6, 0.4)).rows(step).tolist() for step in range(20)]


def test_a_mixed_batch_holds_rows_of_all_in_their_shares_and_in_no_order():
    sampler = BatchSampler((100, 50, 30), 10, 3, (0.55, 0.25, 0.2), mixed=True)
    assert sampler.row_counts == (6, 2, 2)
    starts = np.array([0, 100, 150])
    firsts = set()
    for step in range(30):
        of = np.searchsorted(starts, sampler.rows(step), side="right") - 1
        assert np.bincount(of).tolist() == [6, 2, 2]
        firsts.add(int(of[0]))
    assert firsts == {0, 1, 2}
    assert sampler.steps_per_epoch == 18
    assert sampler.source(0) is None
    assert 100 <= sampler.replacement(0, 120, 1) < 150


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.integers(8, 200))
def test_mixed_batches_are_full_and_within_a_row_of_the_shares(weights, batch_size):
    shares = tuple(weight / sum(weights) for weight in weights)
    wanted = BatchSampler((1000,) * len(shares), batch_size, 0, shares, mixed=True).row_counts
    assert sum(wanted) == batch_size
    assert all(abs(count - share * batch_size) <= 1 for count, share in zip(wanted, shares, strict=True))


def test_rows_are_numbered_through_the_sources_and_weighed_by_their_number():
    rows = MixedDataset((source("p", 30), source("q", 10)))
    assert [rows[row].key for row in (0, 29, 30, 39)] == ["p0", "p29", "q0", "q9"]
    assert rows.shares == (0.75, 0.25)
    assert (len(rows), rows.having(["a", "b"]), rows.having(["c"])) == (40, 40, 0)
    assert MixedDataset((source("p", 30, 1.0), source("q", 10, 3.0))).shares == (0.25, 0.75)
    assert rows[30].raws == {"a": 0, "b": 0}


@pytest.mark.parametrize(
    ("weights", "mixed", "message"),
    [
        ((1, 1), False, "q: 10 rows cannot fill a batch of 16"),
        ((1, 3), True, "q: 10 rows cannot fill a batch of 12"),
        ((99, 1), True, "q: its share of 0.01 is less than a row of a batch of 16; raise its weight"),
    ],
)
def test_a_source_that_cannot_fill_its_part_is_named(weights, mixed, message):
    rows = MixedDataset((source("p", 100, weights[0]), source("q", 10, weights[1])))
    with pytest.raises(DataError, match=message):
        rows.sampler(16, 0, mixed=mixed)
