"""Files of tables: dialects of CSV, JSON arrays, folders of shards, hidden files, and what they may cost."""

import csv
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data import delimited, parquet
from geobind.data.delimited import DelimitedFile, read_records
from geobind.data.manifest import hash_manifest, list_manifest_files
from geobind.data.options import DataOptions
from geobind.data.split import SplitOptions, split_manifest
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind.importers.reading import read_csv, walk_files
from geobind.utils.files import is_hidden


def opened(folder, name, columns=("text",), **options):
    return open_table(DataOptions(manifest=name, **options), folder, columns)


DIALECTS = {
    "semicolons": ("text;lat;lon\na b;48,1;2,5\n", ("m.csv:1", "semicolons", "commas as separators")),
    "bars": ("text|label\na b|c\n", ("m.csv:1", "bars")),
    "tabs": ("text\tlat\tlon\na\t1\t2\n", ("m.csv:1", "tabs", ".tsv")),
    "sep": ("sep=;\ntext;label\n", ("m.csv:1", "'sep=;' is no header", "remove the line")),
    "comment": ("# my places\ntext,lat,lon\n", ("m.csv:1", "is a comment, not a header")),
    "comment with commas": ("# text, lat, lon\na,1,2\n", ("m.csv:1", "is a comment, not a header")),
    "comment below": ("text,label\na,b\n# a comment\n", ("m.csv:3", "is it a comment")),
    "CR": ("text,label\ra,b\rc,d\r", ("m.csv: ", "CR alone")),
    "CR below": ("text,label\na,b\rc,d\n", ("CR alone",)),
    "pandas' index": (",text\n0,a b\n", ("m.csv:1", "index=False")),
    "R's row names": ('"text","label"\n"1","a","b"\n', ("m.csv:2", "row.names=FALSE")),
    "a comma at each end": ("text,label,\na,b,\n", ("column 3", "does every line end in one of the commas")),
    "UTF-16": ("text\na\n".encode("utf-16"), ("is UTF-16", "save the file with UTF-8")),
    "UTF-16 BE": ("text\na\n".encode("utf-16-be"), ("is UTF-16", "save the file with UTF-8")),
    "UTF-32": ("text\na\n".encode("utf-32"), ("is UTF-32", "save the file with UTF-8")),
    "Latin-1": ("text\ncafé\n".encode("latin-1"), ("m.csv:2: byte 4 is not UTF-8",)),
    "Excel": (b"PK\x03\x04rest", ("Excel workbook",)),
    "gzip": (b"\x1f\x8b\x08", ("gzip; decompress it",)),
    "Parquet": (b"PAR1\x15", ("is a Parquet file", ".parquet")),
    "a quote left open": ('text\n"a\nb\n', ("not closed before the end of the file",)),
    "a quote inside": ('text\n"a "b" c"\n', ('double it ("")',)),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_of_csv_that_is_not_read_is_named_with_the_fix(tmp_path, refused, name):
    content, words = DIALECTS[name]
    (tmp_path / "m.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(lambda: opened(tmp_path, "m.csv"), *words)
    assert "universal-newline" not in message and "newline=" not in message


def test_a_tsv_with_commas_is_named(tmp_path, refused):
    (tmp_path / "m.tsv").write_text("text,label\na,b\n")
    refused(lambda: opened(tmp_path, "m.tsv"), "m.tsv:1", "commas", "tabs as separators")


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=6)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    ends=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
    tabs=st.booleans(),
    last=st.booleans(),
)
def test_every_way_of_quoting_and_ending_lines_gives_the_same_cells(
    tmp_path_factory, rows, quoting, ends, mark, tabs, last
):
    path = tmp_path_factory.mktemp("dialects") / ("m.tsv" if tabs else "m.csv")
    with open(path, "w", newline="", encoding="utf-8-sig" if mark else "utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if tabs else ",", quoting=quoting, lineterminator=ends)
        writer.writerows([("one", "two"), *rows])
    if not last:
        path.write_bytes(path.read_bytes().removesuffix(ends.encode()))
    found = [
        row for _, columns in DelimitedFile(path) for row in zip(columns["one"], columns["two"], strict=True)
    ]
    assert found == rows


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.binary(max_size=60) | st.text('ab,;\t"\r\n#[]{}', max_size=30).map(str.encode))
def test_any_bytes_are_rows_or_a_data_error(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("m.csv", "m.tsv", "m.jsonl", "m.json"):
        (folder / name).write_bytes(content)
        try:
            for lines, columns in DelimitedFile(folder / name):
                assert all(len(cells) == len(lines) for cells in columns.values())
        except DataError as error:
            assert name in str(error)


@pytest.mark.parametrize("limit", [10, 131_072, 10**9])
def test_a_long_cell_is_read_whatever_limit_csv_has_in_the_process(tmp_path, limit):
    text = "word " * 60_000
    (tmp_path / "m.csv").write_text(f'text,label\n"{text}",a\n')
    before = csv.field_size_limit(limit)
    try:
        assert opened(tmp_path, "m.csv").samples("text")[0] == text.strip()
        assert next(read_csv(tmp_path / "m.csv", ("text",)))["text"] == text
        assert csv.field_size_limit() == limit
    finally:
        csv.field_size_limit(before)


def test_a_cell_beyond_the_limit_is_named_and_the_process_keeps_its_limit(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(delimited, "MAX_LINE", 1_000_000)
    before = csv.field_size_limit()
    (tmp_path / "m.csv").write_text('text\n"' + "line\n" * 250_000 + '"\n')
    refused(lambda: opened(tmp_path, "m.csv"), "a cell of over 1 million letters", "is a quote not closed")
    assert csv.field_size_limit() == before
    (tmp_path / "m.csv").write_text("text\n" + "x" * 1_000_001 + "\n")
    refused(lambda: opened(tmp_path, "m.csv"), "m.csv:2: line of over 1 MB")


def test_long_rows_are_read_in_chunks_of_so_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "CHUNK_BYTES", 1_000_000)
    cell = "x" * 50_000
    (tmp_path / "m.csv").write_text("text\n" + f"{cell}\n" * 500)
    (tmp_path / "m.jsonl").write_text(f"{json.dumps({'text': cell})}\n" * 500)
    for name in ("m.csv", "m.jsonl"):
        tracemalloc.start()
        assert sum(len(lines) for lines, _ in DelimitedFile(tmp_path / name)) == 500
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6_000_000, name  # of 25 MB


def test_a_header_of_very_many_columns_is_refused(tmp_path, refused):
    (tmp_path / "m.csv").write_text(",".join(f"c{n}" for n in range(10_001)) + "\n")
    refused(lambda: opened(tmp_path, "m.csv"), "m.csv:1: 10001 columns; is this a manifest?")
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({f"c{n}": 1}) + "\n" for n in range(10_001)))
    refused(lambda: opened(tmp_path, "m.jsonl"), "over 10000 columns")


