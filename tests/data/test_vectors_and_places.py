"""Columns that a table makes of others: vectors of numbers, and the places of rows."""

import pickle
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind import Place
from geobind.data.cells import CellError, numbers_to_arrow
from geobind.data.inspect import inspect_raw
from geobind.data.options import DataOptions
from geobind.data.pack import pack_table
from geobind.data.table import open_table

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
