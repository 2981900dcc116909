"""EuroSAT: patches by class, as JPEGs or GeoTIFFs, with the splits that others published."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind.importers import LeftOut, write_manifest
from geobind_datasets.eurosat import EuroSAT

SHARED = Path(os.environ.get("GEOBIND_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
OLD = "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"


def patches(folder, ending=".jpg", count=3):
    for label in ("Forest", "SeaLake"):
        (folder / label).mkdir(parents=True)
        for number in range(1, count + 1):
            path = folder / label / f"{label}_{number}{ending}"
            if ending == ".jpg":
                Image.new("RGB", (64, 64), (number, 90, 30)).save(path)
            else:
                tif(path, number)
    return folder


def tif(path, number):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.transform import from_origin

    where = from_origin(500_000 + 640 * number, 5_000_640, 10, 10)
    profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 13, "dtype": "uint16"}
    with rasterio.open(path, "w", crs="EPSG:32631", transform=where, **profile) as raster:
        raster.write(np.full((13, 64, 64), 100 * number, np.uint16))


def lists(folder, kind="", ending=".jpg"):
    for split, number in (("train", 1), ("val", 2), ("test", 3)):
        names = [f"{label}_{number}{ending}" for label in ("Forest", "SeaLake")]
        (folder / f"eurosat-{kind}{split}.txt").write_text("\n".join(names) + "\n")


@pytest.mark.parametrize("inside", ["EuroSAT_RGB", "2750", "."])
def test_the_jpegs_are_found_wherever_they_unpack(tmp_path, inside):
    patches(tmp_path / inside)
    out = tmp_path / "eurosat.parquet"
    summary = write_manifest(EuroSAT(sources=(tmp_path,)), out)
    assert (summary.rows, summary.splits) == (6, {"train": 6})
    assert "no list of splits" in summary.notes[0]
    table = open_table(DataOptions(manifest=out.name), tmp_path, ["satellite"])
    assert table.labels == ["Forest"] * 3 + ["SeaLake"] * 3
    assert table.check_files() == 6


@pytest.mark.parametrize("inside", ["EuroSAT_MS", OLD])
def test_the_geotiffs_are_windows_with_their_places(tmp_path, inside):
    patches(tmp_path / inside, ".tif")
    lists(tmp_path)
    out = tmp_path / "eurosat.parquet"
    summary = write_manifest(EuroSAT(sources=(tmp_path,)), out)
    assert summary.splits == {"test": 2, "train": 2, "val": 2}
    table = open_table(DataOptions(manifest=out.name), tmp_path, ["satellite"]).split("test")
    tile = table.samples("satellite")[0]
    assert tile.shape == (64, 64, 13)
    assert (tile == 300).all()
    assert np.allclose(table.places_LL[0], (45.1567, 3.0285), atol=1e-3)
    assert list(table.keys) == ["Forest_3", "SeaLake_3"]


def test_the_jpegs_come_first_and_bands_are_asked_for(tmp_path):
    patches(tmp_path / "EuroSAT_RGB")
    patches(tmp_path / "EuroSAT_MS", ".tif", count=1)
    assert next(EuroSAT(sources=(tmp_path,)).rows())["satellite"].suffix == ".jpg"
    rows = list(EuroSAT(sources=(tmp_path,), bands="all").rows())
    assert [row["satellite"]["width"] for row in rows] == [64, 64]


def test_a_geotiff_that_is_broken_is_left_out(tmp_path):
    patches(tmp_path / "EuroSAT_MS", ".tif", count=1)
    (tmp_path / "EuroSAT_MS/Forest/Forest_1.tif").write_bytes(b"II*\0 and no more")
    first, second = EuroSAT(sources=(tmp_path,)).rows()
    assert first == LeftOut("its GeoTIFF cannot be opened")
    assert second["label"] == "SeaLake"


def test_splits_are_the_standard_ones_if_they_are_there_else_what_is(tmp_path):
    patches(tmp_path / "2750")
    lists(tmp_path, "100-")
    assert EuroSAT(sources=(tmp_path,)).notes()[0] == "splits: small"
    lists(tmp_path, "spatial-")
    spatial = EuroSAT(sources=(tmp_path,))
    assert spatial.notes() == ["splits: spatial"]
    lists(tmp_path)
    standard = EuroSAT(sources=(tmp_path,))
    assert standard.notes()[0] == "splits: standard"
    assert "neighbours" in standard.notes()[1]
    assert [row["split"] for row in standard.rows()] == ["train", "val", "test"] * 2
    assert {row["split"] for row in EuroSAT(sources=(tmp_path,), splits="none").rows()} == {"train"}


def test_the_split_of_coop_is_read(tmp_path):
    patches(tmp_path / "2750")
    listed = {
        split: [[f"Forest/Forest_{n}.jpg", 1, "Forest"]]
        for n, split in enumerate(("train", "val", "test"), 1)
    }
    (tmp_path / "split_zhou_EuroSAT.json").write_text(json.dumps(listed))
    rows = list(EuroSAT(sources=(tmp_path,)).rows())
    assert [row["split"] for row in rows[:3]] == ["train", "val", "test"]
    assert rows[3:] == [LeftOut("is in none of the splits 'coop'")] * 3


def test_patches_in_no_list_are_left_out_and_counted(tmp_path):
    patches(tmp_path / "2750", count=4)
    lists(tmp_path)
    summary = write_manifest(EuroSAT(sources=(tmp_path,)), tmp_path / "out.parquet")
    assert summary.left_out == {"is in none of the splits 'standard'": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Forest_1.jpg", "Forest_1 is both in train and in val"),
        ("../../secret", "'../../secret' is not the name of a patch"),
    ],
)
def test_lists_that_contradict_or_are_none_are_refused(tmp_path, content, message):
    patches(tmp_path / "2750")
    lists(tmp_path)
    (tmp_path / "eurosat-val.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        list(EuroSAT(sources=(tmp_path,)).rows())


def test_splits_that_are_not_there_are_told(tmp_path):
    patches(tmp_path / "2750")
    with pytest.raises(DataError, match=r"splits=spatial, but eurosat-spatial-train\.txt is missing"):
        list(EuroSAT(sources=(tmp_path,), splits="spatial").rows())
    lists(tmp_path)
    (tmp_path / "eurosat-test.txt").unlink()
    with pytest.raises(
        DataError, match=r"eurosat-test\.txt is missing, but other lists of its kind are there"
    ):
        list(EuroSAT(sources=(tmp_path,)).rows())


def test_another_folder_is_not_taken_for_eurosat(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match="eurosat as distributed: no folder of classes"):
        write_manifest(EuroSAT(sources=(tmp_path,)), tmp_path / "out.parquet")
    patches(tmp_path / "2750")
    with pytest.raises(DataError, match=r"with \.tif patches"):
        EuroSAT(sources=(tmp_path,), bands="all").contents()


def test_the_real_patches_become_a_table_that_opens(tmp_path):
    folder = SHARED / "sat" / "eurosat_rgb"
    if not folder.is_dir():
        pytest.skip("the folder of real data is not here; name it in GEOBIND_TEST_DATA")
    summary = write_manifest(EuroSAT(sources=(folder,)), tmp_path / "eurosat.parquet")
    assert (summary.rows, summary.root) == (1000, folder)
    options = DataOptions(manifest="eurosat.parquet", root=str(folder))
    table = open_table(options, tmp_path, ["satellite"])
    assert table.check_files() == 1000
    assert len(set(table.labels)) == 10
