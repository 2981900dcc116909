"""Exact search against numpy, indexes on disk, and approximation where its recall was measured."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.errors import CheckpointError, DataError, PluginError
from geobind.search import ApproximateIndex, Exact, MeasuredRecall, create_index, load_index, measure_recall
from geobind.search import index as indexes


def unit_rows(count, width, seed=0, kind=np.float16):
    rows = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(kind)


def truth(vectors, query, k, rows=None):
    """Rows and similarities by sorting all products in float64; equal ones in row order."""
    query = torch.nn.functional.normalize(torch.tensor(query, dtype=torch.float32)[None]).numpy()[0]
    chosen = np.arange(len(vectors)) if rows is None else np.unique(rows)
    score = (vectors[chosen].astype(np.float64) * query).sum(axis=1)
    order = np.lexsort((chosen, -score))[:k]
    return chosen[order], score[order]


def exact_index(vectors):
    index = Exact()
    index.add(vectors)
    return index


KERNELS = ("numkong", "torch in float16", "torch in float32")


def use_kernel(patch, name):
    patch.setattr(indexes, "has_fast_kernel", lambda: name == "numkong")
    patch.setattr(indexes, "has_half_product", lambda: name == "torch in float16")


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    if request.param == "numkong":
        pytest.importorskip("numkong")
    use_kernel(monkeypatch, request.param)


def test_a_product_in_float16_whose_sums_are_coarse_is_not_used(monkeypatch):
    import torch

    exact = torch.mv
    monkeypatch.setattr(torch, "mv", lambda rows, query: exact(rows, query) + 0.01)
    assert indexes.has_half_product.__wrapped__() is False


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 300),
    st.integers(1, 33),
    st.integers(1, 320),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from([np.float16, np.float32]),
    st.booleans(),
    st.booleans(),
)
def test_exact_search_returns_what_sorting_all_products_does(
    count, width, k, queries, seed, kind, repeated, filtered
):
    random = np.random.default_rng(seed)
    vectors = unit_rows(count, width, seed, kind)
    if repeated:  # many equal rows: their order is that of their numbers
        vectors = vectors[random.integers(0, max(1, count // 10), count)]
    query = random.standard_normal((queries, width)).astype(np.float32)
    rows = random.integers(0, count, random.integers(0, count + 1)) if filtered else None
    index = exact_index(vectors)
    installed = indexes.has_fast_kernel()
    for name in KERNELS if installed else KERNELS[1:]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(indexes, "_BLOCK_BYTES", 50 * width)
            use_kernel(patch, name)
            found = index.search(query, k, rows)
        for number in range(queries):
            right, score = truth(vectors, query[number], k, rows)
            assert found.rows_QK[number].tolist() == right.tolist()
            assert np.array_equal(found.similarity_QK[number], score.astype(np.float32))


def test_rows_added_in_parts_are_numbered_in_order(kernel):
    vectors = unit_rows(100, 8)
    index = Exact()
    for start in (0, 30, 31):
        index.add(vectors[start : {0: 30, 30: 31, 31: 100}[start]])
    assert len(index) == 100
    assert index.search(vectors[77], 1).rows_QK.tolist() == [[77]]


def test_adding_a_part_copies_none_of_those_before(monkeypatch):
    def refuse(parts):
        raise AssertionError("parts are joined before all are there")

    index, parts, other = Exact(), np.split(unit_rows(40, 8), 4), unit_rows(10, 8, kind=np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(np, "concatenate", refuse)
        for part in parts:
            index.add(part)
        with pytest.raises(DataError, match="vectors of float32 x 8 do not fit an index of float16 x 8"):
            index.add(other)
    assert np.array_equal(index.vectors, np.concatenate(parts))


def test_a_mask_and_row_numbers_filter_alike(kernel):
    vectors, mask = unit_rows(500, 16), np.arange(500) % 7 == 0
    index = exact_index(vectors)
    one, two = index.search(vectors[3], 5, mask), index.search(vectors[3], 5, np.flatnonzero(mask)[::-1])
    assert np.array_equal(one.rows_QK, two.rows_QK) and mask[one.rows_QK].all()


def test_a_filter_that_nothing_passes_gives_no_match():
    found = exact_index(unit_rows(20, 4)).search(np.ones(4), 5, [])
    assert found.rows_QK.shape == found.similarity_QK.shape == (1, 0)


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        (np.ones((3, 4), np.float32), "row 0 has length 2, and indexes hold embeddings of length 1"),
        (np.full((3, 4), np.nan, np.float32), "row 0 has length nan"),
        (np.zeros((3, 4), np.float32), "row 0 has length 0"),
        (np.ones(4, np.float32), r"must be \(N, D\) with at least one row"),
        (np.zeros((0, 4), np.float32), "at least one row"),
        ("words", "must be an array"),
    ],
)
def test_vectors_that_are_no_embeddings_are_refused(vectors, reason):
    with pytest.raises(DataError, match=reason):
        Exact().add(vectors)


def test_rows_of_another_width_or_type_are_refused():
    index = exact_index(unit_rows(3, 4))
    for other in (unit_rows(3, 5), unit_rows(3, 4, kind=np.float32)):
        with pytest.raises(DataError, match="do not fit an index of float16 x 4"):
            index.add(other)


@pytest.mark.parametrize(
    ("query", "k", "rows", "reason"),
    [
        (np.ones(5), 1, None, r"has shape \(5,\), and the index holds vectors of width 4"),
        (np.array([1, np.nan, 0, 0]), 1, None, "not finite"),
        (np.zeros(4), 1, None, "all zeros"),
        ("bells", 1, None, "must be an embedding, not a str"),
        (np.ones(4), 0, None, "k must be a whole number of at least 1, not 0"),
        (np.ones(4), True, None, "not True"),
        (np.ones(4), 1, [3], "rows 3 to 3 are not all in an index of 3 rows"),
        (np.ones(4), 1, [-1], "rows -1 to -1"),
        (np.ones(4), 1, [0.5], "whole numbers or a mask"),
        (np.ones(4), 1, np.array([True]), "a mask of"),
    ],
)
def test_bad_searches_are_refused(query, k, rows, reason):
    with pytest.raises(DataError, match=reason):
        exact_index(unit_rows(3, 4)).search(query, k, rows)


def test_a_saved_index_answers_as_before_and_keeps_its_origin(tmp_path, kernel):
    index = exact_index(unit_rows(300, 16))
    index.archive, index.model = "archive digest", "model digest"
    index.save(tmp_path / "index")
    read = load_index(tmp_path / "index")
    query = unit_rows(3, 16, 1, np.float32)
    assert (read.archive, read.model, len(read)) == ("archive digest", "model digest", 300)
    for one, two in zip(index.search(query, 7), read.search(query, 7), strict=True):
        assert np.array_equal(one, two)


def test_an_index_holds_no_pickle(tmp_path):
    index = exact_index(unit_rows(3, 4))
    index.save(tmp_path)
    np.save(tmp_path / "vectors.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match="Python objects in dtype"):
        load_index(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "card.json").unlink(), "no index, or one whose building was interrupted"),
        (lambda folder: (folder / "card.json").write_text("{}"), "no index"),
        (
            lambda folder: (folder / "card.json").write_text('{"kind": "exact"}'),
            "card.json: rows: Field requ",
        ),
        (lambda folder: (folder / "vectors.npy").unlink(), "vectors.npy: cannot be read"),
        (lambda folder: (folder / "vectors.npy").write_bytes(b"x" * 200), "vectors.npy: cannot be read"),
        (
            lambda folder: np.save(folder / "vectors.npy", unit_rows(2, 4)),
            r"holds float16 of shape \(2, 4\), and its card says float16 of \(3, 4\)",
        ),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, change, reason):
    exact_index(unit_rows(3, 4)).save(tmp_path)
    change(tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        load_index(tmp_path)


def test_a_kind_that_no_plugin_provides_is_named(tmp_path):
    exact_index(unit_rows(3, 4)).save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(card | {"kind": "os.system"}))
    with pytest.raises(PluginError, match=r"no index named 'os\.system'"):
        load_index(tmp_path)


class Half(ApproximateIndex):
    """Looks at the first rows alone: 1, 2 or 4 quarters of them."""

    name = "half"
    efforts = (1, 2, 4)

    def build(self, vectors_ND):
        self.builds = getattr(self, "builds", 0) + 1

    def find(self, query_QD, k, rows, effort):
        seen = np.arange(len(self) * effort // 4)
        rows = seen if rows is None else np.intersect1d(rows, seen)
        found = exact_index(self.exact.vectors).search(query_QD, k, rows).rows_QK
        missing = np.full((len(query_QD), max(0, k - found.shape[1])), -1)
        return np.concatenate([found, missing], axis=1)

    def write(self, folder):
        pass

    def read(self, folder):
        pass


@pytest.fixture
def small(monkeypatch):
    """Treat filters of a few rows as large."""
    monkeypatch.setattr(indexes, "EXACT_ROWS", 5)


def half_index(count=400):
    index = Half()
    index.add(unit_rows(count, 8))
    return index


def test_an_unmeasured_approximation_is_never_used_nor_saved(tmp_path, small):
    index = half_index()
    vectors = index.exact.vectors
    assert index.search(vectors[399], 1).rows_QK.tolist() == [[399]]
    assert index.approximate(vectors[399], 1, None, 1)[0].rows_QK.tolist() != [[399]]
    with pytest.raises(DataError, match="its recall was not measured"):
        index.save(tmp_path)


def test_recall_is_that_of_the_rows_looked_at(small):
    measured = measure_recall(half_index(2000), count=40, shares=(1.0, 0.5))
    by_effort = {one.effort: one.recall for one in measured if one.share == 1 and one.k == 10}
    assert by_effort[4] == 1.0
    assert 0.1 < by_effort[1] < 0.35 < by_effort[2] < 0.6


def test_search_uses_the_least_effort_whose_measured_recall_is_enough(small):
    index = half_index()
    index.measured = [
        MeasuredRecall(share=share, k=10, effort=effort, recall=recall, queries=9)
        for share, effort, recall in [(1, 1, 0.995), (0.1, 1, 0.5), (0.1, 2, 1.0), (1, 2, 1.0)]
    ]
    chosen = [
        indexes.choose_effort(index.measured, left, 400, k)
        for left, k in [(400, 10), (200, 10), (40, 3), (39, 10), (400, 11), (5, 1)]
    ]
    assert chosen == [1, 2, 2, None, None, None]


def test_rows_added_later_need_a_new_measurement(small):
    index = half_index()
    measure_recall(index, count=20, shares=(1.0,))
    assert index.measured
    index.add(unit_rows(4, 8, 9))
    assert not index.measured and len(index) == 404
    assert index.search(unit_rows(4, 8, 9)[3], 1).rows_QK.tolist() == [[403]]


def clustered(count, width, seed=0):
    random = np.random.default_rng(seed)
    centre = unit_rows(60, width, seed, np.float32)[random.integers(0, 60, count)]
    rows = centre + 0.6 * unit_rows(count, width, seed + 1, np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def faiss_index():
    pytest.importorskip("faiss")
    index = create_index("faiss")
    index.add(clustered(4000, 16))
    place = np.random.default_rng(5).uniform((-60, -180), (60, 180), (4000, 2))
    measure_recall(index, place, count=20)
    return index, place


def test_faiss_recall_falls_with_a_geographic_filter_and_is_stated(faiss_index):
    index, _ = faiss_index
    recall = {(one.share, one.effort): one.recall for one in index.measured if one.k == 10}
    assert recall[1.0, 4] > recall[0.1, 4] > recall[0.01, 4]
    assert {one.share for one in index.measured} == {1.0, 0.5, 0.1, 0.01, 0.001}


@pytest.mark.parametrize("share", [0.001, 0.01, 0.02, 0.1, 0.5, 1.0])
def test_filtered_search_reaches_its_recall_at_every_share(faiss_index, share, small):
    index, place = faiss_index
    vectors, random = index.exact.vectors, np.random.default_rng(3)
    right = total = 0
    for query in clustered(30, 16, 7).astype(np.float32):
        far = np.abs(place - place[random.integers(4000)]).max(axis=1)
        rows = np.sort(np.argsort(far)[: round(share * 4000)])
        found = index.search(query, 10, rows)
        expected, _ = truth(vectors, query, 10, rows)
        assert np.isin(found.rows_QK, rows).all() and found.rows_QK.shape == (1, len(expected))
        right += np.isin(expected, found.rows_QK).sum()
        total += len(expected)
    assert right / total >= 0.98


def test_a_saved_faiss_index_returns_equal_rows(faiss_index, tmp_path, small):
    index, _ = faiss_index
    index.save(tmp_path / "index")
    read = load_index(tmp_path / "index")
    query = clustered(20, 16, 9).astype(np.float32)
    assert read.measured == tuple(index.measured) and type(read) is type(index)
    for rows in (None, np.arange(0, 4000, 3)):
        for one, two in zip(index.search(query, 5, rows), read.search(query, 5, rows), strict=True):
            assert np.array_equal(one, two)
    (tmp_path / "index" / "lists.faiss").write_bytes(b"nothing of faiss")
    with pytest.raises(CheckpointError, match=r"lists\.faiss: cannot be read; build the index again"):
        load_index(tmp_path / "index")


def test_lance_searches_all_rows_and_leaves_filters_to_the_exact_search(tmp_path, small):
    pytest.importorskip("lancedb")
    index = create_index("lance")
    index.add(clustered(3000, 16))
    measured = measure_recall(index, count=20)
    assert {one.share for one in measured} == {1.0}
    index.save(tmp_path / "index")
    read = load_index(tmp_path / "index")
    assert read.measured == measured and indexes.choose_effort(measured, 3000, 3000, 10) is not None
    vectors, query = index.exact.vectors, clustered(5, 16, 9).astype(np.float32)
    for rows in (None, np.arange(0, 3000, 2)):
        for number in range(5):
            right, score = truth(vectors, query[number], 10, rows)
            found = read.search(query[number], 10, rows)
            assert np.isin(right, found.rows_QK).mean() >= (0.9 if rows is None else 1)
            assert found.similarity_QK[0, 0] == pytest.approx(score[0], abs=1e-6)
    (tmp_path / "index" / "rows.lance").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="its table cannot be read"):
        load_index(tmp_path / "index")
