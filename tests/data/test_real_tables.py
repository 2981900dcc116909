"""Real observations through every step: manifest, check, split, pack; skipped where there are none."""

import csv
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geobind.data.inspect import inspect_table
from geobind.data.options import DataOptions
from geobind.data.pack import pack_table
from geobind.data.readers.audio import audio_seconds, read_audio
from geobind.data.readers.images import read_image
from geobind.data.readers.text import read_text
from geobind.data.split import SplitOptions, split_manifest
from geobind.data.table import open_table
from geobind.utils.geo import assign_cells


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def captioned(real_data, tmp_path):
    """A manifest of some 200 aerial images with five captions each."""
    told = json.loads((real_data / "captions" / "ucm_captions.json").read_text())["images"]
    chosen = told[::10] + [image for image in told if image["file"].endswith(("plane01.jpg", "plane02.jpg"))]
    rows = [
        {"key": image["file"], "split": image["split"], "label": image["cls"], "tile": image["file"]}
        | {"text": image["captions"]}
        for image in {image["file"]: image for image in chosen}.values()
    ]
    write_lines(tmp_path / "ucm.jsonl", rows)
    return tmp_path, DataOptions(manifest="ucm.jsonl", root=real_data)


def test_captioned_images_are_checked(captioned):
    folder, options = captioned
    report = inspect_table(open_table(options, folder, ["tile", "text"]))
    tile, text = report["modalities"]["tile"], report["modalities"]["text"]
    assert report["broken"] == 0
    assert report["labels"]["classes"] == 21
    assert tile["observations"] == report["rows"]
    assert tile["kinds"] == {"image": report["rows"]}
    assert "256 x 256" in tile["image_sizes"]
    assert tile["repeated"]["groups"] == 1  # airplane01 is airplane02
    assert text["observations"] == 5 * report["rows"]
    assert 0 < text["repeated"]["distinct"] < text["observations"]
    assert set(report["splits"]) == {"train", "val", "test"}


def test_captioned_images_are_packed_and_read_as_they_are_from_tar_files_too(captioned, real_data, tmp_path):
    folder, options = captioned
    files = open_table(options, folder, ["tile", "text"]).take(np.arange(12))
    pack_table(files, tmp_path / "packed", shard_bytes=60_000)
    packed = open_table(DataOptions(manifest="packed"), tmp_path, ["tile", "text"])
    with tarfile.open(tmp_path / "ucm.tar", "w") as archive:
        for path in files.samples("tile"):
            archive.add(path, path.name)
    rows = [{"tile": f"ucm.tar::{path.name}"} for path in files.samples("tile")]
    write_lines(tmp_path / "members.jsonl", rows)
    members = open_table(DataOptions(manifest="members.jsonl"), tmp_path, ["tile"])
    assert len(list((tmp_path / "packed").iterdir())) > 2
    assert list(packed.samples("text")) == list(files.samples("text"))
    for row, path in enumerate(files.samples("tile")):
        assert packed.samples("tile")[row] == members.samples("tile")[row] == path.read_bytes()
        assert read_image(members.samples("tile")[row]).equal(read_image(path))


@pytest.fixture
def places(real_data, tmp_path):
    """A manifest of 100 places in two cities, with a photo, recordings and words of each."""
    told = json.loads((real_data / "geo_soundmap" / "manifest.json").read_text())
    rows = [
        {"key": place["id"], "lat": place["lat"], "lon": place["lon"], "group": place["id"]}
        | {"photo": place["photo"], "sound": place["audio"], "words": place["text"]}
        for place in told
    ]
    write_lines(tmp_path / "places.jsonl", rows)
    return tmp_path, rows


def test_places_with_photo_sound_and_words_are_split_by_where_they_are(places, real_data):
    folder, _ = places
    split = SplitOptions(cell_km=3, shares=(0.7, 0.3), seed=1)
    counts = split_manifest(folder / "places.jsonl", folder / "split.jsonl", split)
    table = open_table(
        DataOptions(manifest="split.jsonl", root=real_data), folder, ["photo", "sound", "words"]
    )
    assert sum(counts.values()) == len(table) == 100
    cells = {name: set(assign_cells(table.split(name).places_LL, 3).tolist()) for name in ("train", "test")}
    assert not cells["train"] & cells["test"]
    report = inspect_table(table, quick=True)
    assert report["broken"] == 0
    assert report["groups"]["across_splits"] == 0
    assert report["places"]["apart"][0]["least_km"] > 0


def test_places_are_decoded_and_packed(places, real_data):
    folder, _ = places
    options = DataOptions(manifest="places.jsonl", root=real_data)
    table = open_table(options, folder, ["photo", "sound", "words"]).take(np.arange(0, 100, 12))
    report = inspect_table(table)
    assert report["broken"] == 0
    assert set(report["modalities"]["sound"]["kinds"]) == {"sound"}
    pack_table(table, folder / "packed")
    packed = open_table(DataOptions(manifest="packed"), folder, ["photo", "sound", "words"])
    assert packed.groups == table.groups
    assert np.array_equal(packed.places_LL, table.places_LL)
    for row in range(len(table)):
        recordings = packed.samples("sound")[row]
        for recording in recordings if isinstance(recordings, list) else [recordings]:
            seconds = audio_seconds(recording, 16_000)
            assert abs(len(read_audio(recording, 16_000)) / 16_000 - seconds) < 0.01
        assert read_image(packed.samples("photo")[row]).shape[0] == 3
        assert read_text(packed.samples("words")[row])


