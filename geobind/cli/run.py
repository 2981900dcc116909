"""`geobind run`, in one process or several."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from geobind.cli.options import json_option, memory_option, overrides_option, print_json, recipe_argument
from geobind.utils.logs import level_options
from geobind.utils.system import end_with_parent

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_log = logging.getLogger(__name__)

_ERROR = "geobind/error"
_LISTEN = timedelta(seconds=10)  # others may be a little behind
_GO_ON = "finished stages and the last checkpoint are kept: run again with --resume"


def is_first() -> bool:
    """Return whether this process is rank zero of torchrun or SLURM, or the only one."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def message_of_rank(message: str) -> str | None:
    """Return the message of an error for this rank, or None where rank zero reports the same.

    An error of this rank alone gets the rank's number, after a few seconds of waiting for rank zero.
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
    """Return the key-value store shared by all ranks, None where there is none."""
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


def launch_processes(count: int, words: Sequence[str]) -> NoReturn:
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
    """Print how to resume after a failed process, and exit with its code."""
    if code < 0:
        click.echo(f"error: process {rank} was killed by signal {-code}; {_GO_ON}", err=True)
        sys.exit(1)
    if code == 1:
        click.echo(f"error: process {rank} failed, see above; {_GO_ON}", err=True)
    sys.exit(code)  # any other has been told by whoever chose it


@click.command("run")
@recipe_argument
@overrides_option
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run; default: runs/NAME of the recipe.",
)
@click.option("--resume", is_flag=True, help="Resume the run in that folder.")
@click.option(
    "--sweep",
    "swept",
    multiple=True,
    metavar="A.B=C,D",
    help="Run once with each of these values, finished runs skipped; repeatable: every combination.",
)
@click.option("--processes", type=click.IntRange(min=1), help="Train with N processes on this machine.")
@click.option("--plan", is_flag=True, help="Plan the run first, for the report to compare.")
@memory_option
@json_option
def run_command(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: bool,
    swept: tuple[str, ...],
    processes: int | None,
    plan: bool,
    memory: str | None,
    as_json: bool,
) -> None:
    """Run RECIPE, a YAML file or the name of a shipped recipe: train its stages, measure, save a bundle."""
    end_with_parent()  # before anything slow is imported

    from geobind.recipe import load_recipe

    if swept:
        if processes is not None:
            raise click.UsageError("--sweep runs one process; leave --processes out")
        _sweep(recipe, overrides, out, swept, as_json)
        return
    if processes is not None:
        devices = f"fabric.devices={processes}"
        load_recipe(recipe, (*overrides, devices))  # what is wrong with it is said once
        launch_processes(processes, _words(recipe, (*overrides, devices), out, resume, plan, memory, as_json))
    checked = load_recipe(recipe, overrides)
    folder = out or Path("runs") / checked.name
    if is_first():
        _log.info("%s: %d stages; results go to %s", checked.name, len(checked.stages), folder)

    from geobind.cli.options import print_table
    from geobind.evaluation import build_summary_table
    from geobind.evaluation.tables import build_question_table
    from geobind.planning.auto import AutoResolver
    from geobind.report.page import PAGE
    from geobind.training.run import run
    from geobind.utils.system import parse_size

    settling = AutoResolver(always=plan, limit=parse_size(memory) if memory else None)
    finished = run(checked, folder, resume=resume, resolver=settling)
    page = finished.folder / PAGE
    if as_json:
        if is_first():
            retrieval = None if finished.table is None else finished.table.to_dict()
            written = {name: str(file) for name, file in (("bundle", finished.bundle), ("report", page))}
            print_json({"folder": str(finished.folder), **written, "retrieval": retrieval})
        return
    if finished.table is not None:
        print_table(build_summary_table(finished.table))
        click.echo(f"chance in brackets; intervals and more measures: {finished.folder / 'retrieval.json'}")
    if finished.questions is not None:
        print_table(build_question_table(finished.questions))
    if is_first():
        if page.exists():
            click.echo(f"report: {page}")
        click.echo(f"bundle: {finished.bundle}")


def _words(
    recipe: str,
    overrides: Iterable[str],
    out: Path | None,
    resume: bool,
    plan: bool,
    memory: str | None,
    as_json: bool,
) -> list[str]:
    """Return the words of the same command, for each process."""
    words = ["run", recipe, *(word for change in overrides for word in ("--set", change))]
    words += ["--out", str(out)] if out else []
    words += ["--memory", memory] if memory else []
    words += level_options()
    return words + ["--resume"] * resume + ["--plan"] * plan + ["--json"] * as_json


def _sweep(
    recipe: str, overrides: tuple[str, ...], out: Path | None, swept: tuple[str, ...], as_json: bool
) -> None:
    from geobind.cli.studies import run_study
    from geobind.studies.grid import build_grid, parse_axis

    axes = [parse_axis(text) for text in swept]
    title = f"{Path(recipe).stem} by {' and '.join(axis.name for axis in axes)}"
    home = out or Path("runs") / f"{Path(recipe).stem}-sweep"
    study = run_study(build_grid(recipe, axes, overrides), home, title, as_json=as_json)
    if as_json:
        print_json(study)
    sys.exit(1 if study["failed"] else 0)
