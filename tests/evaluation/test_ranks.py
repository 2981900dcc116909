from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torchmetrics.retrieval import RetrievalMRR, RetrievalRecall

from geobind.errors import DataError
from geobind.evaluation import rank_counts, rank_counts_both
from geobind.evaluation.embeddings import full_precision

seeds = st.integers(0, 2**31)


def coarse(rows, seed, width=4):
    """Unit vectors from a small set of directions: many exact ties, and no near ones."""
    table = torch.randint(-1, 2, (rows, width), generator=torch.Generator().manual_seed(seed)).float()
    table[(table == 0).all(1), 0] = 1
    return normalize(table, dim=1)


def fine(rows, seed, width=16):
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def brute(query, gallery, query_ids, gallery_ids):
    """Larger, tied, found and relevant from the whole float64 matrix."""
    score = query.double().numpy() @ gallery.double().numpy().T
    match = np.asarray(query_ids)[:, None] == np.asarray(gallery_ids)
    best = np.where(match, score, -np.inf).max(1, keepdims=True)
    tied = np.abs(score - best) <= 1e-6
    return (score > best + 1e-6).sum(1), tied.sum(1), (tied & match).sum(1), match.sum(1)


def as_tuple(counts):
    return counts.larger_Q, counts.tied_Q, counts.found_Q, counts.relevant_Q


def assert_equal(counts, expected):
    for got, want in zip(as_tuple(counts), expected, strict=True):
        np.testing.assert_array_equal(got, want)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 60), seed=seeds, tile=st.sampled_from([1, 3, 7, 16, 64, 512]), ties=st.booleans())
