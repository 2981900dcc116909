import io
import json
import os
import pickle
import tarfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geobind.data.inspect import inspect_table
from geobind.data.options import DataOptions
from geobind.data.pack import pack_table
from geobind.data.readers import tar
from geobind.data.readers.audio import read_audio
from geobind.data.readers.files import FileResolver, describe
from geobind.data.readers.images import read_image
from geobind.data.readers.tar import build_index, parse_member, read_member
from geobind.data.readers.text import read_text
from geobind.data.table import open_table

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def write_tar(path, members, kind=tarfile.PAX_FORMAT, mode="w"):
    with tarfile.open(path, mode, format=kind) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png(value=7, size=8):
    target = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(target, "PNG")
    return target.getvalue()


def wav(samples):
    target = io.BytesIO()
    soundfile.write(target, samples, 8000, format="WAV")
    return target.getvalue()


@settings(deadline=None, max_examples=40)
@given(
    members=st.dictionaries(
        st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=130)
        .map(lambda text: text.strip(". ") or "x")
        .map(lambda text: f"folder/{text}"),
        st.binary(max_size=1500),
        min_size=1,
        max_size=8,
    ),
    kind=st.sampled_from(FORMATS),
)
def test_every_member_of_every_kind_of_tar_is_found(tmp_path_factory, members, kind):
    if kind == tarfile.USTAR_FORMAT:  # its names have 100 bytes
        members = {name: content for name, content in members.items() if len(name.encode()) <= 100}
    path = write_tar(tmp_path_factory.mktemp("tar") / "a.tar", members.items(), kind)
    for name, content in members.items():
        assert read_member(path, name, "label") == content
    with tarfile.open(path) as archive:  # the standard library sees the same
        there = {member.name: (member.offset_data, member.size) for member in archive}
    found = {(int(start), int(size)) for _, start, size, _ in build_index(path).T}
    assert found == set(there.values())


def test_a_cell_can_name_a_member_of_a_tar_file(tmp_path, refused):
    sound = np.sin(np.arange(8000) / 9).astype(np.float32) / 2
    (tmp_path / "shards").mkdir()
    write_tar(
        tmp_path / "shards/0.tar",
        [("./a.png", png()), ("a.wav", wav(sound)), ("deep/a.txt", b"a beach"), ("empty.png", b"")],
    )
    (tmp_path / "m.csv").write_text(
        "key,split,tile,sound,caption\n"
        "a,train,shards/0.tar::a.png,shards/0.tar::./a.wav,shards/0.tar::deep/a.txt\n"
        "b,test,shards/0.tar::gone.png,,shards/0.tar::deep/a.txt\n"
        "c,test,shards/0.tar::empty.png,,\n"
    )
    table = open_table(DataOptions(manifest="m.csv"), tmp_path, ["tile", "sound", "caption"])
    tile, told = table.pairs("tile", "caption")[0][:2]
    assert read_image(tile).float().mean() == 7
    assert np.abs(read_audio(table.samples("sound")[0], 8000).numpy() - sound).max() < 1e-4
    assert read_text(told) == "a beach"
    assert describe(tile) == describe(pickle.loads(pickle.dumps(tile))) == "shards/0.tar::a.png"

    refused(
        lambda: table.pairs("tile", "caption")[1], "b: shards/0.tar::gone.png", "no such member among its 4"
    )
    refused(table.check_files, "2 of 6 files", "empty.png: is empty (0 bytes)", "gone.png")
    report = inspect_table(table.take([0]))
    assert report["modalities"]["tile"]["kinds"] == {"image": 1}
    assert report["modalities"]["sound"]["sound_rates"] == {"8000": 1}
    assert report["broken"] == 0
    assert inspect_table(table, quick=True)["broken"] == inspect_table(table)["broken"] == 2


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_members_can_be_lists_and_can_be_packed(tmp_path, kind):
    write_tar(tmp_path / "s.tar", [("1.png", png(1)), ("2.png", png(2))])
    cells = [["s.tar::1.png", "s.tar::2.png"], ["s.tar::2.png"]]
    if kind == "jsonl":
        (tmp_path / "m.jsonl").write_text("".join(json.dumps({"tile": cell}) + "\n" for cell in cells))
    else:
        pq.write_table(pa.table({"tile": cells}), tmp_path / "m.parquet")
    table = open_table(DataOptions(manifest=f"m.{kind}"), tmp_path, ["tile"])
    assert [read_image(tile).float().mean() for tile in table.samples("tile")[0]] == [1, 2]
    pack_table(table, tmp_path / "packed")
    packed = open_table(DataOptions(manifest="packed"), tmp_path, ["tile"])
    assert packed.samples("tile")[0] == [png(1), png(2)]


