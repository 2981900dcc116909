"""`geobind run --processes N`: several processes of this machine train together."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence
from typing import NoReturn

import click

_GO_ON = "what is finished is kept, and so is the last checkpoint: run again with --resume"


def is_first() -> bool:
    """Whether this process is the first of those that torchrun or SLURM has started, or the only one."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


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
