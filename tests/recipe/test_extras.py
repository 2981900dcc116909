"""Optional packages: a recipe that needs one names it, with its command, before anything is rendered."""

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from geobind import extras, pretrained
from geobind.cli import main
from geobind.errors import DataError
from geobind.importers.registry import build_importer
from geobind.importers.registry import registry as importers
from geobind.plugins import Registry
from geobind.recipe import RecipeProblems, build_recipe, load_recipe

RECIPE = """\
name: wants
modalities:
  satellite: {timm: {model: test_vit, pretrained: false}, size: 32}
  audio: {htsat: {pretrained: false}}
data:
  manifest: rows.csv
  columns: {audio: sound}
  rasters: {satellite: {path: map.tif, size_m: 100}}
loggers: [tensorboard]
stages:
  - {name: one, align: audio, train: {satellite: {part: lora, rank: 4}}, batch_size: 8, steps: 2}
"""
FAULTS = """\
wants.yaml:4:3: modalities.audio: needs transformers, which is not installed: pip install 'geobind[audio]'
wants.yaml:8:3: data.rasters: needs rasterio, which is not installed: pip install 'geobind[geo]'
wants.yaml:8:25: data.rasters.satellite.path: map.tif: no such file
wants.yaml:9:11: loggers.0: logger 'tensorboard' needs tensorboard, which is not installed: \
pip install 'geobind[tensorboard]'
wants.yaml:11:39: stages.0.train.satellite: needs peft, which is not installed: \
pip install 'geobind[adapters]'"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("sound,lat,lon\na.wav,1,2\n")
    Path("wants.yaml").write_text(RECIPE)
    return "wants.yaml"


@pytest.fixture
def bare(monkeypatch):
    """An environment without any of the optional packages."""
    for module in extras.INSTALL:
        monkeypatch.setitem(sys.modules, module, None)


def test_weights_that_no_plugin_offers_are_named_where_they_stand(recipe, monkeypatch):
    none = Registry("pretrained weights", {}, ())
    monkeypatch.setattr(pretrained, "registry", lambda: none)
    path = Path(recipe)
    path.write_text(path.read_text().replace("pretrained: false}, size", "pretrained: package:tiny}, size"))
    found = CliRunner().invoke(main, ["check", recipe])
    assert found.exit_code == 2
    assert (
        "wants.yaml:3:3: modalities.satellite: package:tiny: no plugin that offers weights is installed"
        in found.output
    )


@pytest.mark.parametrize("command", ["check", "run", "plan"])
def test_every_package_that_is_missing_is_named_at_once_with_line_and_command(recipe, bare, command):
    found = CliRunner().invoke(main, [command, recipe])
    assert found.exit_code == 2
    assert found.output == f"error: {FAULTS}\n"
    assert sorted(path.name for path in Path().iterdir()) == ["rows.csv", "wants.yaml"]


@pytest.fixture
def raster(recipe):
    """A raster that covers the recipe's place."""
    rasterio = pytest.importorskip("rasterio")
    grid = rasterio.transform.from_origin(1, 2, 0.1, 0.1)
    profile = {"driver": "GTiff", "count": 3, "height": 20, "width": 20, "dtype": "uint8", "crs": "EPSG:4326"}
    with rasterio.open("map.tif", "w", transform=grid, **profile) as file:
        file.write(np.ones((3, 20, 20), np.uint8))


def test_with_the_packages_the_recipe_is_good(recipe, raster, monkeypatch):
    monkeypatch.setattr(extras, "is_installed", lambda module: True)
    assert load_recipe(recipe).name == "wants"


def test_looking_for_packages_imports_none_of_them(recipe):
    code = f"""
import sys
from geobind.plugins import Registry
from geobind.recipe import RecipeProblems, load_recipe
try:
    load_recipe({recipe!r})
except RecipeProblems:
    pass
found = {{*{[*extras.INSTALL]!r}, "torch"}} & {{*sys.modules}}
assert not found, found
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_option_that_needs_no_package_asks_for_none(recipe, bare):
    timm = ["modalities.audio={timm: {model: test_vit, pretrained: false}}"]
    with pytest.raises(RecipeProblems) as caught:
        load_recipe(recipe, timm)
    assert "transformers" not in str(caught.value)


def test_a_recipe_that_ran_elsewhere_needs_no_package_here(recipe, raster, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(extras, "is_installed", lambda module: True)
        written = load_recipe(recipe).written
    monkeypatch.setattr(extras, "is_installed", lambda module: False)
    assert build_recipe(written, Path(), source="bundle").name == "wants"


def test_a_plugin_names_what_its_options_require(publish, tmp_path, monkeypatch):
    source = """
        from typing import ClassVar
        import geobind

        class Thermal(geobind.Modality):
            name: ClassVar[str] = "thermal_{word}"
            role: ClassVar[str] = "trainable"

            def requires(self):
                {requires}

            def encoder(self, width, *, pretrained=True):
                raise AssertionError("built")

            def prepare(self, raw, *, training=False):
                raise AssertionError("read")

        @geobind.hookimpl
        def geobind_modalities():
            return [Thermal]
    """
    from geobind import plugins

    said = {"good": 'return {"no_such_sdk": "pip install no-such-sdk"}', "bad": 'raise KeyError("sdk")'}
    for word, body in said.items():
        publish(f"acme-{word}", source.replace("{word}", word).replace("{requires}", body))
    plugins.registry.cache_clear()
    monkeypatch.chdir(tmp_path)
    Path("two.yaml").write_text(
        "name: two\nanchor: thermal_good\nmodalities:\n  thermal_good: {}\n  thermal_bad: {}\n"
        "data: {toyearth: {places: 4}}\n"
        "stages: [{name: one, align: thermal_bad, train: [thermal_bad], batch_size: 2, steps: 1}]\n"
    )
    try:
        with pytest.raises(RecipeProblems) as caught:
            load_recipe("two.yaml")
    finally:
        plugins.registry.cache_clear()
    assert str(caught.value).splitlines() == [
        "two.yaml:4:3: modalities.thermal_good: needs no_such_sdk, which is not installed: "
        "pip install no-such-sdk",
        "two.yaml:5:3: modalities.thermal_bad: its plugin fails to name what it requires (KeyError: 'sdk')",
    ]


def test_an_importer_asks_for_its_package_before_it_reads(bare, tmp_path):
    with pytest.raises(DataError, match=r"^cvact needs scipy, .*: pip install 'geobind\[datasets\]'$"):
        build_importer(importers().get("cvact"), [tmp_path], {})


def test_every_extra_is_one_that_geobind_has():
    declared = [line for line in requires("geobind") or [] if "extra ==" in line]
    for module, command in extras.INSTALL.items():
        extra = re.fullmatch(r"pip install 'geobind\[(\w+)\]'", command)[1]
        assert any(
            line.startswith(module) and re.search(rf"extra == ['\"]{extra}['\"]", line) for line in declared
        ), module


def test_an_extra_is_never_named_without_quotes():
    root = Path(extras.__file__).parent.parent
    files = [*root.glob("geobind/**/*.py"), *root.glob("modalities/**/*.py"), *root.glob("docs/*.md")]
    bare = re.compile(r"pip install (-\S+ )*geobind\[")
    assert [file.name for file in files if bare.search(file.read_text(encoding="utf-8"))] == []
