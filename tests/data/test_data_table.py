import json
import os
import pickle
import struct
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data import delimited
from geobind.data.options import DataOptions
from geobind.data.table import open_table

NAMES = ("sky", "ear", "words")
COLUMNS = {"sky": "tile", "ear": "sound", "words": "caption"}
CSV = """key,split,lat,lon,time,label,tile,sound,caption
a,train,1.5,-2,2024-06-01T14:30:00+02:00,beach,t/a.png,"[""s/1.wav"", ""s/2.wav""]",the sea
b,train,,,,,t/b.png,,"[""a town"", ""houses, many""]"
c,test,-90,180,2024-06-01,town,,s/c.wav,a wood
"""


def opened(folder, text, name="m.csv", names=NAMES, **options):
    content = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(content)
    return open_table(
        DataOptions(manifest=name, columns=options.pop("columns", COLUMNS), **options), folder, names
    )


def test_a_csv_manifest_is_a_table(tmp_path):
    table = opened(tmp_path, CSV)
    assert len(table) == 3
    assert list(table.keys) == ["a", "b", "c"]
    assert table.splits == {"test": 1, "train": 2}
    assert table.labels == ["beach", None, "town"]
    assert np.array_equal(table.places_LL, [[1.5, -2], [np.nan, np.nan], [-90, 180]], equal_nan=True)
    assert table.time[0] == np.datetime64("2024-06-01T12:30")
    assert list(table.samples("sky")) == [tmp_path / "t/a.png", tmp_path / "t/b.png", None]
    assert table.samples("ear")[0] == [tmp_path / "s/1.wav", tmp_path / "s/2.wav"]
    assert list(table.samples("words")) == ["the sea", ["a town", "houses, many"], "a wood"]
    assert table.rows_with(["sky", "words"]).tolist() == [0, 1]


def test_a_manifest_opens_by_its_path_with_columns_as_keywords(tmp_path):
    (tmp_path / "m.csv").write_text(CSV.replace("key,", "id,"))
    table = open_table(str(tmp_path / "m.csv"), key="id", sky="tile", words="caption")
    assert list(table.keys) == ["a", "b", "c"]
    assert sorted(table.columns) == ["sky", "words"]
    assert table.samples("words")[0] == "the sea"


def test_pairs_are_the_rows_that_have_both(tmp_path):
    pairs = opened(tmp_path, CSV).split("train").pairs("sky", "words")
    assert len(pairs) == 2
    first = pairs[0]
    assert (first.anchor, first.other, first.key, first.label) == (
        tmp_path / "t/a.png",
        "the sea",
        "a",
        "beach",
    )
    assert first.place == (1.5, -2, datetime(2024, 6, 1, 12, 30, tzinfo=UTC))
    assert pairs[-1].place is None
    assert [pair.key for pair in pairs[::-1]] == ["b", "a"]
    assert pairs[1:].table.keys[0] == "b"


def test_jsonl_and_parquet_say_the_same_as_csv(tmp_path):
    rows_ = [
        {
            "key": "a",
            "split": "train",
            "lat": 1.5,
            "lon": -2,
            "tile": "t/a.png",
            "sound": ["s/1.wav", "s/2.wav"],
            "caption": "x",
        },
        {
            "key": "b",
            "split": "train",
            "lat": None,
            "lon": None,
            "tile": None,
            "sound": ["s/3.wav"],
            "caption": "y",
        },
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows_)))
    pq.write_table(pa.Table.from_pylist(rows_), tmp_path / "m.parquet")
    for name in ("m.jsonl", "m.parquet"):
        table = open_table(DataOptions(manifest=name, columns=COLUMNS), tmp_path, NAMES)
        assert list(table.keys) == ["a", "b"], name
        assert list(table.samples("sky")) == [tmp_path / "t/a.png", None]
        assert table.samples("ear")[0] == [tmp_path / "s/1.wav", tmp_path / "s/2.wav"]
        assert table.samples("ear")[1] == tmp_path / "s/3.wav"
        assert table.places_LL[0].tolist() == [1.5, -2]


def test_without_columns_for_them_all_rows_are_train_and_are_named_by_their_line(tmp_path):
    table = opened(tmp_path, 'sky,words\na.png,"two\nlines"\nb.png,x\n', columns={})
    assert table.splits == {"train": 2}
    assert list(table.keys) == ["m.csv:3", "m.csv:4"]
    assert table.places_LL is None
    assert table.labels is None
    assert table.time is None


