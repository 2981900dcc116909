"""The same table in every format gives the same rows; an Arrow column of any type, values or a DataError."""

import csv
import datetime
import decimal
import io
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data import cells
from geobind.data.cells import CellError, convert_column
from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.errors import DataError

PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
WORDS = st.one_of(
    PLAIN, st.sampled_from(["NA", "nan", "None", "null", " ", "n", "a b", "[sic] a", "(a) b", "é"])
)
LISTS = st.one_of(
    st.lists(WORDS, max_size=3), st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=3)
)
TIMES = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1))
PLACES = st.one_of(
    st.none(), st.just((float("nan"), float("nan"))), st.tuples(st.floats(-90, 90), st.floats(-180, 180))
)
ROW = st.fixed_dictionaries(
    {
        "key": st.one_of(st.none(), WORDS),
        "label": st.one_of(st.none(), WORDS),
        "place": PLACES,
        "time": st.one_of(st.none(), TIMES),
        "text": st.one_of(st.none(), WORDS),
    }
)
NAMES = ("text", "many")


def written(rows, folder):
    """The same rows as CSV, JSONL, a JSON array and Parquet; yields the files."""
    with open(folder / "m.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        writer.writerows([as_cell(row[name]) for name in rows[0]] for row in rows)
    plain = [{name: as_json(cell) for name, cell in row.items()} for row in rows]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain), encoding="utf-8")
    (folder / "m.json").write_text(json.dumps(plain), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), folder / "m.parquet")
    return ["m.csv", "m.jsonl", "m.json", "m.parquet"]


def as_cell(cell):
    cell = as_json(cell)
    return "" if cell is None else json.dumps(cell) if isinstance(cell, list) else cell


def as_json(cell):
    return cell.isoformat() if isinstance(cell, datetime.datetime) else cell


def seen(name, folder):
    table = open_table(DataOptions(manifest=name, inline=NAMES), folder, NAMES)
    cells = {}
    for column in NAMES:
        held = table.columns.get(column)
        raws = [held[row] if held is not None else None for row in range(len(table))]
        cells[column] = [raw.tolist() if isinstance(raw, np.ndarray) else raw for raw in raws]
    places = None if table.places_LL is None else np.nan_to_num(table.places_LL, nan=999).tolist()
    keys = [key.replace(name, "").split(":")[-1] if key.startswith(f"{name}:") else key for key in table.keys]
    times = None if table.time is None else table.time.astype(str).tolist()
    # Without a key a row is called by its line, which is counted as the format does.
    keys = [None if row["key"] is None else key for row, key in zip(ROWS_OF_KEYS[0], keys, strict=True)]
    return {"keys": keys, "labels": table.labels, "places": places, "times": times, **cells}


ROWS_OF_KEYS = [[]]


@settings(deadline=None, max_examples=30, derandomize=True)
@given(rows=st.lists(ROW, min_size=1, max_size=6), data=st.data())
def test_the_same_table_gives_the_same_rows_in_every_format(tmp_path_factory, rows, data):
    folder = tmp_path_factory.mktemp("formats")
    kind = data.draw(st.sampled_from([st.lists(WORDS, max_size=3), LISTS.filter(is_numbers)]))
    full = []
    for row in rows:
        lat, lon = row["place"] or (None, None)
        many = data.draw(st.one_of(st.none(), kind))
        rest = {name: cell for name, cell in row.items() if name != "place"}
        key = None if rest["key"] is None or cells.is_missing(rest["key"]) else rest["key"]
        full.append({**rest, "key": key, "lat": lat, "lon": lon, "many": many})
    ROWS_OF_KEYS[0] = full
    if all(cells.is_missing(row["text"]) and not row["many"] for row in full):
        full[0]["text"] = "a place"
    results = {name: seen(name, folder) for name in written(full, folder)}
    assert results["m.jsonl"] == results["m.csv"]
    assert results["m.json"] == results["m.csv"]
    assert results["m.parquet"] == results["m.csv"]


