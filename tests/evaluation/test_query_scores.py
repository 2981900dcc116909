"""Scores of queries on disk, and two runs compared on the same queries."""

import numpy as np
import pytest

from geobind.errors import CheckpointError
from geobind.evaluation.query_scores import compare_queries, read_query_scores, write_query_scores
from geobind.evaluation.retrieval_metrics import QueryScores

KEYS = [f"place {number}" for number in range(60)]
PAIR = ("tile", "sound")


def scores(seed=0, shift=0.0, rows=range(50), clusters=None):
    """Scores of two measures, better by `shift`; the same difficulty of each query whatever the seed."""
    rank_Q = np.random.default_rng(0).integers(1, 100, 60)[list(rows)].astype(float)
    rank_Q = np.maximum(rank_Q + np.random.default_rng(seed).integers(-2, 3, len(rank_Q)) - shift, 1)
    value_QM = np.stack([(rank_Q <= 10).astype(float), rank_Q], axis=1)
    return QueryScores(("R@10", "mean_rank"), np.array(rows), value_QM, clusters)


def kept(path, one, keys=KEYS):
    write_query_scores(path, {PAIR: one}, keys)
    return read_query_scores(path)[PAIR]


def test_scores_come_back_from_the_file_as_they_were_and_the_same_bytes_each_time(tmp_path):
    one = scores(clusters=np.arange(50) // 5)
    found = kept(tmp_path / "a", one)
    assert found.measures == one.measures
    assert np.array_equal(found.value_QM, one.value_QM.astype(np.float32))
    assert np.array_equal(found.cluster_Q, one.cluster_Q)
    kept(tmp_path / "b", one)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_query_scores(tmp_path / "none") == {}


def test_a_small_gain_is_shown_on_the_same_queries_where_intervals_overlap(tmp_path):
    one, two = kept(tmp_path / "a", scores(1)), kept(tmp_path / "b", scores(2, shift=3.0))
    found = compare_queries(one, two, "mean_rank")
    assert found.high < 0 and found.p < 0.001
    spread = one.value_QM[:, 1].std() / np.sqrt(50)
    assert abs(found.difference) < spread  # far inside the interval of either run
    assert compare_queries(one, kept(tmp_path / "c", scores(3)), "mean_rank").p > 0.05
    assert compare_queries(one, two, "median_rank").difference < 0


def test_queries_are_matched_by_their_keys_whatever_their_order(tmp_path):
    backwards = list(range(50))[::-1]
    one, two = kept(tmp_path / "a", scores()), kept(tmp_path / "b", scores(rows=backwards))
    assert compare_queries(one, one, "R@10") == compare_queries(one, kept(tmp_path / "c", scores()), "R@10")
    assert compare_queries(two, two, "mean_rank").difference == 0


def test_clusters_make_a_paired_difference_less_certain(tmp_path):
    alone = compare_queries(
        kept(tmp_path / "a", scores(1)), kept(tmp_path / "b", scores(2, 3.0)), "mean_rank"
    )
    cut = np.arange(50) // 25
    clustered = [kept(tmp_path / f"{seed}", scores(seed, 3.0 * (seed == 2), clusters=cut)) for seed in (1, 2)]
    found = compare_queries(*clustered, "mean_rank")
    assert found.difference == alone.difference
    assert found.high - found.low > alone.high - alone.low


@pytest.mark.parametrize("measure", ["R@10", "median_rank"])
def test_other_rows_or_other_measures_are_not_compared(tmp_path, measure):
    one = kept(tmp_path / "a", scores())
    assert compare_queries(one, kept(tmp_path / "b", scores(rows=range(10, 60))), measure) is None
    assert compare_queries(one, None, measure) is None
    assert compare_queries(one, one, "label_mAP") is None


@pytest.mark.parametrize(
    "damage",
    [lambda old: old[: len(old) // 2], lambda old: b"{}", lambda old: old.replace(b"pairs", b"paers")],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage):
    kept(tmp_path / "a", scores())
    (tmp_path / "a").write_bytes(damage((tmp_path / "a").read_bytes()))
    with pytest.raises(CheckpointError, match=r"not readable as scores of queries .* remove it"):
        read_query_scores(tmp_path / "a")
