"""How processes that trained together part: at the end of a run, and at the end of the program."""

from __future__ import annotations

import atexit
import faulthandler
import gc
import os
from contextlib import suppress
from functools import lru_cache

from lightning_fabric import Fabric
from torch import distributed as dist

from geobind.training.processes.ranks import patient

# To close connections that nothing is on its way through takes milliseconds.
_SECONDS = 30


def leave_together(fabric: Fabric) -> None:
    """Wait for each other at the end of a run, after which no process has anything to tell another.

    One that leaves closes its connections, and what it sent last can be lost with them on a busy machine.
    Here nothing is told, so that it does no harm if the others are gone.
    """
    if fabric.world_size > 1:
        with suppress(RuntimeError):
            dist.barrier(group=patient())


@lru_cache
def close_at_exit() -> None:
    """See to it, once, that this process closes its connections before Python is torn down.

    gloo's threads let go of tensors a little after the process that waited for them has gone on, and need
    the interpreter for that: one that asks for it while Python ends kills the process (SIGABRT, "terminate
    called without an active exception") or waits for ever. Closing ends those threads.
    """
    atexit.register(_close)


def _close() -> None:
    """Close all connections; end without a word if something on its way through them is not received.

    That happens where an error ended this process in the midst of a step: the others wait for what it has
    not sent, and would do so until they see it gone.
    """
    if not dist.is_initialized():
        return
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(_SECONDS, exit=True, file=nowhere)
        patient.cache_clear()
        gc.collect()
        dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()