def is_numbers(items):
    return all(isinstance(item, float) for item in items)


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ITEMS = [
    ("null", pa.null(), [None]),
    ("bool", pa.bool_(), [True, None]),
    ("int8", pa.int8(), [1, None]),
    ("uint64", pa.uint64(), [2**64 - 1, None]),
    ("halffloat", pa.float16(), [np.float16(1.5), None]),
    ("float", pa.float32(), [0.1, None, float("nan"), float("inf")]),
    ("double", pa.float64(), [0.1, None, float("nan"), 1e300]),
    ("decimal", pa.decimal128(8, 2), [decimal.Decimal("1.50"), None]),
    ("decimal256", pa.decimal256(60, 2), [decimal.Decimal("1.50"), None]),
    ("string", pa.string(), ["a", None, "", " ", "[", '["a"]', "[1, 2]", "{", "2024-01-01", "1"]),
    ("large_string", pa.large_string(), ["a", None]),
    ("string_view", pa.string_view(), ["a", None]),
    ("binary", pa.binary(), [b"a", b"\xff", None, b""]),
    ("large_binary", pa.large_binary(), [b"a", None]),
    ("binary_view", pa.binary_view(), [b"a", None]),
    ("fixed_binary", pa.binary(2), [b"ab", None]),
    ("date32", pa.date32(), [datetime.date(2024, 1, 1), None]),
    ("date64", pa.date64(), [datetime.date(2024, 1, 1), None]),
    ("time32", pa.time32("s"), [datetime.time(1, 2, 3), None]),
    ("time64", pa.time64("ns"), [1, None]),
    ("timestamp_s", pa.timestamp("s"), [2**61, 1, None]),
    ("timestamp_ms", pa.timestamp("ms", "Mars/Phobos"), [1, None]),
    ("timestamp_us", pa.timestamp("us", "+01:00"), [1, None, -(2**62)]),
    ("timestamp_ns", pa.timestamp("ns", "Europe/Berlin"), [1, None]),
    ("duration_s", pa.duration("s"), [2**61, None]),
    ("duration_ns", pa.duration("ns"), [1, None]),
    ("interval", pa.month_day_nano_interval(), [(1, 2, 3), None]),
    ("list", pa.list_(pa.string()), [["a"], [], None, [None], [" ", "b"]]),
    ("list_numbers", pa.list_(pa.int32()), [[1], [], None, [None]]),
    ("large_list", pa.large_list(pa.float32()), [[1.0], None]),
    ("fixed_list", pa.list_(pa.float64(), 2), [[1.0, 2.0], None]),
    ("list_view", pa.list_view(pa.string()), [["a"], None]),
    ("large_list_view", pa.large_list_view(pa.string()), [["a"], None]),
    ("list_list", pa.list_(pa.list_(pa.int8())), [[[1, 2], [3]], None]),
    ("list_bool", pa.list_(pa.bool_()), [[True], None]),
    ("list_time", pa.list_(pa.timestamp("us")), [[datetime.datetime(2024, 1, 1)], None]),
    ("map", pa.map_(pa.string(), pa.int64()), [[("a", 1)], [], None]),
    ("struct", pa.struct([("a", pa.int8())]), [{"a": 1}, None]),
    ("image", IMAGE, [{"bytes": b"a", "path": "b"}, None]),
    ("images", pa.list_(pa.struct([("bytes", pa.binary())])), [[{"bytes": b"a"}], [None], None, []]),
    ("path", IMAGE, [{"bytes": None, "path": "b"}, None]),
    ("window", pa.struct([("raster", pa.string()), ("x", pa.int8())]), [{"raster": "a.tif", "x": None}]),
    ("bytes_text", pa.struct([("bytes", pa.string())]), [{"bytes": "a"}, None]),
    ("empty_struct", pa.struct([]), [{}, None]),
    ("uuid", pa.uuid(), [bytes(16), None]),
    ("json", pa.json_(), ['{"a": 1}', None]),
    ("bool8", pa.bool8(), [1, None]),
]  # fmt: skip
ROLES = ("key", "split", "label", "group", "licence", "lat", "lon", "time", "number:x", "image")