def test_a_json_array_or_lines_in_a_json_file_are_a_table(tmp_path, refused, monkeypatch):
    rows = [{"text": "a place", "lat": 1, "lon": 2}, {"text": ["b", "c"]}, {"key": "k", "text": None}]
    (tmp_path / "m.json").write_text("\ufeff \n" + json.dumps(rows, indent=1), encoding="utf-8")
    table = opened(tmp_path, "m.json")
    assert [table.columns["text"][row] for row in range(3)] == ["a place", ["b", "c"], None]
    assert list(table.keys) == ["m.json:1", "m.json:2", "k"]
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(opened(tmp_path, "lines.json").keys) == ["lines.json:1", "lines.json:2", "k"]
    split = SplitOptions(by="random", shares=(0.5, 0.5))
    assert sum(split_manifest(tmp_path / "m.json", tmp_path / "n.json", split).values()) == 3
    assert {row["split"] for row in json.loads((tmp_path / "n.json").read_text())} == {"train", "test"}
    for content, word in (
        ('{"text": {"0": "a"}, "label": {"0": "b"}}', "orient='records'"),
        ('{"columns": ["text"], "index": [0], "data": [["a"]]}', "orient='records'"),
        ('{"type": "FeatureCollection", "features": []}', "is GeoJSON"),
        ('{\n "text": "a"\n}', "an object has a line of its own"),
        ('[{"text": "a"}, 3]', "m.json:2: each line must be an object"),
        ('[{"text": "a"}', "not JSON"),
        ("[" * 100_000, "not JSON"),
    ):
        (tmp_path / "m.json").write_text(content)
        refused(lambda: opened(tmp_path, "m.json"), word)
    monkeypatch.setattr(delimited, "MAX_JSON", 1000)
    (tmp_path / "m.json").write_text(json.dumps([{"text": "a" * 1000}]))
    refused(lambda: opened(tmp_path, "m.json"), "a JSON array of over", "as .jsonl")