def test_the_points_of_geoparquet_are_the_same_places(places, real_data):
    folder, rows = places
    point = np.dtype([("order", "u1"), ("type", "<u4"), ("x", "<f8"), ("y", "<f8")])
    wkb = [np.array([(1, 1, row["lon"], row["lat"])], point).tobytes() for row in rows]
    geo = {"version": "1.1.0", "primary_column": "geometry"}
    geo["columns"] = {"geometry": {"encoding": "WKB", "geometry_types": ["Point"]}}
    columns = {"key": [row["key"] for row in rows], "photo": [row["photo"] for row in rows], "geometry": wkb}
    file = pa.table(columns).replace_schema_metadata({"geo": json.dumps(geo)})
    pq.write_table(file, folder / "places.parquet")
    options = DataOptions(manifest="places.parquet", root=real_data)
    table = open_table(options, folder, ["photo"])
    assert np.allclose(table.places_LL, [[row["lat"], row["lon"]] for row in rows])
    assert table.check_files() == 100


def test_recordings_are_split_by_what_they_were_cut_from(real_data, tmp_path):
    source = real_data / "audio" / "manifest.csv"
    said = {"columns": {"sound": "file", "label": "cls"}, "root": real_data}
    for by, across in (("random", True), ("group", False)):
        target = tmp_path / f"{by}.csv"
        split_manifest(source, target, SplitOptions(by=by, shares=(0.75, 0.25)))
        table = open_table(DataOptions(manifest=target.name, **said), tmp_path, ["sound"])
        report = inspect_table(table, quick=True)
        assert report["broken"] == 0
        assert bool(report["groups"]["across_splits"]) == across
        assert any("geobind data split --by group" in warning for warning in report["warnings"]) == across


def test_recordings_are_heard(real_data, tmp_path):
    with open(real_data / "audio" / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))[::40]
    rates = {row["file"]: int(row["sr"]) for row in rows}
    write_lines(tmp_path / "m.jsonl", [{"sound": name} for name in rates])
    table = open_table(DataOptions(manifest="m.jsonl", root=real_data), tmp_path, ["sound"])
    report = inspect_table(table)["modalities"]["sound"]
    assert report["broken"] == 0
    assert {int(rate) for rate in report["sound_rates"]} == set(rates.values())
    for path in table.samples("sound"):
        assert len(read_audio(path, 16_000, start=1.0, seconds=0.5, loudness=-23.0)) == 8000


def test_windows_of_a_scene_are_cut_around_coordinates(real_data, tmp_path):
    pytest.importorskip("rasterio")
    scenes = {"degrees": "s2_capelookout_rgbn_epsg4326.tif", "metres": "s2_capelookout_rgb_utm18n_10m.tif"}
    rng = np.random.default_rng(0)
    here = [(34.66 + 0.01 * rng.normal(), -76.55 + 0.01 * rng.normal()) for _ in range(6)]
    write_lines(
        tmp_path / "m.jsonl",
        [{"lat": lat, "lon": lon, "words": "a cape"} for lat, lon in [*here, (48.0, 2.0)]],
    )
    rasters = {
        name: {"path": f"geotiff/{file}", "size_m": 640, "gsd": 20, "bands": [1, 2, 3], "min_valid": 0.1}
        for name, file in scenes.items()
    }
    options = DataOptions(manifest="m.jsonl", root=real_data, rasters=rasters)
    table = open_table(options, tmp_path, [*scenes, "words"])
    pairs = table.pairs("degrees", "metres")
    assert len(pairs) == 6  # Paris lies elsewhere
    alike = [np.corrcoef(pair.anchor.ravel(), pair.other.ravel())[0, 1] for pair in pairs]
    assert min(alike) > 0.8
    pack_table(table, tmp_path / "packed")
    packed = open_table(DataOptions(manifest="packed"), tmp_path, [*scenes, "words"])
    again = packed.pairs("degrees", "metres")
    assert [read_image(pair.anchor).shape for pair in again] == [(3, 32, 32)] * 6
    assert np.array_equal(read_image(again[0].other).numpy().transpose(1, 2, 0), pairs[0].other)


@pytest.mark.parametrize("name", ["rgb_customwkt_utm18n", "s2_float64_epsg4326_cog", "rgba_uint16_utm12n"])
def test_edge_cases_are_cells_by_pixels_and_are_checked(real_data, tmp_path, name):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(real_data / "geotiff" / f"{name}.tif") as file:
        row, column = (int(number[len(number) // 2]) for number in np.nonzero(file.dataset_mask()))
    window = {"raster": f"geotiff/{name}.tif", "x": column - 12, "y": row - 8, "width": 24, "height": 16}
    write_lines(tmp_path / "m.jsonl", [{"tile": window}, {"tile": {**window, "x": 10**6}}])
    options = DataOptions(manifest="m.jsonl", root=real_data, rasters={"tile": {"min_valid": 0.1}})
    table = open_table(options, tmp_path, ["tile"])
    report = inspect_table(table)
    assert report["modalities"]["tile"]["image_sizes"] == {"24 x 16": 1}
    assert report["broken"] == 1
    assert "missing" in report["modalities"]["tile"]["faults"][0]["reason"]
