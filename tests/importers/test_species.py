"""iSatNat, iSoundNat and TaxaBench: ids become files."""

import json
from datetime import UTC, datetime

import pytest
from layouts import imported, jpeg, put, sound, table

from geobind.errors import DataError
from geobind_datasets.species import ISatNat, ISoundNat, TaxaBench

MERULA = "03823_Animalia_Chordata_Aves_Passeriformes_Turdidae_Turdus_merula"


def image(number, lat=48.25, lon=11.5, split="train", file=None):
    return {
        "id": number,
        "width": 500,
        "height": 375,
        "file_name": file or f"{split}/{MERULA}/{number:x}.jpg",
        "license": 0,
        "rights_holder": "somebody",
        "date": "2015-08-12 07:30:00+00:00",
        "latitude": lat,
        "longitude": lon,
        "location_uncertainty": 77,
    }


def annotate(path, images):
    told = {
        "info": {"year": 2021},
        "images": images,
        "categories": [{"id": 3823, "name": "Turdus merula"}],
        "annotations": [{"id": one["id"], "image_id": one["id"], "category_id": 3823} for one in images],
        "licenses": [{"id": 0, "name": "CC BY-NC"}],
    }
    put(path, json.dumps(told).encode())


@pytest.fixture
def inat(tmp_path):
    folder = tmp_path / "inat"
    for split, numbers in (("train", (1, 2, 3)), ("val", (9,))):
        images = [image(number, split=split) for number in numbers]
        annotate(folder / f"{split}.json", images)
        for one in images:
            put(folder / one["file_name"], jpeg(one["id"]))
            put(folder / "sentinel" / f"{one['id']}_48.25_11.5.jpeg", jpeg())
    return folder


def test_photographs_come_with_the_satellite_image_of_their_place(inat):
    summary, rows = imported(ISatNat(sources=(inat,)), inat.parent / "isatnat.parquet")
    assert summary.splits == {"test": 1, "train": 3}
    assert rows[0] == {
        "key": "1",
        "split": "train",
        "label": "Turdus merula",
        "lat": 48.25,
        "lon": 11.5,
        "time": datetime(2015, 8, 12, 7, 30, tzinfo=UTC),
        "ground_image": f"inat/train/{MERULA}/1.jpg",
        "satellite": "inat/sentinel/1_48.25_11.5.jpeg",
        "text": ["Animalia Chordata Aves Passeriformes Turdidae Turdus merula"],
    }


def test_isatnats_lists_say_which_ids_count(inat):
    table(inat / "train_df.csv", [{"id": 3, "species": "x"}, {"id": 1, "species": "x"}])
    summary, rows = imported(ISatNat(sources=(inat,)), inat.parent / "isatnat.parquet")
    assert [row["key"] for row in rows] == ["1", "3", "9"]
    assert summary.left_out == {"is not in iSatNat's list": 1}


def test_a_list_without_ids_is_told(inat):
    table(inat / "train_df.csv", [{"name": "x"}])
    with pytest.raises(DataError, match=r"train_df\.csv: has no column 'id'; its columns: name"):
        imported(ISatNat(sources=(inat,)), inat.parent / "isatnat.parquet")
    table(inat / "train_df.csv", [{"id": "x"}])
    with pytest.raises(DataError, match=r"train_df\.csv: column 'id': "):
        imported(ISatNat(sources=(inat,)), inat.parent / "isatnat.parquet")


def test_photographs_without_a_place_are_left_out(inat):
    annotate(inat / "train.json", [image(1), image(2, lat=None, lon=None)])
    summary, _ = imported(ISatNat(sources=(inat,)), inat.parent / "isatnat.parquet")
    assert summary.left_out == {"has no place, and so no satellite image": 1}


def test_satellite_images_may_lie_elsewhere(inat, tmp_path):
    tiles = (inat / "sentinel").rename(tmp_path / "tiles")
    importer = ISatNat(sources=(inat,), tiles=tiles)
    summary, rows = imported(importer, tmp_path / "out" / "isatnat.parquet")
    assert summary.root == tmp_path
    assert rows[0]["satellite"] == "tiles/1_48.25_11.5.jpeg"
    assert summary.missing == {}


def test_what_was_not_fetched_is_counted(inat):
    (inat / "train" / MERULA / "1.jpg").unlink()
    (inat / "sentinel" / "1_48.25_11.5.jpeg").unlink()
    (inat / "sentinel" / "2_48.25_11.5.jpeg").unlink()
    summary, rows = imported(ISatNat(sources=(inat,)), inat.parent / "isatnat.parquet")
    assert summary.missing == {"ground_image": 1, "satellite": 2}
    assert summary.left_out == {"none of its files is there": 1}
    assert [row["key"] for row in rows] == ["2", "3", "9"]


