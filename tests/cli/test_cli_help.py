"""Help of the command line: sections, examples that parse, versions, completion; recipes shown and copied."""

import json
import os
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from geobind import __version__
from geobind.cli import COMMANDS, EXAMPLES, SECTIONS, main


def call(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def list_commands(command, words=()):
    """Every command without commands below it, by its words."""
    if isinstance(command, click.Group):
        with click.Context(command) as ctx:
            for name in command.list_commands(ctx):
                yield from list_commands(command.get_command(ctx, name), (*words, name))
    else:
        yield " ".join(words), command


LEAVES = dict(list_commands(main))


def test_every_command_stands_in_one_section_of_the_help():
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(COMMANDS)
    assert all(f"{title}:" in call("--help").output for title in SECTIONS)


def test_every_command_has_an_example():
    assert LEAVES.keys() <= EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_is_one_that_the_command_takes(name):
    words = shlex.split(EXAMPLES[name].partition(" > ")[0])[1:]
    command, own = main, []
    with click.Context(main) as ctx:
        while isinstance(command, click.Group) and words:
            own.append(words[0])
            command = command.get_command(ctx, words.pop(0))
    assert " ".join(own).startswith(name)
    ctx = click.Context(command, info_name=name)
    values, left, _ = command.make_parser(ctx).parse_args(words)
    assert not left
    needed = {param.name for param in command.params if param.required and (param.nargs != -1 or param.opts)}
    given = {key for key, value in values.items() if value not in (None, (), click.core.UNSET)}
    assert needed <= given


def test_every_command_that_computes_something_prints_json_for_programs():
    # A schema is JSON; a recipe and a template are files; a server runs until it is ended.
    others = {"schema", "recipes show", "recipes copy", "serve", "new modality", "new dataset", "new recipe"}
    with_json = {name for name, command in LEAVES.items() if any("--json" in p.opts for p in command.params)}
    assert LEAVES.keys() - with_json == others


def test_help_ends_with_the_example():
    assert call("export", "--help").output.rstrip().endswith(f"Example:\n  {'  ' + EXAMPLES['export']}")


def test_whatever_writes_a_file_names_it_by_o_and_out():
    for name, command in LEAVES.items():
        for param in command.params:
            assert ("--out" in param.opts) == ("-o" in param.opts), name


def test_versions_are_printed_without_importing_torch():
    code = "import sys; from geobind.cli import main; main(['--version'], standalone_mode=False)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"geobind {__version__}"
    assert lines[1].startswith("torch ")
    assert any(line.startswith("Python 3.") for line in lines)


def test_shells_complete_the_names_of_commands():
    environment = {
        **os.environ,
        "_GEOBIND_COMPLETE": "bash_complete",
        "COMP_WORDS": "geobind ex",
        "COMP_CWORD": "1",
    }
    code = "from geobind.cli import main; main(prog_name='geobind')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split(",")[1].strip() == "export"


def test_a_shipped_recipe_is_shown_whole_and_copied_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = call("recipes", "show", "three_modal")
    assert shown.output.startswith("# Bind text")
    assert call("recipes", "copy", "three_modal").exit_code == 0
    assert (tmp_path / "three_modal.yaml").read_text() == shown.output
    again = call("recipes", "copy", "three_modal")
    assert again.exit_code == 2
    assert "three_modal.yaml: is there already" in again.output
    assert call("recipes", "copy", "three_modal", "-o", "deep/mine.yaml").exit_code == 0
    assert call("check", "deep/mine.yaml").exit_code == 0


def test_a_recipe_that_does_not_ship_is_answered_with_one_that_does():
    assert "did you mean 'three_modal'?" in call("recipes", "show", "three_model").output
    assert json.loads(call("recipes", "--json").output)["three_modal"]


def test_commands_keep_threads_from_spinning_for_long_unless_the_user_says_otherwise():
    names = ["OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"]
    code = f"import geobind.cli, os; print(*(os.environ[name] for name in {names}))"
    unset = {k: v for k, v in os.environ.items() if k not in names}
    for given, expected in (({}, "1 PASSIVE 3000"), ({"GOMP_SPINCOUNT": "7"}, "1 PASSIVE 7")):
        ran = subprocess.run([sys.executable, "-c", code], env=unset | given, capture_output=True, text=True)
        assert ran.stdout.strip() == expected
