"""Sat2Cap's shards become pairs whose images stay where they are."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from layouts import imported, jpeg, shard

from geobind.data.options import DataOptions
from geobind.data.readers.images import read_image
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind_datasets.sat2cap import Sat2Cap

TEST = "9f248448-1d13-43cb-a336-a7d92bc5359e.tar"
VAL = "206faf6d-e5f4-428e-b27c-4a55746d5629.tar"


def pair(key, date="2012-05-06 14:00:00.0", lat=40.5, lon=-3.25):
    return {
        f"{key}.groundlevel.jpg": jpeg(1),
        f"{key}.overhead.jpg": jpeg(2, 40),
        f"{key}.metadata.json": {"latitude": lat, "longitude": lon, "date_taken": date},
    }


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "sat2cap"
    shard(made / "a3c.tar", {**pair("101"), **pair("102", date="null")})
    shard(made / TEST, pair("201"))
    shard(made / VAL, pair("301", lat=-12.0))
    return made


def test_pairs_come_with_place_time_and_the_authors_split(folder):
    summary, rows = imported(Sat2Cap(sources=(folder,)), folder.parent / "sat2cap.parquet")
    assert summary.splits == {"test": 1, "train": 2, "val": 1}
    assert rows[2:] == [
        {
            "key": "101",
            "split": "train",
            "lat": 40.5,
            "lon": -3.25,
            "time": datetime(2012, 5, 6, 14, tzinfo=UTC),
            "satellite": "sat2cap/a3c.tar::101.overhead.jpg",
            "ground_image": "sat2cap/a3c.tar::101.groundlevel.jpg",
        },
        {
            "key": "102",
            "split": "train",
            "lat": 40.5,
            "lon": -3.25,
            "satellite": "sat2cap/a3c.tar::102.overhead.jpg",
            "ground_image": "sat2cap/a3c.tar::102.groundlevel.jpg",
        },
    ]
    assert "time" not in rows[3]  # a date that cannot be read is none, and not made up


def test_the_images_are_read_out_of_the_shards(folder):
    summary, _ = imported(Sat2Cap(sources=(folder,)), folder.parent / "sat2cap.parquet")
    table = open_table(DataOptions(manifest=summary.manifest), Path(), ["satellite", "ground_image"])
    pairs = table.split("train").pairs("satellite", "ground_image")
    assert len(pairs) == 2
    assert read_image(pairs[0].anchor).shape == (3, 40, 40)
    assert read_image(pairs[1].other).shape == (3, 24, 24)


def test_other_shards_can_be_those_of_test(folder):
    importer = Sat2Cap(sources=(folder,), test_shards=("a3c.tar",), val_shards=())
    summary, _ = imported(importer, folder.parent / "sat2cap.parquet")
    assert summary.splits == {"test": 2, "train": 2}


def test_a_lack_of_the_authors_shards_is_told(folder):
    (folder / TEST).unlink()
    summary, _ = imported(Sat2Cap(sources=(folder,)), folder.parent / "sat2cap.parquet")
    assert summary.notes[0] == f"none of the shards of split test is there ({TEST})"


def test_a_half_pair_is_left_out(folder):
    half = pair("401")
    del half["401.overhead.jpg"]
    shard(folder / "a3d.tar", {**half, **pair("402")})
    summary, _ = imported(Sat2Cap(sources=(folder,)), folder.parent / "sat2cap.parquet")
    assert summary.left_out == {"lacks its overhead.jpg": 1}
    assert summary.rows == 5


def test_another_layout_is_told_from_it(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty: not sat2cap as distributed: there is no \.tar file"):
        imported(Sat2Cap(sources=(empty,)), tmp_path / "out.parquet")
    shard(empty / "0.tar", {"1.jpg": jpeg(), "1.txt": b"a beach"})
    with pytest.raises(DataError, match=r"0\.tar: '1' has jpg, txt"):
        imported(Sat2Cap(sources=(empty,)), tmp_path / "out.parquet")


def test_compressed_shards_are_refused_with_the_fix(folder):
    (folder / "b.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.tar\.gz: is compressed; uncompress it"):
        imported(Sat2Cap(sources=(folder,)), folder.parent / "out.parquet")


@pytest.mark.parametrize("told", [b"{", b"[1]"])
def test_broken_metadata_are_named(told, folder):
    shard(folder / "a3d.tar", {**pair("1"), "1.metadata.json": told})
    with pytest.raises(DataError, match=r"a3d\.tar: 1\.metadata\.json: not"):
        imported(Sat2Cap(sources=(folder,)), folder.parent / "out.parquet")


def test_a_place_off_the_earth_is_left_out(folder):
    shard(folder / "a3d.tar", pair("1", lat=400.0))
    summary, _ = imported(Sat2Cap(sources=(folder,)), folder.parent / "out.parquet")
    assert summary.left_out == {"its latitude is not degrees from -90 to 90": 1}
