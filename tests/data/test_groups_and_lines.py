import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data import cells, parquet
from geobind.data.cells import CellError, cells_to_arrow, degrees_to_arrow, strings_to_arrow
from geobind.data.delimited import DelimitedFile
from geobind.data.inspect import format_report, inspect_table
from geobind.data.options import DataOptions
from geobind.data.pack import pack_table
from geobind.data.split import SplitOptions, split_manifest
from geobind.data.table import open_table
from geobind.errors import DataError


def opened(folder, name, columns=("words",), **options):
    return open_table(DataOptions(manifest=name, **options), folder, columns)


@pytest.fixture
def grouped(tmp_path):
    rows = [("words", "group")] + [
        (f"a place {i}", f"recording {i // 3}" if i < 27 else "") for i in range(30)
    ]
    with open(tmp_path / "m.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def test_a_column_group_says_what_belongs_together(grouped):
    table = opened(grouped, "m.csv")
    assert table.groups[:4] == ["recording 0"] * 3 + ["recording 1"]
    assert table.groups[-1] is None
    assert "group" not in table.columns
    mapped = DataOptions(manifest="m.csv", columns={"group": "words"})
    other = open_table(mapped, grouped, ["words"])
    assert other.groups[0] == "a place 0"
    pack_table(table, grouped / "packed")
    assert opened(grouped, "packed").groups == table.groups


def test_splitting_by_group_takes_that_column_by_default(tmp_path):
    rows = [("words", "group")] + [(f"a place {i}", f"recording {i // 3}") for i in range(30)]
    with open(tmp_path / "m.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    split_manifest(tmp_path / "m.csv", tmp_path / "n.csv", SplitOptions(by="group", shares=(0.5, 0.5)))
    table = opened(tmp_path, "n.csv")
    assert not set(table.split("train").groups) & set(table.split("test").groups)
    assert inspect_table(table)["groups"] == {"groups": 10, "without": 0, "across_splits": 0, "examples": []}
    with pytest.raises(DataError, match="only splitting by group has one"):
        SplitOptions(by="place", group="site")


def test_a_group_in_several_splits_is_told(grouped):
    text = (grouped / "m.csv").read_text().splitlines()
    text = [f"{line},{'split' if not i else 'test' if i == 2 else 'train'}" for i, line in enumerate(text)]
    (grouped / "m.csv").write_text("\n".join(text))
    report = inspect_table(opened(grouped, "m.csv"))
    assert report["groups"]["across_splits"] == 1
    assert report["groups"]["without"] == 3
    told = "\n".join(format_report(report))
    assert "groups: 9; in several splits: 1" in told
    assert "groups: 1 of 9 have rows in several splits: recording 0 (test, train); keep them whole" in told


CELL = st.text("ab \n\r\"',é", max_size=6)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.one_of(st.none(), st.tuples(CELL, CELL)), min_size=1, max_size=12),
    size=st.integers(1, 5),
)
def test_the_line_of_a_row_is_the_one_it_ends_on(tmp_path_factory, rows, size):
    """Whatever lies in cells and between rows, and however many are read at a time; None is a blank line."""
    patch = pytest.MonkeyPatch()
    patch.setattr("geobind.data.delimited.ROWS_PER_CHUNK", size)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(("one", "two"))
    wanted = []
    for row in rows:
        if row is None:
            text.write("\n")
        else:
            csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(row)
            wanted.append((text.getvalue().count("\n"), *row))
    path = tmp_path_factory.mktemp("lines") / "m.csv"
    path.write_bytes(text.getvalue().encode())
    found = [
        row
        for numbers, columns in DelimitedFile(path)
        for row in zip(numbers, columns["one"], columns["two"], strict=True)
    ]
    patch.undo()
    assert found == wanted


ODD = ["", " ", "a b", "[", "1", "nan", "-inf", "1e3", " 7 ", "1_0"]
words = st.one_of(st.text(max_size=5), st.sampled_from(ODD))


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(values=st.lists(words, min_size=1, max_size=6))
def test_columns_of_strings_are_read_quickly_to_the_same_end(values):
    patch = pytest.MonkeyPatch()
    for convert in (strings_to_arrow, cells_to_arrow, lambda values: degrees_to_arrow(values, 90)):
        quick = result(convert, values)
        patch.setattr(cells, "_trim_strings", lambda values: None)
        slow = result(convert, values)
        patch.undo()
        assert quick == slow


def result(convert, values):
    try:
        return convert(values).to_pylist()
    except CellError as error:
        return error.index, str(error)
    except (pa.ArrowException, ValueError) as error:
        return type(error)


@pytest.mark.parametrize("rows_of_group", [1, 7, 100, 10_000])
@pytest.mark.parametrize("block", [1, 3000, 10**9])
def test_row_groups_read_in_parallel_keep_their_order(tmp_path, monkeypatch, rows_of_group, block):
    monkeypatch.setattr(parquet, "_BLOCK_BYTES", block)
    texts = [f"a place {i}" for i in range(500)]
    pq.write_table(
        pa.table({"words": texts, "x": texts}), tmp_path / "m.parquet", row_group_size=rows_of_group
    )
    assert list(opened(tmp_path, "m.parquet").samples("words")) == texts
    assert list(opened(tmp_path, "m.parquet", limit=33).samples("words")) == texts[:33]


def test_a_parquet_file_without_rows_is_refused(tmp_path, refused):
    pq.write_table(pa.table({"words": pa.array([], pa.string())}), tmp_path / "m.parquet")
    refused(lambda: opened(tmp_path, "m.parquet"), "m.parquet: has no rows")


def test_work_done_ahead_is_no_more_than_there_are_threads():
    begun, taken = [], []

    def job(number):
        begun.append(number)
        return number

    for number in parquet.run_in_order(((lambda i=i: job(i)) for i in range(50)), threads=3):
        taken.append(number)
        assert len(begun) <= len(taken) + 4
    assert taken == list(range(50))


def test_a_fault_in_one_row_group_is_the_files(tmp_path, refused):
    path = tmp_path / "m.parquet"
    pq.write_table(
        pa.table({"words": [str(i) for i in range(999)]}), path, row_group_size=100, use_dictionary=False
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2 - 300 : len(content) // 2 + 300] = bytes(600)
    path.write_bytes(content)
    refused(lambda: opened(tmp_path, "m.parquet"), "m.parquet: damaged after row")


def test_fifty_thousand_rows_are_opened_in_order(tmp_path):
    with open(tmp_path / "m.csv", "w") as file:
        file.write("key,lat,lon,words\n")
        file.writelines(f"k{i},{i % 90},{i % 180},a place {i}\n" for i in range(50_000))
    table = opened(tmp_path, "m.csv")
    assert len(table) == 50_000
    assert table.keys[49_999] == "k49999"
    assert np.array_equal(table.lat[:3], [0, 1, 2])
    assert json.dumps(table.splits) == '{"train": 50000}'