def shards(folder, *names, **columns):
    folder.mkdir(exist_ok=True)
    for name in names:
        table = pa.table({"text": [f"from {name}", f"of {name}"], **columns})
        pq.write_table(table, folder / name)
    return folder


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["test-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"], {"test": 2, "train": 4}),
        (["test", "train"], {"test": 2, "train": 2}),
        (["train", "validation"], {"train": 2, "val": 2}),
        (["Train_0", "Train_1", "valid_0"], {"train": 4, "val": 2}),
        (["cars-test-00000-of-00001", "cars-train-00000-of-00001"], {"test": 2, "train": 2}),
        (["dev", "test", "training"], {"val": 2, "test": 2, "train": 2}),
        (["test"], {"test": 2}),
        (["a", "b"], {"train": 4}),
        (["0000", "0001"], {"train": 4}),
        (["test_sites", "train_stations"], {"train": 4}),
        (["a-00000-of-00001", "b-00000-of-00002", "b-00001-of-00002"], {"train": 6}),
    ],
)
def test_the_names_of_a_folders_files_state_their_splits(tmp_path, names, splits):
    shards(tmp_path / "d", *(f"{name}.parquet" for name in names))
    table = opened(tmp_path, "d")
    assert table.splits == splits
    assert len(set(table.keys)) == 2 * len(names)
    for split in splits if len(splits) > 1 else ():
        texts = list(table.split(split).samples("text"))
        assert all((split[:3] in text.lower()) or (split == "val" and "dev" in text) for text in texts)


def test_a_column_of_splits_counts_more_than_names(tmp_path):
    shards(tmp_path / "d", "train.parquet", "test.parquet", split=["a", "b"])
    assert opened(tmp_path, "d").splits == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a-00000-of-00002", "b-00000-of-00002"], ("has 1 of 2 shards of 'a'",)),
        (["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00003"], ("1 of 3",)),
        (["00000-of-00002"], ("has 1 of 2 shards;",)),
        (["train", "extra"], ("train.parquet is split 'train'", "extra.parquet is none", "name one file")),
    ],
)  # fmt: skip
def test_shards_that_are_missing_or_of_no_split_are_named(tmp_path, refused, names, words):
    shards(tmp_path / "d", *(f"{name}.parquet" for name in names))
    refused(lambda: opened(tmp_path, "d"), *words)


def test_a_name_that_states_another_split_is_another_manifest(tmp_path):
    folder = shards(tmp_path / "d", "train.parquet", "test.parquet")
    assert opened(tmp_path, "d").splits == {"test": 2, "train": 2}
    before = hash_manifest(folder)
    (folder / "test.parquet").rename(folder / "val.parquet")
    assert opened(tmp_path, "d").splits == {"train": 2, "val": 2}
    assert hash_manifest(folder) != before


def test_hidden_files_are_none_of_a_tables(tmp_path):
    folder = shards(tmp_path / "d", "a.parquet")
    (folder / "._a.parquet").write_bytes(b"\0\5\x16\7Mac OS X")
    (folder / ".b.parquet.4711").write_bytes(b"half")
    (folder / "__MACOSX").mkdir()
    (folder / "c.parquet").mkdir()
    assert [file.name for file in list_manifest_files(folder)] == ["a.parquet"]
    assert len(opened(tmp_path, "d")) == 2


def test_a_folder_without_shards_names_the_table_or_the_folder_meant(tmp_path, refused):
    (tmp_path / "d").mkdir()
    refused(lambda: opened(tmp_path, "d"), "is a folder without Parquet files")
    shards(tmp_path / "d" / "data", "train-00000-of-00001.parquet")
    refused(lambda: opened(tmp_path, "d"), "its folder data has some: name it")
    (tmp_path / "d" / "places.csv").write_text("text\na\n")
    refused(lambda: opened(tmp_path, "d"), "name the table itself, such as places.csv")


@pytest.mark.parametrize(
    "name",
    [".git", ".ipynb_checkpoints", "._a.png", ".DS_Store", "__MACOSX", "@eaDir", "Thumbs.db", "$RECYCLE.BIN"],
)
def test_what_systems_leave_beside_data_is_hidden(tmp_path, name):
    (tmp_path / "forest" / name).mkdir(parents=True)
    (tmp_path / name).mkdir()
    for folder in (tmp_path / name, tmp_path / "forest" / name, tmp_path / "forest"):
        (folder / "a.png").write_bytes(b"x")
    assert is_hidden(name)
    assert [file.relative_to(tmp_path).as_posix() for file in walk_files(tmp_path)] == ["forest/a.png"]


