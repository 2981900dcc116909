"""RSICD, RSITMD, UCM-captions and Sydney-captions: one JSON file of images with their sentences."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind.importers import LeftOut, write_manifest
from geobind_datasets.captions import RSICD, RSITMD, SydneyCaptions, UCMCaptions

SHARED = Path(os.environ.get("GEOBIND_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")


def entry(name, split, *texts):
    """An image of Karpathy's form, as the four datasets have it."""
    sentences = [
        {"raw": text, "tokens": text.split(), "imgid": 0, "sentid": n} for n, text in enumerate(texts)
    ]
    return {
        "filename": name,
        "imgid": 0,
        "split": split,
        "sentences": sentences,
        "sentids": list(range(len(texts))),
    }


def written(folder, described, pictured, entries):
    (folder / pictured).mkdir(parents=True)
    (folder / described).write_text(json.dumps({"dataset": "x", "images": entries}))
    for item in entries:
        Image.new("RGB", (8, 8)).save(folder / pictured / item["filename"])
    return folder


@pytest.fixture
def rsicd(tmp_path):
    entries = [
        entry("airport_1.jpg", "train", "many planes . ", "an  airport", "an airport"),
        entry("00001.jpg", "val", "a beach"),
        entry("00002.jpg", "test", "some houses"),
    ]
    return written(tmp_path / "RSICD", "dataset_rsicd.json", "RSICD_images", entries)


def test_rsicd_has_all_captions_of_an_image_in_order(rsicd, tmp_path):
    out = tmp_path / "rsicd.parquet"
    summary = write_manifest(RSICD(sources=(rsicd,)), out)
    assert (summary.splits, summary.missing) == ({"test": 1, "train": 1, "val": 1}, {})
    table = open_table(DataOptions(manifest=out.name), tmp_path, ["satellite", "text"])
    pair = table.split("train").pairs("satellite", "text")[0]
    assert pair.anchor == rsicd / "RSICD_images/airport_1.jpg"
    assert pair.other == ["many planes .", "an airport", "an airport"]
    assert pair.label == "airport"


def test_the_class_files_of_rsicd_tell_what_names_do_not(rsicd):
    assert [row["label"] for row in RSICD(sources=(rsicd,)).rows()] == ["airport", None, None]
    (rsicd / "txtclasses_rsicd").mkdir()
    (rsicd / "txtclasses_rsicd/beach.txt").write_text("00001.jpg\n00009.jpg\n")
    (rsicd / "txtclasses_rsicd/Airport.txt").write_text("airport_1.jpg\r\n")
    assert [row["label"] for row in RSICD(sources=(rsicd,)).rows()] == ["Airport", "beach", None]


def test_rsitmd_has_its_classes_in_the_names_of_files(tmp_path):
    entries = [entry("storagetanks_4663.tif", "train", "tanks"), entry("boat_0.tif", "test", "a boat")]
    folder = written(tmp_path / "RSITMD", "dataset_RSITMD.json", "images", entries)
    importer = RSITMD(sources=(folder,))
    assert [row["label"] for row in importer.rows()] == ["storagetanks", "boat"]
    assert "no split val" in importer.notes()[1]


def test_ucm_captions_numbers_its_classes_by_hundreds(tmp_path):
    names = ["1.tif", "100.tif", "101.tif", "2100.tif", "2101.tif"]
    folder = written(tmp_path / "UCM", "dataset.json", "imgs", [entry(name, "train", "x") for name in names])
    labels = [row["label"] for row in UCMCaptions(sources=(folder,)).rows()]
    assert labels == ["agricultural", "agricultural", "airplane", "tenniscourt", None]


def test_sydney_captions_is_read_likewise_and_has_no_classes(tmp_path):
    folder = written(tmp_path / "Sydney", "dataset.json", "imgs", [entry("1.tif", "val", "a  lawn ")])
    (row,) = SydneyCaptions(sources=(folder,)).rows()
    assert (row["split"], row["text"], row["label"]) == ("val", ["a lawn"], None)


def test_files_may_be_called_something_else(rsicd, tmp_path):
    (rsicd / "dataset_rsicd.json").rename(rsicd / "mine.json")
    (rsicd / "RSICD_images").rename(rsicd / "pictures")
    with pytest.raises(DataError, match=r"no file dataset_rsicd\.json"):
        list(RSICD(sources=(rsicd,)).rows())
    rows = list(RSICD(sources=(rsicd,), annotations="mine.json", images="pictures").rows())
    assert rows[0]["satellite"] == rsicd / "pictures/airport_1.jpg"
    with pytest.raises(DataError, match=r"images: '\.\./secret' is no file name inside"):
        list(RSICD(sources=(rsicd,), annotations="mine.json", images="../secret").rows())