def arrays():
    for name, kind, values in ITEMS:
        try:
            yield name, pa.array(values, kind)
        except pa.ArrowException:
            yield name, pa.array(values, kind.storage_type).cast(kind)
    yield "dictionary", pa.array(["a", None, "a"]).dictionary_encode()
    yield "dictionary_numbers", pa.array([1.5, None, 1.5]).dictionary_encode()
    yield "dictionary_bytes", pa.array([b"a", None]).dictionary_encode()
    yield "dictionary_times", pa.array([1, None], pa.timestamp("ns")).dictionary_encode()
    yield "runs", pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", None]))
    yield "runs_of_bytes", pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array([b"a"]))
    tensors = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    yield "tensors", pa.FixedShapeTensorArray.from_numpy_ndarray(tensors)
    kinds, parts = pa.array([0, 1], pa.int8()), [pa.array(["a", "b"]), pa.array([1, 2])]
    yield "sparse_union", pa.UnionArray.from_sparse(kinds, parts)
    yield "dense_union", pa.UnionArray.from_dense(kinds, pa.array([0, 0], pa.int32()), parts)
    yield "list_of_dictionary", pa.ListArray.from_arrays([0, 2], pa.array(["a", "b"]).dictionary_encode())


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name, array", [pytest.param(*case, id=case[0]) for case in arrays()])
def test_a_column_of_any_arrow_type_is_read_or_refused(name, array, role):
    for part in (array, array.slice(1), array.slice(0, 0), pa.nulls(2, array.type)):
        try:
            made = convert_column(role, part)
        except ValueError as error:  # a CellError too
            assert len(str(error)) < 700
        else:
            assert len(made) == len(part)
            made.validate(full=True)
            made.to_pylist()


@pytest.mark.parametrize("name, array", [pytest.param(*case, id=case[0]) for case in arrays()])
def test_a_parquet_column_of_any_type_gives_rows_or_a_data_error(tmp_path, name, array):
    for role in ("image", "label", "lat", "time"):
        columns = {role: array, "text": ["a"] * len(array)} | ({"lon": array} if role == "lat" else {})
        try:
            pq.write_table(pa.table(columns), tmp_path / "m.parquet")
        except (pa.ArrowException, ValueError):
            pytest.skip("is not written to Parquet")
        try:
            table = open_table(DataOptions(manifest="m.parquet"), tmp_path, ["image", "text"])
            for row in range(len(table)):
                table.read_row(row, table.columns)
            assert (list(table.keys), table.splits, table.labels, table.places_LL, table.time) is not None
        except DataError as error:
            assert str(error)


def values_of(column, field="image"):
    try:
        return convert_column(field, column).to_pylist()
    except CellError as error:
        return error.index


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.lists(st.one_of(st.none(), WORDS, st.sampled_from(["['a']", '["a"]', "[1, 2]", "[]"])), max_size=5))
def test_strings_mean_the_same_in_arrow_and_in_python(values):
    for field in ("image", "label", "time", "lat"):
        assert values_of(pa.array(values, pa.string()), field) == values_of(values, field)
        assert values_of(pa.array(values, pa.string()).dictionary_encode(), field) == values_of(values, field)


@pytest.mark.parametrize("word", sorted(cells.MISSING_WORDS))
def test_words_for_a_missing_value_are_missing_in_every_role(word):
    for role in ROLES:
        assert convert_column(role, [word, f" {word} "]).to_pylist() == [None, None]
    assert convert_column("image", [[word]]).to_pylist() == [[word]]
    assert convert_column("image", [f"{word} is a word"]).to_pylist() == [[f"{word} is a word"]]


