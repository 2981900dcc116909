"""Rows of tables and of plugins answer the same questions."""

import pickle

import numpy as np
import pytest

from geobind.data.options import DataOptions
from geobind.data.sampler import MixedDataset, WeightedSource
from geobind.data.sources import PluginPairs, RowMetadata, TableRows
from geobind.data.table import first_observation, open_table
from geobind.modality import Pair, Place

LINES = "key,text,note,lat,lon,time,label\na,first,one,1,2,2024-06-01T00:00:00Z,x\nb,second,,3,4,,\n"


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.csv").write_text(LINES)
    table = open_table(DataOptions(manifest="rows.csv"), tmp_path, ("text", "note"))
    pairs = [Pair("first", "one", "p", Place(1, 2), "x"), Pair("second", "two", "q")]
    return TableRows(table, ("text", "note")), PluginPairs(pairs, "text", "note")


def test_a_column_reads_one_modality_and_is_empty_for_others(sources):
    for rows in sources:
        assert [rows.column("text")[row] for row in range(len(rows))] == ["first", "second"]
        assert rows.column("sound")[0] is None
        assert rows.column("text").describe(1) == "second"


def test_rows_are_taken_in_the_order_asked_for_and_pickle(sources):
    for rows in sources:
        taken = pickle.loads(pickle.dumps(rows.take(np.array([1, 0]))))
        assert [taken[row].raws["text"] for row in range(2)] == ["second", "first"]
        again = taken.take(np.array([1]))
        assert [again[0].raws["text"], len(again)] == ["first", 1]


def test_dropped_modalities_are_not_read(sources):
    table, pairs = sources
    assert table.drop(["note"])[0].raws == {"text": "first"}
    assert table.drop(["note"]).names == ("text",) and table.drop(["note"]).column("note")[0] is None
    assert pairs.drop(["note"])[0].raws == {"text": "first", "note": "one"}


def test_only_rows_of_a_table_name_it(sources):
    table, pairs = sources
    assert table.table is not None and table.table.name == "rows.csv" and pairs.table is None
    assert table.names == pairs.names == ("text", "note")


def test_a_batch_of_metadata_leaves_out_what_none_of_its_rows_has(sources):
    rows = MixedDataset(tuple(WeightedSource(str(at), source) for at, source in enumerate(sources)))
    metadata = rows.metadata()
    assert isinstance(metadata, RowMetadata) and len(metadata.label_N) == 4
    some = metadata.batch(np.array([0, 3]), ["a", "q"])
    assert list(some.keys) == ["a", "q"] and some.labels == ["x", None]
    np.testing.assert_array_equal(some.lat, [1, np.nan])
    np.testing.assert_array_equal(some.hours, [19875 * 24, np.nan])
    none = metadata.batch(np.array([3]), ["q"])
    assert none.lat is none.lon is none.hours is none.labels is none.present_BM is None


def test_the_first_of_several_observations_is_the_one_taken():
    assert [first_observation(raw) for raw in (["a", "b"], "c", [], None)] == ["a", "c", None, None]
