"""SoundingEarth in its two editions and its three splits."""

from datetime import UTC, datetime

import numpy as np
import pytest
from layouts import imported, jpeg, parquet, recording, sound, table, write_soundingearth

from geobind.errors import DataError
from geobind.evaluation.protocols import SEED, geoclap_split, psm_split
from geobind_datasets.soundingearth import SoundingEarth


@pytest.fixture
def folder(tmp_path):
    return write_soundingearth(tmp_path / "aporee", [recording(1410 + number) for number in range(10)])


def splits(rows):
    return {row["key"].split("_")[1]: row["split"] for row in rows}


def test_recordings_come_with_image_text_place_and_licence(folder):
    summary, rows = imported(SoundingEarth(sources=(folder,)), folder.parent / "se.parquet")
    assert rows[0] == {
        "key": "aporee_1410_1417",
        "split": "train",
        "licence": "http://creativecommons.org/licenses/by-nc/3.0/",
        "lat": 51.0,
        "lon": 13.5,
        "time": datetime(2009, 1, 29, 10, 28, tzinfo=UTC),
        "satellite": "aporee/images/1410.jpg",
        "audio": "aporee/raw_audio/aporee_1410_1417/elbe1410.mp3",
        "text": ["birds and a tram"],
    }
    assert summary.missing == {}


def test_the_published_split_is_by_the_number_modulo_10(folder):
    summary, rows = imported(SoundingEarth(sources=(folder,)), folder.parent / "se.parquet")
    assert {key: split for key, split in splits(rows).items() if split != "train"} == {
        "1412": "test",
        "1415": "test",
        "1417": "val",
    }
    assert summary.splits == {"test": 2, "train": 7, "val": 1}
    assert "recordings of one street are on both sides" in summary.notes[0]


def test_a_recording_whose_number_is_none_cannot_be_split(tmp_path):
    folder = tmp_path / "aporee"
    table(folder / "metadata.csv", [recording(1, key="one")], index=False)
    with pytest.raises(DataError, match="'one' of aporee_1_8 is no number to split by"):
        imported(SoundingEarth(sources=(folder,)), tmp_path / "se.parquet")


def test_geoclaps_split_is_read_where_its_lists_are(folder):
    rows = [recording(1410 + number) for number in range(10)]
    for name, part in (("train_df", rows[:6]), ("validate_df", rows[6:7]), ("test_df", rows[7:9])):
        table(folder / f"{name}.csv", part)
    importer = SoundingEarth(sources=(folder,), split="geoclap")
    summary, got = imported(importer, folder.parent / "se.parquet")
    assert splits(got) == {
        str(1410 + n): word for n, word in enumerate(["train"] * 6 + ["val"] + ["test"] * 2)
    }
    assert summary.left_out == {"is not in the split geoclap": 1}
    assert summary.notes == ("the split is random: recordings of one street are on both sides",)


def test_half_of_the_lists_is_no_split(folder):
    table(folder / "train_df.csv", [recording(1410)])
    with pytest.raises(
        DataError, match=r"has only some of the lists of split geoclap: validate_df\.csv is missing"
    ):
        imported(SoundingEarth(sources=(folder,), split="geoclap"), folder.parent / "se.parquet")


def test_geoclaps_split_is_made_as_it_was_where_its_lists_are_not(tmp_path):
    recordings = [recording(number, mp3samplerate=8000 if number == 3 else 44100) for number in range(40)]
    folder = write_soundingearth(tmp_path / "aporee", recordings)
    table(folder / "corrupt_ids_final.csv", [{"long_key": "aporee_5_12"}])
    importer = SoundingEarth(sources=(folder,), split="geoclap")
    summary, rows = imported(importer, tmp_path / "se.parquet")
    kept = [number for number in range(40) if number not in (3, 5)]
    assert splits(rows) == dict(zip(map(str, kept), geoclap_split(38).tolist(), strict=True))
    assert summary.splits == {"test": 8, "train": 26, "val": 4}
    assert summary.left_out == {"is not in the split geoclap": 2}
    assert (
        "made here, out of 38 recordings (published: 50,792): like the published, not the same"
        in summary.notes[1]
    )


