"""Cluster bootstrap: intervals of dependent queries."""

import numpy as np
import pytest
import torch

from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind.evaluation import evaluate_pairs, retrieval
from geobind.evaluation.bootstrap import Resampling, bound_ranking_measures
from geobind.evaluation.split_leakage import cluster_rows


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path_factory.mktemp("cache")))


def width(metric):
    return metric.high - metric.low


def test_ten_copies_of_a_query_are_one_query_when_drawn_together():
    random = np.random.default_rng(0)
    value = random.random((40, 1))
    rank = np.floor(100 * value[:, 0])
    alone = bound_ranking_measures(value, rank, Resampling(2000))
    copied = np.repeat(value, 10, axis=0), np.repeat(rank, 10)
    together = bound_ranking_measures(*copied, Resampling(2000), np.repeat(np.arange(40), 10))
    naive = bound_ranking_measures(*copied, Resampling(2000))
    whole = alone.high_M[0] - alone.low_M[0]
    assert together.high_M[0] - together.low_M[0] == pytest.approx(whole, rel=0.1)
    assert naive.high_M[0] - naive.low_M[0] == pytest.approx(whole / np.sqrt(10), rel=0.15)
    assert together.median_low == pytest.approx(alone.median_low, abs=6)


def test_clusters_of_one_query_change_nothing():
    value, rank = np.random.default_rng(1).random((50, 2)), np.arange(50.0)
    one, other = (
        bound_ranking_measures(value, rank, Resampling(300, seed=3), clusters)
        for clusters in (None, np.arange(50))
    )
    assert all(np.allclose(a, b) for a, b in zip(one, other, strict=True))


def test_the_table_draws_whole_clusters_and_says_so():
    random = np.random.default_rng(0)
    hidden = np.repeat(random.normal(size=(30, 8)), 5, axis=0)
    unit = {
        name: torch.nn.functional.normalize(
            torch.tensor(hidden + 0.3 * random.normal(size=hidden.shape)), dim=1
        )
        for name in ("a", "b")
    }
    plain = evaluate_pairs(unit, [])
    clustered = evaluate_pairs(unit, [], clusters=np.repeat(np.arange(30), 5))
    name = "mean_rank"
    assert plain.rows[0].metrics[name].value == clustered.rows[0].metrics[name].value
    assert width(clustered.rows[0].metrics[name]) > width(plain.rows[0].metrics[name])
    again = retrieval(unit["a"].float(), unit["b"].float(), query_clusters=np.repeat(np.arange(30), 5))
    assert again.metrics[name] == clustered.rows[0].metrics[name]


def test_a_row_without_a_cluster_counts_alone():
    x = torch.eye(6)
    with_none = retrieval(x, x, query_clusters=["a", "a", None, None, None, None])
    assert with_none.metrics["R@1"].value == 1


def table(tmp_path, text):
    (tmp_path / "rows.csv").write_text(text)
    return open_table(DataOptions(manifest="rows.csv", inline=["note"]), tmp_path, ["note"])


def test_cells_and_groups_come_from_the_table(tmp_path):
    rows = table(tmp_path, "lat,lon,note,group\n0.5,0.5,a,t1\n0.7,0.9,b,t1\n1.5,0.5,c,\n,,d,t2\n")
    cells = cluster_rows(rows, "cell")
    assert cells[0] == cells[1] != cells[2]
    assert cells[3] is None
    assert list(cluster_rows(rows, "group")) == ["t1", "t1", None, "t2"]


def test_a_table_that_does_not_say_is_told(tmp_path):
    rows = table(tmp_path, "note\na\nb\n")
    with pytest.raises(DataError, match=r"rows\.csv: intervals by group need a column `group`"):
        cluster_rows(rows, "group")
    with pytest.raises(DataError, match="intervals by cell need columns `lat` and `lon`"):
        cluster_rows(rows, "cell")
