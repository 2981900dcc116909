"""WebDataset shards: a manifest that names members of tar files, or holds copies of them."""

import gzip
import io
import json
import tarfile

import pytest
from PIL import Image

from geobind.data.options import DataOptions
from geobind.data.readers.images import read_image
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind.importers import LeftOut, reading, write_manifest
from geobind.importers.reading import read_shard
from geobind.importers.registry import build_importer
from geobind_datasets.webdataset import WebDataset

MEMBERS = {"satellite": "overhead.jpg|overhead.png", "text": "txt"}


def picture(shade=0, kind="JPEG"):
    target = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 90, 30)).save(target, kind)
    return target.getvalue()


def shard(path, samples):
    """Write a tar file of samples: dicts of content by the end of the member's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for key, members in samples.items():
            for end, data in members.items():
                info = tarfile.TarInfo(f"{key}.{end}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    path.write_bytes(gzip.compress(content.getvalue()) if path.suffix == ".gz" else content.getvalue())
    return path


def sample(shade=0, **told):
    members = {"overhead.jpg": picture(shade), "txt": b"  a wood\n"}
    return members | ({"json": json.dumps(told).encode()} if told else {})


@pytest.fixture
def shards(tmp_path):
    told = {
        "lat": 48.5,
        "lon": 9,
        "time": "2024-06-01T12:00:00Z",
        "label": "wood",
        "caption": "firs",
        "at": {"x": 1},
    }
    shard(tmp_path / "set/train-0000.tar", {"a/000": sample(1, **told), "a/001": sample(2)})
    shard(tmp_path / "set/test-0000.tar", {"a/000": sample(3) | {"cls": b"3"}})
    return tmp_path / "set"


def test_members_of_shards_are_named_and_read_from_them(shards, tmp_path):
    out = tmp_path / "shards.parquet"
    summary = write_manifest(WebDataset(sources=(shards,), members=MEMBERS), out)
    assert (summary.splits, summary.missing, summary.files) == ({"test": 1, "train": 2}, {}, ())
    table = open_table(DataOptions(manifest=out.name), tmp_path, ["satellite", "text"])
    pair = table.split("train").pairs("satellite", "text")[0]
    assert read_image(pair.anchor).shape == (3, 8, 8)
    assert pair.other == "a wood"
    assert (pair.key, pair.label, pair.place.lat, pair.place.lon) == ("train-0000/a/000", "wood", 48.5, 9)
    assert pair.place.time.year == 2024
    assert table.check_files() == 3
    assert table.split("test").labels == ["3"]


def test_copies_of_members_make_the_shards_superfluous(shards, tmp_path):
    out = tmp_path / "shards.parquet"
    write_manifest(WebDataset(sources=(shards,), members=MEMBERS, cells="bytes"), out)
    for path in shards.iterdir():
        path.unlink()
    table = open_table(DataOptions(manifest=out.name), tmp_path, ["satellite", "text"])
    assert table.samples("satellite")[1] == picture(1)


def test_compressed_shards_can_only_be_copied(tmp_path):
    packed = shard(tmp_path / "train.tar.gz", {"0": sample(7)})
    with pytest.raises(DataError, match="uncompress it"):
        list(WebDataset(sources=(packed,), members=MEMBERS).rows())
    (row,) = WebDataset(sources=(packed,), members=MEMBERS, cells="bytes").rows()
    assert (row["satellite"], row["key"]) == (picture(7), "train/0")


def test_the_first_of_several_ends_that_is_there_is_taken(tmp_path):
    samples = {"0": {"overhead.png": picture(1, "PNG")}, "1": sample(2)}
    rows = list(WebDataset(sources=(shard(tmp_path / "x.tar", samples),), members=MEMBERS).rows())
    assert [row["satellite"].name for row in rows] == ["x.tar::0.overhead.png", "x.tar::1.overhead.jpg"]
    assert [row["text"] for row in rows] == [None, "a wood"]


def test_fields_of_json_fill_columns_of_text_and_the_place(shards):
    fields = {"text": "caption", "label": "at.x", "lat": "at.missing"}
    importer = WebDataset(sources=(shards,), members={"satellite": "overhead.jpg"}, fields=fields)
    assert importer.contents()["text"].kind == "string"
    row = next(row for row in importer.rows() if row["key"] == "train-0000/a/000")
    assert (row["text"], row["label"], row["lat"]) == (["firs"], 1, None)


def test_an_option_on_the_command_line_is_json(shards):
    importer = build_importer(WebDataset, [shards], {"members": json.dumps(MEMBERS), "split": "val"})
    assert {row["split"] for row in importer.rows()} == {"val"}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("cc-validation-03.tar", "val"),
        ("test/000.tar", "test"),
        ("training_7.tar", "train"),
        ("latest-00.tar", "train"),
        ("00000.tar", "train"),
        ("dev.tar", "val"),
    ],
)
def test_the_split_is_what_a_shard_or_its_folder_is_called(tmp_path, name, split):
    path = shard(tmp_path / "data" / name, {"0": sample()})
    (row,) = WebDataset(sources=(path,), members=MEMBERS).rows()
    assert row["split"] == split


def test_samples_without_members_or_with_broken_json_are_left_out(tmp_path):
    samples = {
        "0": {"mp3": b"x"},
        "1": sample() | {"json": b"{"},
        "2": sample() | {"json": b"[1]"},
        "3": sample(),
    }
    rows = list(WebDataset(sources=(shard(tmp_path / "a.tar", samples),), members=MEMBERS).rows())
    assert rows[0] == LeftOut("has no member .overhead.jpg|overhead.png, .txt")
    assert rows[1] == rows[2] == LeftOut("its .json is no JSON object")
    assert rows[3]["key"] == "a/3"


def test_without_members_the_message_lists_those_there_are(shards):
    with pytest.raises(DataError, match=r"the first sample has members \.cls, \.overhead\.jpg, \.txt"):
        WebDataset(sources=(shards,)).contents()


def test_a_column_cannot_be_of_members_and_of_fields(shards):
    with pytest.raises(DataError, match="'text' is both in members and in fields"):
        WebDataset(sources=(shards,), members=MEMBERS, fields={"text": "caption"}).contents()


def test_names_in_upper_case_are_refused_before_anything_is_written(tmp_path):
    path = shard(tmp_path / "a.tar", {"0": {"JPG": picture()}})
    with pytest.raises(DataError, match="names end in upper case cannot be named"):
        write_manifest(WebDataset(sources=(path,), members={"satellite": "jpg"}), tmp_path / "out.parquet")
    (row,) = WebDataset(sources=(path,), members={"satellite": "jpg"}, cells="bytes").rows()
    assert row["satellite"] == picture()


@pytest.mark.parametrize("name", ["../0.overhead.jpg", "/etc/0.overhead.jpg"])
def test_members_that_lead_out_of_a_shard_are_refused(tmp_path, name):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo(name)
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(DataError, match="leads out of the archive"):
        list(WebDataset(sources=(tmp_path / "a.tar",), members=MEMBERS).rows())


def test_what_is_no_shard_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("no shards")
    with pytest.raises(DataError, match="webdataset as distributed: there are no tar files"):
        list(WebDataset(sources=(tmp_path,), members=MEMBERS).rows())
    with pytest.raises(DataError, match=r"notes\.txt is no tar file"):
        list(WebDataset(sources=(tmp_path / "notes.txt",), members=MEMBERS).rows())
    (tmp_path / "cut.tar").write_bytes((shard(tmp_path / "a.tar", {"0": sample()})).read_bytes()[:700])
    with pytest.raises(DataError, match=r"cut\.tar: "):
        list(WebDataset(sources=(tmp_path / "cut.tar",), members=MEMBERS).rows())


def tar_of(names, kind=tarfile.PAX_FORMAT):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=kind) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"some"))
    return content.getvalue()


def claiming(content, size, at=0):
    """A tar whose header at that byte claims another size, its checksum made right again."""
    block = bytearray(content[at : at + 512])
    block[124:136] = (1 << 95 | size).to_bytes(12, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return content[:at] + bytes(block) + content[at + 512 :]


def read(path, wanted=("txt",)):
    return list(read_shard(path, frozenset(wanted)))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
@pytest.mark.parametrize("size", [2**62, 2**40, 2**63 - 1, 5000])
@pytest.mark.parametrize("name", ["0.txt", "0.bin", "._0.txt", "folder/0.bin"])
def test_a_member_that_claims_more_than_there_is_is_refused(tmp_path, suffix, size, name):
    content = claiming(tar_of([name]), size)[:2560]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content if suffix == ".tar" else gzip.compress(content))
    with pytest.raises(DataError, match=r"cut short|unpacks to over|more than the .* allowed"):
        read(path)


def test_a_shard_that_unpacks_to_far_too_much_is_refused_before_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_MAX_UNPACKED", 2**20)
    content = bytearray()
    for number in range(8):
        block = claiming(tar_of([f"{number}.bin"]), 2**19)[:512]
        content += block + bytes(2**19)
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(bytes(content)))
    assert path.stat().st_size * 100 < len(content)
    unpacked = []
    real = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda self, size=-1: unpacked.append(self.tell()) or real(self, size)
    )
    with pytest.raises(DataError, match="unpacks to over 1048576 bytes"):
        read(path)
    assert max(unpacked) <= 2**20


@pytest.mark.parametrize("cut", [1, 100, 511, 513, 800])
@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_a_shard_that_is_cut_is_refused(tmp_path, cut, suffix):
    content = tar_of(["0.txt", "1.txt", "2.txt"], tarfile.USTAR_FORMAT)[: 3 * 1024 - 1024 + cut]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content if suffix == ".tar" else gzip.compress(content))
    if cut >= 516 and suffix == ".tar":  # the four bytes of the last member are there
        assert len(read(path)) == 3
        return
    with pytest.raises(DataError, match="cut short"):
        read(path)


@pytest.mark.parametrize(
    "names",
    [
        ["0.png", "1.png", "0.txt", "1.txt"],
        ["0.png", "0.txt", "1.png", "0.json"],
        ["a/0.png", "b/0.png", "a/0.txt"],
        ["b.png", "a.png", "a.txt", "b.txt"],
    ],
)
@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_a_shard_whose_samples_are_torn_apart_is_refused(tmp_path, names, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(tar_of(names) if suffix == ".tar" else gzip.compress(tar_of(names)))
    with pytest.raises(DataError, match=r"do not follow one another.*--sort=name"):
        read(path)


def test_hidden_members_are_no_samples(tmp_path):
    names = ["./._0.png", "./0.png", "./._0.txt", "./0.txt", ".DS_Store"]
    (tmp_path / "a.tar").write_bytes(tar_of(names))
    (sample,) = read(tmp_path / "a.tar")
    assert (sample.key, sorted(sample.members)) == ("0", ["png", "txt"])


def test_names_with_dots_are_told(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(["img_45.1_3.2.png", "img_45.1_3.2.txt"]))
    (left,) = WebDataset(sources=(tmp_path / "a.tar",), members=MEMBERS).rows()
    assert "its members end in .png, .txt" in left.reason
    assert "parted at its first dot" in left.reason


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_names_of_any_length_and_letters_are_read(tmp_path, kind, suffix):
    names = ["Z\u00fcrich/" + "a" * 60 + ".txt"] + (["b" * 90 + "/" + "c" * 150 + ".txt"] if kind else [])
    content = tar_of(names, kind)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content if suffix == ".tar" else gzip.compress(content))
    assert [f"{sample.key}.txt" for sample in read(path)] == names
    assert all(sample.members == {"txt": b"some"} for sample in read(path))
