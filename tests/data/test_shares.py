"""Batches that all processes prepare in shares: the same as those of one process, and bounded in memory."""

from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy_number import Number

from geobind.data import loader as loading
from geobind.data import shares
from geobind.data.loader import BatchLoader, ModalityInput
from geobind.data.sampler import BatchSampler
from geobind.data.shares import Shares, choose_share_size, join_meta
from geobind.data.sources import PluginPairs
from geobind.errors import DataError
from geobind.inference import collate
from geobind.modality import Pair, Place


class Images(Number):
    """An image that is uint8 or float, or of another size, by its number."""

    every: int = 3

    def prepare(self, raw, *, training=False):
        if raw == "large":
            return torch.zeros(1, 3, 3)
        image = torch.full((1, 2, 2), raw, dtype=torch.uint8)
        return image.float() / 255 if raw % self.every == 0 else image


PAIRS = [
    Pair(i, [i, 1000 + i], f"k{i}", Place(i / 10, -i / 10) if i > 20 else None, "late" if i > 30 else None)
    for i in range(47)
]


def loader(pairs=PAIRS, batch=12, workers=2, anchor=None, steps=(0, 6), **options):
    sides = {"anchor": ModalityInput(anchor or Number(), augment=True), "other": ModalityInput(Number())}
    rows = PluginPairs(pairs, "anchor", "other")
    return BatchLoader(rows, sides, BatchSampler((len(pairs),), batch, 7), *steps, workers=workers, **options)


def content(batches):
    """Everything that a loader brings, to be compared."""

    def values(batch):
        tensors = batch if isinstance(batch, dict) else {"": batch}
        return {name: (str(value.dtype), value.tolist()) for name, value in tensors.items()}

    return [
        (step, {name: values(one) for name, one in batch.items()}, [repr(part) for part in meta])
        for step, batch, meta in batches
    ]


@pytest.fixture
def small_shares(monkeypatch):
    """Shares of three rows."""
    monkeypatch.setattr(shares, "SHARE_ROWS", 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_of_shares_is_that_of_one_process(small_shares, workers):
    whole = content(loader(workers=0))
    assert content(loader(workers=workers)) == whole
    assert content(loader(workers=workers, steps=(4, 6))) == whole[4:]


def test_rows_that_lack_a_modality_are_joined_as_they_are_collated(small_shares):
    lacking = [pair._replace(other=None) if i % 5 < 4 else pair for i, pair in enumerate(PAIRS)]
    whole = content(loader(lacking, workers=0, partial=True))
    assert content(loader(lacking, partial=True)) == whole
    assert any("False" in meta[4] for _, _, meta in whole)


@pytest.mark.parametrize("every", [2, 7, 46, 100])
def test_images_of_uint8_in_one_share_and_float_in_another_become_what_they_are_at_once(small_shares, every):
    kind = Images(every=every)
    whole = content(loader(workers=0, anchor=kind))
    assert content(loader(anchor=kind)) == whole


def test_inputs_prepared_differently_in_two_shares_are_named(small_shares):
    odd = [
        pair._replace(anchor="large") if i == 30 else pair._replace(anchor=1) for i, pair in enumerate(PAIRS)
    ]
    for workers in (0, 2):
        with pytest.raises(
            DataError, match=r"alike: k\d+ is uint8 of shape \(1, 2, 2\), k30 is float32|k30 is"
        ):
            list(loader(odd, batch=47, workers=workers, anchor=Images(), steps=(0, 1)))


def test_a_broken_row_of_a_share_is_replaced_and_recorded_as_by_one_process(small_shares):
    pairs = [pair._replace(anchor="oops") if i == 5 else pair for i, pair in enumerate(PAIRS)]
    runs = [loader(pairs, workers=workers, max_broken=0.1) for workers in (0, 2)]
    assert content(runs[0]) == content(runs[1])
    assert runs[0].quarantined == runs[1].quarantined == [("k5", "'oops' is not a number")]
    with pytest.raises(DataError, match="k5: 'oops' is not a number"):
        list(loader(pairs, max_broken=0.0))


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_in_flight_are_bounded_whatever_the_batch(monkeypatch, workers):
    monkeypatch.setattr(shares, "SHARE_ROWS", 5)
    row = 2 * (8 + 4)  # bytes of a prepared row of two modalities
    bound = (2 * workers + 1) * 5
    monkeypatch.setattr(shares, "allowed_bytes", lambda: bound * row)
    for batch in (10, 20, 47):
        run = loader(batch=batch, workers=workers)
        list(run)
        assert 0 < run.most_in_flight <= bound
    monkeypatch.setattr(shares, "allowed_bytes", lambda: 10**9)
    run = loader(batch=47, workers=workers)
    list(run)
    assert 47 <= run.most_in_flight <= 47 + (2 * workers + 1) * 5  # a batch is prepared ahead


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.integers(2, 70_000), st.integers(1, 300), st.none() | st.integers(0, 10**9), st.integers(1, 10**12))
def test_shares_fit_into_the_memory_or_are_the_least_there_can_be(batch, workers, row_bytes, allowed):
    size = choose_share_size(batch, workers, row_bytes, allowed)
    assert 1 <= size.rows <= min(batch, shares.SHARE_ROWS) and size.ahead >= 2
    assert workers * size.ahead * size.rows <= batch + 2 * workers * size.rows  # whatever the memory
    if row_bytes and (size.rows, size.ahead) != (1, 2):
        assert size.bytes_in_flight(workers, row_bytes) <= allowed
    if not row_bytes and batch > size.rows:
        assert workers * size.ahead * size.rows >= batch


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=12), st.data())
def test_what_is_known_of_rows_is_joined_as_it_is_gathered(rows, data):
    then = datetime(2024, 5, 1, tzinfo=UTC)
    known = [
        loading.Row(
            {}, f"k{i}", Place(i, -i, then if timed else None) if placed else None, "x" if named else None
        )
        for i, (placed, timed, named) in enumerate(rows)
    ]
    at = sorted(data.draw(st.sets(st.integers(1, len(rows) - 1)))) if len(rows) > 1 else []
    parts = [known[start:end] for start, end in zip([0, *at], [*at, len(rows)], strict=True)]
    joined = join_meta([loading._meta(part) for part in parts], 2)
    for one, other in zip(joined, loading._meta(known), strict=True):
        np.testing.assert_equal(one, other)


def test_batches_cut_into_shares_keep_count_of_what_is_out():
    cutter = Shares(4, ("a",))
    cut = cutter.cut([range(10), range(3)])
    assert [len(next(cut)) for _ in range(3)] == [4, 4, 2]
    assert cutter.in_flight == 10

    def made():
        meta = loading.BatchMeta(["k"], None, None, None)
        for number in range(3):
            yield {"a": collate([torch.tensor([number])])}, meta, []

    joined = next(cutter.join(made()))
    assert joined[0]["a"].tolist() == [[0], [1], [2]] and joined[1].keys == ["k", "k", "k"]
    assert cutter.in_flight == 0 and cutter.most_in_flight == 10
