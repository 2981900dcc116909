"""docs/datasets.md is true: its blocks and commands run, and print what the page says they do."""

import shlex
from pathlib import Path

from click.testing import CliRunner
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from geobind.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"


def run_commands(example):
    first, *commands = f"\n{example.parsed}".split("\n$ geobind ")
    assert not first.strip()
    for command in commands:
        line, _, expected = command.partition("\n")
        result = CliRunner().invoke(main, shlex.split(line), catch_exceptions=False)
        assert result.exit_code == 0, f"{line}\n{result.output}"
        assert not expected.strip() or result.stdout.strip() == expected.strip()


def test_every_block_of_the_page_on_datasets_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parsers = [PythonCodeBlockParser(), CodeBlockParser("console", run_commands)]
    for example in Sybil(parsers).parse(PAGE).examples():
        example.evaluate()
