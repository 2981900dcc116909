"""Signals that ask a run to stop: it saves a checkpoint at the end of its step, and says how to go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

import torch
from lightning_fabric import Fabric

# Ctrl-C; what kill, SLURM and Kubernetes send before they end a process; what SLURM sends if it is asked to.
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
SIGNALS = tuple(
    int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)
)  # Windows has no SIGUSR1
# One signal can come by two ways: schedulers send it to all processes, and launchers pass it on to theirs.
_TWICE_SECONDS = 1.0
_HEARD = b"\nstopping after this step, with a checkpoint; once more stops at once\n"


class Stopped(KeyboardInterrupt):
    """A signal has ended a run; what is finished and the last checkpoint are kept.

    Args:
        number: The signal's.
        where: What was interrupted, and what of it is kept; nothing where another process says it.
    """

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(where)
        self.exit_code = 128 + number  # as shells have it


class _Heard:
    """What signals have asked of this process."""

    number = 0  # of the signal; 0: none
    patient = False  # whether somebody looks at the end of each step
    at = 0.0  # when the first came


@contextmanager
def listening() -> Generator[None]:
    """Answer signals as a run does, while the block lasts.

    Between the steps of a stage a signal is remembered until the step is done; anywhere else, and the
    second time, it raises Stopped where the process is. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
    _Heard.number, _Heard.patient = 0, False
    for number in SIGNALS:
        before[number] = signal.signal(number, _hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def between_steps(fabric: Fabric, stage: str, every: int) -> Generator[Callable[[int], Stopped | None]]:
    """Let signals wait for the end of a step; the block asks whether there was one.

    Args:
        fabric: Where the stage runs. Its processes must leave their loops after the same step, so they ask
            each other.
        stage: Its name.
        every: Steps after which they do: it waits for the device.

    Yields:
        A function of the step that was just taken: what to raise after a checkpoint, None to go on.

    Raises:
        Stopped: A signal came when the last step was over.
    """

    def asked(step: int) -> Stopped | None:
        number = _Heard.number
        if fabric.world_size > 1:
            if (step + 1) % every:
                return None
            heard = torch.tensor(float(number), device=fabric.device)
            number = int(torch.as_tensor(fabric.all_reduce(heard, reduce_op="max")).item())
        if not number:
            return None
        told = f"{_name(number)}: stopped after step {step} of stage '{stage}'; a checkpoint is saved"
        return Stopped(number, told if fabric.is_global_zero else "")

    _Heard.patient = True
    try:
        yield asked
    finally:
        _Heard.patient = False
    if _Heard.number:
        raise Stopped(_Heard.number, f"{_name(_Heard.number)}: stopped after the steps of stage '{stage}'")


def _hear(number: int, frame: FrameType | None) -> None:
    first, now = not _Heard.number, time.monotonic()
    if number == _Heard.number and now - _Heard.at < _TWICE_SECONDS:
        return
    _Heard.number = number
    if first:
        _Heard.at = now
    if not (first and _Heard.patient):
        raise Stopped(number, f"{_name(number)}: stopped at once")
    with suppress(OSError):
        os.write(2, _HEARD)  # what is buffered must not be written to from here


def _name(number: int) -> str:
    return signal.Signals(number).name
