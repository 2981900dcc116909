"""Collectives over ranks, orderly shutdown of process groups, and full tensors of sharded ones."""

# B rows on this rank, R rows of all ranks

from __future__ import annotations

import atexit
import faulthandler
import gc
import os
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from geobind.errors import GeobindError, TrainingError
from geobind.training.fabric import Fabric

T = TypeVar("T")
# A process may evaluate or write for hours while the others wait for it; if it dies, they know at once.
_CONTROL_TIMEOUT = timedelta(days=14)
_REPORTING_RANKS = 2  # the first processes tell of one that is lost: it may be one of them


class Ranks(NamedTuple):
    """The ranks that train together; a call gathers the rows of all, in rank order."""

    all_gather: Callable[..., Any]  # Fabric's
    world: int
    rank: int = 0  # this one's number

    def __call__(self, local_B: Tensor) -> Tensor:
        """Concatenate a tensor (B, ...) of every rank, all of one shape, with gradients."""
        if self.world == 1:
            return local_B
        # Fabric adds a leading rank axis only when there is more than one rank.
        wanted = torch.is_grad_enabled() and local_B.requires_grad
        return self.all_gather(local_B, sync_grads=wanted).flatten(0, 1)

    def own(self, count: int, row_R: Tensor | None = None) -> slice:
        """Return which of all ranks' rows, or of some of them, belong to this rank.

        Args:
            count: Rows of each rank, B.
            row_R: The numbers of some rows of all ranks, in rising order.
        """
        first = self.rank * count
        if row_R is None:
            return slice(first, first + count)
        return slice(int((row_R < first).sum()), int((row_R < first + count).sum()))


def broadcast_object(fabric: Fabric, value: T) -> T:
    """Broadcast a picklable object from rank zero over the CPU (gloo) group."""
    if fabric.world_size == 1:
        return value
    box = [value if fabric.is_global_zero else None]
    dist.broadcast_object_list(box, src=0, group=control_group())
    return box[0]  # pyright: ignore[reportReturnType]


def broadcast_tensor(fabric: Fabric, tensor: Tensor | None, like: Tensor) -> Tensor:
    """Broadcast a full tensor from rank zero, of the shape and type of `like`."""
    if fabric.world_size == 1:
        return torch.empty(like.shape) if tensor is None else tensor
    if tensor is None:
        tensor = torch.empty(like.shape, dtype=like.dtype)
    moved = tensor.to(fabric.device, like.dtype).contiguous()
    dist.broadcast(moved, src=0)
    return moved


def broadcast_tensors(fabric: Fabric, tensors: Iterable[Tensor]) -> None:
    """Copy the values of rank zero into tensors that all ranks hold."""
    if fabric.world_size > 1:
        for tensor in tensors:
            tensor.data.copy_(broadcast_tensor(fabric, tensor.detach(), tensor))


def average_over_ranks(fabric: Fabric, tensors: list[Tensor]) -> None:
    """Average tensors over ranks in place, with one message for each type."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        some = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in some])
        dist.all_reduce(flat)
        flat /= fabric.world_size
        for tensor, mean in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def rank_zero_run(fabric: Fabric, do: Callable[[], T]) -> T | None:
    """Run a function on rank zero while the others wait; if it fails, all ranks exit.

    Returns:
        The result on rank zero, None elsewhere.

    Raises:
        Exception: What the function raised, on rank zero; the others exit silently with its exit code.
    """
    if not fabric.is_global_zero:
        code = broadcast_object(fabric, None)
        return None if code is None else _exit_silently(code)
    try:
        value = do()
    except Exception as error:
        broadcast_object(fabric, error.exit_code if isinstance(error, GeobindError) else 1)
        raise
    broadcast_object(fabric, None)
    return value


def broadcast_result(fabric: Fabric, do: Callable[[], T]) -> T:
    """Run a function on rank zero and broadcast its result; if it fails, all ranks exit.

    Raises:
        Exception: As `rank_zero_run`.
    """
    value: Any = rank_zero_run(fabric, do)
    return broadcast_object(fabric, value)


@contextmanager
def explain_lost_rank(fabric: Fabric) -> Generator[None]:
    """Replace the error that a lost rank causes by one that names the cause and the fix.

    Raises:
        TrainingError: Another process ended, or the network to it broke.
    """
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        if fabric.world_size == 1 or not _is_loss_of_another(error):
            raise
        if fabric.global_rank >= _REPORTING_RANKS:
            _exit_silently(TrainingError.exit_code)
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"process {fabric.global_rank} of {fabric.world_size} lost another process ({reason}): "
            f"it was killed, failed, or cannot be reached; its message, if any, is above\n"
            f"finished stages and the last checkpoint are kept: run again with --resume, "
            f"with any number of processes"
        ) from error


def _is_loss_of_another(error: Exception) -> bool:
    known = isinstance(error, dist.DistError | ConnectionError)
    return known or any(word in str(error) for word in ("gloo", "NCCL", "ProcessGroup", "Connection"))


def _exit_silently(code: int) -> NoReturn:
    sys.stderr.flush()
    raise SystemExit(code)


@lru_cache
def control_group() -> dist.ProcessGroup:
    """Return the long-timeout gloo group used for control messages."""
    group = dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT)
    return group  # pyright: ignore[reportReturnType]


# To close connections that nothing is on its way through takes milliseconds.
_CLOSE_SECONDS = 30


def wait_for_ranks(fabric: Fabric) -> None:
    """Wait for all ranks at the end of a run.

    One that leaves closes its connections, and what it sent last can be lost with them on a busy machine.
    Here nothing is told, so that it does no harm if the others are gone.
    """
    if fabric.world_size > 1:
        with suppress(RuntimeError):
            dist.barrier(group=control_group())


@lru_cache
def close_at_exit() -> None:
    """Register, once, the closing of process groups before Python shuts down.

    gloo's threads let go of tensors a little after the process that waited for them has gone on, and need
    the interpreter for that: one that asks for it while Python ends kills the process (SIGABRT, "terminate
    called without an active exception") or waits for ever. Closing ends those threads.
    """
    atexit.register(_close)


def _close() -> None:
    """Close all process groups; exit silently if a pending message is never received.

    That happens where an error ended this process in the midst of a step: the others wait for what it has
    not sent, and would do so until they see it gone.
    """
    if not dist.is_initialized():
        return
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(_CLOSE_SECONDS, exit=True, file=nowhere)
        control_group.cache_clear()
        gc.collect()
        dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor of a sharded one; every rank must call it."""
    parts: Any = tensor.detach()
    return parts.full_tensor() if hasattr(parts, "full_tensor") else parts