@pytest.mark.parametrize(
    "printed",
    [
        ["a", "b"], ("a", "b"), {"a"}, {"bytes": b"\xff", "path": None}, b"\x89PNG",
        b"it's \x00", [b"a"], ["a", float("nan")], [None, "a"], np.array(["a", "b"]), np.arange(2000),
        np.array([0.25, 1.5]),
        [1.5, float("nan")], [None, 1], np.array([[1, 2], [3, 4]]), object(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_as_python_prints_it_is_refused_with_the_fix(printed):
    with pytest.raises(CellError, match=r"as Python prints it.*json.dumps|begins like a JSON list"):
        convert_column("text", ["a place", str(printed)])
    with pytest.raises(CellError, match=r"as Python prints it.*json.dumps|begins like a JSON list"):
        convert_column("text", pa.array([str(printed)]))


@pytest.mark.parametrize(
    "text",
    ["[sic] a town", "(a) b", "('tis) the sea", "[...]", "{a}", "<b>bold</b>", "b'day", "[1] a"],
)  # fmt: skip
def test_a_text_that_only_looks_like_a_value_is_a_text(text):
    assert convert_column("text", [text]).to_pylist() == [[text]]


def test_a_list_of_numbers_is_a_vector_in_csv_too():
    assert convert_column("facts", ["[0.5, -1]", ""]).to_pylist() == [[0.5, -1.0], None]


@pytest.mark.parametrize("value", [True, "4_8.1", "0x10", "1e", "48,1", "48.1N", "٤٨", b"x", [1]])
def test_only_plain_numbers_are_degrees(value):
    for values in ([value], [None, value]):
        with pytest.raises(CellError, match="not a number of degrees"):
            convert_column("lat", values)
    with pytest.raises(CellError, match="write a decimal point, not a comma"):
        convert_column("lat", ["48,1"])


@pytest.mark.parametrize(
    "value", ["+1.5", " 1.5 ", "1.5e0", 1.5, decimal.Decimal("1.5"), np.float32(1.5).item()]
)
def test_numbers_are_degrees_as_they_are_usually_written(value):
    assert convert_column("lat", [value]).to_pylist() == [1.5]


def test_a_latitude_that_only_a_longitude_can_be_is_told_so():
    with pytest.raises(CellError, match="are lat and lon exchanged"):
        convert_column("lat", ["148.5"])
    with pytest.raises(CellError, match=r"'248' is not degrees between -90 and 90$"):
        convert_column("lat", ["248"])


def test_an_image_of_the_hub_without_bytes_is_its_path():
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    paths = pa.array([{"bytes": None, "path": "a.png"}, None], kind)
    assert convert_column("image", paths).to_pylist() == [["a.png"], None]
    mixed = pa.array([{"bytes": b"a", "path": "a.png"}, {"bytes": None, "path": "b.png"}], kind)
    with pytest.raises(CellError, match=r"'b.png'.* is a string, but cells above are an encoded file"):
        convert_column("image", mixed)


def test_a_column_that_is_empty_at_first_gets_its_type_later(tmp_path):
    texts = [None] * 3000 + ["a place"] * 10
    pq.write_table(
        pa.table({"text": texts, "image": [f"{n}.png" for n in range(3010)]}), tmp_path / "m.parquet"
    )
    for number, column in enumerate([pa.nulls(2), pa.array(["a", None]), pa.nulls(1, pa.string())]):
        (tmp_path / "many").mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": column}), tmp_path / "many" / f"{number}.parquet")
    table = open_table(DataOptions(manifest="m.parquet"), tmp_path, ["text", "image"])
    assert list(table.samples("text"))[2999:3001] == [None, "a place"]
    assert list(open_table(DataOptions(manifest="many"), tmp_path, ["text"]).samples("text")) == [
        *[None, None], "a", *[None, None]
    ]  # fmt: skip


def point(order, kind, *values, srid=None):
    head = struct.pack(f"{order}BI", order == "<", kind | (0x20000000 if srid is not None else 0))
    return (
        head
        + (b"" if srid is None else struct.pack(f"{order}I", srid))
        + struct.pack(f"{order}{len(values)}d", *values)
    )


NAN = float("nan")
POINTS = {
    "XY": point("<", 1, 8.5, 47.25),
    "big-endian": point(">", 1, 8.5, 47.25),
    "ISO Z": point("<", 1001, 8.5, 47.25, 3),
    "ISO M": point("<", 2001, 8.5, 47.25, 3),
    "ISO ZM": point(">", 3001, 8.5, 47.25, 3, 4),
    "EWKB Z": point("<", 0x80000001, 8.5, 47.25, 3),
    "EWKB M": point("<", 0x40000001, 8.5, 47.25, 3),
    "EWKB ZM": point("<", 0xC0000001, 8.5, 47.25, 3, 4),
    "EWKB with SRID": point("<", 1, 8.5, 47.25, srid=4326),
    "EWKB Z with SRID": point(">", 0x80000001, 8.5, 47.25, 3, srid=4326),
}
NO_POINTS = {
    "polygon": (point("<", 3, 8.5, 47.25), "not a point"),
    "polygon Z": (point("<", 1003, 8.5, 47.25), "not a point"),
    "cut short": (point("<", 1, 8.5)[:-3], "no well-known binary"),
    "too long": (point("<", 1, 8.5, 47.25) + b"x", "no well-known binary"),
    "another order": (b"\5" + point("<", 1, 8.5, 47.25)[1:], "no well-known binary"),
    "nothing": (b"", "no well-known binary"),
    "in metres": (point("<", 1, 8.5, 47.25, srid=3857), "EPSG:3857"),
    "of no kind": (point("<", 9001, 8.5, 47.25), "not a point"),
}


def geo_table(folder, geometry, **column):
    geo = {"primary_column": "geom", "columns": {"geom": {"encoding": "WKB", **column}}}
    table = pa.table({"geom": geometry, "text": ["a place"] * len(geometry)})
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), folder / "m.parquet")
    return open_table(DataOptions(manifest="m.parquet"), folder, ["text"])


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_points_in_every_well_known_binary_are_places(tmp_path, name, kind):
    wkb = [POINTS[name], None, point("<", 1, NAN, NAN)]
    table = geo_table(tmp_path, pa.array(wkb, kind))
    assert table.places_LL[0].tolist() == [47.25, 8.5]
    assert np.isnan(table.places_LL[1:]).all()


@pytest.mark.parametrize("name", NO_POINTS)
def test_what_is_no_point_in_degrees_is_named(tmp_path, refused, name):
    content, reason = NO_POINTS[name]
    refused(lambda: geo_table(tmp_path, [point("<", 1, 1, 2), content]), "row 1: ", reason, "lat and lon")


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.one_of(st.binary(max_size=60), st.sampled_from(sorted(POINTS.values())).map(lambda wkb: wkb[:-1])))
def test_any_bytes_of_a_geometry_are_a_place_or_refused(tmp_path_factory, content):
    try:
        geo_table(tmp_path_factory.mktemp("wkb"), [content])
    except DataError as error:
        assert "row 0" in str(error)