def test_a_byte_order_mark_blank_lines_and_tabs_are_no_trouble(tmp_path):
    assert len(opened(tmp_path, "\ufeffsky\r\na.png\r\n\r\nb.png\r\n", columns={})) == 2
    assert opened(tmp_path, "sky\twords\na.png\tx, y\n", "m.tsv", columns={}).samples("words")[0] == "x, y"


def test_reserved_columns_can_be_named_otherwise(tmp_path):
    table = opened(
        tmp_path,
        "id,latitude,longitude,sky\nq,1,2,a.png\n",
        columns={"key": "id", "lat": "latitude", "lon": "longitude"},
    )
    assert table.keys[0] == "q"
    assert table.places_LL.tolist() == [[1, 2]]


def test_a_label_can_also_be_a_modality(tmp_path):
    table = opened(tmp_path, "sky,label\na.png,beach\n", columns={"words": "label"})
    assert table.pairs("sky", "words")[0].other == table.labels[0] == "beach"


def test_parquet_holds_bytes_vectors_and_hugging_face_structs(tmp_path):
    table = pa.table(
        {
            "sky": pa.array(
                [{"bytes": b"png", "path": "x"}, None],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "ear": pa.array([[b"1", b"2"], []], pa.list_(pa.binary())),
            "words": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
            "time": pa.array([datetime(2024, 1, 1, tzinfo=UTC), None], pa.timestamp("ns", "Europe/Berlin")),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    opened_ = open_table(DataOptions(manifest="m.parquet"), tmp_path, NAMES)
    assert list(opened_.samples("sky")) == [b"png", None]
    assert list(opened_.samples("ear")) == [[b"1", b"2"], None]
    assert opened_.samples("words")[1].tolist() == [3.0, 4.0]
    assert opened_.time[0] == np.datetime64("2024-01-01T00:00")


def test_geoparquet_points_are_places(tmp_path, refused):
    def write(crs, kind=1):
        wkb = [struct.pack("<BIdd", 1, kind, 8.5, 47.25), None]
        geo = {"primary_column": "geom", "columns": {"geom": {"encoding": "WKB", **crs}}}
        table = pa.table({"geom": pa.array(wkb, pa.binary()), "sky": ["a.png", "b.png"]})
        pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), tmp_path / "m.parquet")
        return open_table(DataOptions(manifest="m.parquet"), tmp_path, ["sky"])

    table = write({})
    assert table.places_LL[0].tolist() == [47.25, 8.5]
    assert table.pairs("sky", "sky")[1].place is None
    refused(lambda: write({"crs": {"id": {"authority": "EPSG", "code": 32632}}}), "EPSG:32632", "to_crs")
    refused(lambda: write({}, kind=3), "row 0", "not a point")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sky,sky\na,b\n", ("m.csv:1", "'sky' is there twice")),
        ("sky,\na,b\n", ("m.csv:1", "column 2", "no name")),
        ("sky,words\na.png\n", ("m.csv:2", "1 cells", "2 columns (sky, words)")),
        ("sky,lat,lon\na.png,91,0\n", ("m.csv:2: column 'lat': '91' is not degrees between -90 and 90",)),
        ("sky,lat,lon\na.png,1,2\nb.png,1,east\n", ("m.csv:3: column 'lon': 'east' is not a number",)),
        ("sky,lat,lon\na.png,nan,2\n", ("m.csv:2", "one of lat and lon")),
        ("sky,lat,lon\na.png,1,\n", ("m.csv:2", "one of lat and lon")),
        ("sky,lat\na.png,1\n", ("'lat' but not the other",)),
        ("sky,time\na.png,yesterday\n", ("m.csv:2: column 'time': 'yesterday' is not a time",)),
        ('sky,words\na.png,"[""x"""\n', ("m.csv:2: column 'words'", "begins like a JSON list")),
        ('sky\n"a.png\n', ("m.csv:2", "not well-formed")),
        ("sky\na.png\nb\xff.png\n".encode("latin-1"), ("m.csv:3: byte 2 is not UTF-8",)),
        ("sky\n", ("has no rows",)),
        ("", ("has no rows",)),
        (
            "tile,lat,lon\na.png,1,1\n",
            ("no column for ear, sky, words", "columns: tile, lat, lon", "{ear: COLUMN}"),
        ),
        ("words\na.png\nthe sea\n", ("'a.png', which looks like a file", "'the sea'", "`files: [words]`")),
    ],
)
def test_a_mistake_in_csv_is_named_with_its_place(tmp_path, refused, text, words):
    refused(lambda: opened(tmp_path, text, columns={}), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"sky": "a.png"}\n{"sky": \n', ("m.jsonl:2: not JSON",)),
        ('\n["a.png"]', ("m.jsonl:2", "must be an object")),
        ('{"sky": {"a": 1}}', ("m.jsonl:1: column 'sky'", "must be a string")),
        ('{"sky": [1, "a"]}', ("m.jsonl:1: column 'sky'",)),
        ('{"sky": "a.png", "key": ["x"]}', ("m.jsonl:1: column 'key': ['x'] is not a string",)),
        ('{"sky": "a.png"}\n{"sky": 3}', ("column 'sky'",)),
        ('{"sky": "\\ud800"}', ("column 'sky'",)),
    ],
)
def test_a_mistake_in_jsonl_is_named_with_its_place(tmp_path, refused, text, words):
    refused(lambda: opened(tmp_path, text, "m.jsonl", columns={}), *words)