def crowd():
    """Recordings in a dozen crowded cells and many lonely ones."""
    rng = np.random.default_rng(0)
    places = [(45 + cell * 1.01 + rng.uniform(0, 0.02), 9.0) for cell in range(12) for _ in range(30)]
    places += [(rng.uniform(-60, 60), rng.uniform(-180, 180)) for _ in range(20)]
    return [recording(number, lat=lat, lon=lon) for number, (lat, lon) in enumerate(places)]


@pytest.mark.parametrize(("split", "cells"), [("psm", "10km"), ("psm_degree", "degree")])
def test_psms_split_is_made_as_it_was_in_the_order_of_geoclaps_lists(split, cells, tmp_path):
    recordings = crowd()
    folder = tmp_path / "aporee"
    table(folder / "metadata.csv", recordings, index=False)
    importer = SoundingEarth(sources=(folder,), split=split)
    summary, rows = imported(importer, tmp_path / "se.parquet", missing="keep")
    order = np.random.RandomState(SEED).permutation(len(recordings))
    lat, lon = (np.array([row[axis] for row in recordings])[order] for axis in ("latitude", "longitude"))
    words = psm_split(lat, lon, cells=cells)
    assert splits(rows) == {str(at): str(word) for at, word in zip(order, words, strict=True)}
    assert summary.splits["test"] >= 25


def test_psms_split_is_read_where_its_lists_are(folder):
    for number, split in enumerate(("train", "val", "test")):
        table(folder / f"aporee_{split}_fairsplit_10km.csv", [recording(1410 + number)])
    importer = SoundingEarth(sources=(folder,), split="psm")
    summary, rows = imported(importer, folder.parent / "se.parquet")
    assert splits(rows) == {"1410": "train", "1411": "val", "1412": "test"}
    assert summary.left_out == {"is not in the split psm": 7}


def test_no_split_is_train(folder):
    summary, _ = imported(SoundingEarth(sources=(folder,), split="none"), folder.parent / "se.parquet")
    assert (summary.splits, summary.notes) == ({"train": 10}, ())


def test_recordings_that_were_not_fetched_are_counted(folder):
    for path in (folder / "raw_audio").glob("aporee_141[02]*/*.mp3"):
        path.unlink()
    (folder / "images" / "1410.jpg").unlink()
    summary, rows = imported(SoundingEarth(sources=(folder,)), folder.parent / "se.parquet")
    assert summary.missing == {"audio": 2, "satellite": 1}
    assert summary.left_out == {"none of its files is there": 1}
    assert [row["key"] for row in rows if "audio" not in row] == ["aporee_1412_1419"]


@pytest.mark.parametrize(
    ("overhead", "images", "suffix"),
    [("googleearth", "images/googleEarth", ".jpg"), ("sentinel", "images/sentinel_geoclap", ".jpeg")],
)
def test_images_are_found_as_geoclap_lays_them_out(overhead, images, suffix, tmp_path):
    folder = write_soundingearth(tmp_path / "aporee", [recording(7)], images, suffix)
    importer = SoundingEarth(sources=(folder,), overhead=overhead)
    _, rows = imported(importer, tmp_path / "se.parquet")
    assert rows[0]["satellite"] == f"aporee/{images}/7{suffix}"


def test_captions_come_from_geoclaps_table(folder):
    with pytest.raises(DataError, match=r"text=caption needs final_metadata_with_captions\.csv"):
        imported(SoundingEarth(sources=(folder,), text="caption"), folder.parent / "se.parquet")
    said = {**recording(1410), "caption": "birds. the location of the sound is elbe", "address": "elbe"}
    table(folder / "final_metadata_with_captions.csv", [said])
    _, rows = imported(SoundingEarth(sources=(folder,), text="address"), folder.parent / "se.parquet")
    assert [row["text"] for row in rows] == [["elbe"]]


