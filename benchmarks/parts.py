"""Parts of a long benchmark, each in a process of its own and within a budget of time.

A part is a series of cases. A case that fails, or for which no time is left, is recorded and the rest goes
on. In a process of its own (`run_apart`) a part may crash, hang or leave an accelerator unusable: it is
ended, what was found until then is kept, and the next part starts afresh.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

GRACE = 10.0  # seconds past its time after which the process of a part is ended
NEEDS_CUDA, NO_TIME = "skipped: needs CUDA", "skipped: no time"


class Setup(NamedTuple):
    """Inputs of all parts."""

    small: bool
    device: str  # "cuda" or "cpu"
    folder: Path  # for files that nobody needs afterwards


class Deadline(NamedTuple):
    """A moment by which work must be done."""

    at: float
    clock: Callable[[], float] = time.monotonic

    def left(self) -> float:
        """Return how many seconds are left."""
        return self.at - self.clock()

    def within(self, seconds: float) -> Deadline:
        """Return a deadline that is also no more than so many seconds away."""
        return self._replace(at=min(self.at, self.clock() + seconds))


class Found(NamedTuple):
    """The result of a case: in words for the table, in numbers for the JSON."""

    text: str
    figures: dict[str, Any]


class Case(NamedTuple):
    """One measurement or check."""

    name: str
    run: Callable[[Deadline], Found]
    seconds: float = 1.0  # the least time it needs
    needs_cuda: bool = False


class Part(NamedTuple):
    """A subject, its share of the time in seconds, and what makes its cases."""

    name: str
    seconds: float
    cases: Callable[[Setup], Iterable[Case]]


class Row(NamedTuple):
    """A case after its turn."""

    case: str
    status: str  # "ok", "skipped: why" or "failed: exception and its first line"
    text: str = ""
    figures: dict[str, Any] | None = None
    seconds: float = 0.0


class Result(NamedTuple):
    """A part after its turn."""

    name: str
    status: str
    seconds: float
    budget: float
    rows: list[Row]


class CheckFailed(Exception):
    """Something measured lies outside its bound."""


def check(holds: bool, message: str) -> None:
    """Raise if a bound does not hold.

    Raises:
        CheckFailed: It does not.
    """
    if not holds:
        raise CheckFailed(message)


Add = Callable[[Row], None]
Execute = Callable[[Part, Setup, Deadline, Add], str | None]


def run_parts(
    parts: Iterable[Part],
    setup: Setup,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    execute: Execute | None = None,
    note: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Run parts in order, each within its own budget and all within `seconds`.

    Args:
        parts: What to run.
        setup: What each part's `cases` is called with.
        seconds: The time for all of them.
        clock: Returns seconds.
        execute: Runs one part; default: `run_apart` where processes can fork, else `run_here`.
        note: Called with each result, as soon as there is one.
    """
    execute = execute or (run_apart if hasattr(os, "fork") else run_here)
    end = Deadline(clock() + seconds, clock)
    results: list[Result] = []
    for part in parts:
        rows: list[Row] = []
        begun, left = clock(), end.left()
        if left <= 0:
            status = f"{NO_TIME}: none left of {seconds:.0f} s"
        else:
            fault = execute(part, setup, end.within(part.seconds), rows.append)
            status = fault or status_of(rows)
        results.append(Result(part.name, status, clock() - begun, part.seconds, rows))
        note(results[-1])
    return results


def status_of(rows: list[Row]) -> str:
    """Return the status of a part from those of its cases."""
    failed = [row for row in rows if row.status.startswith("failed")]
    if failed:
        return f"failed: {len(failed)} of {len(rows)}: {', '.join(row.case for row in failed)}"
    if all(row.status.startswith("skipped") for row in rows):
        return rows[0].status if rows else "failed: no cases"
    late = sum(row.status.startswith(NO_TIME) for row in rows)
    return f"ok, but no time for {late} of {len(rows)}" if late else "ok"


def run_here(part: Part, setup: Setup, deadline: Deadline, add: Add) -> None:
    """Run the cases of a part in this process."""
    try:
        for case in part.cases(setup):
            add(_run(case, setup, deadline))
            free_memory()
    except Exception as error:
        add(Row("setting up", failure(error)))


def _run(case: Case, setup: Setup, deadline: Deadline) -> Row:
    if case.needs_cuda and setup.device != "cuda":
        return Row(case.name, NEEDS_CUDA)
    left = max(0.0, deadline.left())
    if left < case.seconds:
        return Row(case.name, f"{NO_TIME}: {left:.0f} s left, needs {case.seconds:.0f}")
    begun = deadline.clock()
    try:
        found, status = case.run(deadline), "ok"
    except Exception as error:
        found, status = Found("", {}), failure(error)
    return Row(case.name, status, found.text, found.figures, deadline.clock() - begun)


def failure(error: BaseException) -> str:
    """Return the status of what raised: the exception's type and its first line."""
    line = str(error).strip().partition("\n")[0]
    return f"failed: {type(error).__name__}" + (f": {line}" if line else "")


def free_memory() -> None:
    """Give memory that an accelerator no longer needs back to it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        with suppress(RuntimeError):  # an accelerator after an illegal access
            torch.cuda.empty_cache()


def run_apart(part: Part, setup: Setup, deadline: Deadline, add: Add) -> str | None:
    """Run the cases of a part in a process of its own, which is ended `GRACE` seconds past the deadline.

    Returns:
        The status of a part whose process did not come to its end, else None.
    """
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(part, setup, deadline, writer))
    process.start()
    writer.close()
    try:
        return _follow(process, reader, deadline, add)
    finally:
        process.kill()
        if process.pid is not None:  # and whatever it has started to load data or to compile
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.join()
        reader.close()


def _follow(process: Any, reader: Connection, deadline: Deadline, add: Add) -> str | None:
    while True:
        ready = wait([reader, process.sentinel], max(0.0, deadline.left() + GRACE))
        if not ready:
            return f"failed: still at work {GRACE:g} s past its time, and ended"
        with suppress(EOFError, OSError):
            if reader.poll():
                row = reader.recv()
                if row is None:
                    return None
                add(row)
                continue
        process.join()
        code = process.exitcode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"failed: its process ended early, by {how}"


def _child(part: Part, setup: Setup, deadline: Deadline, writer: Connection) -> None:
    os.setsid()
    gc.freeze()  # what the parent imported need not be looked through again and again
    # Where it hangs, stderr says at what.
    faulthandler.dump_traceback_later(max(0.1, deadline.left() + GRACE - 1))
    run_here(part, setup, deadline, writer.send)
    writer.send(None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of libraries could hang an ordinary exit
