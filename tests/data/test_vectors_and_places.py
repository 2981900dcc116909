"""Columns that a table makes of others: vectors of numbers, and the places of rows."""

import json
import pickle
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind import Place
from geobind.data.cells import CellError, numbers_to_arrow
from geobind.data.inspect import format_report, inspect_raw, inspect_table
from geobind.data.options import DataOptions
from geobind.data.pack import pack_table
from geobind.data.table import open_table
from geobind_vector import Vector

CSV = """lat,lon,time,bio1,bio2
1.5,-2,2024-06-01T14:30:00+02:00,7,
,,,,
-90,180,,0.5,-3e2
"""
JSONL = """{"lat": 1.5, "lon": -2, "time": "2024-06-01T12:30:00", "bio1": 7}
{"bio1": null}
{"lat": -90, "lon": 180, "bio1": "0.5", "bio2": -300}
"""
COLUMNS = {"location": "place", "climate": ("bio1", "bio2"), "degrees": ("lat", "lon")}


def write_csv(folder):
    (folder / "m.csv").write_text(CSV)
    return folder / "m.csv"


def write_jsonl(folder):
    (folder / "m.jsonl").write_text(JSONL)
    return folder / "m.jsonl"


def write_parquet(folder):
    when = datetime(2024, 6, 1, 12, 30, tzinfo=UTC)
    columns = {
        "lat": pa.array([1.5, None, -90]),
        "lon": pa.array([-2, None, 180], pa.int64()),
        "time": pa.array([when, None, None], pa.timestamp("us", "UTC")),
        "bio1": pa.array([7, np.nan, 0.5], pa.float32()),
        "bio2": pa.array([None, None, -300], pa.int16()),
    }
    pq.write_table(pa.table(columns), folder / "m.parquet")
    return folder / "m.parquet"


WRITERS = (write_csv, write_jsonl, write_parquet)


def opened(path, columns, **options):
    return open_table(DataOptions(manifest=path, columns=columns, **options), names=tuple(columns))


@pytest.mark.parametrize("write", WRITERS)
def test_place_is_the_place_and_time_of_each_row(write, tmp_path):
    table = pickle.loads(pickle.dumps(opened(write(tmp_path), COLUMNS)))
    first, second, third = table.samples("location")
    assert first == Place(1.5, -2.0, datetime(2024, 6, 1, 12, 30, tzinfo=UTC))
    assert isinstance(first, Place)
    assert second is None
    assert third == Place(-90.0, 180.0)
    assert table.rows_with(["location"]).tolist() == [0, 2]


@pytest.mark.parametrize("write", WRITERS)
def test_several_columns_are_one_vector_with_nan_where_a_number_is_missing(write, tmp_path):
    table = opened(write(tmp_path), COLUMNS)
    first, second, third = table.samples("climate")
    assert first.dtype == third.dtype == np.float32
    assert np.array_equal(first, [7, np.nan], equal_nan=True)
    assert second is None
    assert np.array_equal(third, [0.5, -300])
    assert table.rows_with(["climate", "degrees"]).tolist() == [0, 2]
    assert np.array_equal(table.samples("degrees")[0], np.array([1.5, -2], np.float32))


def test_a_pair_holds_the_place_and_the_vector(tmp_path):
    pair = opened(write_csv(tmp_path), COLUMNS).pairs("location", "degrees")[1]
    assert pair.anchor == pair.place == Place(-90.0, 180.0)
    assert pair.other.tolist() == [-90, 180]


def test_place_follows_mapped_degrees(tmp_path):
    (tmp_path / "m.csv").write_text("y,x\n3,4\n")
    table = opened(tmp_path / "m.csv", {"location": "place", "lat": "y", "lon": "x"})
    assert table.samples("location")[0] == Place(3.0, 4.0)


def test_a_column_called_place_comes_before_the_place_of_the_row(tmp_path):
    (tmp_path / "m.csv").write_text("lat,lon,place\n3,4,Lyon\n")
    assert opened(tmp_path / "m.csv", {"text": "place"}).samples("text")[0] == "Lyon"


def test_place_needs_degrees(tmp_path):
    (tmp_path / "m.csv").write_text("text\na wood\n")
    with pytest.raises(Exception, match=r"m\.csv: 'location' is read as `place`, but there are no columns"):
        opened(tmp_path / "m.csv", {"location": "place", "text": "text"})


@pytest.mark.parametrize(
    ("cell", "words"),
    [("warm", "'warm' is not a number"), ("inf", "'inf' is infinite"), ("2024-06-01", "is not a number")],
)
def test_a_cell_that_is_no_number_is_refused_with_its_line_and_column(cell, words, tmp_path):
    (tmp_path / "m.csv").write_text(f"bio1,bio2\n1,2\n3,{cell}\n")
    with pytest.raises(Exception, match=rf"m\.csv:3: column 'bio2': .*{words}"):
        opened(tmp_path / "m.csv", {"climate": ("bio1", "bio2")})


