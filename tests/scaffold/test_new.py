"""`geobind new`: what it writes installs, keeps the contract and runs; what it cannot write is one error."""

import os
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import CliRunner
from PIL import Image

import geobind
from geobind import load_recipe, plugins
from geobind.cli import main
from geobind.scaffold.writing import list_recipe_templates

KINDS = [("modality", []), ("modality", ["--numbers"]), ("dataset", [])]
SMALL = ("stages.0.epochs=1", "stages.0.batch_size=8", "workers=0", "fabric.accelerator=cpu")


def new(*words):
    return CliRunner().invoke(main, ["new", *map(str, words)])


def installed(project, site):
    """Install as pip does: build the wheel, unpack it, where a process of its own finds it."""
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, site], cwd=project, check=True, capture_output=True)
    (wheel,) = site.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    cache = {"GEOBIND_CACHE": str(site / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    return {
        **os.environ,
        **cache,
        "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_new_package_installs_passes_its_tests_and_runs(kind, options, tmp_path):
    assert new(kind, "soil_water", *options, "--into", tmp_path).exit_code == 0
    project = tmp_path / f"geobind-{kind}-soil-water"
    (tmp_path / "site").mkdir()
    env = installed(project, tmp_path / "site")
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    tests = subprocess.run(pytest_run, cwd=project, env=env, capture_output=True, text=True)
    assert tests.returncode == 0, tests.stdout[-3000:]
    command = [sys.executable, "-m", "geobind", "run", "recipe.yaml", "--set", "stages.0.epochs=1"]
    run = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert (project / "runs/soil_water/bundle/binder.json").is_file()


def test_a_new_package_has_no_gap_left_and_follows_the_one_rule_of_names(tmp_path):
    for number, (kind, options) in enumerate(KINDS):
        into = tmp_path / str(number)
        assert new(kind, "soil_water", *options, "--into", into).exit_code == 0
        files = [file for file in (into / f"geobind-{kind}-soil-water").rglob("*") if file.is_file()]
        assert {file.name for file in files} == {
            "LICENSE",
            "README.md",
            "pyproject.toml",
            "recipe.yaml",
            f"geobind_{kind}_soil_water.py",
            f"test_geobind_{kind}_soil_water.py",
        }
        for file in files:
            text = file.read_text()
            assert "$" not in text, file
            if file.suffix == ".py":
                compile(text, file.name, "exec")
        pyproject = (into / f"geobind-{kind}-soil-water" / "pyproject.toml").read_text()
        assert f'name = "geobind-{kind}-soil-water"' in pyproject
        assert f'soil_water = "geobind_{kind}_soil_water"' in pyproject


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("modality", "satellite"), "'satellite' is taken: geobind 0.1.0 [satellite] provides it"),
        (("modality", "lat"), "'lat' is taken: it is a word of tables and recipes"),
        (("dataset", "toyearth"), "'toyearth' is taken: geobind 0.1.0 [toyearth] provides it"),
        (("dataset", "manifest"), "'manifest' is taken: it is a word of tables and recipes"),
        (("modality", "soil-water"), "'soil-water' cannot be the name of a modality: lower-case letters"),
        (("modality", "2soils"), "'2soils' cannot be the name"),
        (("modality", "../../etc"), "'../../etc' cannot be the name"),
        (("modality", "class"), "'class' cannot be the name"),
        (("modality", "s" * 41), "cannot be the name"),
        (("modality", ""), "'' cannot be the name"),
        (
            ("recipe", "photo_and_tiles"),
            "'photo_and_tiles' of a recipe; did you mean 'photos_and_tiles'?",
        ),
        (("recipe", "photos_and_tiles", "-o", "mine.txt"), "mine.txt: must end in .yaml"),
        (
            ("recipe", "photos_and_tiles", "-o", "gone/mine.yaml"),
            "gone/mine.yaml: cannot be written: No such",
        ),
    ],
)
def test_what_cannot_be_begun_is_one_error_and_leaves_nothing(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = new(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, file = tmp_path / "geobind-modality-bog", tmp_path / "photos_and_tiles.yaml"
    folder.mkdir()
    file.write_text("mine")
    assert "geobind-modality-bog: is there already" in new("modality", "bog").output
    assert "photos_and_tiles.yaml: is there already" in new("recipe", "photos_and_tiles").output
    assert list(folder.iterdir()) == []
    assert file.read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    result = new("modality", "bog", "--into", tmp_path / "file" / "deeper")
    assert result.exit_code == 2 and "cannot be written" in result.output


def test_templates_of_recipes_are_listed_each_with_a_line():
    result = new("recipe")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == [*list_recipe_templates()]


def image(seed, side):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def split_of(place):
    return "train" if place < 16 else "test"


def write_photos(folder, places=24):
    for name in ("tiles", "photos"):
        (folder / name).mkdir()
    lines = ["tile,photo,lat,lon,split"]
    for i in range(places):
        image(i, 40).save(folder / f"tiles/{i}.png")
        image(100 + i, 40).save(folder / f"photos/{i}.jpg")
        lines.append(f"tiles/{i}.png,photos/{i}.jpg,{i},{i},{split_of(i)}")
    (folder / "places.csv").write_text("\n".join(lines))


def write_bundle(folder, places=24):
    satellite = plugins.registry().get("satellite")(
        timm={"model": "test_resnet", "pretrained": False}, size=32
    )
    geobind.Binder({"satellite": satellite}, 16, seed=0).save(folder / "published")
    for name in ("tiles", "sounds"):
        (folder / name).mkdir()
    lines = ["sound,tile,lat,lon,split"]
    for i in range(places):
        image(i, 40).save(folder / f"tiles/{i}.png")
        soundfile.write(folder / f"sounds/{i}.wav", np.random.default_rng(i).normal(0, 0.1, 16_000), 16_000)
        lines.append(f"sounds/{i}.wav,tiles/{i}.png,{i},{i},{split_of(i)}")
    (folder / "sounds.csv").write_text("\n".join(lines))


def write_sounds(folder, places=24):
    rasterio = pytest.importorskip("rasterio")
    (folder / "sounds").mkdir()
    lines = ["sound,lat,lon,split"]
    for i in range(places):
        noise = np.random.default_rng(i).normal(0, 0.1, 32_000)
        soundfile.write(folder / f"sounds/{i}.wav", noise, 16_000)
        lines.append(f"sounds/{i}.wav,{48 + 0.01 * (i % 5)},{11 + 0.01 * (i // 5)},{split_of(i)}")
    (folder / "sounds.csv").write_text("\n".join(lines))
    pixels = np.random.default_rng(0).integers(0, 3000, (3, 300, 300), dtype=np.uint16)
    transform = rasterio.transform.from_bounds(10.9, 47.9, 11.15, 48.15, 300, 300)
    with rasterio.open(
        folder / "scene.tif", "w", driver="GTiff", width=300, height=300, count=3, dtype="uint16",
        crs="EPSG:4326", transform=transform,
    ) as scene:  # fmt: skip
        scene.write(pixels)


def write_vectors(folder, places=24):
    (folder / "photos").mkdir()
    for i in range(places):
        image(i, 40).save(folder / f"photos/{i}.jpg")
    columns = {
        "embedding": pa.array(np.random.default_rng(0).normal(size=(places, 64)).astype("f4").tolist()),
        "photo": [f"photos/{i}.jpg" for i in range(places)],
        "split": [split_of(i) for i in range(places)],
    }
    pq.write_table(pa.table(columns), folder / "places.parquet")


CLIP = """{model: {embed_dim: 16, text_cfg: {context_length: 16, width: 16, heads: 2, layers: 1},
vision_cfg: {image_size: 32, layers: 1, width: 16, head_width: 16, patch_size: 16}}, pretrained: false}"""
# What a test changes of a template, beside fewer steps: no download, small networks.
TEMPLATES = {
    "modality_to_bundle": (write_bundle, ["modalities.audio.seconds=1"]),
    "photos_and_tiles": (
        write_photos,
        ["width=16", *(f"modalities.{name}.clip={CLIP}" for name in ("satellite", "ground_image", "text"))],
    ),
    "sounds_to_scene": (write_sounds, ["modalities.audio.seconds=1"]),
    "vectors_as_anchor": (write_vectors, []),
}


def test_every_template_of_a_recipe_is_run_here():
    assert TEMPLATES.keys() == list_recipe_templates().keys()


@pytest.mark.slow
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_of_a_recipe_runs_on_files_as_it_describes_them(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files, changes = TEMPLATES[template]
    write_files(tmp_path)
    assert new("recipe", template, "-o", "mine.yaml").exit_code == 0
    assert "geobind run mine.yaml" in (tmp_path / "mine.yaml").read_text()
    checked = CliRunner().invoke(main, ["check", "mine.yaml"])
    assert checked.exit_code == 0, checked.output
    geobind.run(load_recipe("mine.yaml", [*changes, *SMALL]), tmp_path / "run")
    assert (tmp_path / "run/retrieval.json").is_file()
