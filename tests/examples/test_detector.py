"""examples/detector: windows of several sizes, peaks, boxes, and average precision."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scenes import Mean, build_binder, write_scene

pytest.importorskip("rasterio")
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "detector"))

import detect as detector
import measure_detector as measure
import toy_scenes

from geobind.errors import DataError, PluginError
from geobind.maps import find_regions, map_query
from geobind.search import Query, embed_query

RED, BLUE = (90, 60), (210, 130)  # left upper corners of objects, 40 pixels wide


def paint(pixels):
    pixels = np.full_like(pixels, 120)
    for (left, top), channel in ((RED, 0), (BLUE, 2)):
        pixels[:, top : top + 40, left : left + 40] = 0
        pixels[channel, top : top + 40, left : left + 40] = 255
    return pixels


def red_query(binder):
    patch = np.zeros((8, 8, 3), np.uint8)
    patch[..., 0] = 255
    return embed_query(binder, {"mean": patch})


@pytest.fixture(scope="module")
def binder():
    return build_binder()


@pytest.fixture
def scene(tmp_path):
    return detector.open_scene(write_scene(tmp_path / "scene.tif", change=paint), tmp_path)


@pytest.fixture
def image(tmp_path):
    from PIL import Image

    pixels = paint(np.zeros((3, 200, 300), np.uint8)).transpose(1, 2, 0)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return detector.open_scene(tmp_path / "photo.png", tmp_path / "windows")


def box_of(corner, side=40):
    return [*corner, corner[0] + side, corner[1] + side]


def test_the_best_box_of_several_sizes_is_that_of_the_object(binder, scene, tmp_path):
    archives = detector.embed_windows(binder, scene, tmp_path / "w", [400, 600], 0.25, workers=0)
    found = detector.detect(scene, archives, red_query(binder), k=3)
    np.testing.assert_allclose(found.box_K4[0], box_of(RED), atol=0.1)
    assert (np.diff(found.score_K) <= 0).all()


def test_an_image_without_a_crs_has_the_same_boxes_in_pixels(binder, image, tmp_path):
    assert not image.georeferenced
    archives = detector.embed_windows(binder, image, tmp_path / "w", [40, 60], 0.25, workers=0)
    found = detector.detect(image, archives, red_query(binder), k=3)
    np.testing.assert_allclose(found.box_K4[0], box_of(RED), atol=0.1)


def test_boxes_of_one_size_are_the_peaks_of_its_map(binder, scene, tmp_path):
    archives = detector.embed_windows(binder, scene, tmp_path / "w", [400], 0.25, workers=0)
    query = red_query(binder)
    peaks = find_regions(archives[0], map_query(archives[0], query), 5)
    found = detector.detect(scene, archives, query, k=5)
    assert found.score_K.tolist() == peaks.similarity_K.tolist()
    assert found.geometry == [one["geometry"] for one in peaks.to_geojson()["features"]]


def test_boxes_of_different_sizes_overlap_no_more_than_allowed(binder, scene, tmp_path):
    archives = detector.embed_windows(binder, scene, tmp_path / "w", [300, 400, 600], 0.25, workers=0)
    found = detector.detect(scene, archives, red_query(binder), k=30, overlap=0.2)
    for number, box in enumerate(found.box_K4):
        assert measure.intersection_over_union(box, found.box_K4[:number]).max(initial=0) <= 0.2 + 1e-9


def test_windows_are_embedded_once_and_those_of_another_scene_anew(binder, scene, tmp_path, monkeypatch):
    folder = tmp_path / "w"
    first = detector.embed_windows(binder, scene, folder, [400], workers=0)
    monkeypatch.setattr(Mean, "prepare", lambda *_, **__: pytest.fail("embedded again"))
    assert detector.embed_windows(binder, scene, folder, [400], workers=0)[0].path == first[0].path
    monkeypatch.undo()
    other = detector.open_scene(write_scene(tmp_path / "other.tif"), tmp_path)
    assert detector.embed_windows(binder, other, folder, [400], workers=0)[0].path != first[0].path


def test_a_window_larger_than_the_scene_is_refused_before_any_is_embedded(binder, scene, image, tmp_path):
    with pytest.raises(DataError, match=r"300 x 200 pixels, and a tile of 2500 m is 250 x 250: .* --size-m"):
        detector.embed_windows(binder, scene, tmp_path / "w", [400, 2500], workers=0)
    with pytest.raises(
        DataError, match=r"photo\.png: has 300 x 200 pixels, and a window of 250 .* --size-px"
    ):
        detector.embed_windows(binder, image, tmp_path / "w", [40, 250], workers=0)
    assert not list((tmp_path / "w").glob("*.parquet"))


def test_unknown_modalities_strides_and_widths_are_named(binder, scene, tmp_path):
    with pytest.raises(PluginError, match="no modality 'meen'"):
        detector.embed_windows(binder, scene, tmp_path / "w", [400], modality="meen")
    with pytest.raises(DataError, match=r"a stride in \(0, 1\], not \[400\] and 0"):
        detector.embed_windows(binder, scene, tmp_path / "w", [400], 0)
    archives = detector.embed_windows(binder, scene, tmp_path / "w", [400], workers=0)
    with pytest.raises(DataError, match="3"):
        detector.detect(scene, archives, Query(np.ones(3, np.float32) / 3**0.5))


def test_boxes_are_written_as_places_or_as_pixels(binder, scene, image, tmp_path):
    archives = detector.embed_windows(binder, scene, tmp_path / "w", [400], workers=0)
    found = detector.detect(scene, archives, red_query(binder), k=2)
    detector.write_boxes(found, scene, tmp_path / "red.geojson")
    feature = json.loads((tmp_path / "red.geojson").read_text())["features"][0]
    ring = np.array(feature["geometry"]["coordinates"][0])
    assert feature["properties"]["box"] == pytest.approx(box_of(RED), abs=0.1)
    # 10 m a pixel from 500,000 east in zone 31: the middle meridian is 3 degrees east.
    assert ring[:, 0].min() == pytest.approx(3 + 900 / 78_900, abs=2e-4)
    detector.write_boxes(found, scene, tmp_path / "red.json")
    assert json.loads((tmp_path / "red.json").read_text())["boxes"][0]["box"] == feature["properties"]["box"]
    with pytest.raises(DataError, match=r"photo\.png has no CRS, .* name it NAME\.json"):
        detector.write_boxes(found, image, tmp_path / "photo.geojson")
    with pytest.raises(DataError, match=r"name it NAME\.geojson for places"):
        detector.write_boxes(found, scene, tmp_path / "red.csv")


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(DataError, match=r"text\.tif: cannot be read as an image"):
        detector.open_scene(tmp_path / "text.tif", tmp_path)


# What is measured -------------------------------------------------------------------------------------


def test_scenes_are_the_same_every_time_and_their_objects_lie_apart():
    one, again = toy_scenes.build_scene(1, 2), toy_scenes.build_scene(1, 2)
    assert (one.image_HWC == again.image_HWC).all() and one.kinds == again.kinds
    assert set(one.kinds) == set(toy_scenes.KINDS)
    for number, box in enumerate(one.box_O4.astype(float)):
        assert not measure.intersection_over_union(box, one.box_O4[:number].astype(float)).any()
    assert (one.image_HWC != toy_scenes.build_scene(1, 3).image_HWC).any()


def ranked(scores, right, objects):
    return measure.Ranked(np.array(scores, float), np.array(right, bool), objects)


def test_average_precision_is_the_area_under_precision_by_recall():
    assert measure.average_precision(ranked([0.9, 0.8], [1, 1], 2)) == 1
    assert measure.average_precision(ranked([0.9, 0.8], [0, 1], 1)) == 0.5
    # Precision at half the recall is 1, at all of it 2/3.
    assert measure.average_precision(ranked([0.9, 0.8, 0.7], [1, 0, 1], 2)) == pytest.approx((1 + 2 / 3) / 2)
    assert measure.average_precision(ranked([0.9], [1], 4)) == 0.25
    assert np.isnan(measure.average_precision(ranked([0.9], [0], 0)))


def test_figures_are_means_over_kinds_and_scenes_that_have_them():
    right, wrong, none = ranked([0.9], [1], 1), ranked([0.9], [0], 1), ranked([0.9], [0], 0)
    text = {kind: [wrong, wrong] for kind in toy_scenes.KINDS}
    tile = {kind: [right, wrong] for kind in toy_scenes.KINDS} | {"sea": [right, none]}
    records = {one["query"]: one for one in measure.report([{"text": text, "satellite": tile}], "satellite")}
    assert records["satellite"]["AP"] == 0.5 and records["text"]["AP"] == 0
    assert records["satellite"]["kinds"] == {**dict.fromkeys(toy_scenes.KINDS, 0.5), "sea": 1.0}
    assert records["satellite"]["interval"] == records["satellite"]["over_text"] == [0, 1]
    assert records["text"]["share_of_tile"] == 0


def test_an_object_is_found_once_and_only_by_its_kind():
    made = toy_scenes.ToyScene(
        np.zeros((1, 1, 3), np.uint8), ("woods", "sea"), np.array([[0, 0, 10, 10], [50, 50, 60, 60]])
    )
    box_K4 = np.array([[0, 0, 10, 10], [0, 1, 10, 11], [50, 50, 60, 60]], float)
    found = detector.Detections("woods", np.array([0.9, 0.8, 0.7], np.float32), box_K4, [None] * 3)
    assert measure.judge(found, made, "woods").right_K.tolist() == [True, False, False]
    assert measure.judge(found, made, "sea").right_K.tolist() == [False, False, True]
    assert measure.judge(found, made, "snow").objects == 0


@pytest.mark.slow
def test_the_commands_of_the_readme_detect_and_measure(runs, tmp_path, capsys):
    bundle = str(runs / "runs" / "three_modal")
    scene = toy_scenes.write_scene(toy_scenes.build_scene(0, 0), tmp_path / "scene.tif")
    options = ["--size-m", "640", "--stride", "0.5", "-k", "3", "--folder", str(tmp_path / "windows")]
    words = ["--query", "text=deep snow", "--query", "text=sand", "--weight", "text=1", "--weight", "text=-1"]
    detector.main([bundle, str(scene), *words, *options, "--out", str(tmp_path / "snow.geojson")])
    assert len(json.loads((tmp_path / "snow.geojson").read_text())["features"]) == 3
    with pytest.raises(DataError, match=r"scene\.tif is georeferenced: give the sizes .* by --size-m"):
        detector.main([bundle, str(scene), *words, "--size-px", "64", "--out", str(tmp_path / "no.json")])
    with pytest.raises(DataError, match="this bundle has no modality 'txt'"):
        detector.main([bundle, str(scene), "--query", "txt=snow", "--size-m", "640", "--out", "no.json"])
    out = tmp_path / "figures.json"
    measure.main([bundle, "--seeds", "1", "--scenes", "1", "--out", str(out)])
    records = {one["query"]: one for one in json.loads(out.read_text())}
    assert {"text", "audio", "satellite, untrained", "random boxes", "random embeddings"} <= set(records)
    assert "1 x 1 scenes, boxes of 400, 520, 640 m" in capsys.readouterr().out