def test_images_without_a_caption_are_left_out_and_blank_captions_dropped(rsicd, tmp_path):
    entries = [entry("airport_1.jpg", "train", " ", ""), entry("00001.jpg", "val", "", "a beach")]
    entries[0]["sentences"][0]["tokens"] = []
    (rsicd / "dataset_rsicd.json").write_text(json.dumps({"images": entries}))
    first, second = RSICD(sources=(rsicd,)).rows()
    assert first == LeftOut("has no caption")
    assert second["text"] == ["a beach"]


def test_a_blank_caption_with_tokens_is_what_they_say(rsicd):
    entries = [entry("00001.jpg", "val", "a beach")]
    entries[0]["sentences"][0]["raw"] = " "
    (rsicd / "dataset_rsicd.json").write_text(json.dumps({"images": entries}))
    assert next(RSICD(sources=(rsicd,)).rows())["text"] == ["a beach"]


def test_images_that_are_not_there_are_counted_and_their_rows_left_out(rsicd, tmp_path):
    (rsicd / "RSICD_images/00001.jpg").unlink()
    summary = write_manifest(RSICD(sources=(rsicd,)), tmp_path / "out.parquet")
    assert summary.rows == 2
    assert summary.missing == {"satellite": 1}
    assert summary.absent.endswith("00001.jpg")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("no list", "has no list 'images'"),
        (["x"], r"images\[0\]: is no object with filename, split and sentences"),
        ([{"filename": "a.jpg"}], r"images\[0\]: lacks a 'filename' or a list 'sentences'"),
        ([{**entry("a.jpg", "train", "x"), "split": 1}], "'split' must be a word, not 1"),
        ([entry("../a.jpg", "train", "x")], r"'\.\./a\.jpg' is no file name inside"),
        ([entry("/etc/passwd", "train", "x")], "'/etc/passwd' is no file name inside"),
        (
            [{**entry("a.jpg", "train", "x"), "filepath": "../.."}],
            r"'\.\./\.\./a\.jpg' is no file name inside",
        ),
        ([{"filename": "a.jpg", "sentences": ["x"]}], "a sentence must be an object with 'raw', not str"),
        ([{"filename": "a.jpg", "sentences": [{"raw": 5}]}], "'raw' of a sentence must be a text, not int"),
    ],
)
def test_a_file_that_is_not_of_this_form_is_refused_with_the_place(rsicd, images, message):
    (rsicd / "dataset_rsicd.json").write_text(json.dumps({"images": images}))
    with pytest.raises(DataError, match=message) as error:
        list(RSICD(sources=(rsicd,)).rows())
    assert "dataset_rsicd.json" in str(error.value)


def test_another_folder_is_refused_with_what_was_expected_and_found(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError) as error:
        list(RSITMD(sources=(tmp_path,)).rows())
    assert "rsitmd as distributed: no file dataset_RSITMD.json" in str(error.value)
    assert "images/airport_0.tif" in str(error.value)
    assert "photos/" in str(error.value)


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["filename", "split", "sentences", "raw", "x"]), inner)
        ),
    )
)
def test_whatever_json_says_it_is_read_or_refused(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("any")
    (folder / "imgs").mkdir()
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    try:
        list(UCMCaptions(sources=(folder,)).rows())
    except DataError as error:
        assert "dataset.json" in str(error)


@pytest.fixture
def real(tmp_path):
    """The real captions of UCM, laid out as they are distributed, with the real images."""
    source = SHARED / "captions" / "ucm_captions.json"
    if not source.is_file():
        pytest.skip("the folder of real data is not here; name it in GEOBIND_TEST_DATA")
    folder = tmp_path / "UCM_captions"
    (folder / "imgs").mkdir(parents=True)
    items = json.loads(source.read_text())["images"]
    for item in items:
        (folder / f"imgs/{item['ucm_id']}.tif").symlink_to(SHARED / item["file"])
    entries = [entry(f"{item['ucm_id']}.tif", item["split"], *item["captions"]) for item in items]
    (folder / "dataset.json").write_text(json.dumps({"images": entries, "dataset": "UCM"}))
    return folder, items


def test_the_real_captions_of_ucm_become_a_table_that_opens(real, tmp_path):
    folder, items = real
    out = tmp_path / "ucm.parquet"
    summary = write_manifest(UCMCaptions(sources=(folder,)), out)
    assert summary.splits == {"test": 210, "train": 1680, "val": 210}
    assert (summary.missing, summary.left_out, summary.inline) == ({}, {}, ())
    options = DataOptions(manifest=out.name, links=[str(SHARED)])
    table = open_table(options, tmp_path, ["satellite", "text"])
    assert table.labels == [item["cls"] for item in items]
    assert table.check_files() == 2100
    pairs = table.pairs("satellite", "text")
    assert pairs[2099].other == [" ".join(text.split()) for text in items[2099]["captions"]]
    from geobind.data.readers.images import read_image

    assert read_image(pairs[0].anchor).shape == (3, 256, 256)
