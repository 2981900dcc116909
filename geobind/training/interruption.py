"""Signal handling, failures with advice, and deterministic algorithms."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import torch
from torch.backends import cudnn

from geobind.data.loader import WorkerDied, is_worker_death
from geobind.errors import DataError, TrainingError
from geobind.training.fabric import Fabric

if TYPE_CHECKING:
    from geobind.recipe import Stage


# Ctrl-C; what kill, SLURM and Kubernetes send before they end a process; what SLURM sends if it is asked to.
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
SIGNALS = tuple(
    int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)
)  # Windows has no SIGUSR1
# One signal can come by two ways: schedulers send it to all processes, and launchers pass it on to theirs.
_REPEAT_SECONDS = 1.0
_NOTICE = b"\nFinishing this step and saving a checkpoint; press again to stop immediately\n"


class Stopped(KeyboardInterrupt):
    """A signal ended a run; finished stages and the last checkpoint are kept.

    Args:
        number: The signal's.
        where: What was interrupted, and what of it is kept; nothing where another process says it.
    """

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(where)
        self.exit_code = 128 + number  # as shells have it


class _Received:
    """The signal that this process received."""

    number = 0  # of the signal; 0: none
    patient = False  # whether somebody looks at the end of each step
    at = 0.0  # when the first came


@contextmanager
def handle_signals() -> Generator[None]:
    """Handle signals as a run does, inside the block.

    Between the steps of a stage a signal is remembered until the step is done; anywhere else, and the
    second time, it raises Stopped where the process is. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is threading.main_thread():
        _Received.number, _Received.patient = 0, False
    with route_signals(_on_signal):
        yield


@contextmanager
def route_signals(handler: Callable[[int, FrameType | None], object]) -> Generator[None]:
    """Route the signals that stop a run to a handler, inside the block and in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)


@contextmanager
def defer_signals(fabric: Fabric, stage: str, every: int) -> Generator[Callable[[int], Stopped | None]]:
    """Defer signals to the end of a step; the block asks whether one came.

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
        number = _Received.number
        if fabric.world_size > 1:
            if (step + 1) % every:
                return None
            heard = torch.tensor(float(number), device=fabric.device)
            number = int(torch.as_tensor(fabric.all_reduce(heard, reduce_op="max")).item())
        if not number:
            return None
        message = (
            f"{_signal_name(number)}: stopped after step {step} of stage '{stage}'; a checkpoint is saved"
        )
        return Stopped(number, message if fabric.is_global_zero else "")

    _Received.patient = True
    try:
        yield asked
    finally:
        _Received.patient = False
    if _Received.number:
        raise Stopped(
            _Received.number, f"{_signal_name(_Received.number)}: stopped after the steps of stage '{stage}'"
        )


def _on_signal(number: int, frame: FrameType | None) -> None:
    first, now = not _Received.number, time.monotonic()
    if number == _Received.number and now - _Received.at < _REPEAT_SECONDS:
        return
    _Received.number = number
    if first:
        _Received.at = now
    if not (first and _Received.patient):
        raise Stopped(number, f"{_signal_name(number)}: stopped immediately")
    with suppress(OSError):
        os.write(2, _NOTICE)  # what is buffered must not be written to from here


def _signal_name(number: int) -> str:
    return signal.Signals(number).name


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate")
_RESUME_HINT = "the last checkpoint is kept; continue from it with --resume"


@contextmanager
def explain_failures(
    stage: Stage, device: torch.device, *, precision: str, workers: int | str
) -> Generator[None]:
    """Replace errors of memory and data loading by ones with advice.

    Raises:
        TrainingError: Memory is full, or a process that loads data died.
        DataError: As it was raised, with the stage's name.
    """
    name = stage.name
    try:
        yield
    except (WorkerDied, RuntimeError, MemoryError) as error:
        # torch tells of a dead process wherever the main one is at that moment, not only where it loads.
        if isinstance(error, WorkerDied) or is_worker_death(error):
            raise TrainingError(f"stage '{name}': {WorkerDied.of(error)}\n  {_RESUME_HINT}") from error
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            _out_of_memory_advice(stage, device, precision, workers, str(error).partition("\n")[0])
        ) from error
    except DataError as error:
        raise DataError(f"stage '{name}': {error}") from error


def _is_out_of_memory(error: Exception) -> bool:
    message = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        word in message for word in _OUT_OF_MEMORY
    )


def _out_of_memory_advice(
    stage: Stage, device: torch.device, precision: str, workers: int | str, reason: str
) -> str:
    fixes = [
        f"embed fewer rows at a time: `chunk: {_halve_chunk(stage.batch_size, stage.chunk)}`; the result "
        "stays the same"
    ]
    if device.type != "cpu" and precision.startswith("32"):
        fixes.append("compute in half precision: `precision: bf16-mixed`")
    if device.type == "cpu" and workers != 0:
        fixes.append(f"use fewer processes that load data: `workers` is {workers}")
    fixes.append(f"a smaller `batch_size` than {stage.batch_size} has fewer negatives; the stage starts anew")
    listed = "".join(f"\n  - {fix}" for fix in fixes)
    where = "the machine" if device.type == "cpu" else f"the accelerator ({device})"
    problem = f"stage '{stage.name}': the memory of {where} is full ({reason})"
    return f"{problem}\n  {_RESUME_HINT}; before that:{listed}"


def _halve_chunk(batch_size: int | str, chunk: int | str | None) -> int | str:
    now = chunk if isinstance(chunk, int) else batch_size
    return max(1, now // 2) if isinstance(now, int) else "N"


_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # without it cuBLAS may take another algorithm each time
_WORKSPACES = (":4096:8", ":16:8")  # those that torch takes for deterministic
_NAMED = re.compile(r"^(.+?) does not have a deterministic implementation")


@contextmanager
def deterministic_algorithms(wanted: bool) -> Generator[None]:
    """Allow only deterministic operations inside the block.

    Args:
        wanted: False does nothing.

    Raises:
        TrainingError: An operation has no deterministic implementation where it runs.
    """
    if not wanted:
        yield
        return
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags, workspace = (cudnn.deterministic, cudnn.benchmark), os.environ.get(_WORKSPACE)
    if workspace not in _WORKSPACES:
        os.environ[_WORKSPACE] = _WORKSPACES[0]
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        fault = _nondeterminism_advice(str(error))
        if fault is None:
            raise
        raise TrainingError(fault) from error
    finally:
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = workspace


def _nondeterminism_advice(message: str) -> str | None:
    """Return advice on an operation that is not deterministic; None for other errors."""
    named = _NAMED.match(message)
    if named:
        return (
            f"fabric.deterministic: the operation {named[1]} has no deterministic implementation on this "
            f"device; use an encoder or an option that does without it, run on a CPU "
            f"(fabric.accelerator: cpu), or drop `deterministic`"
        )
    if "CuBLAS" in message and _WORKSPACE in message:
        return (
            f"fabric.deterministic: CUDA was in use in this process before {_WORKSPACE} was set; start the "
            f"program with {_WORKSPACE}={_WORKSPACES[0]} in its environment"
        )
    return None
