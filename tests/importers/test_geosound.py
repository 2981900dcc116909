"""GeoSound, as Parquet and as recordings fetched from their sources."""

import json
from datetime import UTC, datetime

import pytest
from layouts import imported, jpeg, parquet, put, shard, sound, table

from geobind.errors import DataError
from geobind_datasets.geosound import GeoSound

DATES = {
    "freesound": ("June 26th, 2010", datetime(2010, 6, 26, tzinfo=UTC)),
    "iNat": ("2021/10/31 3:11 PM EDT", datetime(2021, 10, 31, 15, 11, tzinfo=UTC)),
    "yfcc": ("2011-07-26 12:46:19.0", datetime(2011, 7, 26, 12, 46, 19, tzinfo=UTC)),
    "aporee": ("1/29/09 10:28", datetime(2009, 1, 29, 10, 28, tzinfo=UTC)),
}


def listed(source, number):
    return {
        "key": number,
        "latitude": 40.5,
        "longitude": -3.25,
        "description": "A dog!",
        "date": DATES[source][0],
        "source": source,
        "sample_id": f"{source}-{number}",
        "text": "a dog barks",
        "address": "Madrid",
        "original_sampling_rate": 44100,
        "bin_id": 47000,
    }


@pytest.fixture
def folder(tmp_path):
    """Recordings fetched one by one."""
    made = tmp_path / "geosound"
    rows = {
        "train": [listed("freesound", "11"), listed("iNat", "12"), listed("yfcc", "13")],
        "val": [listed("aporee", "aporee_1_2")],
        "test": [listed("iNat", "14"), listed("iNat", "15")],
    }
    for split, members in rows.items():
        table(made / "metafiles" / "GeoSound" / f"{split}_metadata.csv", members)
        for row in members:
            base = made / row["source"]
            name = f"{row['key']}/tram.mp3" if row["source"] == "aporee" else f"{row['key']}.mp3"
            put(base / "raw_audio" / name, sound())
            for overhead in ("sentinel", "bingmap"):
                put(base / "images" / overhead / f"{row['key']}.jpeg", jpeg())
    said = [{"long_key": "aporee_1_2", "mp3name": "tram.mp3"}]
    table(made / "aporee" / "final_metadata_with_captions.csv", said)
    return made


def test_recordings_are_found_by_source_and_key(folder):
    summary, rows = imported(GeoSound(sources=(folder,)), folder.parent / "gs.parquet")
    assert summary.missing == {}
    assert summary.splits == {"test": 2, "train": 3, "val": 1}
    assert rows[0] == {
        "key": "freesound-11",
        "split": "train",
        "lat": 40.5,
        "lon": -3.25,
        "time": DATES["freesound"][1],
        "satellite": "geosound/freesound/images/sentinel/11.jpeg",
        "audio": "geosound/freesound/raw_audio/11.mp3",
        "text": ["a dog barks"],
    }
    assert rows[3]["audio"] == "geosound/aporee/raw_audio/aporee_1_2/tram.mp3"


def test_the_dates_of_every_source_are_read(folder):
    _, rows = imported(GeoSound(sources=(folder,)), folder.parent / "gs.parquet")
    for row in rows:
        assert row["time"] == DATES[row["key"].split("-")[0]][1]


def test_the_image_can_be_chosen(folder):
    _, rows = imported(GeoSound(sources=(folder,), overhead="bingmap"), folder.parent / "gs.parquet")
    assert rows[0]["satellite"] == "geosound/freesound/images/bingmap/11.jpeg"


def test_what_the_publishers_leave_out_is_left_out(folder):
    lists = folder / "metafiles" / "GeoSound"
    table(lists / "test_ids_geosound.csv", [{"sample_id": "iNat-15"}])
    table(lists / "ignore_ids_geosound.csv", [{"sample_id": "yfcc-13"}])
    summary, rows = imported(GeoSound(sources=(folder,)), folder.parent / "gs.parquet")
    assert summary.left_out == {"its publishers leave it out, by test_ids and ignore_ids": 2}
    assert [row["key"] for row in rows] == ["freesound-11", "iNat-12", "aporee-aporee_1_2", "iNat-15"]


