"""CVUSA, CVACT and VIGOR: miniatures of their layouts become manifests, and other layouts are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind.importers import LeftOut, write_manifest
from geobind_datasets.cross_view import CVACT, CVUSA, VIGOR, utm_to_degrees

CITIES = ("Chicago", "NewYork", "SanFrancisco", "Seattle")


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (90, 120, 60)).save(path)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture
def cvusa(tmp_path):
    folder = tmp_path / "CVUSA"
    lines = [
        f"bingmap/19/{n:07}.jpg,streetview/panos/{n:07}.jpg,streetview/annotations/{n:07}.png"
        for n in (1, 2, 3)
    ]
    text(folder / "splits/train-19zl.csv", "\n".join(lines[:2]) + "\n")
    text(folder / "splits/val-19zl.csv", lines[2])
    places = "".join(f"40.{n},-100.{n},41.{n},-101.{n},90.0\n" for n in (1, 2, 3))
    text(folder / "split_locations/all.csv", places)
    for number in (1, 2, 3):
        image(folder / f"bingmap/19/{number:07}.jpg")
        image(folder / f"streetview/panos/{number:07}.jpg")
    return folder


def vigor_line(city, number):
    tiles = [f"satellite_41.{number}{k}_-87.{number}{k}.png {k}.0 -{k}.5" for k in range(4)]
    return f"{city[:3]}_{number}-x,41.8{number},-87.6{number},.jpg {' '.join(tiles)}"


@pytest.fixture
def vigor(tmp_path):
    folder = tmp_path / "VIGOR"
    for city in CITIES:
        lists = folder / "splits" / city
        text(lists / "same_area_balanced_train.txt", vigor_line(city, 1) + "\n" + vigor_line(city, 2) + "\n")
        text(lists / "same_area_balanced_test.txt", vigor_line(city, 3) + "\n")
        text(lists / "pano_label_balanced.txt", "\n".join(vigor_line(city, n) for n in (1, 2, 3)) + "\n")
        for number in (1, 2, 3):
            image(folder / city / "panorama" / vigor_line(city, number).split()[0])
            image(folder / city / "satellite" / vigor_line(city, number).split()[1])
    return folder


def mat(path, ids, utm, sets):
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"trainSet": "trainInd", "valSet": "valInd", "valSetAll": "valInd"}
    structs = {name: {"count": 0, fields[name]: np.array(numbers)[:, None]} for name, numbers in sets.items()}
    savemat(path, {"panoIds": np.array(ids), "utm": np.array(utm), **structs})


@pytest.fixture
def cvact(tmp_path):
    folder = tmp_path / "CVACT"
    ids = [f"id_{n}-panorama" for n in range(4)]
    utm = [[693000.0 + 50 * n, 6090000.0 - 50 * n] for n in range(4)]
    mat(folder / "ACT_data.mat", ids, utm, {"trainSet": [1, 2], "valSet": [3], "valSetAll": [3, 4]})
    for name in ids:
        image(folder / f"ANU_data_small/streetview/{name}_grdView.jpg")
        image(folder / f"ANU_data_small/satview_polish/{name}_satView_polish.jpg")
    return folder


def test_cvusa_is_the_pairs_of_its_lists_with_the_panoramas_places(cvusa, tmp_path):
    out = tmp_path / "cvusa.parquet"
    summary = write_manifest(CVUSA(sources=(cvusa,)), out)
    assert (summary.splits, summary.missing, summary.left_out) == ({"train": 2, "val": 1}, {}, {})
    table = open_table(DataOptions(manifest=out.name), tmp_path, ["satellite", "ground_image"])
    pair = table.split("val").pairs("satellite", "ground_image")[0]
    assert pair.anchor == tmp_path / "CVUSA/bingmap/19/0000003.jpg"
    assert pair.other == tmp_path / "CVUSA/streetview/panos/0000003.jpg"
    assert (pair.place.lat, pair.place.lon, pair.key) == (41.3, -101.3, "0000003")
    assert table.check_files() == 6


def test_cvusa_without_its_places_has_none_and_says_so(cvusa):
    (cvusa / "split_locations/all.csv").unlink()
    importer = CVUSA(sources=(cvusa,))
    assert all(row["lat"] is None for row in importer.rows())
    assert "rows have no place" in importer.notes()[-1]


def test_cvusa_may_have_one_list_alone(cvusa):
    (cvusa / "splits/train-19zl.csv").unlink()
    assert [row["split"] for row in CVUSA(sources=(cvusa,)).rows()] == ["val"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bingmap/19/1.jpg", "train-19zl.csv:1: has not the two files of a pair"),
        ("../../etc/passwd,a.jpg", "train-19zl.csv:1: '../../etc/passwd' is no file name inside"),
        ("a.jpg,/etc/passwd", "train-19zl.csv:1: '/etc/passwd' is no file name inside"),
    ],
)
def test_cvusa_refuses_lists_that_are_none(cvusa, line, message):
    text(cvusa / "splits/train-19zl.csv", line)
    with pytest.raises(DataError) as error:
        list(CVUSA(sources=(cvusa,)).rows())
    assert message in str(error.value)


def test_files_of_cvusa_that_are_not_there_are_counted(cvusa, tmp_path):
    (cvusa / "bingmap/19/0000001.jpg").unlink()
    summary = write_manifest(CVUSA(sources=(cvusa,)), tmp_path / "out.parquet")
    assert summary.missing == {"satellite": 1}
    assert summary.filled == {"satellite": 2, "ground_image": 3}


@pytest.mark.parametrize("importer", [CVUSA, CVACT, VIGOR])
def test_another_folder_is_not_taken_for_a_cross_view_dataset(importer, tmp_path):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(DataError) as error:
        list(importer(sources=(tmp_path,)).rows())
    assert f"{importer.name} as distributed" in str(error.value)
    assert "holiday/" in str(error.value)


def test_vigor_pairs_each_panorama_with_its_positive_tile(vigor, tmp_path):
    out = tmp_path / "vigor.parquet"
    summary = write_manifest(VIGOR(sources=(vigor,)), out)
    assert (summary.splits, summary.missing, summary.files) == ({"test": 4, "train": 8}, {}, ())
    table = open_table(DataOptions(manifest=out.name), tmp_path, ["satellite", "ground_image"])
    pair = table.split("test").pairs("satellite", "ground_image")[0]
    assert (pair.anchor.name, pair.other.name) == ("satellite_41.30_-87.30.png", "Chi_3-x,41.83,-87.63,.jpg")
    assert (pair.key, pair.place.lat, pair.place.lon) == ("Chicago/Chi_3-x", 41.83, -87.63)


def test_the_cross_area_split_of_vigor_tests_on_other_cities(vigor):
    rows = list(VIGOR(sources=(vigor,), area="cross").rows())
    cities = {
        split: {row["key"].split("/")[0] for row in rows if row["split"] == split}
        for split in ("train", "test")
    }
    assert cities == {"train": {"NewYork", "Seattle"}, "test": {"SanFrancisco", "Chicago"}}
    assert len(rows) == 12


def test_the_corrected_lists_of_vigor_come_first(vigor):
    assert "wrong resolution" in VIGOR(sources=(vigor,)).notes()[-1]
    for path in list((vigor / "splits").rglob("*.txt")):
        target = vigor / "splits__corrected" / path.parent.name / f"{path.stem}__corrected.txt"
        text(target, path.read_text().splitlines()[0])
    importer = VIGOR(sources=(vigor,))
    assert len(list(importer.rows())) == 8
    assert "wrong resolution" not in "".join(importer.notes())
    assert len(list(VIGOR(sources=(vigor,), labels="original").rows())) == 12


def test_labels_of_vigor_are_tiles_or_cities_if_asked_for(vigor):
    for label, first in (("none", None), ("tile", "satellite_41.10_-87.10.png"), ("city", "Chicago")):
        assert next(VIGOR(sources=(vigor,), label=label).rows())["label"] == first


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg b.png 1 2", "has 4 words, not a panorama and 4 tiles with offsets"),
        (vigor_line("Chicago", 1).replace(",41.81,", ",north,"), "is not named PREFIX,LAT,LON,.jpg"),
        (vigor_line("Chicago", 1).replace("satellite_41.10", "../x_41.10", 1), "is no file name inside"),
    ],
)
def test_vigor_refuses_lists_that_are_none(vigor, line, message):
    text(vigor / "splits/Chicago/same_area_balanced_train.txt", line)
    with pytest.raises(DataError) as error:
        list(VIGOR(sources=(vigor,)).rows())
    assert message in str(error.value)
    assert "same_area_balanced_train.txt:1" in str(error.value)


def test_a_city_of_vigor_without_lists_is_told(vigor):
    (vigor / "splits/Seattle/same_area_balanced_test.txt").unlink()
    with pytest.raises(DataError, match=r"splits/Seattle/same_area_balanced_test\.txt is missing"):
        list(VIGOR(sources=(vigor,)).rows())


def test_cvact_has_places_and_leaves_out_a_test_set_that_is_not_there(cvact, tmp_path):
    out = tmp_path / "cvact.parquet"
    summary = write_manifest(CVACT(sources=(cvact,)), out)
    assert summary.splits == {"train": 2, "val": 1}
    assert summary.left_out == {"ANU_data_test is not there, which has split test": 2}
    table = open_table(DataOptions(manifest=out.name), tmp_path, ["satellite", "ground_image"])
    assert table.check_files() == 6
    place = table.split("val").pairs("satellite", "ground_image")[0].place
    assert abs(place.lat + 35.3155) < 1e-3
    assert abs(place.lon - 149.1242) < 1e-3


def test_the_test_set_of_cvact_lies_in_its_own_folder(cvact):
    image(cvact / "ANU_data_test/streetview/id_2-panorama_grdView.png")
    rows = [row for row in CVACT(sources=(cvact,)).rows() if row["split"] == "test"]
    assert [row["key"] for row in rows] == ["test/id_2-panorama", "test/id_3-panorama"]
    assert rows[0]["ground_image"] == cvact / "ANU_data_test/streetview/id_2-panorama_grdView.png"
    assert rows[1]["ground_image"].suffix == ".jpg"


def test_places_of_cvact_may_be_told_north_first_and_none_lies_elsewhere(tmp_path):
    ids, sets = ["a", "b"], {"trainSet": [1, 2], "valSet": [1], "valSetAll": [1]}
    mat(tmp_path / "ACT_data.mat", ids, [[6090000.0, 693000.0], [100000.0, 100000.0]], sets)
    (tmp_path / "ANU_data_small").mkdir()
    rows = [row for row in CVACT(sources=(tmp_path,)).rows() if not isinstance(row, LeftOut)]
    known, unknown = rows[:2]
    assert abs(known["lat"] + 35.3146) < 1e-3
    assert unknown["lat"] is None


@pytest.mark.parametrize(
    ("ids", "sets", "message"),
    [
        (["a"], {"trainSet": [2], "valSet": [1], "valSetAll": [1]}, "trainSet names panorama 2 of 1"),
        (["../a"], {"trainSet": [1], "valSet": [1], "valSetAll": [1]}, "which is no part of a file name"),
        (["a"], {"trainSet": [1]}, "has no valSet"),
    ],
)
def test_cvact_refuses_a_file_that_is_not_its_own(tmp_path, ids, sets, message):
    mat(tmp_path / "ACT_data.mat", ids, [[693000.0, 6090000.0]], sets)
    (tmp_path / "ANU_data_small").mkdir()
    with pytest.raises(DataError, match=message):
        list(CVACT(sources=(tmp_path,)).rows())


def test_cvact_refuses_what_is_no_matlab_file(tmp_path):
    text(tmp_path / "ACT_data.mat", "no matrices here")
    with pytest.raises(DataError, match="not a MATLAB file that can be read"):
        list(CVACT(sources=(tmp_path,)).rows())


@settings(deadline=None, max_examples=50)
@given(st.floats(200_000, 800_000), st.floats(-9_000_000, 9_000_000))
def test_degrees_of_utm_are_those_of_proj(easting, northing):
    warp = pytest.importorskip("rasterio.warp")
    lon, lat = warp.transform("EPSG:32655", "EPSG:4326", [easting], [northing])
    ours = utm_to_degrees(easting, northing, 147.0)
    assert abs(ours[0] - lat[0]) < 1e-8
    assert abs(ours[1] - lon[0]) < 1e-8 / max(0.01, np.cos(np.radians(lat[0])))
