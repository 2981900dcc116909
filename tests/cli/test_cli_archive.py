"""`geobind embed` of rasters, tables and folders, and `geobind archive`."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from geobind.archive import Archive
from geobind.cli import main

rasterio = pytest.importorskip("rasterio")
import scenes  # noqa: E402
from PIL import Image  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A bundle, a scene, a manifest and a folder of pictures."""
    from geobind import plugins
    from geobind.binder import Binder

    folder = tmp_path_factory.mktemp("world")
    options = {"timm": {"model": "test_vit", "pretrained": False}, "size": 32}
    kind = plugins.registry().plugins["ground_image"].cls
    for name, seed in (("bundle", 0), ("other", 1)):
        Binder({"ground_image": kind.model_validate(options)}, 16, seed=seed).save(folder / name)
    scenes.write_scene(folder / "scene.tif", height=120, width=120)
    (folder / "pictures").mkdir()
    lines = ["key,ground_image,lat,lon"]
    for number in range(4):
        Image.new("RGB", (40, 40), (60 * number, 9, 9)).save(folder / "pictures" / f"{number}.png")
        lines.append(f"k{number},pictures/{number}.png,{10 * number},{-20 * number}")
    (folder / "places.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def call(world, tmp_path, monkeypatch):
    """Call a command in the folder of the world; `{out}` is a folder of the test's own."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))

    def call(text):
        words = [word.replace("{out}", str(tmp_path)) for word in text.split()]
        return CliRunner().invoke(main, words)

    return call


TILES = "embed bundle ground_image --raster scene.tif --size-m 320 --stride-m 160"


def test_a_raster_becomes_an_archive(call, tmp_path):
    made = call(f"{TILES} --out {{out}}/a.parquet --bands 3,2,1 --min-valid 0.9 --time 2024-07-01")
    assert made.exit_code == 0, made.output
    assert re.search(r"a.parquet: 36 x 16 float16, unit length", made.output)
    archive = Archive.open(tmp_path / "a.parquet")
    assert archive.metadata.reading == {"size_m": 320.0, "bands": [3, 2, 1], "min_valid": 0.9}
    assert archive.check() == 36


def test_shares_are_joined_by_merge(call, tmp_path):
    one = call(f"{TILES} --out {{out}}/a.parquet --shard 0/2")
    assert one.exit_code == 0 and "a.parts: 1 of 1 parts; join them: geobind archive merge" in one.output
    done = call("archive merge {out}/a.parquet")
    assert done.exit_code == 0 and "36 x 16 float16" in done.output
    again = call("archive merge {out}/a.parquet")
    assert again.exit_code == 0 and "is joined already, 36 rows" in again.output


def test_archives_are_joined_by_merge_too(call, tmp_path):
    for name, numbers in (("a", "[01]"), ("b", "[23]")):
        call(
            f"embed bundle ground_image --data pictures --pattern {numbers}.png --out {{out}}/{name}.parquet"
        )
    done = call("archive merge {out}/a.parquet {out}/b.parquet --out {out}/all.parquet")
    assert done.exit_code == 0 and "all.parquet: 4 x 16 float16" in done.output, done.output
    refused = call("archive merge {out}/a.parquet {out}/b.parquet")
    assert refused.exit_code == 2 and "name it with --out" in refused.output


def test_a_dry_run_counts_and_writes_nothing(call, tmp_path):
    shown = call(f"{TILES} --out {{out}}/a.parquet --dry-run")
    assert shown.exit_code == 0, shown.output
    assert "grid: 6 x 6 tiles of 320 m, 32 x 32 pixels" in shown.output
    assert "rows: at most 36, 16 numbers each" in shown.output and "parts: 1, 0 there already" in shown.output
    assert not list(tmp_path.glob("*.par*"))


def test_a_table_and_a_folder_become_archives(call, tmp_path):
    assert call("embed bundle ground_image --data places.csv --out {out}/a.parquet").exit_code == 0
    archive = Archive.open(tmp_path / "a.parquet")
    assert sorted(archive.ids) == ["k0", "k1", "k2", "k3"] and set(archive.lat_N) == {0, 10, 20, 30}
    made = call("embed bundle ground_image --data pictures --pattern *.png --out {out}/b.parquet")
    assert made.exit_code == 0, made.output
    assert Archive.open(tmp_path / "b.parquet").ids.tolist() == ["0.png", "1.png", "2.png", "3.png"]
    by_key = archive.read_vectors()[np.argsort(archive.ids)]
    assert np.array_equal(by_key, Archive.open(tmp_path / "b.parquet").read_vectors())


def test_inputs_become_an_array_as_ever(call, tmp_path):
    made = call("embed bundle ground_image pictures/0.png pictures/1.png --out {out}/a.npy")
    assert made.exit_code == 0 and np.load(tmp_path / "a.npy").shape == (2, 16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--out {out}/a.npy", "what is embedded? give INPUTS, --raster SCENE.tif, or --data TABLE or FOLDER"),
        ("x.png --raster scene.tif --out {out}/a.npy", "what is embedded?"),
        ("pictures/0.png --out {out}/a.parquet", "INPUTS becomes an array; let its name end in .npy"),
        (
            "--raster scene.tif --size-m 9 --out {out}/a.npy",
            "--raster becomes an archive; let its name end in .parquet",
        ),
        ("--data places.csv --out {out}/a.csv", "--data becomes an archive; let its name end in .parquet"),
        ("--raster scene.tif --out {out}/a.parquet", "--raster needs --size-m, the side of a tile in metres"),
        (
            "--raster scene.tif --size-m 320 --split test --out {out}/a.parquet",
            "--split does not go with --raster",
        ),
        ("--data places.csv --size-m 320 --out {out}/a.parquet", "--size-m does not go with --data"),
        ("pictures/0.png --shard 0/2 --out {out}/a.npy", "--shard does not go with INPUTS"),
        (
            "--raster scene.tif --size-m 320 --shard 2/2 --out {out}/a.parquet",
            "--shard 2/2: write I/N, counted from 0",
        ),
        (
            "--raster scene.tif --size-m 320 --bands a --out {out}/a.parquet",
            "--bands a: write numbers with commas",
        ),
        (
            "--raster scene.tif --size-m 320 --stride-m 9 --grid majortom:1km --out {out}/a.parquet",
            "--stride-m does not go with --grid majortom:1km",
        ),
        (
            "--raster scene.tif --size-m -3 --out {out}/a.parquet",
            "'--size-m': -3.0 is not in the range x>=0.001",
        ),
        (
            "--raster scene.tif --size-m 320 --min-valid 2 --out {out}/a.parquet",
            "'--min-valid': 2.0 is not in the range 0<=x<=1",
        ),
        ("--data none.csv --out {out}/a.parquet", "none.csv: no such file"),
        (
            "--data places.csv --pattern *.png --out {out}/a.parquet",
            "--pattern *.png: places.csv is no folder of files",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_model_is_loaded(call, monkeypatch, words, message):
    if "none.csv" not in words:
        monkeypatch.setattr("geobind.binder.Binder.from_pretrained", None)
    refused = call(f"embed bundle ground_image {words}")
    assert refused.exit_code == 2 and message in refused.output, refused.output


def test_info_and_check_read_an_archive(call, tmp_path):
    call(f"{TILES} --out {{out}}/a.parquet")
    shown = call("archive info {out}/a.parquet").output
    assert "36 x 16 float16" in shown and "grid: 6 x 6 tiles of 320 m every 160 m, EPSG:32631" in shown
    assert "embedded: 'ground_image' of binder, model" in shown and "from scene.tif" in shown
    facts = json.loads(call("archive info {out}/a.parquet --json").output)
    assert facts["rows"] == 36 and facts["grid"]["crs"] == "EPSG:32631" and len(facts["bounds"]) == 4
    assert "36 rows, none of them faulty" in call("archive check {out}/a.parquet --bundle bundle").output
    other = call("archive check {out}/a.parquet --bundle other")
    assert other.exit_code == 2 and "embedded by another model (binder)" in other.output
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    column = group.column(group.num_columns - 1)
    content[column.data_page_offset + column.total_compressed_size - 9] ^= 1
    (tmp_path / "a.parquet").write_bytes(content)
    damaged = call("archive check {out}/a.parquet")
    assert damaged.exit_code == 2 and "damaged" in damaged.output


def test_parts_without_their_archive_are_pointed_to(call):
    call(f"{TILES} --out {{out}}/a.parquet --shard 0/1")
    missing = call("archive info {out}/a.parquet")
    assert missing.exit_code == 2 and re.search(
        r"no such file; .*a.parts has parts of it: geobind archive merge", missing.output
    )
    none = call("archive merge {out}/b.parquet")
    assert none.exit_code == 2 and "has no parts of b.parquet" in none.output


def test_files_are_embedded_where_and_how_the_options_say(call, tmp_path):
    files = "pictures/0.png pictures/1.png pictures/2.png"
    done = call(
        f"embed bundle ground_image {files} --out {{out}}/low.npy --precision bfloat16 --workers 2 --json"
    )
    assert done.exit_code == 0, done.output
    choice = json.loads(done.stdout)["precision"]["ground_image"]
    assert choice["dtype"] == "bfloat16" and choice["rows"] == 3 and 0.99 < choice["cosine"] <= 1
    assert "ground_image: bfloat16 (as asked); least cosine to float32 of 3 rows" in done.stderr
    call(f"embed bundle ground_image {files} --out {{out}}/exact.npy --device cpu")
    low, exact = np.load(tmp_path / "low.npy"), np.load(tmp_path / "exact.npy")
    assert (low * exact).sum(1).min() == pytest.approx(choice["cosine"], abs=1e-5)


def test_a_device_that_is_not_there_is_named(call):
    done = call("embed bundle ground_image pictures/0.png --out {out}/a.npy --device cuda:7")
    assert done.exit_code == 2 and "error: no device 'cuda:7' here" in done.output


def test_info_says_what_type_an_archive_was_computed_in(call):
    made = call("embed bundle ground_image --data pictures --out {out}/a.parquet --precision bfloat16")
    assert made.exit_code == 0, made.output
    assert re.search(
        r"computed: in bfloat16, least cosine to float32 0\.9\d", call("archive info {out}/a.parquet").output
    )
