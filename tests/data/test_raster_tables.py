import json
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from geobind.data.options import DataOptions
from geobind.data.readers.images import read_image
from geobind.data.table import open_table

rasterio = pytest.importorskip("rasterio")
from rasterio.transform import from_origin  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # rasterio's own

PLACES = [(45.001, 3.001), (45.004, 3.004), (45.006, 3.002)]  # inside the scene
FAR = (46.0, 3.0)


@pytest.fixture
def scene(tmp_path):
    values = np.random.default_rng(0).integers(1, 256, (3, 1000, 1000), dtype=np.uint8)
    profile = {"driver": "GTiff", "count": 3, "height": 1000, "width": 1000, "dtype": "uint8", "nodata": 0}
    where = from_origin(3.0, 45.01, 1e-5, 1e-5)
    with rasterio.open(tmp_path / "scene.tif", "w", crs="EPSG:4326", transform=where, **profile) as file:
        file.write(values)
    return tmp_path / "scene.tif"


def opened(folder, rows, names=("sky",), kind="jsonl", **options):
    manifest = folder / f"m.{kind}"
    if kind == "jsonl":
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), manifest)
    else:
        header = list(rows[0])
        quoted = [[row[c] if isinstance(row[c], str) else json.dumps(row[c]) for c in header] for row in rows]
        lines = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in quoted]
        manifest.write_text("\n".join([",".join(header), *lines]) + "\n")
    return open_table(DataOptions(manifest=manifest.name, **options), folder, names)


def rows_of(places):
    return [{"lat": lat, "lon": lon, "words": f"place {i}"} for i, (lat, lon) in enumerate(places)]


def test_coordinates_and_a_raster_are_enough(tmp_path, scene):
    rasters = {"sky": {"path": "scene.tif", "size_m": 64, "gsd": 2, "bands": [3, 1]}}
    table = opened(tmp_path, rows_of([*PLACES, FAR]), ("sky", "words"), rasters=rasters)
    assert table.rows_with(["sky"]).tolist() == [0, 1, 2]  # the last lies outside of the scene
    pairs = table.pairs("sky", "words")
    assert len(pairs) == 3 and pairs[1].other == "place 1"
    assert pairs[0].anchor.shape == (32, 32, 2) and pairs[0].anchor.dtype == np.uint8
    assert table.samples("sky")[3] is None
    assert table.check_files() == 1
    alone = opened(tmp_path, [{"lat": 45.001, "lon": 3.001}], rasters=rasters)
    assert len(alone.samples("sky")) == 1


def test_a_window_is_read_as_an_image(tmp_path, scene):
    rasters = {"sky": {"path": "scene.tif", "size_m": 64, "gsd": 2}}
    window = opened(tmp_path, rows_of(PLACES), rasters=rasters).samples("sky")[0]
    image = read_image(window)
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), window)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_cell_names_its_window_by_place_or_by_pixels(tmp_path, scene, kind):
    cells = [
        {"raster": "scene.tif", "lat": 45.005, "lon": 3.005, "size_m": 50.0, "gsd": 5.0, "bands": [2]},
        {"raster": "scene.tif", "x": 10, "y": 20, "width": 8, "height": 4},
        {"raster": "scene.tif", "size_m": 50.0, "gsd": 10.0},  # around the row's own place
    ]
    rows = [{"lat": 45.001, "lon": 3.001, "sky": cell} for cell in cells]
    samples = opened(tmp_path, rows, kind=kind).samples("sky")
    assert [sample.shape for sample in samples] == [(10, 10, 1), (4, 8, 3), (5, 5, 3)]
    with rasterio.open(scene) as file:
        assert np.array_equal(samples[1], file.read()[:, 20:24, 10:18].transpose(1, 2, 0))


def test_a_column_can_name_the_raster_and_the_recipe_the_rest(tmp_path, scene):
    rows = [{"lat": 45.001, "lon": 3.001, "tile": "scene.tif"}, {"lat": None, "lon": None, "tile": None}]
    options = {"columns": {"sky": "tile"}, "rasters": {"sky": {"size_m": 40, "gsd": 4}}}
    table = opened(tmp_path, rows, **options)
    assert table.samples("sky")[0].shape == (10, 10, 3)
    assert table.samples("sky")[1] is None
    assert table.rows_with(["sky"]).tolist() == [0]