def test_a_mistake_in_parquet_is_named_with_its_row(tmp_path, refused):
    def write(**columns):
        pq.write_table(pa.table({"sky": ["a.png"] * 3, **columns}), tmp_path / "m.parquet")
        return open_table(DataOptions(manifest="m.parquet"), tmp_path, NAMES)

    refused(lambda: write(lat=[1.0, 2.0, 99.0], lon=[0.0] * 3), "row 2: column 'lat': 99.0")
    refused(lambda: write(lat=["x"] * 3, lon=[0.0] * 3), "row 0: column 'lat': 'x' is not a number")
    refused(lambda: write(time=["2024-01-01", "x", None]), "row 1: column 'time'")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 no")
    refused(lambda: open_table(DataOptions(manifest="m.parquet"), tmp_path, NAMES), "not a Parquet file")


def test_a_manifest_that_is_missing_or_of_another_kind_is_named(tmp_path, refused):
    refused(
        lambda: open_table(DataOptions(manifest="x.csv"), tmp_path, NAMES),
        str(tmp_path / "x.csv"),
        "no such file",
    )
    (tmp_path / "x.xlsx").write_text("")
    refused(lambda: open_table(DataOptions(manifest="x.xlsx"), tmp_path, NAMES), "must end in .csv")


def test_a_column_named_in_the_recipe_must_be_there_and_others_need_not(tmp_path, refused):
    refused(
        lambda: opened(tmp_path, "sky\na.png\n", columns={"ear": "noise"}),
        "no column 'noise', wanted as 'ear'",
    )
    table = opened(tmp_path, "sky\na.png\n", columns={})
    assert set(table.columns) == {"sky"}
    refused(lambda: table.samples("ear"), "nothing for 'ear'", "columns: {ear: COLUMN}")


def test_a_split_that_is_empty_lists_those_there_are(tmp_path, refused):
    table = opened(tmp_path, CSV)
    refused(lambda: table.split("val"), "'val'", "'test' (1 rows), 'train' (2 rows)")


def test_no_usable_pair_tells_how_many_rows_have_what(tmp_path, refused):
    table = opened(tmp_path, CSV)
    refused(
        lambda: table.split("test").pairs("sky", "ear"),
        "split 'test'",
        "of 1 rows, 0 have 'sky' and 1 have 'ear'",
    )


def test_files_are_checked_without_opening_them(tmp_path, refused):
    table = opened(tmp_path, "key,sky\na,a.png\nb,b.png\nc,../c.png\n", columns={})
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").touch()
    message = refused(
        table.check_files, "2 of 3 files", "b: sky: b.png: is empty", "c: sky: ../c.png: leads out"
    )
    assert "a.png" not in message
    assert table.check_files(limit=1) == 1


@pytest.mark.parametrize(
    "name", ["../a.png", "/etc/a.png", "x/../../a.png", "inside/../../a.png", "link/a.png", "link.png"]
)
def test_paths_cannot_leave_the_root(tmp_path, refused, name):
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(b"x")
    (root / "link").symlink_to(tmp_path)
    (root / "link.png").symlink_to(tmp_path / "a.png")
    table = opened(root, f"sky\n{name}\n", columns={})
    refused(lambda: table.samples("sky")[0], "leads out of")
    refused(table.check_files, "leads out of")


