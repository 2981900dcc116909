"""Progress of work that takes longer than a second: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from geobind.utils.formatting import format_duration
from geobind.utils.logs import is_quiet, rank_zero_logger

if TYPE_CHECKING:
    from rich.progress import Progress

_log = rank_zero_logger(__name__)

T = TypeVar("T")
PATIENCE = 1.0  # seconds before a bar appears
PLAIN_EVERY = 10.0  # seconds between lines where no terminal is


def is_interactive() -> bool:
    """Return whether a person sees standard error and wants progress."""
    return sys.stderr.isatty() and not is_quiet()


def make_bar(*columns: str) -> Progress:
    """Make a progress bar on standard error: title, bar, count, time left, then the given text columns."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *(TextColumn(f"{{task.fields[{column}]}}") for column in columns),
        console=Console(stderr=True, emoji=False),
        transient=True,
    )


def track(items: Iterable[T], title: str, total: int | None = None, show: bool | None = None) -> Iterator[T]:
    """Yield the items, showing progress once the work has taken a second.

    Args:
        items: What to go through.
        title: What is being done.
        total: How many there are, if known.
        show: True shows a bar from the start, False never; default: when a person is watching, and else
            it is logged.
    """
    if show is False:
        yield from items
        return
    if show is None and not is_interactive():
        yield from _log_progress(items, title, total)
        return
    start = time.monotonic()
    with make_bar() as progress:
        task = progress.add_task(title, total=total, visible=bool(show))
        for item in items:
            yield item
            progress.update(task, advance=1, visible=bool(show) or time.monotonic() - start > PATIENCE)


def _log_progress(items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
    """Yield the items, and log how many are done every ten seconds."""
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown < PLAIN_EVERY or done == total:
            continue
        shown = now
        left = "" if total is None else f", {format_duration((now - start) * (total - done) / done)} left"
        _log.info("%s: %s%s%s", title, f"{done:,}", "" if total is None else f" of {total:,}", left)