def test_several_windows_are_equally_good_observations(tmp_path, scene):
    cell = [{"raster": "scene.tif", "x": x, "y": 0, "width": 5, "height": 5} for x in (0, 7)]
    samples = opened(tmp_path, [{"sky": cell}, {"sky": []}]).samples("sky")
    assert [window.shape for window in samples[0]] == [(5, 5, 3)] * 2
    assert samples[1] is None


def test_of_several_rasters_only_those_that_cover_the_place_are_read(tmp_path, scene, refused):
    profile = {"driver": "GTiff", "count": 3, "height": 10, "width": 10, "dtype": "uint8", "crs": "EPSG:4326"}
    with rasterio.open(
        tmp_path / "b.tif", "w", transform=from_origin(3, 46.005, 1e-3, 1e-3), **profile
    ) as file:
        file.write(np.full((3, 10, 10), 7, np.uint8))
    rasters = {"sky": {"path": ["scene.tif", "b.tif"], "size_m": 64, "gsd": 16}}
    table = opened(tmp_path, rows_of([PLACES[0], (46.0, 3.005), (50, 3)]), rasters=rasters)
    assert table.rows_with(["sky"]).tolist() == [0, 1]
    assert (table.samples("sky")[1] == 7).all()
    edge = opened(
        tmp_path, rows_of([(45.0098, 3.00001)]), rasters={"sky": {**rasters["sky"], "min_valid": 0.9}}
    )
    refused(lambda: edge.samples("sky")[0], "scene.tif", "missing")


def test_what_is_wrong_with_a_cell_is_named_with_its_line(tmp_path, refused):
    good = {"raster": "scene.tif", "x": 1, "y": 1, "width": 2, "height": 2}
    for cell, word in (
        ({"raster": "a.tif", "size": 5}, "has no 'size'"),
        ({"raster": ""}, "must name it"),
        ({"raster": "a.tif", "lat": 5}, "not all of lat, lon"),
        ({"raster": "a.tif", "lat": 95, "lon": 5}, "'lat'"),
        ({"raster": "a.tif", "size_m": 0}, "'size_m'"),
        ({"raster": "a.tif", "x": 1, "y": 2}, "not all of x, y, width, height"),
        ({**good, "width": 0}, "'width'"),
        ({**good, "x": 0.5}, "'x'"),
        ({**good, "gsd": 10}, "not by both"),
        ({**good, "bands": []}, "'bands'"),
        ({**good, "bands": [0]}, "'bands'"),
        ("a.png", "'a.png' is a string, but cells above are a window of a raster"),
        ({"rastr": "a.tif"}, "must be a string"),
    ):
        rows = [{"sky": good}, {"sky": cell}]
        refused(lambda rows=rows: opened(tmp_path, rows), "m.jsonl:2: column 'sky'", word)
    (tmp_path / "m.csv").write_text('sky\n"{""raster"": ""a.tif"","\n')
    options = DataOptions(manifest="m.csv")
    refused(lambda: open_table(options, tmp_path, ["sky"]), "m.csv:2", "begins like a JSON object")


def test_a_text_with_braces_is_a_text(tmp_path):
    assert opened(tmp_path, [{"sky": "{sic} the sea"}, {"sky": '{"a": 1}'}]).samples("sky")[1] == '{"a": 1}'


def test_a_raster_cannot_lie_outside_of_the_root(tmp_path, scene, refused):
    (tmp_path / "in").mkdir()
    for name in ("../scene.tif", str(scene), "/vsicurl/http://localhost/a.tif", "/vsimem/a.tif"):
        cell = {"raster": name, "x": 0, "y": 0, "width": 2, "height": 2}
        table = opened(tmp_path / "in", [{"sky": cell}])
        refused(lambda table=table: table.samples("sky")[0], "leads out of")
        refused(table.check_files, "leads out of")
        options = {"path": name, "size_m": 10}
        table = opened(tmp_path / "in", rows_of(PLACES), rasters={"sky": options})
        refused(lambda table=table: table.samples("sky"), "leads out of")
    inside = opened(tmp_path / "in", [{"sky": {"raster": "http://localhost/a.tif"}, "lat": 1, "lon": 1}])
    refused(inside.check_files, "is an address")