def test_records_of_a_csv_file_are_read_by_importers_as_by_manifests(tmp_path, refused):
    (tmp_path / "m.csv").write_bytes("key,text\n1,a\r\n".encode("utf-16"))
    refused(lambda: list(read_csv(tmp_path / "m.csv", ("key",))), "is UTF-16")
    (tmp_path / "m.csv").write_bytes(b"key,text\r1,a\r")
    refused(lambda: list(read_csv(tmp_path / "m.csv", ("key",))), "CR alone")
    (tmp_path / "m.csv").write_bytes(b"key,key\n1,a\n")
    refused(lambda: list(read_csv(tmp_path / "m.csv", ("key",))), "column 'key' is there twice")
    (tmp_path / "m.csv").write_bytes(b'key,text\n1,"a" b\n')
    assert list(read_csv(tmp_path / "m.csv", ("key",))) == [{"key": "1", "text": "a b"}]
    assert [rows for _, rows in read_records(tmp_path / "m.csv", ",", strict=False)] == [
        [["key", "text"], ["1", "a b"]]
    ]


LARGE = "word " * 20_000  # 100 kB
REPEATED = {
    "strings": lambda count: pa.array([LARGE] * count),
    "bytes": lambda count: pa.array([LARGE.encode()] * count),
    "lists": lambda count: pa.array([[LARGE, "b"]] * count),
    "images": lambda count: pa.array(
        [{"bytes": LARGE.encode(), "path": "a"}] * count,
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    ),
    "lists of images": lambda count: pa.array(
        [[{"bytes": LARGE.encode()}]] * count, pa.list_(pa.struct([("bytes", pa.binary())]))
    ),
    "vectors": lambda count: pa.array([[0.0] * 12_500] * count, pa.list_(pa.float64())),
}


@pytest.mark.parametrize("name", REPEATED)
@pytest.mark.parametrize("role", ["text", "label"])
def test_a_small_file_cannot_fill_memory_or_disk(tmp_path, monkeypatch, refused, name, role):
    """30 MB of one value in a file of a few kB: what is refused has cost a fraction of it."""
    monkeypatch.setattr(parquet, "SPACE", 4_000_000)
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    table = pa.table({"text": ["a"] * 300} | {role: REPEATED[name](300)})
    pq.write_table(table, tmp_path / "m.parquet", compression="zstd", row_group_size=100)
    del table
    assert (tmp_path / "m.parquet").stat().st_size < 40_000
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        refused(lambda: opened(tmp_path, "m.parquet"), "its rows would take over", "repeat large values")
        if role == "text":
            split = SplitOptions(by="random", shares=(0.5, 0.5))
            refused(
                lambda: split_manifest(tmp_path / "m.parquet", tmp_path / "n.parquet", split), "would take"
            )
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 12_000_000
    kept = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert kept == 0


@pytest.mark.parametrize("name", REPEATED)
def test_values_that_repeat_within_the_limit_are_read(tmp_path, monkeypatch, name):
    table = pa.table({"text": REPEATED[name](7)})
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=3)
    usual = opened(tmp_path, "m.parquet")
    monkeypatch.setattr(parquet, "SPACE", 4_000_000)
    monkeypatch.setattr(parquet, "_BLOCK_BYTES", 250_000)
    monkeypatch.setattr(parquet._Space, "repeats", lambda *_: True)
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "other"))
    bounded = opened(tmp_path, "m.parquet")
    assert len(bounded) == 7
    for row in range(7):
        assert str(bounded.columns["text"][row]) == str(usual.columns["text"][row])


def test_a_parquet_file_whose_footer_contradicts_itself_is_damaged_and_does_not_end_the_process(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"caption": ["sea", None, "wood"]}), path)
    content = path.read_bytes()
    optional, required = b"%\x02\x18\x07caption", b"%\x00\x18\x07caption"
    assert content.count(optional) == 1
    path.write_bytes(content.replace(optional, required))  # but the counts of its levels stay those of nulls
    with pytest.raises(DataError, match=r"a\.parquet: damaged after row 0: Definition level histogram"):
        open_table(DataOptions(manifest=path.name), tmp_path, ("caption",))