def test_counts_agree_with_a_float64_brute_force_in_both_directions(rows, seed, tile, ties):
    make = coarse if ties else fine
    query, gallery = make(rows, seed), make(rows, seed + 1)
    there, back = rank_counts_both(query, gallery, tile=tile)
    assert_equal(there, brute(query, gallery, range(rows), range(rows)))
    assert_equal(back, brute(gallery, query, range(rows), range(rows)))


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 50), places=st.integers(1, 12), seed=seeds, tile=st.sampled_from([2, 5, 512]))
def test_counts_with_several_positives_agree_with_brute_force(rows, places, seed, tile):
    random = np.random.default_rng(seed)
    query_ids = np.concatenate([np.arange(places), random.integers(0, places, rows)])
    gallery_ids = random.permutation(
        np.concatenate([np.arange(places), random.integers(0, places, rows // 2)])
    )
    query, gallery = coarse(len(query_ids), seed), coarse(len(gallery_ids), seed + 1)
    there, back = rank_counts_both(query, gallery, query_ids=query_ids, gallery_ids=gallery_ids, tile=tile)
    assert_equal(there, brute(query, gallery, query_ids, gallery_ids))
    assert_equal(back, brute(gallery, query, gallery_ids, query_ids))


def test_full_tiles_and_ragged_tiles_count_alike():
    query, gallery = fine(1200, 0), coarse(1200, 1, width=16)
    whole = rank_counts_both(query, gallery, tile=1200)
    for tile in (512, 64, 333):
        for one, other in zip(rank_counts_both(query, gallery, tile=tile), whole, strict=True):
            assert_equal(one, as_tuple(other))


def test_a_full_tile_of_ties_does_not_overflow_the_byte_counters():
    same = normalize(torch.ones(2048, 8), dim=1)
    for counts in rank_counts_both(same, same, tile=1024):
        assert (counts.tied_Q == 2048).all()
        assert (counts.larger_Q == 0).all()


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_ranks_do_not_depend_on_the_order_of_the_gallery(seed):
    query, gallery = coarse(30, seed), coarse(30, seed + 1)
    order = np.random.default_rng(seed).permutation(30)
    plain = rank_counts(query, gallery)
    mixed = rank_counts(query, gallery[order], query_ids=range(30), gallery_ids=order)
    assert_equal(mixed, as_tuple(plain))


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_the_way_back_is_the_way_there_with_the_sides_swapped(seed):
    query, gallery = coarse(40, seed), coarse(40, seed + 1)
    there, back = rank_counts_both(query, gallery)
    swapped_there, swapped_back = rank_counts_both(gallery, query)
    assert_equal(there, as_tuple(swapped_back))
    assert_equal(back, as_tuple(swapped_there))
    assert_equal(rank_counts(query, gallery), as_tuple(there))


@settings(deadline=None, max_examples=10)
@given(seed=seeds)
def test_recall_and_mrr_agree_with_torchmetrics_when_nothing_ties(seed):
    query, gallery = fine(40, seed), fine(40, seed + 1)
    counts = rank_counts(query, gallery, tolerance=0.0)
    # torchmetrics takes relevant items of negative score for irrelevant: shift all above zero.
    score = (query @ gallery.T).flatten().double() + 2
    target, index = torch.eye(40, dtype=torch.bool).flatten(), torch.arange(40).repeat_interleave(40)
    for k in (1, 5, 10):
        theirs = RetrievalRecall(top_k=k)(score, target, indexes=index)
        assert counts.hit_Q(k).mean() == pytest.approx(float(theirs))
    theirs = RetrievalMRR()(score, target, indexes=index)
    assert counts.reciprocal_Q.mean() == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 7, 100, 1030])
def test_a_constant_embedding_scores_exactly_chance(rows):
    same = normalize(torch.randn(1, 33, generator=torch.Generator().manual_seed(rows)), dim=1).expand(
        rows, -1
    )
    for counts in rank_counts_both(same, same):
        assert counts.median_rank == counts.chance_median_rank() == (rows + 1) / 2
        assert (counts.rank_Q == (rows + 1) / 2).all()
        for k in (1, 5, 10, 100, 5000):
            np.testing.assert_allclose(counts.hit_Q(k), min(k / rows, 1), rtol=1e-12)


def test_a_row_of_zeros_ties_with_everything():
    query = fine(50, 0)
    query[3] = 0
    assert rank_counts(query, fine(50, 1)).rank_Q[3] == 25.5


def test_a_perfect_embedding_ranks_every_positive_first():
    same = fine(600, 0, width=64)
    for counts in rank_counts_both(same, same):
        assert (counts.rank_Q == 1).all()
        assert (counts.strict_rank_Q == 1).all()


def test_rounding_never_makes_a_positive_its_own_rival():
    # Without any tolerance: a positive taken from a separate dot product would beat or miss itself.
    query = fine(700, 2, width=512)
    counts = rank_counts(query, query, tolerance=0.0)
    assert (counts.larger_Q == 0).all()
    assert (counts.tied_Q == 1).all()


def test_distractors_in_the_gallery_count_as_rivals():
    query = normalize(torch.tensor([[1.0, 0.1]]), dim=1)
    gallery = normalize(torch.tensor([[1.0, 0.1], [0.0, 1.0], [1.0, 0.0]]), dim=1)
    assert rank_counts(query, gallery, query_ids=["b"], gallery_ids=["a", "b", "c"]).rank_Q.tolist() == [3.0]


def test_a_memory_map_gives_the_ranks_of_a_tensor(tmp_path):
    query, gallery = fine(300, 0), fine(300, 1)
    np.save(tmp_path / "gallery.npy", gallery.numpy())
    on_disk = np.load(tmp_path / "gallery.npy", mmap_mode="r", allow_pickle=False)
    assert_equal(rank_counts(query, on_disk, tile=128), as_tuple(rank_counts(query, gallery, tile=128)))
    order = np.random.default_rng(0).permutation(300)
    mixed = rank_counts(query[order], on_disk, query_ids=order, gallery_ids=range(300))
    np.testing.assert_array_equal(mixed.rank_Q, rank_counts(query, gallery).rank_Q[order])


def test_half_precision_embeddings_are_compared_in_float32():
    query, gallery = fine(200, 0).half(), fine(200, 1).half()
    assert_equal(rank_counts(query, gallery), as_tuple(rank_counts(query.float(), gallery.float())))


def test_autocast_around_the_call_changes_nothing():
    query, gallery = fine(200, 0), fine(200, 1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = rank_counts(query, gallery)
    assert_equal(inside, as_tuple(rank_counts(query, gallery)))


def test_reduced_precision_is_off_while_counting_and_back_afterwards():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="a setting of torch 2.9"
)
def test_the_newer_precision_setting_is_honoured_too():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with full_precision(torch.device("cpu")):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_gradients_are_not_followed():
    query = fine(20, 0).requires_grad_()
    assert rank_counts(query, fine(20, 1)).rank_Q.shape == (20,)


def broken(row, value):
    table = fine(10, 0)
    table[row] = value
    return table


@pytest.mark.parametrize(
    ("query", "gallery", "message"),
    [
        (broken(7, float("nan")), fine(10, 1), "query: row 7 is not finite"),
        (fine(10, 1), broken(2, float("inf")), "gallery: row 2 is not finite"),
        (fine(10, 1), broken(4, 3.0), r"gallery: row 4 has length 12, not 1; divide each row by its length"),
        (fine(10, 1)[0], fine(10, 1), r"query: embeddings have shape \(16,\); give two axes"),
        (fine(10, 1), fine(10, 1)[:0], r"gallery: embeddings are empty, shape \(0, 16\)"),
        (fine(10, 1), fine(10, 1, width=8), "query is 16 wide but gallery is 8 wide"),
        (fine(10, 1), fine(9, 1), "10 query rows against 9 gallery rows: without ids"),
        (fine(10, 1).int(), fine(10, 1), "query: embeddings are torch.int32; give floating-point"),
        (fine(10, 1).int().numpy(), fine(10, 1), "query: embeddings are int32; give floating-point"),
    ],
)
def test_embeddings_that_cannot_be_ranked_are_refused_with_the_row(query, gallery, message):
    with pytest.raises(DataError, match=message):
        rank_counts(query, gallery)


@pytest.mark.parametrize(
    ("query_ids", "gallery_ids", "message"),
    [
        ([1, 2], None, "ids were given for one side only"),
        ([1, 2], [1, 2, 3], "gallery_ids: 3 values for 2 rows"),
        ([1, None], [1, 2], "query_ids: row 1 has no id"),
        ([1, 5], [1, 2], "query: row 1 has no positive among the gallery rows"),
        ([5, 1], [1, 2], "query: row 0 has no positive among the gallery rows"),
    ],
)
def test_ids_that_do_not_fit_are_refused(query_ids, gallery_ids, message):
    with pytest.raises(DataError, match=message):
        rank_counts(fine(2, 0), fine(2, 1), query_ids=query_ids, gallery_ids=gallery_ids)


def test_both_directions_need_a_positive_for_every_gallery_row():
    with pytest.raises(DataError, match="gallery: row 1 has no positive among the query rows"):
        rank_counts_both(fine(1, 0), fine(2, 1), query_ids=[0], gallery_ids=[0, 1])


def test_a_tile_without_an_edge_is_refused():
    with pytest.raises(DataError, match="tile is 0"):
        rank_counts(fine(2, 0), fine(2, 1), tile=0)