def test_the_best_caption_is_taken_whoever_wrote_it(folder):
    lists = folder / "metafiles" / "GeoSound"
    best = {"freesound-11": "pengi", "iNat-12": "qwen", "yfcc-13": "meta"}
    table(
        lists / "clap_score_geosound.csv",
        [{"sample_id": key, "best_caption": model} for key, model in best.items()],
    )
    for model in ("pengi", "qwen"):
        lines = [json.dumps({"sample_id": key, f"{model}_caption": f"{model} says {key}"}) for key in best]
        put(lists / f"geosound_audio_caption_{model}.json", "\n".join(lines).encode())
    _, rows = imported(GeoSound(sources=(folder,), text="caption"), folder.parent / "gs.parquet")
    assert [row["text"][0] for row in rows[:3]] == [
        "pengi says freesound-11",
        "qwen says iNat-12",
        "a dog barks",
    ]


def test_captions_need_their_scores(folder):
    with pytest.raises(DataError, match=r"clap_score_geosound\.csv: no such file; option text=caption"):
        imported(GeoSound(sources=(folder,), text="caption"), folder.parent / "gs.parquet")


def test_a_line_that_is_no_caption_is_named(folder):
    lists = folder / "metafiles" / "GeoSound"
    table(lists / "clap_score_geosound.csv", [{"sample_id": "yfcc-13", "best_caption": "qwen"}])
    put(lists / "geosound_audio_caption_qwen.json", b'{"sample_id": "yfcc-13"}\n')
    with pytest.raises(DataError, match=r"caption_qwen\.json:1: is no caption"):
        imported(GeoSound(sources=(folder,), text="caption"), folder.parent / "gs.parquet")


def test_a_key_that_leads_out_of_the_dataset_is_refused(folder):
    lists = folder / "metafiles" / "GeoSound"
    table(lists / "val_metadata.csv", [listed("iNat", "../../../secret")])
    with pytest.raises(DataError, match="is no file name inside"):
        imported(GeoSound(sources=(folder,)), folder.parent / "gs.parquet")
    table(lists / "val_metadata.csv", [{**listed("iNat", "1"), "sample_id": "1"}])
    with pytest.raises(DataError, match="'1' is no SOURCE-KEY"):
        imported(GeoSound(sources=(folder,)), folder.parent / "gs.parquet")


def test_recordings_that_were_not_fetched_are_counted(folder):
    (folder / "iNat" / "raw_audio" / "12.mp3").unlink()
    summary, rows = imported(GeoSound(sources=(folder,)), folder.parent / "gs.parquet")
    assert (summary.missing, summary.rows) == ({"audio": 1}, 6)
    assert "audio" not in rows[1]


def test_the_parquet_edition_is_read(tmp_path):
    folder = tmp_path / "hub"
    row = {
        **listed("iNat", "12"),
        "audio": sound(),
        "bingmap_image": jpeg(1),
        "sentinel_image": jpeg(2),
        "audio_caption": "a dog, says a model",
        "mel_features": [0.0],
    }
    parquet(folder / "data" / "train-00000-of-00001.parquet", [row])
    parquet(folder / "data" / "val-00000-of-00001.parquet", [{**row, "audio_caption": "", "date": ""}])
    importer = GeoSound(sources=(folder,), overhead="bingmap", text="caption")
    summary, rows = imported(importer, tmp_path / "gs.parquet")
    assert summary.splits == {"train": 1, "val": 1}
    assert rows[0] == {
        "key": "iNat-12",
        "split": "train",
        "lat": 40.5,
        "lon": -3.25,
        "time": DATES["iNat"][1],
        "satellite": jpeg(1),
        "audio": sound(),
        "text": ["a dog, says a model"],
    }
    assert "text" not in rows[1]
    assert "time" not in rows[1]


def test_shards_of_features_are_refused_with_the_reason(tmp_path):
    folder = tmp_path / "with_sentinel"
    shard(folder / "test_sentinel.tar", {"iNat-1.image.jpg": jpeg(), "iNat-1.audio_mel1.pyd": b"\x80"})
    with pytest.raises(DataError, match="these are the shards whose sounds are pickled features of CLAP"):
        imported(GeoSound(sources=(folder,)), tmp_path / "gs.parquet")


def test_another_layout_is_told_from_it(tmp_path):
    put(tmp_path / "other" / "a.txt", b"x")
    with pytest.raises(DataError, match="not geosound as distributed: neither Parquet files nor metafiles"):
        imported(GeoSound(sources=(tmp_path / "other",)), tmp_path / "gs.parquet")
    parquet(tmp_path / "other" / "train-00000-of-00001.parquet", [{"id": 1}])
    with pytest.raises(DataError, match=r"has no column 'audio'; its columns: id"):
        imported(GeoSound(sources=(tmp_path / "other",)), tmp_path / "gs.parquet")
