"""Whatever a command meets, it ends with one message and an exit code; plugins spoil no output."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from geobind.cli import main
from geobind.errors import DataError


class Odd(BaseException):
    """An error that derives from nothing usual."""


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Call `geobind recipes`, which meets an error."""
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))

    def call(error, *words):
        def meet():
            raise error

        monkeypatch.setattr("geobind.recipe.shipped.list_shipped", meet)
        monkeypatch.setattr("geobind.recipe.list_shipped", meet)
        return CliRunner().invoke(main, [*words, "recipes"])

    return call


@pytest.mark.parametrize(
    "error",
    [
        KeyError("speed"),
        RecursionError("maximum recursion depth exceeded"),
        Odd("who"),
        GeneratorExit(),
        OSError("strange"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        RuntimeError("two\nlines"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unexpected_error_is_one_line_that_names_a_report(call, error, tmp_path):
    result = call(error)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: unexpected {type(error).__name__}")
    (report,) = (tmp_path / "cache" / "bug_reports").iterdir()
    assert str(report) in result.stderr
    text = report.read_text()
    for part in (
        f"what      {type(error).__name__}",
        "command   geobind",
        "torch ",
        "Traceback (most recent",
    ):
        assert part in text


def test_debug_shows_the_traceback_before_or_after_the_name_of_a_command(call):
    assert "Traceback" not in call(KeyError("speed")).stderr
    shown = call(KeyError("speed"), "--debug").stderr
    assert "Traceback (most recent call last)" in shown
    assert "KeyError: 'speed'" in shown
    after = CliRunner().invoke(main, ["recipes", "--debug"])
    assert "Traceback (most recent call last)" in after.stderr
    assert "Traceback" in call(DataError("no such row"), "--debug").stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("no such row"), 2, "error: no such row\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            OSError(28, "No space left on device"),
            1,
            "error: the disk is full: [Errno 28] No space left on device\n",
        ),
        (
            PermissionError(13, "Permission denied", "/data/a"),
            1,
            "error: /data/a: Permission denied (--debug shows the traceback)\n",
        ),
        (MemoryError(), 1, "error: memory is full; free some\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_the_machine_or_its_user_caused_is_said_without_a_report(call, error, code, message, tmp_path):
    result = call(error)
    assert (result.exit_code, result.stderr) == (code, message)
    assert not (tmp_path / "cache").exists()


def test_a_report_that_cannot_be_written_costs_no_message(call, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", "/dev/null/cache")
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/dev/null")
    result = call(KeyError("speed"))
    assert result.stderr == "error: unexpected KeyError: 'speed' (--debug shows the traceback)\n"


def test_old_reports_are_removed(call, tmp_path):
    folder = tmp_path / "cache" / "bug_reports"
    folder.mkdir(parents=True)
    for number in range(30):
        (folder / f"geobind-2020{number:02}.txt").touch()
    call(KeyError("speed"))
    assert len(list(folder.iterdir())) == 20


def test_a_reader_that_closes_the_pipe_ends_a_command_without_a_word():
    command = f"{sys.executable} -m geobind schema | true"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert run.stderr == ""


PLUGIN = """
import os, sys
{at_import}
import geobind

@geobind.hookimpl
def geobind_modalities():
    {in_hook}
    return []
"""
SPOILERS = {
    "prints": "print('hello')",
    "prints through C": "os.write(1, b'hello')",
    "raises BaseException": "raise BaseException('odd')",
    "raises GeneratorExit": "raise GeneratorExit",
    "raises KeyboardInterrupt": "raise KeyboardInterrupt",
    "exits": "sys.exit(0)",
    "exits at once": "os._exit(0)",
    "closes standard output": "sys.stdout.close()",
    "closes the true standard output": "sys.__stdout__.close()",
    "closes the handle": "os.close(1)",
    "closes standard error": "sys.__stderr__.close()",
    "replaces standard output": "sys.stdout = sys.stderr = open(os.devnull, 'w')",
}


@pytest.mark.parametrize("spoiler", SPOILERS)
@pytest.mark.parametrize("place", ["at_import", "in_hook"])
def test_a_plugin_spoils_no_output_of_a_command(publish, spoiler, place):
    code = {"at_import": "", "in_hook": "pass", place: SPOILERS[spoiler]}
    publish("acme-spoiler", PLUGIN.format(**code))
    command = [sys.executable, "-m", "geobind", "modalities", "list", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert run.returncode == 0, run.stderr
    listed = json.loads(run.stdout)
    assert {"satellite", "text"} <= {row["name"] for row in listed["modalities"]}
    if spoiler == "prints" or "raises" in spoiler or "exits" in spoiler:
        warnings = [
            line for line in run.stderr.splitlines() if line.startswith("warning: plugin acme-spoiler 1.0")
        ]
        assert len(warnings) == 1, run.stderr
    assert "Traceback" not in run.stderr


def test_a_true_interrupt_while_a_plugin_is_imported_ends_the_command(publish):
    publish("acme-slow", PLUGIN.format(at_import="os.kill(os.getpid(), 2)", in_hook="pass"))
    # What a shell starts in the background inherits that interrupts are ignored, and so would the command.
    code = "import signal; signal.signal(2, signal.default_int_handler); from geobind.cli import main; main()"
    command = [sys.executable, "-c", code, "modalities", "list"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert (run.returncode, run.stderr) == (130, "interrupted\n")


def test_what_a_class_of_a_plugin_prints_later_is_no_part_of_json(publish, tmp_path):
    source = """
    import geobind

    class Thing(geobind.Modality):
        name = "loud"
        role = "frozen"
        def encoder(self, width, *, pretrained=True): ...
        def prepare(self, raw, *, training=False): ...
        def requires(self):
            print("hello")
            return {}

    @geobind.hookimpl
    def geobind_modalities():
        return [Thing]
    """
    publish("acme-loud", source)
    (tmp_path / "r.yaml").write_text("name: r\nanchor: loud\nmodalities: {loud: {}}\nstages: []\n")
    command = [sys.executable, "-m", "geobind", "check", str(tmp_path / "r.yaml"), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert json.loads(run.stdout)