@pytest.mark.parametrize("cell", ["../out.tar::a.png", "/etc/x.tar::a.png", "link.tar::a.png"])
def test_a_tar_file_cannot_lie_outside_of_the_root(tmp_path, refused, cell):
    root = tmp_path / "root"
    root.mkdir()
    write_tar(tmp_path / "out.tar", [("a.png", png())])
    (root / "link.tar").symlink_to(tmp_path / "out.tar")
    refused(lambda: FileResolver(root).raw(cell), "leads out of")


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        ("s.tar::../a.png", "names no file in the tar file"),
        ("s.tar::/a.png", "names no file in the tar file"),
        ("s.tar::", "names no file in the tar file"),
        ("s.tar.gz::a.png", "a compressed tar file can only be read from its beginning; uncompress it"),
        ("gone.tar::a.png", "gone.tar::a.png: no such tar file"),
        ("folder.tar::a.png", "folder.tar::a.png: Is a directory"),
    ],
)
def test_a_member_that_cannot_be_is_refused(tmp_path, refused, cell, word):
    (tmp_path / "folder.tar").mkdir()
    refused(lambda: FileResolver(tmp_path).raw(cell), word)
    assert word in FileResolver(tmp_path).fault(cell)


def test_other_names_with_colons_are_files():
    assert parse_member("a::b.png") is None
    assert parse_member("tiles/a.png") is None


