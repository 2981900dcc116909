"""Runs of the toy modalities: how to start one, and what it left."""

import csv
import logging
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import toy
from safetensors.torch import load_file

from geobind.training.run import run

PROGRAM = Path(toy.__file__)


def toy_run(folder: Path, *overrides: str, resume: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    return run(toy.recipe(folder, *overrides), folder / "run", resume=resume).folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "bundle" / "model.safetensors")


def losses(folder: Path) -> list[tuple[str, int, float]]:
    with (folder / "metrics.csv").open() as file:
        return [(row["stage"], int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Ended(NamedTuple):
    """How a process ended: its exit code, minus the signal that killed it, and its standard error."""

    code: int
    said: str


def run_apart(folder: Path, *words: str) -> Ended:
    """Run the program of `toy` in a process of its own, which can kill itself."""
    (ended,) = _run_processes(folder, toy.main, [str(folder), *words], [{}])
    return ended


def run_ranks(folder: Path, main: Callable[[list[str]], None], words: list[str], ranks: int = 2) -> None:
    """Run a program in several processes that train together; all must succeed."""
    ended = end_ranks(folder, main, words, ranks)
    assert not any(one.code for one in ended), "\n".join(one.said for one in ended)


def end_ranks(folder: Path, main: Callable[[list[str]], None], words: list[str], ranks: int) -> list[Ended]:
    """Run a program in several processes that train together, in an environment as torchrun makes it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "toy"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(ranks)]
    return _run_processes(folder, main, words, environments)


def _run_processes(folder, main, words, environments) -> list[Ended]:
    """Run a program once in each environment.

    The processes are forked from this one, which has imported what takes seconds to import; where autograd
    keeps threads for an accelerator, a process that is forked cannot train.
    """
    context = multiprocessing.get_context("spawn" if torch.accelerator.is_available() else "fork")
    started = []
    for number, environment in enumerate(environments):
        said = folder / f"said-{number}.txt"
        process = context.Process(target=_serve, args=(said, environment, main, words))
        process.start()
        started.append((process, said))
    for process, _ in started:
        process.join()
    return [Ended(process.exitcode or 0, said.read_text()) for process, said in started]


def _serve(said: Path, environment, main, words: list[str]) -> None:
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    logging.getLogger().handlers.clear()  # pytest's own, into which warnings would go
    os.environ.update({name: str(value) for name, value in environment.items()})
    main(words)