@pytest.mark.parametrize(
    "crs",
    [
        None, "", {}, {"id": None}, {"id": {"authority": "EPSG", "code": 32632}}, {"name": "site grid"}, 7,
        {"id": {"authority": "EPSG", "code": 4269}}, "EPSG:3857", 'PROJCS["x"]', {"id": {"code": 4326}}, [],
        {"type": "BoundCRS", "source_crs": {"id": {"authority": "EPSG", "code": 4326}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_geometry_not_known_to_be_in_degrees_is_refused(tmp_path, refused, crs):
    refused(lambda: geo_table(tmp_path, [POINTS["XY"]], crs=crs), "its geometry is in ", "to_crs(4326)")


@pytest.mark.parametrize(
    "code", [("OGC", "CRS84"), ("EPSG", 4326), ("EPSG", "4326"), ("EPSG", 4979), ("OGC", "CRS84h")]
)
def test_a_geometry_in_degrees_of_wgs84_is_read(tmp_path, code):
    crs = {"id": {"authority": code[0], "code": code[1]}}
    assert geo_table(tmp_path, [POINTS["XY"]], crs=crs).places_LL.tolist() == [[47.25, 8.5]]


def test_a_geometry_that_is_not_used_may_be_in_any_crs(tmp_path):
    geo = {"primary_column": "geom", "columns": {"geom": {"encoding": "WKB", "crs": None}}}
    table = pa.table({"geom": [POINTS["XY"]], "text": ["a place"], "y": [1.0], "x": [2.0]})
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), tmp_path / "m.parquet")
    named = DataOptions(manifest="m.parquet", columns={"lat": "y", "lon": "x"})
    assert open_table(named, tmp_path, ["text"]).places_LL.tolist() == [[1, 2]]
    table = table.rename_columns(["geom", "text", "lat", "lon"]).replace_schema_metadata(
        {"geo": json.dumps(geo)}
    )
    pq.write_table(table, tmp_path / "n.parquet")
    assert open_table(DataOptions(manifest="n.parquet"), tmp_path, ["text"]).places_LL.tolist() == [[1, 2]]


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path, refused):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "m.parquet")
    refused(
        lambda: open_table(DataOptions(manifest="m.parquet"), tmp_path, ["text"]), "'text' is there twice"
    )
    (tmp_path / "m.jsonl").write_text('{"text": "a"}\n{"text": "a", "text": "b"}\n')
    refused(
        lambda: open_table(DataOptions(manifest="m.jsonl"), tmp_path, ["text"]),
        "m.jsonl:2",
        "'text' is there twice",
    )
    text = io.StringIO()
    json.dump([{"text": "a"}], text)
    (tmp_path / "m.json").write_text(text.getvalue().replace("{", '{"text": 1, '))
    refused(lambda: open_table(DataOptions(manifest="m.json"), tmp_path, ["text"]), "'text' is there twice")
