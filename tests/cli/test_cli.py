"""The command line: what it prints, how it fails, and what it does not import."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from geobind.cli import COMMANDS, main

RECIPE = """\
name: tiny
width: 16
workers: 0
modalities:
  satellite: {timm: {model: test_vit, pretrained: false}, size: 32}
  ground_image: {timm: {model: test_vit, pretrained: false}, size: 32}
data: {toyearth: {places: 32, held_out: 8, tile_size: 32, photo_size: 32, seconds: 0.25, rate: 4000},
       columns: {satellite: tile, ground_image: photo}}
stages: [{name: one, align: ground_image, train: [satellite], batch_size: 8, steps: 2}]
evaluate: {split: test}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path / "tiny.yaml"


def call(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["modalities", "list"],
        ["modalities", "show", "satellite"],
        ["recipes"],
        ["schema"],
        ["cache", "list"],
    ],
)
def test_what_needs_no_torch_does_not_import_it(words):
    code = f"""
import sys
from geobind.cli import main
try:
    main({words!r})
except SystemExit as stop:
    assert not stop.code, stop.code
assert "torch" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_command_of_the_table_is_there_and_has_help():
    for name in COMMANDS:
        assert call(name, "--help").exit_code == 0, name


def test_modalities_are_listed_with_their_role_and_origin():
    found = json.loads(call("modalities", "list", "--json").output)["modalities"]
    by_name = {row["name"]: row for row in found}
    assert {"satellite", "ground_image", "text", "audio"} <= set(by_name)
    assert by_name["text"]["role"] == "frozen"
    assert by_name["audio"]["distribution"] == "geobind"
    assert "satellite" in call("modalities", "list").output


def test_a_modality_is_shown_with_its_options():
    shown = json.loads(call("modalities", "show", "satellite", "--json").output)
    options = {option["path"]: option for option in shown["options"]}
    assert options["channels"]["default"] == 3
    assert options["timm.model"]["required"]
    assert options["augment.vflip"]["help"]
    assert "timm" in call("modalities", "show", "satellite").output


def test_an_unknown_modality_is_a_mistake_with_a_suggestion():
    result = call("modalities", "show", "satelite")
    assert result.exit_code == 2
    assert "did you mean 'satellite'?" in result.output


def test_a_good_recipe_is_told_as_sentences(recipe):
    result = call("check", recipe)
    assert result.exit_code == 0
    assert "one: align ground_image with satellite, train satellite" in result.output
    told = json.loads(call("check", recipe, "--json").output)
    assert (told["ok"], told["problems"]) == (True, [])
    assert told["stages"] == [
        {
            "name": "one",
            "anchor": "satellite",
            "align": ["ground_image"],
            "train": {"satellite": "full"},
            "pairs": [{"anchor": "satellite", "other": "ground_image", "weight": 1.0}],
            "data": [{"table": "toyearth", "share": 1.0}],
            "warnings": [],
        }
    ]


def test_what_follows_from_several_pairs_and_tables_is_told(recipe):
    sets = ["modalities.audio={timm: {model: test_vit, pretrained: false}}", "stages.0.pairs=all"]
    sets += ["stages.0.align=[ground_image, audio]", "stages.0.weights={audio: 0.5}", "stages.0.mix=rows"]
    sets += ["stages.0.data=[{toyearth: {seed: 1}, weight: 3}, {toyearth: {seed: 2}, weight: 1}]"]
    words = [word for change in sets for word in ("--set", change)]
    said = call("check", recipe, *words).output
    assert "one: align satellite, ground_image and audio with each other, train satellite" in said
    assert "pairs: satellite-ground_image, satellite-audio (weight 0.5); each has its own temp" in said
    assert "data: toyearth 75%, toyearth 25%; each batch from all of them" in said
    (stage,) = json.loads(call("check", recipe, *words, "--json").output)["stages"]
    assert [pair["weight"] for pair in stage["pairs"]] == [1.0, 0.5]
    assert [table["share"] for table in stage["data"]] == [0.75, 0.25]


def test_mistakes_are_printed_with_their_place_and_end_with_exit_code_2(recipe):
    result = call("check", recipe, "--set", "stages.0.epocs=3")
    assert result.exit_code == 2
    assert "error: --set stages.0.epocs: stages.0.epocs: unknown key; did you mean 'epochs'?" in result.output
    told = json.loads(call("check", recipe, "--set", "stages.0.epocs=3", "--json").output)
    assert not told["ok"]
    assert told["problems"][0]["path"] == "stages.0.epocs"


def test_the_schema_knows_every_modality_and_accepts_the_shipped_recipes():
    schema = json.loads(call("schema").output)
    entries = schema["properties"]["modalities"]["properties"]
    assert {"satellite", "audio"} <= set(entries)
    assert "role" in entries["satellite"]["anyOf"][0]["properties"]


def test_shipped_recipes_are_listed_with_what_they_are_for():
    assert "three_modal" in call("recipes").output
    assert json.loads(call("recipes", "--json").output)["three_modal"].startswith("Bind text")


@pytest.mark.slow
def test_a_run_ends_with_a_table_and_a_bundle_that_embeds_from_the_command_line(recipe, tmp_path):
    result = call("run", recipe, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "satellite to ground_image" in result.output
    told = json.loads(call("run", recipe, "--out", tmp_path / "other", "--json").stdout)
    assert told["bundle"] == str(tmp_path / "other" / "bundle")
    assert told["retrieval"]["rows"][0]["query"] == "satellite"
    assert (tmp_path / "run" / "bundle" / "binder.json").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    assert f"report: {tmp_path / 'run' / 'report.html'}" in result.output
    again = call("run", recipe, "--out", tmp_path / "run")
    assert again.exit_code == 2
    assert "holds a run already" in again.output

    told = call("toyearth", tmp_path / "earth", "--places", 2, "--held-out", 0, "--json").stdout
    assert json.loads(told)["manifest"] == str(tmp_path / "earth" / "manifest.csv")
    tiles = sorted((tmp_path / "earth").rglob("*tile*/*.png")) or sorted((tmp_path / "earth").rglob("*.png"))
    bundle = tmp_path / "run" / "bundle"
    embedded = call("embed", bundle, "satellite", *tiles[:2], "--out", tmp_path / "e.npy")
    assert embedded.exit_code == 0, embedded.output
    rows = np.load(tmp_path / "e.npy", allow_pickle=False)
    assert rows.shape == (2, 16)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    words = ["embed", bundle, "satellite", tiles[0], "-o", tmp_path / "one.npy", "--json"]
    assert json.loads(call(*words).stdout)["rows"] == 1


def test_a_file_that_is_not_there_is_named(recipe, tmp_path):
    call("run", recipe, "--out", tmp_path / "run")
    result = call("embed", tmp_path / "run" / "bundle", "satellite", "none.png", "--out", tmp_path / "e.npy")
    assert result.exit_code == 2
    assert "none.png" in result.output
    assert not (tmp_path / "e.npy").exists()