def test_annotations_of_another_kind_are_told(inat):
    annotate(inat / "train.json", [{"id": 1}])
    with pytest.raises(DataError, match=r"train\.json: an image is not described as i"):
        imported(ISatNat(sources=(inat,)), inat.parent / "isatnat.parquet")
    annotate(inat / "train.json", [image(1, file="../../secret.jpg")])
    with pytest.raises(DataError, match="is no file name inside"):
        imported(ISatNat(sources=(inat,)), inat.parent / "isatnat.parquet")


def test_a_folder_without_annotations_is_not_isatnat(tmp_path):
    put(tmp_path / "other" / "train_df.csv", b"id\n1\n")
    with pytest.raises(DataError, match=r"there is neither train\.json nor val\.json"):
        imported(ISatNat(sources=(tmp_path / "other",)), tmp_path / "out.parquet")


def observed(number, **said):
    told = {
        "id": number,
        "observed_on": "2020-04-05",
        "time_observed_at": "2020-04-05 05:10:00 UTC",
        "license": "CC-BY-NC",
        "latitude": 48.25,
        "longitude": 11.5,
        "scientific_name": "Turdus merula",
        "common_name": "Common Blackbird",
        "sound_format": "m4a",
    }
    return {**told, **said}


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / "isoundnat"
    for split, number in (("train", 1), ("val", 2), ("test", 3)):
        table(folder / f"{split}_df.csv", [observed(number)])
        put(folder / "images" / f"{number}.jpg", jpeg())
        put(folder / "sounds_mp3" / f"{number}.mp3", sound())
    return folder


def test_photographs_come_with_their_recording(sounds):
    summary, rows = imported(ISoundNat(sources=(sounds,)), sounds.parent / "isoundnat.parquet")
    assert summary.splits == {"test": 1, "train": 1, "val": 1}
    assert rows[0] == {
        "key": "1",
        "split": "train",
        "label": "Turdus merula",
        "licence": "CC-BY-NC",
        "lat": 48.25,
        "lon": 11.5,
        "time": datetime(2020, 4, 5, 5, 10, tzinfo=UTC),
        "ground_image": "isoundnat/images/1.jpg",
        "audio": "isoundnat/sounds_mp3/1.mp3",
        "text": ["Turdus merula", "Common Blackbird"],
    }


def test_recordings_may_be_as_they_were_fetched(sounds):
    (sounds / "sounds_mp3").rename(sounds / "sounds")
    (sounds / "sounds" / "1.mp3").rename(sounds / "sounds" / "1.m4a")
    _, rows = imported(ISoundNat(sources=(sounds,)), sounds.parent / "isoundnat.parquet")
    assert rows[0]["audio"] == "isoundnat/sounds/1.m4a"


def test_one_list_is_enough_and_none_is_not(sounds):
    for split in ("train", "val"):
        (sounds / f"{split}_df.csv").unlink()
    summary, _ = imported(ISoundNat(sources=(sounds,)), sounds.parent / "isoundnat.parquet")
    assert summary.splits == {"test": 1}
    (sounds / "test_df.csv").unlink()
    with pytest.raises(DataError, match=r"there is none of train_df\.csv, val_df\.csv, test_df\.csv"):
        imported(ISoundNat(sources=(sounds,)), sounds.parent / "isoundnat.parquet")


def test_an_id_that_leads_out_is_refused(sounds):
    table(sounds / "train_df.csv", [observed("../1")])
    with pytest.raises(DataError, match=r"'\.\./1\.jpg' is no file name inside"):
        imported(ISoundNat(sources=(sounds,)), sounds.parent / "isoundnat.parquet")


def test_taxabench_is_a_test_of_four_kinds(tmp_path):
    folder = tmp_path / "taxabench"
    rows = [observed(5, common_name="", time_observed_at="", license=""), observed(6)]
    table(folder / "test_df.csv", rows)
    put(folder / "taxabench_images" / "5.jpg", jpeg())
    put(folder / "taxabench_sound" / "5.mp3", sound())
    put(folder / "sat_images" / "sentinel" / "5_48.25_11.5.jpeg", jpeg())
    put(folder / "sat_images" / "sentinel" / "6_48.25_11.5.jpeg", jpeg())
    summary, got = imported(TaxaBench(sources=(folder,)), tmp_path / "taxabench.parquet")
    assert got[0] == {
        "key": "5",
        "split": "test",
        "label": "Turdus merula",
        "lat": 48.25,
        "lon": 11.5,
        "time": datetime(2020, 4, 5, tzinfo=UTC),
        "ground_image": "taxabench/taxabench_images/5.jpg",
        "satellite": "taxabench/sat_images/sentinel/5_48.25_11.5.jpeg",
        "audio": "taxabench/taxabench_sound/5.mp3",
        "text": ["Turdus merula"],
    }
    assert summary.missing == {"ground_image": 1, "audio": 1}
    (folder / "test_df.csv").unlink()
    with pytest.raises(DataError, match=r"there is no test_df\.csv"):
        imported(TaxaBench(sources=(folder,)), tmp_path / "taxabench.parquet")
