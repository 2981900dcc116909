"""Datasets of third parties: installed for real, named in recipes, with mistakes that say where."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from geobind.cli import main
from geobind.data import DataOptions, open_table
from geobind.data import dataset as datasets
from geobind.data.table import count_licences

RECIPE = """\
name: water
width: 8
anchor: satellite
modalities: {satellite: {timm: {model: test_vit, pretrained: false}}, text: {}}
data: {lakes: {count: 20}, columns: {satellite: tile, text: words}}
stages: [{name: one, align: text, train: [satellite], batch_size: 4, epochs: 1}]
"""
COLUMNS = {"satellite": "tile", "text": "words", "facts": "size"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    yield
    datasets.registry.cache_clear()


def call(*words):
    return CliRunner().invoke(main, [*map(str, words)])


def opened(**options):
    return open_table(DataOptions(lakes={"count": 10}, columns=COLUMNS, **options), Path(), [*COLUMNS])


def test_a_third_partys_dataset_is_a_table(lakes):
    table = opened()
    assert (table.name, table.splits, len(opened(limit=4))) == ("lakes", {"test": 2, "train": 8}, 4)
    assert table.samples("satellite")[9].shape == (16, 16, 3)
    assert (table.samples("text")[9], table.labels[9], table.keys[9]) == ("a large lake", "large", "lakes:9")
    assert table.split("test").pairs("satellite", "text")[1].key == "lakes:5"
    assert count_licences(table) == {"CC0-1.0": 10}


def test_a_recipe_with_it_is_right(lakes, tmp_path):
    (tmp_path / "a.yaml").write_text(RECIPE)
    result = call("check", tmp_path / "a.yaml")
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_a_run_on_it_names_it_in_its_report_and_bundle(lakes, tmp_path):
    twice = RECIPE.replace("text: {}", "ground_image: {timm: {model: test_vit, pretrained: false}}")
    twice = twice.replace("text: words", "ground_image: tile").replace("align: text", "align: ground_image")
    (tmp_path / "a.yaml").write_text(twice + "evaluate: {split: test}\n")
    result = call("run", tmp_path / "a.yaml", "--out", tmp_path / "run", "--set", "fabric.accelerator=cpu")
    assert result.exit_code == 0, result.output
    assert "drawn lakes (count 20)" in (tmp_path / "run" / "report.html").read_text()
    card = (tmp_path / "run" / "bundle" / "README.md").read_text()
    assert "| training one | lakes | train | 16 | CC0-1.0 (16) |" in card
    assert "- Navigation: the lakes are drawn." in card
    result = call("eval", tmp_path / "run" / "bundle", "--data", "lakes", "--json")
    assert json.loads(result.stdout)["rows"] == 4


def test_mistakes_in_its_block_are_told_with_their_place(lakes, tmp_path):
    wrong = RECIPE.replace("{count: 20}", "{cuont: 20, side: 2}").replace("width: 8", "wdth: 8")
    (tmp_path / "a.yaml").write_text(wrong)
    result = call("check", tmp_path / "a.yaml")
    assert result.exit_code == 2
    assert "a.yaml:2:1: wdth: unknown key; did you mean 'width'?" in result.output
    assert "a.yaml:5:16: data.lakes.cuont: unknown key; did you mean 'count'?" in result.output
    assert "data.lakes.side: Input should be greater than or equal to 8 (got 2)" in result.output


def test_a_misspelt_dataset_is_an_unknown_key(lakes, tmp_path):
    (tmp_path / "a.yaml").write_text(RECIPE.replace("{lakes:", "{lake:"))
    assert (
        "a.yaml:5:8: data.lake: unknown key; did you mean 'lakes'?"
        in call("check", tmp_path / "a.yaml").output
    )


def test_one_source_is_one_of_all_that_are_installed(lakes):
    for options in ({}, {"lakes": {}, "toyearth": {}}, {"manifest": "a.csv", "lakes": {}}):
        with pytest.raises(
            ValidationError, match="exactly one of `manifest`, `earth`, `lakes` and `toyearth`"
        ):
            DataOptions(**options)
    with pytest.raises(ValidationError, match="drawn lakes has no files"):
        DataOptions(lakes={}, root="a")


def test_a_dataset_that_is_installed_changes_no_dump_of_another_source(lakes):
    assert "lakes" not in DataOptions(manifest="a.csv").model_dump()
    assert "lakes" not in DataOptions(toyearth={}).model_dump()
    dumped = DataOptions(lakes={"count": 3}).model_dump(mode="json")
    assert (dumped["lakes"], dumped["manifest"]) == ({"count": 3, "side": 16}, None)


def test_editors_are_told_its_options_and_modalities_do_not_change(lakes):
    schema = json.loads(call("schema").output)
    keys = schema["$defs"]["DataOptions"]["properties"]
    assert keys["lakes"]["description"] == "lakes that are drawn instead of a manifest"
    assert "how many lakes" in json.dumps(schema)
    assert "lakes" not in call("modalities", "list").output


def test_facts_in_a_vector_have_names(lakes):
    from geobind.evaluation.probing import ProbeSource, read_targets

    source = ProbeSource(DataOptions(lakes={"count": 10}, columns={"satellite": "tile"}), None)
    _, facts = read_targets(source, "test", "satellite", ["size"])
    assert list(facts) == ["radius", "area"]
    assert np.allclose(facts["area"], np.pi * np.square(facts["radius"]))


def test_a_broken_dataset_matters_only_when_it_is_asked_for(publish, tmp_path):
    publish("acme-lakes", "import gdal_of_old")
    datasets.registry.cache_clear()
    assert DataOptions(toyearth={}).source == "toyearth"
    with pytest.raises(ValidationError, match="unknown key; did you mean 'manifest'"):
        DataOptions(manifst="a.csv")
    (tmp_path / "a.yaml").write_text(RECIPE)
    output = call("check", tmp_path / "a.yaml").output
    assert "a.yaml:5:8: data.lakes: unknown key; did you mean 'links'?" in output
    assert (
        "failed to load: acme-lakes 1.0 [lakes]: ModuleNotFoundError: No module named 'gdal_of_old'" in output
    )


def test_what_cannot_be_written_as_files_says_so(lakes, tmp_path, refused):
    dataset = datasets.registry().get("lakes")()
    refused(lambda: dataset.write_files(tmp_path), "lakes: cannot be written")
