"""Lists of datasets are read with their mistakes named, and gigabytes of JSON one object at a time."""

import io
import json
import tarfile
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.errors import DataError
from geobind.importers import reading
from geobind.importers.reading import (
    find_shards,
    parse_time,
    read_csv,
    read_json,
    read_shard,
    resolve_inside,
    stream_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=5)


def test_a_table_is_read_by_column_and_pandas_index_left_out(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes('\ufeff,key,text\n0,a,"one, two"\n1,b,"line\nbreak"\n'.encode())
    assert list(read_csv(path, ("key",))) == [
        {"key": "a", "text": "one, two"},
        {"key": "b", "text": "line\nbreak"},
    ]


TABLES = {
    b"key,text\na\n": ":2: has not as many cells as the header",
    b"key,text\na,b,c\n": ":2: has not as many cells as the header",
    b"name,text\na,b\n": ": has no column 'key'; its columns: name, text",
    b"": ": has no column 'key'; its columns: none",
    b"key\n\xff\n": ":2: byte 1 is not UTF-8; save the file with UTF-8 encoding",
}


@pytest.mark.parametrize("content", TABLES)
def test_a_faulty_table_is_named(content, tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as failure:
        list(read_csv(path, ("key",)))
    assert str(failure.value) == f"{path}{TABLES[content]}"


@settings(deadline=None, max_examples=60)
@given(OBJECTS, st.dictionaries(st.text(), JSON, max_size=3), st.integers(1, 40))
def test_streamed_json_is_what_json_reads(tmp_path_factory, objects, others, block):
    path = tmp_path_factory.mktemp("json") / "all.json"
    members = {"first": [1, {"a": []}], **others, "images": objects, "last": {"images": [3]}}
    path.write_text(json.dumps(members, indent=block % 3 or None), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_BLOCK", block)
        assert list(stream_json(path, "images")) == json.loads(path.read_text(encoding="utf-8"))["images"]


BROKEN = {
    '{"images": [{"a": 1}, {"b"': "not JSON",
    '{"images": [{"a": 1}': "not JSON: 'its end' where ']' belongs",
    "[1, 2]": "not JSON: '[' where '{' belongs",
    '{"annotations": []}': "has no list 'images'",
    '{"images": {"a": 1}}': "has no list 'images'",
    "": "not JSON: 'its end' where '{' belongs",
    '{"images" [1]}': "not JSON: '[' where ':' belongs",
    '{"images": ' + "[" * 100_000: "not JSON",
}


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_broken_json_is_named_however_it_is_read(text, tmp_path):
    path = tmp_path / "all.json"
    path.write_text(text)
    with pytest.raises(DataError) as failure:
        list(stream_json(path, "images"))
    assert str(failure.value).startswith(f"{path}: {BROKEN[text]}")
    if BROKEN[text].startswith("not JSON"):
        with pytest.raises(DataError, match=r"not JSON|must be a JSON object"):
            read_json(path)


def test_a_value_without_end_is_not_read_whole(tmp_path, monkeypatch):
    path = tmp_path / "all.json"
    path.write_text('{"images": ["' + "x" * 10_000)
    monkeypatch.setattr(reading, "_MAX_VALUE", 1000)
    monkeypatch.setattr(reading, "_BLOCK", 100)
    with pytest.raises(DataError, match="a value of over 0 MB"):
        list(stream_json(path, "images"))


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "a/../../b", "", " ", "..\\a.jpg", "a\0.jpg"])
def test_a_name_that_leads_out_is_refused(name, tmp_path):
    with pytest.raises(DataError, match="is no file name inside"):
        resolve_inside(tmp_path, name, "list.csv:2")


def test_a_name_inside_is_a_path(tmp_path):
    assert resolve_inside(tmp_path, " a\\b.jpg ", "") == tmp_path / "a" / "b.jpg"


def test_times_of_datasets_are_read_or_not_known():
    assert parse_time("2024-06-01T14:30:00Z") == datetime(2024, 6, 1, 14, 30, tzinfo=UTC)
    assert parse_time(" 1/29/09 10:28 ", "%m/%d/%y %H:%M") == datetime(2009, 1, 29, 10, 28)
    assert parse_time("29.01.2009", "%m/%d/%y %H:%M") is None
    assert parse_time("") is None


def shard(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(("name", "mode"), [("0.tar", "w"), ("0.tar.gz", "w:gz"), ("0.tgz", "w:gz")])
def test_members_of_a_shard_belong_together_by_name(name, mode, tmp_path):
    members = [("d/1.a.jpg", b"1"), ("d/1.TXT", b"one"), ("2.txt", b"two")]
    path = shard(tmp_path / name, members, mode)
    assert find_shards((tmp_path,)) == [path]
    assert list(read_shard(path, frozenset({"txt"}))) == [
        ("d/1", {"a.jpg": b"", "txt": b"one"}),
        ("2", {"txt": b"two"}),
    ]


SHARDS = {
    "twice": ([("1.txt", b"a"), ("1.txt", b"b")], "'1' has 'txt' twice"),
    "out": ([("../1.txt", b"a")], r"\.\./1\.txt: leads out of the archive"),
    "large": ([("1.txt", b"a" * 11)], r"1\.txt: 11 bytes, more than the 10 allowed"),
}


@pytest.mark.parametrize("fault", SHARDS)
def test_a_faulty_shard_is_refused(fault, tmp_path):
    members, message = SHARDS[fault]
    with pytest.raises(DataError, match=message):
        list(read_shard(shard(tmp_path / "0.tar", members), frozenset({"txt"}), max_member=10))


def test_a_link_in_a_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        link = tarfile.TarInfo("1.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="is a link or a device"):
        list(read_shard(tmp_path / "0.tar", frozenset({"txt"})))


def test_a_shard_that_is_cut_short_is_refused(tmp_path):
    path = shard(tmp_path / "0.tar", [("1.txt", b"a" * 5000), ("2.txt", b"b" * 5000)])
    path.write_bytes(path.read_bytes()[:7000])
    with pytest.raises(DataError, match=r"2\.txt: is cut short"):
        list(read_shard(path, frozenset({"txt"})))
