"""The tutorial is true: its files are those of the third-party plugin, and its blocks and commands run."""

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from geobind.cli import main

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
PLUGIN = ROOT / "tests" / "third_party" / "geobind_thermal"


def write_recipe(example):
    Path("thermal.yaml").write_text(example.parsed)


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
