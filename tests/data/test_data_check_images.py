"""`geobind data check` of images: decoded as a recipe's modality does; black ones, mixed types, limits."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from geobind.cli import main
from geobind.data import DataOptions, open_table
from geobind.data.inspect import inspect_table
from geobind.evaluation import leakage

rasterio = pytest.importorskip("rasterio")

RECIPE = """
name: r
width: 16
modalities:
  satellite: {timm: {model: mobilenetv3_small_050, pretrained: false}, size: 32, MORE}
  text: {clip: {model: {embed_dim: 16, vision_cfg: {image_size: 32, layers: 1, width: 32, patch_size: 16},
    text_cfg: {context_length: 77, vocab_size: 49408, width: 32, heads: 2, layers: 1}}, pretrained: false}}
data: {manifest: m.csv, DATA}
stages: [{name: s, align: text, train: [satellite], batch_size: 2, steps: 1}]
"""


def tiff(path, pixels):
    from rasterio.transform import from_origin

    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    where = {"crs": "EPSG:32631", "transform": from_origin(500_000, 5_000_000, 10, 10)}
    with rasterio.open(path, "w", **profile, **where) as file:
        file.write(pixels)


def noise(seed, kind=np.uint8, bands=3):
    return np.random.default_rng(seed).integers(0, 250, (bands, 48, 48)).astype(kind)


def table(folder, cells):
    rows = "".join(f"{split},{cell},place {n}\n" for n, (split, cell) in enumerate(cells))
    (folder / "m.csv").write_text(f"split,satellite,text\n{rows}")
    return open_table(DataOptions(manifest="m.csv"), folder, ["satellite", "text"])


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def recipe(folder, more="channels: 3", data="columns: {}"):
    (folder / "r.yaml").write_text(RECIPE.replace("MORE", more).replace("DATA", data))
    return folder / "r.yaml"


def test_an_image_that_the_recipe_s_modality_refuses_is_broken(tmp_path):
    for n in range(3):
        tiff(tmp_path / f"{n}.tif", noise(n, bands=4 if n < 2 else 3))
    table(tmp_path, [("train", f"{n}.tif") for n in range(3)])
    assert invoke("data", "check", tmp_path / "m.csv").exit_code == 0
    for channels, broken in ((4, 1), (3, 0), (2, 3)):
        path = recipe(tmp_path, f"channels: {channels}")
        report = json.loads(invoke("data", "check", path, "--json").stdout)
        assert report["broken"] == broken
        assert all(
            "channels where" in fault["reason"] for fault in report["modalities"]["satellite"]["faults"]
        )


def test_mixed_types_are_a_warning_and_an_error_where_the_mean_tells_the_type(tmp_path):
    for n in range(3):
        tiff(tmp_path / f"{n}.tif", noise(n, np.uint16 if n == 1 else np.uint8, bands=4))
    seen = inspect_table(table(tmp_path, [("train", f"{n}.tif") for n in range(3)]))
    assert seen["modalities"]["satellite"]["image_values"] == {"8 bits": 2, "other values": 1}
    assert any("8 bits (2), other values (1) are mixed" in line for line in seen["warnings"])
    path = recipe(tmp_path, "channels: 4, mean: [1000], std: [500]")
    found = invoke("data", "check", path)
    assert found.exit_code == 2
    assert "8 bits, whose values count from 0 to 1" in found.output


def test_black_images_are_a_warning_and_no_leak(tmp_path):
    for name, pixels in (
        ("black", noise(0) * 0),
        ("blue", noise(0) * 0 + 9),
        ("a", noise(1)),
        ("b", noise(1)),
    ):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"{name}.png")
    Image.fromarray(noise(0).transpose(1, 2, 0) * 0).save(tmp_path / "again.png")
    opened = table(tmp_path, [("train", "black.png"), ("test", "again.png"), ("train", "blue.png")])
    report = inspect_table(opened)
    assert report["modalities"]["satellite"]["repeated"]["across_splits"] == 0
    assert any("3 of 3 images are of one colour" in line for line in report["warnings"])
    assert leakage(opened.split("train"), opened.split("test"), ["satellite"]).warning is None
    opened = table(tmp_path, [("train", "a.png"), ("test", "b.png")])
    assert inspect_table(opened)["modalities"]["satellite"]["repeated"]["across_splits"] == 1
    assert leakage(opened.split("train"), opened.split("test"), ["satellite"]).copies["satellite"].rows == 1


def test_a_limit_takes_rows_from_everywhere(tmp_path):
    for n in range(12):
        Image.fromarray(noise(n).transpose(1, 2, 0)).save(tmp_path / f"{n}.png")
    table(tmp_path, [("train" if n < 8 else "test", f"{n}.png") for n in range(12)])
    for source in (tmp_path / "m.csv", recipe(tmp_path)):
        report = json.loads(invoke("data", "check", source, "--limit", 6, "--json").stdout)
        assert report["rows"] == 6
        assert report["splits"] == {"test": 2, "train": 4}


@pytest.mark.parametrize("command", [("check",), ("data", "check"), ("run",)])
def test_a_scene_of_somewhere_else_is_an_error_of_every_command(tmp_path, command):
    tiff(tmp_path / "scene.tif", noise(0))
    (tmp_path / "m.csv").write_text("text,lat,lon\na,10,20\nb,11,21\n")
    path = recipe(tmp_path, data="rasters: {satellite: {path: scene.tif, size_m: 100}}")
    more = ("--out", tmp_path / "out") if command == ("run",) else ()
    found = invoke(*command, path, *more)
    assert found.exit_code == 2
    assert "0 of 2 places lie in scene.tif" in found.output
    assert "longitudes 20 to 21" in found.output


def test_scenes_of_which_only_some_state_a_scale_are_a_warning(tmp_path):
    for name in ("a", "b"):
        tiff(tmp_path / f"{name}.tif", noise(0, np.uint16))
    with rasterio.open(tmp_path / "b.tif", "r+") as file:
        file.scales, file.offsets = (1e-4,) * 3, (-0.1,) * 3
    (tmp_path / "m.csv").write_text("satellite\na.tif\nb.tif\n")
    for scaled, words in ((True, "others none"), (False, "read as stored")):
        options = DataOptions(manifest="m.csv", rasters={"satellite": {"scaled": scaled}})
        report = inspect_table(open_table(options, tmp_path, ["satellite"]), quick=True)
        assert any(words in line for line in report["warnings"])
