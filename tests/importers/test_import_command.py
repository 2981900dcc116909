"""`geobind import` from the command line, and from there to a stage."""

import json
import os
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from layouts import jpeg, put, recording, table, write_soundingearth

from geobind.cli import main
from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.importers.registry import registry

RECIPE = """
name: listen
width: 32
modalities:
  satellite: {{timm: &small {{model: mobilenetv3_small_050, pretrained: false}}, size: 32}}
  audio: {{timm: *small, seconds: 1}}
{data}
stages: [{{name: listen, align: audio, train: [satellite, audio], batch_size: 4, steps: 1}}]
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda line: CliRunner().invoke(main, shlex.split(line))


@pytest.fixture
def folder(tmp_path):
    return write_soundingearth(tmp_path / "aporee", [recording(1410 + number) for number in range(12)])


def test_importers_are_listed_and_shown(run):
    listed = json.loads(run("import --list --json").stdout)
    assert {item["name"] for item in listed["importers"]} == set(registry().plugins)
    lines = dict(line.split(maxsplit=1) for line in run("import --list").stdout.splitlines())
    assert lines["soundingearth"].startswith("SoundingEarth, 50 k field recordings")
    shown = run("import --show soundingearth").stdout
    for words in (
        "arXiv:2108.00688",
        "Creative Commons",
        "    metadata.csv",
        "split: published | geoclap | psm",
    ):
        assert words in shown
    told = json.loads(run("import --show soundingearth --json").stdout)
    assert told["columns"]["audio"]["kind"] == "file"
    assert [option["path"] for option in told["options"]] == ["split", "overhead", "text"]


def test_an_unknown_dataset_is_told(run):
    done = run("import soundingearths x --out y.parquet")
    assert done.exit_code == 2
    assert "no importer named 'soundingearths'; did you mean 'soundingearth'?" in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import", "name a dataset"),
        ("import sat2cap", "say where sat2cap lies and what to write"),
        ("import sat2cap x", "geobind import sat2cap FOLDER --out sat2cap.parquet"),
        ("import sat2cap x --out a.parquet --option split", "--option split: write KEY=VALUE"),
        ("import sat2cap x --out a.parquet --option a=1 --option a=2", "--option a is given twice"),
        ("import image_folder x --out a.parquet --option gsp=1", "did you mean 'gps'?"),
        (
            "import soundingearth x --out a.parquet --option split=psn",
            "soundingearth: split: Input should be",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_told_with_the_fix(line, message, run):
    done = run(line)
    assert done.exit_code == 2
    assert message in done.stderr


def test_an_import_tells_what_it_did_and_how_to_use_it(run, folder):
    (folder / "raw_audio" / "aporee_1410_1417" / "elbe1410.mp3").unlink()
    done = run("import soundingearth aporee --out se.parquet")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "se.parquet: 12 rows (test 2, train 9, val 1)",
        "  satellite 12, audio 11, text 12",
        f"  files that are not there: 1 of audio; such as {folder}/raw_audio/aporee_1410_1417/elbe1410.mp3",
    ]
    assert lines[-2:] == [
        "data:",
        "  manifest: se.parquet  # relative to the recipe; written for one in this folder",
    ]


def test_from_a_dataset_to_a_stage(run, folder, tmp_path):
    done = run("import soundingearth aporee --out manifests/se.parquet --option split=none")
    assert done.exit_code == 0, done.stderr
    block = done.stdout[done.stdout.index("data:") :]
    assert "  root: aporee\n" in block
    checked = run("data check manifests/se.parquet --root aporee --json")
    assert checked.exit_code == 0, checked.stdout
    assert json.loads(checked.stdout)["broken"] == 0
    (tmp_path / "listen.yaml").write_text(RECIPE.format(data=block))
    assert run("check listen.yaml").exit_code == 0
    options = DataOptions(manifest=Path("manifests/se.parquet"), root=Path("aporee"))
    pairs = open_table(options, Path(), ["satellite", "audio"]).split("train").pairs("satellite", "audio")
    assert len(pairs) == 12
    assert pairs[0].place.lat == 51.0
    assert pairs[0].other == Path("aporee/raw_audio/aporee_1410_1417/elbe1410.mp3")


def test_columns_of_another_name_are_to_be_mapped(run, tmp_path):
    put(tmp_path / "photos" / "a.jpg", jpeg())
    done = run("import image_folder photos --out p.parquet --option column=thermal_image")
    assert (
        "  columns: {MODALITY_1: thermal_image}  # write the modality that reads each column" in done.stdout
    )


def test_a_dataset_of_another_layout_is_told_with_what_was_found(run, tmp_path):
    table(tmp_path / "other" / "list.csv", [{"a": 1}])
    done = run("import soundingearth other --out se.parquet")
    assert done.exit_code == 2
    assert "there is no metadata.csv" in done.stderr
    assert done.stderr.rstrip().endswith("found:\n    list.csv")
    assert not os.path.exists("se.parquet")


def test_a_limit_and_kept_names_reach_the_writer(run, folder):
    done = run("import soundingearth aporee --out se.parquet --limit 3 --missing keep --root . --json")
    told = json.loads(done.stdout)
    assert told["rows"] == 3
    assert told["columns"]["satellite"] == {
        "kind": "file",
        "filled": 3,
        "note": "aerial image, 1024 x 1024 px at about 0.2 m",
    }


def test_the_help_shows_each_example_in_a_line_of_its_own(run):
    lines = [line.strip() for line in run("import --help").stdout.splitlines()]
    assert "geobind import --show NAME" in lines
    assert not any("\\b" in line for line in lines)
