"""Measure a recipe on this machine: what the process that `geobind plan` starts does."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric

from geobind.binder import Binder
from geobind.data.sampler import Mixture
from geobind.embedding_cache.store import embeddings_folder
from geobind.planning.bench import Bench, goes_through, seconds_since
from geobind.planning.ending_probe import measure_ending
from geobind.planning.found import SPARE, EndingFound, Machine, StageFound
from geobind.planning.stage_probe import StageProbe
from geobind.planning.subset import Clock
from geobind.recipe import Recipe, Stage
from geobind.recipe.stage_options import InfoNCE
from geobind.training.launch import make_fabric
from geobind.training.loss_inputs import check_told
from geobind.training.run import rehearse
from geobind.training.stage import Job
from geobind.training.stage_data import Sources
from geobind.utils import system

_MOST = 4096  # pairs that `batch_size: auto` comes to at most
_PART = 4  # and at most this part of the rows
_FEW = 64  # pairs that an open batch is taken to have in the checks before the first stage
_MANY = 50_000  # rows from which on looking for leaks is left out of what is measured


class Doing(NamedTuple):
    """What a probe is about to do."""

    what: str


Event = Doing | Machine | StageFound | EndingFound


def probe(recipe: Recipe, folder: Path, seconds: float, limit: int | None = None) -> Iterator[Event]:
    """Measure a recipe; the recipe, the run's folder and the embedding cache stay as they are.

    Args:
        recipe: A checked recipe.
        folder: Scratch, empty.
        seconds: How long steps and rows may take to measure, about.
        limit: Bytes of memory there are; default: what is free.

    Raises:
        GeobindError: The recipe cannot run; the message is that of the run.
    """
    yield Doing("opening tables, building encoders")
    devices = _devices(recipe)
    ranks = devices * recipe.fabric.num_nodes
    alone = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    recipe = recipe.model_copy(update={"fabric": recipe.fabric.model_copy(update=alone)})
    wanted = dict.fromkeys(stage.precision or recipe.fabric.precision for stage in recipe.stages)
    fabrics = {precision: make_fabric(recipe.fabric, precision) for precision in wanted}
    fabric = next(iter(fabrics.values()))
    Sources(recipe)  # what is rendered or copied is there when the run begins
    system.tidy()
    began = time.monotonic()
    sources = Sources(recipe)
    found = [sources.rows(stage) for stage in recipe.stages]
    tried: list[Stage] = []
    for stage, rows in zip(recipe.stages, found, strict=True):
        tried.append(_closed(stage, min(_FEW, _most(recipe, stage, rows)[0])))
        check_told(tried[-1], rows)
    binder = Binder(recipe.built, recipe.width, seed=recipe.seed)
    rehearse(recipe.model_copy(update={"stages": tried}), binder, found)
    sources.check()
    for stage in recipe.stages:
        sources.held(stage)
    many = sum(map(len, found)) > _MANY
    if not many:
        sources.leakage()
    machine = _machine(fabric, binder, ranks, limit, seconds_since(began), many)
    if machine.memory == "process" and machine.available is not None and devices > 1:
        shared = {"available": machine.available // devices, "says": f"{machine.says}, for each of {devices}"}
        machine = machine.model_copy(update=shared)
    yield machine
    usable = None if machine.available is None else SPARE * machine.available
    ends = time.monotonic() + seconds
    with _scratch_cache(folder):
        for number, (stage, rows) in enumerate(zip(recipe.stages, found, strict=True)):
            yield Doing(f"stage {stage.name}")
            most = _most(recipe, stage, rows, ranks)
            size = most[0] if "batch_size" in stage.open else stage.batch_size
            whole = stage.model_copy(update={"batch_size": size})
            clock = Clock(folder)
            job = Job(recipe, whole, binder, rows, folder, clock, "probe", held=sources.held(stage))
            bench = Bench(fabrics[stage.precision or recipe.fabric.precision], job, folder, _caches(job))
            share = max(0.0, ends - time.monotonic()) / (len(found) - number)
            yield StageProbe(bench, ranks, usable, share, most).measure()
        yield Doing("measuring held-out rows, bundle and report")
        yield measure_ending(recipe, binder, sources, folder / "ending")


def _devices(recipe: Recipe) -> int:
    """Return how many devices of this machine share a batch."""
    options = recipe.fabric
    if isinstance(options.devices, int):
        return options.devices
    on_cuda = torch.cuda.is_available() and options.accelerator in ("auto", "gpu", "cuda")
    return torch.cuda.device_count() if on_cuda else 1


def _closed(stage: Stage, size: int) -> Stage:
    """Return a stage with a number for what it left open, for the checks that every stage passes."""
    changes = {"batch_size": size, "chunk": None}
    return stage.model_copy(update={name: changes[name] for name in stage.open})


def _most(recipe: Recipe, stage: Stage, rows: Mixture, ranks: int = 1) -> tuple[int, str]:
    """Return the largest batch that makes sense, and why no larger one does."""
    limits = {f"{_MOST:,} pairs": _MOST, f"a quarter of its {len(rows):,} rows": len(rows) // _PART}
    if stage.mix == "batches" and len(rows.sources) > 1:
        limits["the rows of its smallest table"] = min(len(source.rows) for source in rows.sources)
    queue = stage.loss.queue if isinstance(stage.loss, InfoNCE) else None
    if queue is not None:
        both = min(rows.having(pair.both) for pair in recipe.pairs_of(stage))
        limits["the rows that its queue leaves"] = both - queue
    why = min(limits, key=lambda name: limits[name])
    power = max(2, limits[why] // ranks).bit_length() - 1
    return ranks * 2**power, why


def _caches(job: Job) -> bool:
    wanted = job.stage.cache
    return wanted != "off" and (wanted != "auto" or goes_through(job))


def _machine(
    fabric: Fabric, binder: Binder, ranks: int, limit: int | None, opening: float, many: bool
) -> Machine:
    cuda = fabric.device.type == "cuda"
    if limit is not None:
        told: tuple[int | None, str] = limit, "--memory"
    elif cuda:
        # The weights that are there already are part of what a step takes.
        told = torch.cuda.mem_get_info(fabric.device)[0], "what the accelerator says is free"
    else:
        free = system.free()
        told = (free.bytes, free.says) if free else (None, "nothing tells what is free; see --memory")
    size = sum(value.numel() * value.element_size() for value in binder.state_dict().values())
    notes = ["looking for rows that training and measuring share is not in the time"] if many else []
    if ranks > 1:
        notes.append(f"measured on one device of {ranks}: what passes between them is not in the time")
    return Machine(
        device=torch.cuda.get_device_name(fabric.device) if cuda else "cpu",
        memory="accelerator" if cuda else "process",
        available=told[0],
        says=told[1],
        ranks=ranks,
        opening_seconds=opening,
        bundle_bytes=size,
        notes=tuple(notes),
    )


@contextmanager
def _scratch_cache(folder: Path) -> Generator[None]:
    """Let embeddings be read from the cache there is, through links, and be written into a scratch folder.

    Tables and what else lies in the cache was opened before.
    """
    there = embeddings_folder()
    for shard in there.glob("*/*"):
        home = folder / "cache" / "embeddings" / shard.parent.name
        if shard.suffix == ".safetensors":
            home.mkdir(parents=True, exist_ok=True)
            os.symlink(shard, home / shard.name)
    before = os.environ.get("GEOBIND_CACHE")
    os.environ["GEOBIND_CACHE"] = str(folder / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ["GEOBIND_CACHE"]
        else:
            os.environ["GEOBIND_CACHE"] = before
