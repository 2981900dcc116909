"""Clusters: which queries are dependent, and the intervals of those."""

import numpy as np
import pytest
import torch

from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind.evaluation import evaluate_pairs, retrieval
from geobind.evaluation.split_leakage import choose_clusters, cluster_rows


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path_factory.mktemp("cache")))


def width(metric):
    return metric.high - metric.low


def test_clusters_widen_the_intervals_of_the_table_and_leave_its_figures():
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


def test_groups_are_the_clusters_by_default_and_a_line_says_so(tmp_path):
    rows = table(tmp_path, "lat,lon,note,group\n0.5,0.5,a,t1\n0.7,0.9,b,t1\n1.5,0.5,c,\n,,d,t2\n")
    chosen = choose_clusters(rows, None)
    assert (chosen.by, list(chosen.of_rows)) == ("group", ["t1", "t1", None, "t2"])
    assert chosen.note == "rows of one group count as dependent, by default: 3 for 4 rows"
    assert choose_clusters(rows, "row")[:2] == (None, None)
    assert (
        choose_clusters(rows, "cell").note == "rows of one cell of a degree count as dependent: 3 for 4 rows"
    )


@pytest.mark.parametrize(("cells", "by"), [(7, None), (8, "cell")])
def test_without_groups_cells_are_the_clusters_where_there_are_enough(tmp_path, cells, by):
    lines = [f"{row % cells}.5,{row % cells}.5,word" for row in range(24)]
    chosen = choose_clusters(table(tmp_path, "lat,lon,note\n" + "\n".join(lines) + "\n"), None)
    assert chosen.by == by
    assert ("by default: 8 for 24 rows" if by else "all lie in 7 cells of a degree") in chosen.note


def test_a_table_without_places_and_groups_counts_each_row_alone(tmp_path):
    chosen = choose_clusters(table(tmp_path, "note\na\nb\n"), None)
    assert chosen.by is None and chosen.note.startswith("each row counts alone; a column `group`")