def test_the_recipe_can_widen_where_files_may_lie(tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    for folder in (data, other):
        folder.mkdir()
        (folder / "a.png").write_bytes(b"x")
    (data / "link.png").symlink_to(other / "a.png")
    base = tmp_path / "recipes"
    base.mkdir()
    text = f"sky\na.png\n{data}/a.png\n"
    table = opened(base, text, columns={}, root="../data")
    assert table.check_files() == 2
    assert opened(base, "sky\nlink.png\n", columns={}, root="../data", links=["../other"]).check_files() == 1
    assert opened(base, "sky\nx/../a.png\n", columns={}, root="../data").samples("sky")[0].name == "a.png"


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.sampled_from(["..", ".", "a", "b", "", "link"]), max_size=6), st.booleans())
def test_no_name_reaches_a_file_outside(tmp_path_factory, parts, absolute):
    from geobind.data.readers.files import FileResolver
    from geobind.errors import DataError

    root = tmp_path_factory.getbasetemp() / "fence" / "root"
    (root / "a" / "b").mkdir(parents=True, exist_ok=True)
    if not (root / "link").is_symlink():
        (root / "link").symlink_to("..")
    try:
        path = FileResolver(root)("/" * absolute + "/".join(parts) + "/f.png")
    except DataError:
        return
    assert Path(os.path.realpath(path)).is_relative_to(root.resolve())


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).map(lambda text: text.strip())


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.lists(st.tuples(CELLS, st.lists(CELLS.filter(bool), min_size=1, max_size=3)), min_size=1, max_size=8)
)
def test_csv_gives_back_any_text(tmp_path_factory, cells):
    import csv

    folder = tmp_path_factory.mktemp("roundtrip")
    with open(folder / "m.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "one", "many"])
        writer.writerows([f"k{i}", one, json.dumps(many)] for i, (one, many) in enumerate(cells))
    table = open_table(DataOptions(manifest="m.csv", inline=["one", "many"]), folder, ["one", "many"])
    many = list(table.samples("many"))
    assert [item if isinstance(item, list) else [item] for item in many] == [want for _, want in cells]
    if any(one for one, _ in cells):
        expected = [(json.loads(one) if one.startswith('["') else one) or None for one, _ in cells]
        assert list(table.samples("one")) == expected


def test_an_edited_manifest_is_read_anew(tmp_path):
    assert opened(tmp_path, "words\nx\n", columns={}).samples("words")[0] == "x"
    assert opened(tmp_path, "words\nlonger\n", columns={}).samples("words")[0] == "longer"


def test_limit_takes_rows_from_the_top(tmp_path):
    assert list(opened(tmp_path, CSV, limit=2).keys) == ["a", "b"]
    pq.write_table(pa.table({"sky": [f"{i}.png" for i in range(3000)]}), tmp_path / "m.parquet")
    assert len(open_table(DataOptions(manifest="m.parquet", limit=1500), tmp_path, ["sky"])) == 1500


def test_rows_of_many_chunks_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "ROWS_PER_CHUNK", 3)
    lines = [f"{i}.png,{'' if i < 7 else f'text {i}'}" for i in range(10)]
    table = opened(tmp_path, "sky,words\n" + "\n".join(lines), columns={})
    assert [path.stem for path in table.samples("sky")] == [str(i) for i in range(10)]
    assert list(table.samples("words"))[6:8] == [None, "text 7"]


def test_a_table_pickles_small(tmp_path):
    table = opened(tmp_path, "sky,words\n" + "a.png,some text that takes room\n" * 10_000, columns={})
    pairs = pickle.loads(pickle.dumps(table.pairs("sky", "words")))
    assert pairs[9_999].other == "some text that takes room"
    assert len(pickle.dumps(pairs)) < 4 * 10_000 + 2000


def test_a_real_manifest_opens_as_a_table(real_data, tmp_path):
    options = DataOptions(
        manifest=real_data / "audio" / "manifest.csv", columns={"ear": "file", "label": "cls"}, root=real_data
    )
    clips = open_table(options, tmp_path, ["ear"])
    assert len(clips) > 100
    assert clips.check_files() == len(clips)
