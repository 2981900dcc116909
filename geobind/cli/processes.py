"""`geobind run --processes N`: several processes of this machine train together."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_ERROR = "geobind/error"
_LISTEN = timedelta(seconds=10)  # others may be a little behind
_GO_ON = "what is finished is kept, and so is the last checkpoint: run again with --resume"


def is_first() -> bool:
    """Whether this process is the first of those that torchrun or SLURM has started, or the only one."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def tells(message: str) -> str | None:
    """Return what this process says of an error that ended it; None if the first of several says the same.

    Where it is the only one to meet it, the message gets its number, a few seconds later.
    """
    if "WORLD_SIZE" not in os.environ and "SLURM_PROCID" not in os.environ:
        return message
    store = _store()
    try:
        if is_first():
            if store is not None:
                store.set(_ERROR, message)
            return message
        if message.startswith("process "):
            return message  # it has a number already
        if store is not None:
            store.wait([_ERROR], _LISTEN)
            if store.get(_ERROR).decode() == message:
                return None
    except RuntimeError:
        pass  # the first one says nothing, or is gone
    return f"process {os.environ.get('RANK', os.environ.get('SLURM_PROCID'))}: {message}"


def _store() -> Store | None:
    """Where processes leave words for each other: with their launcher, or with the first of them."""
    from torch import distributed as dist
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed.distributed_c10d import (
        _get_default_store,  # pyright: ignore[reportPrivateUsage]
    )

    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            return TCPStore(*where, is_master=False, timeout=_LISTEN)
        return _get_default_store() if dist.is_initialized() else None
    except (RuntimeError, KeyError, ValueError):
        return None


def launch(count: int, words: Sequence[str]) -> NoReturn:
    """Run a geobind command in several processes, as torchrun does, and end as they end.

    Args:
        count: How many.
        words: The command and its options.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Threads of all processes together are as many as there are cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,  # --resume does it better: with a message in between
        start_method="spawn",
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "geobind", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        _end(rank, failure.exitcode)
    except SignalException as error:
        click.echo(f"{error.sigval.name}: all processes are stopped; {_GO_ON}", err=True)
        sys.exit(128 + int(error.sigval))
    sys.exit(0)


def _end(rank: int, code: int) -> NoReturn:
    """Say how to go on after a process has failed, and end with its exit code."""
    if code < 0:
        click.echo(f"error: process {rank} was killed by signal {-code}; {_GO_ON}", err=True)
        sys.exit(1)
    if code == 1:
        click.echo(f"error: process {rank} failed, see above; {_GO_ON}", err=True)
    sys.exit(code)  # any other has been told by whoever chose it
