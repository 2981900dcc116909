"""Long work tells how far it is, also where no terminal is."""

import io
import logging
import sys

import pytest

from geobind.utils import progress
from geobind.utils.formatting import NBSP
from geobind.utils.progress import track


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Let three seconds pass whenever somebody looks at the clock."""
    now = iter(range(0, 10_000, 3))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))


def test_without_a_terminal_a_line_every_ten_seconds_says_how_much_is_done_and_left(clock, caplog):
    caplog.set_level(logging.INFO, "geobind")
    assert list(track(range(11), "embedding text", 11)) == [*range(11)]
    lines = [message.replace(NBSP, " ") for message in caplog.messages]
    assert lines == ["embedding text: 4 of 11, 21 s left", "embedding text: 8 of 11, 9.0 s left"]


def test_of_an_unknown_number_the_line_says_how_many_are_done(clock, caplog):
    caplog.set_level(logging.INFO, "geobind")
    list(track(iter("abcde"), "reading"))
    assert caplog.messages == ["reading: 4"]


def test_work_that_is_done_soon_or_asked_to_be_silent_logs_nothing(clock, caplog):
    caplog.set_level(logging.INFO, "geobind")
    list(track(range(3), "embedding text", 3))
    list(track(range(90), "embedding text", 90, show=False))
    assert caplog.messages == []


def test_on_a_terminal_there_is_a_bar_and_no_line(clock, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "geobind")
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(track(range(90), "embedding text", 90))
    assert caplog.messages == []
    assert "embedding text" in sys.stderr.getvalue()
