"""Logging of the command line and of the library."""

import logging
import subprocess
import sys

import pytest
from click.testing import CliRunner

from geobind.cli import main
from geobind.utils import logs
from geobind.utils.progress import is_interactive

ours, theirs = logging.getLogger("geobind.training.run"), logging.getLogger("another.library")


@pytest.fixture
def speak(monkeypatch):
    """Make `geobind recipes` log a line at each level, and return a function that runs it with options."""
    from geobind import recipe

    def shipped():
        ours.debug("a detail")
        ours.info("one: step 1/%d", 9)
        ours.warning("stage '%s': leaks", "one")
        logging.getLogger("geobind_thermal").info("a plugin's line")
        theirs.info("their line")
        theirs.warning("their warning")
        return {}

    monkeypatch.setattr(recipe, "list_shipped", shipped)

    def run(*words):
        done = CliRunner().invoke(main, [*words])
        assert done.exit_code == 0, done.output
        return done.stderr.splitlines()

    return run


def test_lines_are_plain_and_warnings_bear_their_name(speak):
    lines = ["one: step 1/9", "warning: stage 'one': leaks", "a plugin's line", "their warning"]
    assert speak("recipes") == lines


@pytest.mark.parametrize("words", [("--quiet", "recipes"), ("recipes", "--quiet"), ("recipes", "-q")])
def test_quiet_leaves_warnings(speak, words):
    assert speak(*words) == ["warning: stage 'one': leaks", "their warning"]


@pytest.mark.parametrize("words", [("--verbose", "recipes"), ("recipes", "-v")])
def test_verbose_adds_details_with_time_and_module(speak, words):
    lines = speak(*words)
    assert len(lines) == 6
    assert lines[0].startswith("debug: ") and lines[0].endswith(" geobind.training.run: a detail")
    assert any(line.endswith(" another.library: their line") for line in lines)


def test_quiet_and_verbose_exclude_each_other():
    done = CliRunner().invoke(main, ["-q", "-v", "recipes"])
    assert done.exit_code == 2 and "--quiet and --verbose exclude each other" in done.output


@pytest.mark.parametrize("command", ["run", "data", "cache"])
def test_help_of_every_command_names_both_options(command):
    words = [command, "list", "--help"] if command == "cache" else [command, "--help"]
    words = [command, "pack", "--help"] if command == "data" else words
    assert {"--quiet", "--verbose"} <= set(CliRunner().invoke(main, words).output.split())


def test_a_command_leaves_levels_and_handlers_as_they_were(speak):
    root, own = logging.getLogger(), logging.getLogger("geobind")
    before = root.level, own.level, list(root.handlers)
    speak("-v", "recipes")
    assert (root.level, own.level, list(root.handlers)) == before


@pytest.mark.parametrize(
    ("level", "options"), [(logging.WARNING, ["--quiet"]), (logging.INFO, []), (logging.DEBUG, ["--verbose"])]
)
def test_processes_that_a_command_starts_get_its_level(level, options):
    with logs.log_to_stderr(level):
        assert logs.level_options() == options
    assert logs.level_options() == []


def test_only_rank_zero_passes_what_all_ranks_say(caplog):
    logger = logs.rank_zero_logger("geobind.test_rank_zero")
    try:
        for rank in (0, 1):
            logs.set_rank(rank)
            logger.warning("from %d", rank)
    finally:
        logs.set_rank(0)
    assert caplog.messages == ["from 0"]


def test_quiet_hides_progress_bars(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert is_interactive()
    with logs.log_to_stderr(logging.WARNING):
        assert not is_interactive()


def test_a_standard_error_that_cannot_be_written_ends_nothing(monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

    with logs.log_to_stderr():
        monkeypatch.setattr(sys, "stderr", Full())
        ours.info("lost")


@pytest.mark.parametrize(
    ("setup", "printed"),
    [
        ("", "leaks\n"),
        ("logging.getLogger('geobind').setLevel(logging.ERROR)", ""),
        ("logging.basicConfig(level='INFO', format='%(message)s')", "step\nleaks\n"),
        ("logging.basicConfig(level='INFO', format='%(message)s', filename='/dev/null')", ""),
    ],
    ids=["nothing configured", "silenced", "raised", "redirected"],
)
def test_a_program_decides_what_the_library_prints(setup, printed):
    code = f"import logging, geobind\n{setup}\nlog = logging.getLogger('geobind.training.run')\n"
    code += "log.info('step'); log.warning('leaks')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == printed