def test_a_description_that_is_blank_gives_way_to_the_title(tmp_path):
    folder = write_soundingearth(tmp_path / "aporee", [recording(1, description="")])
    _, rows = imported(SoundingEarth(sources=(folder,)), tmp_path / "se.parquet")
    assert rows[0]["text"] == ["Elbe"]


def test_a_name_that_leads_out_of_the_dataset_is_refused(tmp_path):
    folder = write_soundingearth(tmp_path / "aporee", [recording(1)])
    table(folder / "metadata.csv", [recording(1, mp3name="../../../secret.mp3")], index=False)
    with pytest.raises(DataError, match=r"'aporee_1_8/\.\./\.\./\.\./secret\.mp3' is no file name inside"):
        imported(SoundingEarth(sources=(folder,)), tmp_path / "se.parquet")


def test_another_layout_is_told_from_it(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"not soundingearth as distributed: there is no metadata\.csv"):
        imported(SoundingEarth(sources=(tmp_path / "other",)), tmp_path / "se.parquet")
    table(tmp_path / "other" / "metadata.csv", [{"id": 1, "file": "a.mp3"}])
    with pytest.raises(DataError, match=r"metadata\.csv: has no column 'description', 'key', "):
        imported(SoundingEarth(sources=(tmp_path / "other",)), tmp_path / "se.parquet")
    with pytest.raises(DataError, match="expected one folder"):
        imported(SoundingEarth(sources=(tmp_path / "absent",)), tmp_path / "se.parquet")


def packed(number):
    return {
        "sample_id": f"aporee-aporee_{number}_{number + 7}",
        "short_id": str(number),
        "audio": sound(number),
        "googleearth_image": jpeg(number),
        "audio_caption": "a tram passes",
        "audio_caption_source": "qwen",
        "mel_features": [0.0, 1.0],
        "llava_caption_googleearth_zl1": "trams",
        "latitude": 51.0,
        "longitude": 13.5,
        "date_recorded": "1/29/09 10:28",
    }


@pytest.fixture
def edition(tmp_path):
    folder = tmp_path / "hub"
    parquet(folder / "data" / "train-00000-of-00002.parquet", [packed(1), packed(2)])
    parquet(folder / "data" / "train-00001-of-00002.parquet", [packed(4)])
    parquet(folder / "data" / "validation-00000-of-00001.parquet", [packed(5)])
    parquet(folder / "data" / "test-00000-of-00001.parquet", [packed(7)])
    return folder


def test_the_parquet_edition_has_psms_split_in_the_names_of_its_shards(edition):
    importer = SoundingEarth(sources=(edition,), split="psm")
    summary, rows = imported(importer, edition.parent / "se.parquet")
    assert summary.splits == {"test": 1, "train": 3, "val": 1}
    assert rows[0] == {
        "key": "aporee_7_14",
        "split": "test",
        "lat": 51.0,
        "lon": 13.5,
        "time": datetime(2009, 1, 29, 10, 28, tzinfo=UTC),
        "satellite": jpeg(7),
        "audio": sound(7),
        "text": ["a tram passes"],
    }


def test_the_parquet_edition_can_be_split_by_number(edition):
    _, rows = imported(SoundingEarth(sources=(edition,)), edition.parent / "se.parquet")
    assert splits(rows) == {"1": "train", "2": "test", "4": "train", "5": "test", "7": "val"}


def test_the_parquet_edition_lacks_rows_that_geoclaps_split_needs(edition):
    with pytest.raises(DataError, match="split=geoclap cannot be told from the Parquet edition"):
        imported(SoundingEarth(sources=(edition,), split="geoclap"), edition.parent / "se.parquet")


def test_a_shard_that_is_missing_or_damaged_is_told(edition):
    first = edition / "data" / "train-00000-of-00002.parquet"
    content = first.read_bytes()
    first.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"train-00000-of-00002\.parquet: not a Parquet file that can"):
        imported(SoundingEarth(sources=(edition,)), edition.parent / "se.parquet")
    first.unlink()
    with pytest.raises(DataError, match="has 1 of the 2 shards of split 'train'"):
        imported(SoundingEarth(sources=(edition,)), edition.parent / "se.parquet")