def test_links_folders_and_repeated_members_are_not_read(tmp_path, refused):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("folder", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for content in (b"one", b"two"):
            member = tarfile.TarInfo("twice")
            member.size = 3
            archive.addfile(member, io.BytesIO(content))
    for name, word in (("link", "link"), ("hard", "link"), ("folder", "no such member"), ("twice", "twice")):
        refused(
            lambda name=name: read_member(tmp_path / "s.tar", name, f"s.tar::{name}"),
            f"s.tar::{name}: ",
            word,
        )


def test_a_member_that_is_too_large_or_cut_short_is_refused(tmp_path, refused, monkeypatch):
    path = write_tar(tmp_path / "s.tar", [("a", bytes(3000)), ("b", bytes(3000))])
    path.write_bytes(path.read_bytes()[:6000])
    assert read_member(path, "a", "a") == bytes(3000)
    refused(lambda: read_member(path, "b", "b"), "is cut short; the tar file is damaged")
    monkeypatch.setattr(tar, "MAX_MEMBER", 2_000_000)
    path = write_tar(tmp_path / "t.tar", [("a", bytes(2_000_001))])
    refused(lambda: read_member(path, "a", "a"), "has 2 MB; at most 2 are read")


def patched(content, at, field):
    """A tar with a field of its first header replaced and the checksum made right again."""
    block = bytearray(content[:512])
    block[at : at + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content[512:]


@pytest.mark.parametrize(
    ("at", "field", "words"),
    [
        (0, b"other", ()),
        (124, b"\xff" * 12, ("cut short",)),  # a negative size in the eyes of others
        (124, b"77777777777\0", ("cut short",)),
        (124, b"nonsense   \0", ("byte 0 is damaged",)),
        (156, b"S", ("sparse",)),
        (156, b"L", ("no such member",)),
        (156, b"x", ("damaged",)),
    ],
)
def test_a_hostile_header_is_refused_at_once(tmp_path, refused, at, field, words):
    path = write_tar(tmp_path / "s.tar", [("a", b"9" * 600), ("b", bytes(600))], tarfile.USTAR_FORMAT)
    path.write_bytes(patched(path.read_bytes(), at, field))
    name = "other" if field == b"other" else "a"
    begun = time.monotonic()
    if words:
        refused(lambda: read_member(path, name, name), *words)
    else:
        assert len(read_member(path, name, name)) == 600
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("record", [b"99 path=a\n", b"x", b"7 path=", b"16 size=-1000000\n", b"0 a=b\n"])
def test_a_damaged_pax_header_is_refused(tmp_path, refused, record):
    path = write_tar(
        tmp_path / "s.tar", [("h", record.ljust(512, b"\0")), ("a", b"abc")], tarfile.USTAR_FORMAT
    )
    path.write_bytes(patched(path.read_bytes(), 156, b"x"))
    refused(lambda: read_member(path, "a", "a"), "byte 0 is damaged")


@pytest.mark.parametrize("content", [b"\x1f\x8b" + bytes(600), b"x" * 600, b"short"])
def test_what_is_no_tar_is_refused(tmp_path, refused, content):
    (tmp_path / "s.tar").write_bytes(content)
    refused(lambda: read_member(tmp_path / "s.tar", "a", "a"), f"{tmp_path}/s.tar: not a")


def test_an_index_is_made_once_and_again_when_the_tar_changes(tmp_path, monkeypatch):
    made = []
    make = tar.build_index
    monkeypatch.setattr(tar, "build_index", lambda path: made.append(path) or make(path))
    path = write_tar(tmp_path / "s.tar", [("a", b"one")])
    tar._open_index.cache_clear()
    assert read_member(path, "a", "a") == read_member(path, "a", "a") == b"one"
    tar._open_index.cache_clear()  # as in another process
    assert read_member(path, "a", "a") == b"one"
    assert len(made) == 1
    write_tar(path, [("0", b"zero"), ("a", b"another")])
    assert read_member(path, "a", "a") == b"another"
    assert len(made) == 2


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("known", ["by this process", "by another"])
def test_a_tar_file_replaced_under_the_same_stamp_is_noticed(tmp_path, monkeypatch, in_place, known):
    """Of equal size, times and inode, so that nothing but the headers tells of it."""
    monkeypatch.setattr(tar, "file_stamp", lambda state: (state.st_size, 0, 0, 0))
    tar._open_index.cache_clear()
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"AAAA"), ("b.txt", b"BBBB")], tarfile.USTAR_FORMAT)
    assert read_member(path, "a.txt", "a") == b"AAAA"
    write_tar(
        path if in_place else tmp_path / "new.tar",
        [("b.txt", b"BBBB"), ("a.txt", b"AAAA")],
        tarfile.USTAR_FORMAT,
    )
    if not in_place:
        (tmp_path / "new.tar").replace(path)
    if known == "by another":
        tar._open_index.cache_clear()
    assert read_member(path, "a.txt", "a") == b"AAAA"
    assert read_member(path, "b.txt", "b") == b"BBBB"
    write_tar(path, [("c.txt", b"CCCC"), ("d.txt", b"DDDD")], tarfile.USTAR_FORMAT)
    assert read_member(path, "d.txt", "d") == b"DDDD"  # a name that the index does not have


def test_a_tar_file_replaced_under_its_old_mtime_is_indexed_again(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"AAAA"), ("b.txt", b"BBBB")])
    os.utime(path, ns=(0, 0))
    assert read_member(path, "a.txt", "a") == b"AAAA"
    write_tar(tmp_path / "new.tar", [("b.txt", b"BBBB"), ("a.txt", b"AAAA")])
    os.utime(tmp_path / "new.tar", ns=(0, 0))
    (tmp_path / "new.tar").replace(path)
    assert read_member(path, "a.txt", "a") == b"AAAA"


@pytest.mark.parametrize(
    ("there", "name"), [("t/a.PNG", "t/a.png"), ("t/a.png", "t\\a.png"), ("A.png", "a.png")]
)
def test_a_member_as_another_system_spells_it_is_shown(tmp_path, refused, there, name):
    path = write_tar(tmp_path / "s.tar", [(there, b"x")])
    refused(lambda: read_member(path, name, name), "no such member among its 1", f"there is '{there}'")
