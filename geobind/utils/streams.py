"""Standard output, standard error and the process itself, kept whole while code of plugins runs."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn


class Trouble:
    """Side effects of a block of others' code."""

    printed: str = ""  # on standard output
    interrupted: bool = False  # somebody pressed Ctrl-C meanwhile


@contextmanager
def shield_process(trouble: Trouble) -> Generator[None]:
    """Keep the process and its streams whole while a block of others' code runs.

    What the block prints goes nowhere but into `trouble` (what C code prints: to standard error), because
    standard output may be read by a program. Streams that it closes or replaces are there again afterwards.
    `os._exit` raises SystemExit.
    """
    with ExitStack() as stack:
        stack.enter_context(_shield_streams(trouble))
        stack.enter_context(_shield_exit())
        stack.enter_context(_note_interrupts(trouble))
        yield


@contextmanager
def _shield_streams(trouble: Trouble) -> Generator[None]:
    before = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
    saved = {handle: _duplicate(handle) for handle in (1, 2)}
    printed: Any = _Kept()
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    if saved[2] is not None and saved[1] is not None:
        os.dup2(saved[2], 1)
    sys.stdout = sys.__stdout__ = printed
    sys.stderr = sys.__stderr__ = _Open(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__ = before  # pyright: ignore[reportConstantRedefinition]
        trouble.printed = printed.getvalue()
        for handle, copy in saved.items():
            if copy is not None:
                os.dup2(copy, handle)
                os.close(copy)


class _Kept(io.StringIO):
    """Text that stays when the stream is closed."""

    def close(self) -> None:
        """Do nothing."""


class _Open:
    """A stream that cannot be closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def close(self) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _duplicate(handle: int) -> int | None:
    try:
        return os.dup(handle)
    except OSError:  # the process was started without it
        return None


@contextmanager
def _shield_exit() -> Generator[None]:
    exit_process, process = os._exit, os.getpid()

    def refuse(code: int) -> NoReturn:
        if os.getpid() != process:  # a child that was forked ends like this
            exit_process(code)
        raise SystemExit(f"os._exit({code})")

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = exit_process


@contextmanager
def _note_interrupts(trouble: Trouble) -> Generator[None]:
    """Note a true Ctrl-C, which a KeyboardInterrupt that the block itself raises is not."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: Any) -> None:
        trouble.interrupted = True
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