def test_a_parquet_column_of_lists_is_no_part_of_a_vector(tmp_path):
    pq.write_table(pa.table({"bio1": [1.0], "bio2": [[1.0, 2.0]]}), tmp_path / "m.parquet")
    with pytest.raises(Exception, match=r"row 0: column 'bio2': \[1\.0, 2\.0\] is not a number"):
        opened(tmp_path / "m.parquet", {"climate": ("bio1", "bio2")})


def test_a_column_of_a_vector_that_is_not_there_is_named(tmp_path):
    with pytest.raises(Exception, match=r"has no column 'bio3', wanted as 'climate'; its columns: lat, lon"):
        opened(write_csv(tmp_path), {"climate": ("bio1", "bio3")})


def test_only_a_modality_may_be_a_vector():
    with pytest.raises(ValueError, match="'lat' is one column"):
        DataOptions(manifest="m.csv", columns={"lat": ("a", "b")})


def test_a_packed_vector_is_the_same_vector_and_a_place_is_not_packed(tmp_path):
    table = opened(write_csv(tmp_path), COLUMNS)
    pack_table(table, tmp_path / "packed")
    packed = open_table(
        DataOptions(manifest=tmp_path / "packed", columns={"location": "place"}), names=(*COLUMNS,)
    )
    assert list(packed.samples("location")) == list(table.samples("location"))
    for one, other in zip(packed.samples("climate"), table.samples("climate"), strict=True):
        assert one is other is None or np.array_equal(one, other, equal_nan=True)


def test_toy_earth_has_places_and_degrees_too():
    columns = {"location": "place", "degrees": ("lat", "lon")}
    block = {"toyearth": {"places": 8}, "columns": columns}
    table = open_table(DataOptions.model_validate(block), names=(*columns,))
    place, degrees = table.samples("location")[3], table.samples("degrees")[3]
    assert isinstance(place, Place)
    assert place.time is not None
    assert np.array_equal(degrees, np.array(place[:2], np.float32))


def test_a_missing_number_is_no_fault_and_an_infinite_one_is():
    assert inspect_raw(np.array([1, np.nan], np.float32)).fault is None
    assert inspect_raw(Place(1.0, 2.0)).kind == "numbers"
    assert "infinite" in str(inspect_raw(np.array([1, np.inf], np.float32)).fault)


CELLS = st.one_of(st.none(), st.just(" "), st.floats(-1e30, 1e30), st.integers(-9, 9), st.text(max_size=3))


@settings(derandomize=True, deadline=None)
@given(st.lists(CELLS, max_size=6), st.booleans())
def test_numbers_are_read_alike_as_numbers_and_as_words_or_refused(cells, as_words):
    values = [cell if cell is None or not as_words else str(cell) for cell in cells]
    try:
        numbers = numbers_to_arrow(values).to_pylist()
    except CellError as error:
        assert isinstance(cells[error.index], str)
        return
    for cell, number in zip(cells, numbers, strict=True):
        missing = cell is None or (isinstance(cell, str) and not cell.strip())
        assert number is None if missing else number is None or number == float(cell)


def write_soil(folder, rows):
    (folder / "soil.csv").write_text("split,ph,sand\n" + "".join(f"{','.join(row)}\n" for row in rows))
    return opened(folder / "soil.csv", {"soil": ("ph", "sand")})


def test_mean_and_std_of_vectors_are_of_training_rows_and_printed_as_a_recipe_has_them(tmp_path):
    rows = [("train", "6", "1e5"), ("train", "8", "1e5"), ("train", "", "1e5"), ("test", "90", "5")]
    report = inspect_table(write_soil(tmp_path, rows))
    spread = report["modalities"]["soil"]["spread"]
    assert (spread["mean"], spread["std"], spread["rows"]) == ([7, 1e5], [1, 0], 3)
    (line,) = [line for line in format_report(report) if "mean" in line]
    head, _, options = line.partition(": ")
    assert head == "  for a recipe, by 3 rows of 'train'"
    read = yaml.safe_load(f"{{{options}}}")
    assert read == {"size": 2, "mean": [7, 100_000], "std": [1, 1], "missing": True}
    assert Vector.model_validate(read).mean == (7, 100_000)


def test_without_a_training_split_all_rows_count(tmp_path):
    report = inspect_table(write_soil(tmp_path, [("", "1", "0.00012345"), ("", "2", "0.00012345")]))
    told = "\n".join(format_report(report))
    assert "by 2 rows: size: 2, mean: [1.5, 0.0001234], std: [0.5, 1]" in told


def test_only_vectors_of_one_length_have_a_mean(tmp_path):
    cells = [{"a": [1, 2], "b": "words"}, {"a": [1, 2, 3], "b": "more"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    table = opened(tmp_path / "m.jsonl", {"a": "a", "b": "b"}, inline=("b",))
    found = inspect_table(table)["modalities"]
    assert found["a"]["spread"] is found["b"]["spread"] is None
    assert inspect_table(table, quick=True)["modalities"]["a"]["spread"] is None


def test_of_long_vectors_mean_and_std_are_in_json(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps({"a": [1.0] * 65}) + "\n")
    told = "\n".join(format_report(inspect_table(opened(tmp_path / "m.jsonl", {"a": "a"}))))
    assert "for a recipe, by 1 rows of 'train': mean and std of its 65 numbers are in --json" in told
