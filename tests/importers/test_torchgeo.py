"""TorchGeo's datasets, mimicked: the tests do not need it. Samples are dicts as its documentation says."""

import importlib
import sys
from datetime import datetime
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from geobind.data.options import DataOptions
from geobind.data.readers.images import read_image
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind.importers import LeftOut, write_manifest
from geobind.importers.registry import build_importer
from geobind_datasets.torchgeo import TorchGeo


class NonGeoDataset:
    """A stand-in for the class of that name: samples by number."""

    def __len__(self):
        return 3


class Scenes(NonGeoDataset):
    """Photos of two classes, like EuroSAT or UCMerced: splits, classes and a root."""

    splits = ("train", "test")
    classes = ["wood", "town"]

    def __init__(self, root="data", split="train", shade=1, download=False):
        if not root.is_dir() if hasattr(root, "is_dir") else root == "nowhere":
            raise FileNotFoundError(f"Dataset not found in `root='{root}'`")
        assert split in self.splits, f"no split {split}"
        self.root, self.shade = root, shade

    def __getitem__(self, index):
        image = torch.full((3, 8, 6), float(10 * self.shade + index))
        return {"image": image, "label": torch.tensor(index % 2), "caption": f"scene {index}"}


class Bands(NonGeoDataset):
    """Thirteen bands of float32, several labels at once, and a place, as some of its datasets have."""

    def __init__(self, root="data", bad=None):
        self.bad = bad

    def __getitem__(self, index):
        image = torch.full((13, 4, 4), 1000.5 + index)
        if index == 1:
            if self.bad == "raises":
                raise OSError("damaged")
            if self.bad == "nan":
                image[0, 0, 0] = torch.nan
            if self.bad == "series":
                image = image[None]
        sample = {"image": image, "label": torch.tensor([0, 1, 1])}
        return sample | {"centroid_lat": torch.tensor([40.5]), "centroid_lon": torch.tensor([-100.25])}


class GeoDataset:
    """A stand-in for the class of that name: samples by slices of x, y and time, in its CRS."""

    crs = "EPSG:32631"


class Scene(GeoDataset):
    """A scene of 40 by 20 m in UTM, of one day."""

    bounds = slice(500_000, 500_040, 1), slice(5_000_000, 5_000_020, 1), slice(datetime(2024, 6, 1), None, 1)

    def __init__(self, paths="data"):
        self.paths = paths

    def __getitem__(self, query):
        x, y, _ = query
        image = torch.full((4, 20, 20), float(x.start - 500_000))
        return {"crs": self.crs, "bounds": (x, y), "image": image, "mask": torch.full((20, 20), 7)}


class GridGeoSampler:
    """A stand-in for the class of that name."""

    def __init__(self, dataset, size, stride):
        self.dataset, self.size, self.stride = dataset, size, stride

    def __iter__(self):
        x, y, time = self.dataset.bounds
        for start in range(x.start, x.stop - self.size + 1, self.stride):
            yield slice(start, start + self.size), slice(y.start, y.start + self.size), time


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """A stand-in for the package torchgeo."""
    modules = {name: ModuleType(name) for name in ("torchgeo", "torchgeo.datasets", "torchgeo.samplers")}
    for cls in (Scenes, Bands, Scene):
        setattr(modules["torchgeo.datasets"], cls.__name__, cls)
    modules["torchgeo.samplers"].GridGeoSampler = GridGeoSampler
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def importer(tmp_path, dataset, **options):
    return TorchGeo(sources=(tmp_path,), dataset=dataset, **options)


def test_every_split_of_a_class_becomes_rows_with_the_names_of_classes(tmp_path):
    out = tmp_path / "scenes.parquet"
    source = importer(tmp_path, "torchgeo.datasets.Scenes", texts={"text": "caption"})
    summary = write_manifest(source, out)
    assert summary.splits == {"test": 3, "train": 3}
    table = open_table(DataOptions(manifest=out.name), tmp_path, ["satellite", "text"])
    assert table.labels == ["wood", "town", "wood"] * 2
    pair = table.split("train").pairs("satellite", "text")[2]
    assert (pair.key, pair.other) == ("train/2", "scene 2")
    image = read_image(pair.anchor)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 8, 6)
    assert (image == 12).all()


def test_arguments_and_splits_reach_the_class(tmp_path):
    options = {"dataset": "torchgeo.datasets.Scenes", "arguments": '{"shade": 5}', "splits": "test"}
    rows = list(build_importer(TorchGeo, [tmp_path], options).rows())
    assert [row["split"] for row in rows] == ["test"] * 3
    assert (read_image(rows[0]["satellite"]) == 50).all()
    one = importer(tmp_path, "torchgeo.datasets.Scenes", arguments={"split": "test"})
    assert {row["split"] for row in one.rows()} == {"test"}


def test_splits_of_a_class_that_does_not_list_them_are_its_default_or_asked_for(tmp_path):
    class Quiet(Scenes):
        splits = {"train": "a", "test": "b"}

    class Silent(Quiet):
        def __init__(self, split, root="data"):
            super().__init__(root, split)

    assert [row["split"] for row in importer(tmp_path, Quiet).rows()] == ["train"] * 3
    assert [row["split"] for row in importer(tmp_path, Quiet, splits="test").rows()] == ["test"] * 3
    with pytest.raises(
        DataError, match="Silent: does not say what its splits are; name them: splits=train,test"
    ):
        list(importer(tmp_path, Silent).rows())


