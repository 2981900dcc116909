"""The tutorial is true: its files are those of the third-party plugin, and its blocks and commands run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

import geobind
from geobind import plugins
from geobind.cli import main

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
PLUGIN = ROOT / "tests" / "third_party" / "geobind_thermal"


def write_recipe(example):
    name = re.match(r"name: (\w+)", example.parsed)[1]
    Path(f"{name}.yaml").write_text(example.parsed)


def run_commands(example):
    """Run each `$ geobind` line; what stands below it, if anything, is its output."""
    for block in example.parsed.removeprefix("$ ").split("\n$ "):
        command, _, expected = block.partition("\n")
        if command.startswith("pip"):
            continue  # a fixture has installed it
        program, *arguments = shlex.split(command)
        assert program == "geobind"
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert expected.strip() in ("", result.output.strip())


@pytest.mark.parametrize("file", ["geobind_thermal.py", "pyproject.toml", "tests/test_geobind_thermal.py"])
def test_the_tutorial_shows_each_file_as_it_is(file):
    assert f"\n{(PLUGIN / file).read_text()}```\n" in TUTORIAL.read_text()


def test_every_block_of_the_tutorial_runs(thermal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    parsers = [
        PythonCodeBlockParser(),
        CodeBlockParser("yaml", write_recipe),
        CodeBlockParser("console", run_commands),
    ]
    for example in Sybil(parsers).parse(TUTORIAL).examples():
        example.evaluate()


def test_the_commands_for_numbers_of_a_table_search_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    text = TUTORIAL.read_text().partition("## Numbers of a table")[2].partition("## Your own class")[0]
    recipe, commands = re.findall(r"```(?:yaml|sh)\n(.*?)```", text, re.DOTALL)
    Path("soil.yaml").write_text(recipe)
    random, rows = np.random.default_rng(0), ["id,split,latitude,longitude,tile,ph,sand,clay"]
    Path("tiles").mkdir()
    for place in range(80):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8)).save(f"tiles/{place}.png")
        where = f"{place},{'train' if place < 64 else 'test'},{place / 2},{place},tiles/{place}.png"
        rows.append(f"{where},{random.normal(6.4, 1.1):.2f},{'' if place == 3 else place},{80 - place}")
    Path("places.csv").write_text("\n".join(rows))

    assert CliRunner().invoke(main, ["new", "modality", "soil", "--numbers"]).exit_code == 0
    geobind.register(Path("geobind-modality-soil/geobind_modality_soil.py"))
    try:
        for command in commands.splitlines():
            program, *arguments = shlex.split(command)
            if arguments[0] == "run":
                arguments += ["--set", "stages.0.epochs=1", "--set", "workers=0"]
            if arguments[0] != "serve":
                result = CliRunner().invoke(main, arguments, catch_exceptions=False)
                assert (program, result.exit_code) == ("geobind", 0), result.output
    finally:
        plugins.registry.cache_clear()
    assert Path("hits.html").read_text().count("data:image/") == 20
