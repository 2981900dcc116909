"""Logging: rank-zero loggers, and the handler through which the command line prints.

Every module logs to `logging.getLogger(__name__)`. geobind configures no logging on import: Python itself
prints warnings, and `logging.basicConfig(level="INFO")` adds progress.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress

_PREFIX = {logging.DEBUG: "debug: ", logging.WARNING: "warning: ", logging.ERROR: "error: "}


class RankZeroFilter(logging.Filter):
    """Passes records on rank zero alone."""

    rank = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this process is rank zero."""
        return self.rank == 0


_RANK_ZERO = RankZeroFilter()


def rank_zero_logger(name: str) -> logging.Logger:
    """Return a module's logger whose messages are the same on all ranks and pass on rank zero alone."""
    logger = logging.getLogger(name)
    logger.addFilter(_RANK_ZERO)
    return logger


def set_rank(rank: int) -> None:
    """Set the rank of this process for all rank-zero loggers."""
    _RANK_ZERO.rank = rank


class StderrHandler(logging.Handler):
    """Prints geobind's records, and other libraries' warnings, on standard error.

    Standard error is looked up for each record, so that a progress bar may take its place.
    """

    verbose = False  # whether lines name their time and logger, and other libraries' INFO is shown

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; a full disk or a closed pipe under standard error ends nothing."""
        ours = record.name.startswith("geobind")  # also plugins, which are called geobind_NAME
        if not ours and record.levelno < (logging.INFO if self.verbose else logging.WARNING):
            return
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        prefix = _PREFIX.get(record.levelno, "") if ours or self.verbose else ""
        with suppress(OSError, ValueError):
            print(prefix + line, file=sys.stderr, flush=True)


@contextmanager
def log_to_stderr(level: int = logging.INFO) -> Generator[None]:
    """Print log messages on standard error, as the command line does.

    Args:
        level: The lowest level of geobind's own messages, as for `set_level`.
    """
    handler, root, own = StderrHandler(), logging.getLogger(), logging.getLogger("geobind")
    before = root.level, own.level
    root.addHandler(handler)
    set_level(level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        own.setLevel(before[1])


def set_level(level: int) -> None:
    """Set the lowest level of messages that `log_to_stderr` prints.

    Args:
        level: WARNING is quiet; DEBUG adds times, names, and what other libraries log at INFO.
    """
    root = logging.getLogger()
    root.setLevel(level)  # plugins' loggers are no children of geobind's
    logging.getLogger("geobind").setLevel(level)
    for handler in root.handlers:
        if isinstance(handler, StderrHandler):
            handler.verbose = level <= logging.DEBUG
            names = "%(asctime)s %(name)s: %(message)s"
            handler.setFormatter(logging.Formatter(names, "%H:%M:%S") if handler.verbose else None)


def level_options() -> list[str]:
    """Return the options that give another geobind command the level of this process."""
    level = logging.getLogger("geobind").level
    return ["--quiet"] if is_quiet() else ["--verbose"] if level == logging.DEBUG else []


@contextmanager
def captured() -> Generator[list[str]]:
    """Collect geobind's messages from INFO on, instead of passing them on."""
    messages: list[str] = []
    own, handler = logging.getLogger("geobind"), logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    before = own.handlers, own.level, own.propagate
    own.handlers, own.propagate = [handler], False
    own.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        own.handlers, level, own.propagate = before
        own.setLevel(level)


def is_quiet() -> bool:
    """Return whether geobind's logger is set to warnings only, so that progress bars are unwanted too."""
    return logging.getLogger("geobind").level > logging.INFO
