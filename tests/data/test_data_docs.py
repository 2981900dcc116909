"""docs/data.md is true: its blocks and commands run, from top to bottom."""

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from geobind.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def write_file(example):
    """Write a block that begins with its name, such as `# sounds.yaml`; others are only shown."""
    first = example.parsed.partition("\n")[0].split()
    if len(first) == 2 and first[0] == "#" and first[1].endswith(".yaml"):
        Path(first[1]).write_text(example.parsed)


def run_commands(example):
    for line in example.parsed.splitlines():
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "geobind"
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # rasterio's own
def test_every_block_of_the_page_on_data_runs(tmp_path, monkeypatch):
    pytest.importorskip("rasterio")
    monkeypatch.chdir(tmp_path)
    parsers = [
        PythonCodeBlockParser(),
        CodeBlockParser("yaml", write_file),
        CodeBlockParser("console", run_commands),
    ]
    for example in Sybil(parsers).parse(PAGE).examples():
        example.evaluate()