def test_a_missing_raster_is_found_before_training(tmp_path, refused):
    table = opened(tmp_path, rows_of(PLACES), rasters={"sky": {"path": "gone.tif", "size_m": 10}})
    refused(table.check_files, "gone.tif", "no such file")
    refused(lambda: table.samples("sky"), "gone.tif", "no such file")


def test_a_raster_without_places_or_with_a_column_beside_it_is_refused(tmp_path, scene, refused):
    rasters = {"sky": {"path": "scene.tif", "size_m": 10}}
    refused(lambda: opened(tmp_path, [{"words": "x"}], ("sky", "words"), rasters=rasters), "lat and lon")
    with pytest.raises(ValueError, match="keep one"):
        DataOptions(manifest="m.csv", columns={"sky": "tile"}, rasters=rasters)
    with pytest.raises(ValueError, match="toy Earth has no files"):
        DataOptions(toyearth={}, rasters=rasters)
    table = opened(tmp_path, [{"sky": {"raster": "scene.tif", "size_m": 10}}])
    refused(lambda: table.samples("sky")[0], "has no place")


def test_a_row_over_nodata_names_itself(tmp_path, scene, refused):
    with rasterio.open(scene, "r+") as file:
        file.write(np.zeros((3, 1000, 1000), np.uint8))
    table = opened(
        tmp_path,
        [{"key": "here", **row} for row in rows_of(PLACES)],
        ("sky", "words"),
        rasters={"sky": {"path": "scene.tif", "size_m": 30}},
    )
    refused(lambda: table.pairs("sky", "words")[0], "here: ", "scene.tif", "missing")


class Windows(torch.utils.data.Dataset):
    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        return torch.from_numpy(np.ascontiguousarray(self.table.samples("sky")[index]))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes_open_rasters_for_themselves(tmp_path, scene, context):
    rng = np.random.default_rng(0)
    places = [(45.001 + 0.008 * y, 3.001 + 0.008 * x) for x, y in rng.random((24, 2))]
    rasters = {"sky": {"path": "scene.tif", "size_m": 64, "gsd": 2}}
    table = opened(tmp_path, rows_of(places), rasters=rasters)
    here = [table.samples("sky")[i] for i in range(len(table))]  # this process has it open already
    if context == "spawn":
        code = (
            "import pickle, sys, numpy as np\n"
            "table, here = pickle.load(open(sys.argv[1], 'rb'))\n"
            "assert all(np.array_equal(a, b) for a, b in zip(table.samples('sky'), here))"
        )
        (tmp_path / "p").write_bytes(pickle.dumps((table, here)))
        assert len(pickle.dumps(table)) < 5000
        assert subprocess.run([sys.executable, "-c", code, tmp_path / "p"], check=False).returncode == 0
        return
    loader = DataLoader(Windows(table), batch_size=4, num_workers=2, multiprocessing_context=context)
    there = torch.cat(list(loader)).numpy()
    assert np.array_equal(there, np.stack(here))


def test_places_that_lie_in_the_raster_only_when_swapped_are_counted(tmp_path, refused):
    profile = {
        "driver": "GTiff",
        "count": 1,
        "height": 100,
        "width": 100,
        "dtype": "uint8",
        "crs": "EPSG:4326",
    }
    with rasterio.open(
        tmp_path / "a.tif", "w", transform=from_origin(3, 45.1, 1e-3, 1e-3), **profile
    ) as file:
        file.write(np.ones((1, 100, 100), np.uint8))

    def pairs(*places, split="train"):
        lines = [f"place {n},{lat},{lon},{'test' if n else 'train'}" for n, (lat, lon) in enumerate(places)]
        (tmp_path / "m.csv").write_text("\n".join(["words,lat,lon,split", *lines]))
        rasters = {"sky": {"path": "a.tif", "size_m": 640}}
        table = open_table(DataOptions(manifest="m.csv", rasters=rasters), tmp_path, ["sky", "words"])
        return table.split(split).pairs("sky", "words")

    swapped = refused(lambda: pairs((3.02, 45.05), (3.03, 45.06), (3.04, 50)), "0 of 3 places lie in a.tif")
    assert swapped.endswith("with lat and lon swapped, 2 would: map them the other way with `columns`")
    assert "swapped" not in refused(lambda: pairs((10, 20), (3, 120)), "take a scene of these places")
    refused(lambda: pairs((45.05, 3.05), (1, 2), split="test"), "no place of these rows lies in a.tif")
    refused(lambda: pairs(("", "")), "no row has a place")