def test_values_of_many_bands_are_kept_as_arrays_with_the_place(tmp_path):
    out = tmp_path / "bands.parquet"
    write_manifest(importer(tmp_path, "torchgeo.datasets.Bands"), out)
    table = open_table(DataOptions(manifest=out.name), tmp_path, ["satellite"])
    image = read_image(table.samples("satellite")[2], channels=13)
    assert image.shape == (13, 4, 4)
    assert (image == 1002.5).all()
    assert table.places_LL.tolist() == [[40.5, -100.25]] * 3
    assert table.labels is None  # several at once have no name
    assert table.splits == {"train": 3}


def test_samples_that_cannot_be_used_are_left_out_with_the_reason(tmp_path):
    reasons = {
        "raises": "cannot be read (OSError)",
        "nan": "'satellite' holds values that are NaN or infinite",
        "series": "what 'satellite' shows is no image (of channels, height and width)",
    }
    for bad, reason in reasons.items():
        rows = list(importer(tmp_path, "torchgeo.datasets.Bands", arguments={"bad": bad}).rows())
        assert rows[1] == LeftOut(reason)
        assert len(rows) == 3


def test_a_geodataset_is_cut_on_a_grid_with_places_and_times(tmp_path):
    pytest.importorskip("rasterio")
    images = {"satellite": "image", "land_cover": "mask"}
    rows = list(importer(tmp_path, "torchgeo.datasets.Scene", size=20, stride=10, images=images).rows())
    assert [row["key"] for row in rows] == ["0", "1", "2"]
    assert abs(rows[0]["lat"] - 45.1537) < 1e-3
    assert 3.0 < rows[0]["lon"] < rows[1]["lon"] < rows[2]["lon"] < 3.001
    assert rows[0]["time"] == datetime(2024, 6, 1)
    assert (read_image(rows[0]["land_cover"], channels=1) == 7).all()
    assert "split" not in rows[0]


def test_boxes_of_older_versions_are_understood(tmp_path):
    class Old(Bands):
        def __getitem__(self, index):
            box = SimpleNamespace(minx=10.0, maxx=12.0, miny=-4.0, maxy=-2.0, mint=0.0, maxt=1.0)
            return {"image": torch.zeros(1, 2, 2), "crs": "EPSG:4326", "bounds": box}

    row = next(importer(tmp_path, Old()).rows())
    assert (row["lat"], row["lon"], row["time"]) == (-3.0, 11.0, None)


def test_the_first_times_that_can_be_told_are_no_times(tmp_path):
    class Timeless(Scene):
        bounds = *Scene.bounds[:2], slice(datetime.min, datetime.max, 1)

    assert next(importer(tmp_path, Timeless(), size=20).rows())["time"] is None


def test_an_object_can_be_given_in_python_and_is_named_in_the_manifest(tmp_path):
    source = importer(tmp_path, Scenes(shade=3))
    assert [row["label"] for row in source.rows()] == ["wood", "town", "wood"]
    summary = write_manifest(source, tmp_path / "out.parquet")
    assert summary.splits == {"train": 3}
    assert source.model_dump(mode="json")["dataset"].endswith("Scenes")


def test_images_are_all_png_or_all_arrays(tmp_path):
    class Mixed(Scenes):
        def __getitem__(self, index):
            return {"image": torch.full((3, 4, 4), 100.0 * (index + 1) ** 2)}

    with pytest.raises(
        DataError, match=r"sample 1: .* 3 channels of float32 from 400 to 400, .* encoding=array"
    ):
        list(importer(tmp_path, Mixed()).rows())
    rows = list(importer(tmp_path, Mixed(), encoding="array").rows())
    assert [float(np.max(open_array(row["satellite"]))) for row in rows] == [100, 400, 900]


def open_array(content):
    import io

    return np.load(io.BytesIO(content), allow_pickle=False)


def test_what_cannot_be_imported_or_made_is_told_with_the_fix(tmp_path):
    for path in ("torchgeo.datasets.Nothing", "nothing_at_all.Thing", "Scenes"):
        with pytest.raises(DataError, match=f"option dataset={path}: cannot be imported"):
            list(importer(tmp_path, path).rows())
    with pytest.raises(
        DataError, match=r"Scenes\(root='nowhere', split='train'\): cannot be made: Dataset not found"
    ):
        list(importer(tmp_path, "torchgeo.datasets.Scenes", arguments={"root": "nowhere"}).rows())
    with pytest.raises(DataError, match="cannot be made: no split moon"):
        list(importer(tmp_path, "torchgeo.datasets.Scenes", splits="moon").rows())


def test_a_part_that_samples_lack_is_told_with_those_they_have(tmp_path):
    with pytest.raises(DataError, match="samples have no 'mask'; they have image, label, caption"):
        list(importer(tmp_path, "torchgeo.datasets.Scenes", images={"satellite": "mask"}).rows())


def test_a_geodataset_without_torchgeo_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchgeo.samplers", None)
    with pytest.raises(DataError, match="pip install torchgeo"):
        list(importer(tmp_path, Scene()).rows())


def test_an_unknown_crs_is_told(tmp_path):
    pytest.importorskip("rasterio")

    class Lost(Scene):
        crs = "EPSG:1"

    with pytest.raises(DataError, match="the CRS 'EPSG:1' cannot be used"):
        list(importer(tmp_path, Lost(), size=20).rows())


def test_importing_the_importer_does_not_import_torchgeo(monkeypatch):
    for name in ("torchgeo", "torchgeo.datasets", "torchgeo.samplers"):
        monkeypatch.setitem(sys.modules, name, None)
    importlib.reload(importlib.import_module("geobind_datasets.torchgeo"))
