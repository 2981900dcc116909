"""Measurements of real steps: training, filling the cache, evaluation."""

# M observations, K views of each

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from geobind.binder import Binder, build_binder
from geobind.data.sampler import MixedDataset
from geobind.data.shares import allowed_bytes, count_bytes
from geobind.data.table import open_table
from geobind.embedding_cache.build import CachedColumn
from geobind.embedding_cache.store import embeddings_folder, read_limit
from geobind.errors import DataError, GeobindError
from geobind.evaluation.held_out import EvaluationResults, measure_all, take_first_rows
from geobind.planning.bench import Bench, StepTimer, covers_all_rows, seconds_since
from geobind.planning.models import (
    NOT_ON_A_CPU,
    USABLE_SHARE,
    CompileCost,
    EndingMeasurement,
    FillCost,
    LinearCost,
    LoadingMemory,
    Machine,
    SideCost,
    StageMeasurement,
    StepCost,
    estimate_distinct,
    fit_linear_cost,
)
from geobind.recipe import Recipe, Stage
from geobind.recipe.parsing import dump_yaml
from geobind.recipe.stage_options import InfoNCEOptions
from geobind.training.cache import CachedInputs
from geobind.training.fabric import Fabric
from geobind.training.launch import make_fabric, resolve_precision
from geobind.training.loss_inputs import check_loss_inputs
from geobind.training.results import write_results
from geobind.training.run import rehearse
from geobind.training.stage import StageRun, build_loader, count_workers
from geobind.training.stage_data import StageData
from geobind.utils import files, system
from geobind.utils.logs import captured

_WARM, _MOST_ROWS = 8, 256  # rows to warm up, and the maximum
_PART_OF_TIME = 0.3  # of a stage's time
_ALWAYS = 10**9  # steps; more than an epoch of anything


def measure_filling(bench: Bench, seconds: float) -> tuple[FillCost | None, tuple[str, ...], float]:
    """Measure the cost of filling the cache, with some rows in a scratch cache.

    Where the cache cannot hold all rows, the bench continues without it, as the stage will.

    Args:
        bench: The bench; its `ready` is then the number of cached rows.
        seconds: Time to measure the whole stage.

    Returns:
        The cost for all rows, None without a cache; the frozen modalities; the seconds of one more row.
    """
    rows = len(bench.job.rows)
    looked = min(_WARM, rows)
    began = time.monotonic()
    frozen, _ = _fill(bench, looked)
    if not frozen or not bench.caches:
        return None, frozen, 0.0
    afford = max(1, int(_PART_OF_TIME * seconds * looked / seconds_since(began)))
    points: list[tuple[float, float]] = []
    sides: dict[str, SideCost] = {}
    unlike, most = 1.0, 0
    for more in (min(_MOST_ROWS // 4, max(1, afford // 4)), min(_MOST_ROWS, afford)):
        before, looked = looked, min(rows, looked + more)
        if looked == before and points:
            break
        with bench.measure_peak() as held:
            _, cached = _fill(bench, looked)
        points.append((looked - before, cached.filled.seconds))
        sides = {name: estimate_side(stored, before, looked, rows) for name, stored in cached.sides.items()}
        unlike, most = _unlike(cached, sides, rows / looked), max(most, *held, 0)
    needed = sum(side.inputs * side.row_bytes for side in sides.values())
    if needed > read_limit():
        bench.caches = False
        reason = f"its {needed / 1e9:.3g} GB of rows are more than the cache may hold"
        bench.messages += [f"{bench.job.stage.name}: {name} is not cached: {reason}" for name in sides]
        return None, frozen, 0.0
    bench.ready, line = looked, fit_linear_cost(points)
    return FillCost(seconds=line(rows * unlike), bytes=most or None, sides=sides), frozen, line.slope


def estimate_side(stored: CachedColumn, before: int, looked: int, rows: int) -> SideCost:
    """Estimate a modality's cache cost for all rows from some of them.

    Args:
        stored: The modality in the sampled rows.
        before: How many of these were cached already.
        looked: Number of sampled rows.
        rows: Number of all rows.
    """
    row_MK = stored.lookup.row_MK
    found = len(set(row_MK[row_MK >= 0].tolist()))
    inputs = estimate_distinct(found, row_MK.size, round(row_MK.size * rows / looked))
    new = max(1.0, found * (1 - before / looked))
    missing = inputs * min(1.0, stored.made / new)
    return SideCost(inputs=inputs, missing=missing, row_bytes=2 * math.prod(stored.rows.shape) + 20)


def _fill(bench: Bench, rows: int) -> tuple[tuple[str, ...], CachedInputs]:
    job = bench.build_stage(2, _ALWAYS, rows)
    with bench.open_cache(job) as (frozen, cached):
        return frozen, cached


def _unlike(cached: CachedInputs, sides: dict[str, SideCost], share: float) -> float:
    """Return the share of distinct inputs among all rows."""
    found = [side.inputs / (share * cached.sides[name].lookup.row_MK.size) for name, side in sides.items()]
    return min(1.0, *found, 1.0)


_FIRST = 8  # rows of the first steps
_FEW_STEPS, _MANY_STEPS = 5, 30  # steps of one size
_HELD = 64  # validation rows


@dataclass
class StageProbe:
    """Measures one stage.

    Args:
        bench: The bench of the stage.
        ranks: Devices that will share a batch.
        usable: Bytes that a step may take; None where they are unknown.
        seconds: Time to measure, about.
        most: The largest batch that makes sense, and why.
    """

    bench: Bench
    ranks: int
    usable: float | None
    seconds: float
    most: tuple[int, str]

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._steps: list[StepCost] = []
        self._a_row = 0.0  # seconds to cache the frozen modalities of a row
        self._row_bytes = 0  # of a prepared row, without what is read from the cache
        self._other = 0.0
        self._idle: int | None = None

    def measure(self) -> StageMeasurement:
        """Return all measurements of the stage.

        Raises:
            GeobindError: The stage cannot run, even with the fewest rows.
        """
        job = self.bench.job
        filling, frozen, self._a_row = measure_filling(self.bench, self.seconds)
        warm, checkpoint_bytes, checkpoint_seconds = self._warm_up()
        failed = self._sizes(warm)
        two_pass = None if failed else self._two_pass()
        checkpointed = () if failed else self._checkpoint()
        compiled = self._compile() if job.stage.compile == "auto" else None
        watching = self._watching()
        cached = filling.sides if filling else {}
        return StageMeasurement(
            name=job.stage.name,
            rows=len(job.rows),
            sources=tuple(len(source.rows) for source in job.rows.sources),
            most=self.most[0],
            most_why=self.most[1],
            steps=tuple(self._steps),
            loading_a_row=self._loading(),
            loading=LoadingMemory(
                workers=count_workers(self.bench.fabric, job),
                row_bytes=self._row_bytes,
                allowed_bytes=allowed_bytes(),
            ),
            two_pass=two_pass,
            checkpointed=checkpointed,
            compile=compiled,
            filling=filling if cached else None,
            uncached={name: self._why_not(name) for name in frozen if name not in cached},
            frozen=frozen,
            other_seconds=self._other,
            checkpoint_bytes=checkpoint_bytes,
            checkpoint_seconds=checkpoint_seconds,
            trained_bytes=sum(
                value.numel() * value.element_size()
                for name in job.stage.parts
                for value in job.encoders[name].state_dict().values()
            ),
            watching_seconds=watching,
            failed=failed,
        )

    @property
    def _left(self) -> float:
        return self.seconds - seconds_since(self._began)

    @property
    def _target(self) -> int:
        return max(2, self.bench.job.stage.batch_size // self.ranks)

    def _warm_up(self) -> tuple[StepCost, int, float]:
        """Run the first, slow steps; return them, and a checkpoint's bytes and seconds."""
        size = self._least()
        began = time.monotonic()
        ran = self.bench.run(size, 2, saves=True)
        warm = StepCost(rows=size, seconds=seconds_since(began) / 2, bytes=None)
        path = ran.job.folder / "state.ckpt"
        if not path.is_file():
            return warm, 0, 0.0
        content = path.read_bytes()
        began = time.monotonic()
        files.write_atomic(path, content)
        return warm, len(content), seconds_since(began)

    def _least(self) -> int:
        """Return the smallest batch that can be formed, of those tried."""
        size = min(_FIRST, self._target)
        while size < self._target and not self._makes_a_batch(size):
            size = min(2 * size, self._target)
        return size

    def _why_not(self, name: str) -> str:
        """Return why a frozen modality is not read from the cache."""
        stage = self.bench.job.stage
        if stage.cache == "off":
            return "cache: off"
        if stage.cache == "auto" and not covers_all_rows(self.bench.job):
            return "the stage does not take all of its rows once"
        return self.bench.find_cache_refusal(name)

    def _makes_a_batch(self, size: int) -> bool:
        try:
            _ = self.bench.build_stage(size, 2, size).sampler
        except DataError:  # a table's share would be less than a row
            return False
        return True

    def _sizes(self, warm: StepCost) -> str:
        """Measure steps of two or three sizes; return why the stage's own was not reached."""
        guess, size = fit_linear_cost([(0, 0.0), (warm.rows, warm.seconds)]), self._first(warm)
        while True:
            last = size >= self._target
            steps = (
                int(min(_MANY_STEPS, max(_FEW_STEPS, 0.4 * self._left / max(guess(size), 1e-6))))
                if last
                else _FEW_STEPS
            )
            try:
                ran = self.bench.run(size, steps)
            except GeobindError as error:
                if not self._steps:
                    raise
                return str(error).partition("\n")[0]
            self._idle, self._other = ran.idle, ran.other
            self._steps.append(StepCost(rows=size, seconds=ran.seconds, bytes=ran.bytes))
            known = [(step.rows, step.seconds) for step in self._steps]
            guess = fit_linear_cost(known if len(known) > 1 else [(0, 0.0), *known])
            larger = None if last else self._larger(size, guess)
            if larger is None:
                return ""
            size = larger

    def _first(self, warm: StepCost) -> int:
        """Return the first size to measure: a quarter of the last, unless that is too slow."""
        quarter = 2 ** int(math.log2(max(2, self._target // 4)))
        slow = warm.seconds / warm.rows  # more than it is from the second step on
        while quarter > warm.rows and 0.25 * _FEW_STEPS * quarter * slow > 0.3 * self._left:
            quarter //= 2
        if warm.rows < self._target:
            return max(warm.rows, quarter)
        return quarter if self._makes_a_batch(quarter) else self._target

    def _larger(self, size: int, guess: LinearCost) -> int | None:
        """Return the next size; None where time or memory does not allow it."""
        target = self._target
        for one in (target, *(2**power for power in range(int(math.log2(target)), 0, -1))):
            if one <= size or not self._fits(one):
                continue
            more = max(0, one - self.bench.ready) * self._a_row if self.bench.caches else 0.0
            line_lacks_a_point = len(self._steps) == 1 and one <= 2 * size
            if line_lacks_a_point or _FEW_STEPS * guess(one) + more < 0.6 * self._left:
                return one
        return None

    def _fits(self, size: int) -> bool:
        known = [(step.rows, step.bytes) for step in self._steps if step.bytes is not None]
        if len(known) == 1 and self._idle is not None:
            known.append((0, min(self._idle, known[0][1])))
        return self.usable is None or not known or fit_linear_cost(known)(size) <= self.usable

    def _two_pass(self) -> StepCost | None:
        """Measure steps in two passes if the stage may need them, with twice the rows of one pass."""
        asked, largest = self.bench.job.stage.chunk, self._steps[-1].rows
        if asked is None or (asked == "auto" and (largest >= self._target or self._fits(self._target))):
            return None
        chunk = min(asked, largest) if isinstance(asked, int) else largest
        size = min(2 * chunk, self._target)
        if size <= chunk:
            size, chunk = self._target, max(2, self._target // 2)
        # The first steps of a size allocate memory, which slows them.
        guess = 2 * fit_linear_cost((step.rows, step.seconds) for step in self._steps)(size)
        ran = self.bench.run(
            size, int(min(_MANY_STEPS, max(2 * _FEW_STEPS, 0.4 * self._left / guess))), chunk=chunk
        )
        return StepCost(rows=size, seconds=ran.seconds, bytes=ran.bytes, chunk=chunk)

    def _checkpoint(self) -> tuple[StepCost, ...]:
        """Measure steps of two sizes that compute activations twice, if the stage may need them."""
        if self.bench.job.stage.checkpoint_activations != "auto" or self._fits(self._target):
            return ()
        largest = self._steps[-1].rows
        half = max(2, largest // 2)
        found: list[StepCost] = []
        for size in sorted({half, largest} if self._makes_a_batch(half) else {largest}):
            ran = self.bench.run(size, _FEW_STEPS, checkpoint_activations=True)
            found.append(StepCost(rows=size, seconds=ran.seconds, bytes=ran.bytes))
        return tuple(found)

    def _compile(self) -> CompileCost:
        """Measure steps with compiled encoders and without, on CUDA alone."""
        if self.bench.fabric.device.type != "cuda":
            return CompileCost(failed=NOT_ON_A_CPU)
        size, steps = self._steps[-1].rows, 2 * _FEW_STEPS
        plain = self.bench.run(size, steps)
        try:
            ran = self.bench.run(size, steps, compile=True)
        except GeobindError as error:
            return CompileCost(failed=str(error).partition("\n")[0])
        first, other = (
            run.outcome.seconds - run.outcome.filled["seconds"] - steps * run.seconds for run in (ran, plain)
        )
        return CompileCost(plain=plain.seconds, compiled=ran.seconds, compiling=max(0.0, first - other))

    def _watching(self) -> float:
        """Return the seconds of a validation; its preparation counts as other."""
        job = self.bench.job
        if job.stage.watch is None or job.validation_rows is None:
            return 0.0
        rows = min(_HELD, len(job.validation_rows))
        size = self._steps[0].rows
        plain, ran = self.bench.run(size, 2), self.bench.run(size, 2, held=rows)
        told = ran.job.validation_metrics.rows if isinstance(ran.job.validation_metrics, StepTimer) else []
        each = [float(row["seconds"]) for row in told]
        more = len(job.validation_rows) / rows
        if not each:
            return 0.0
        self._other += max(0.0, ran.other - plain.other - sum(each)) * more
        return each[-1] * more

    def _loading(self) -> float:
        """Return the seconds to load one row, without any other work; note its memory."""
        bench, size = self.bench, self._steps[-1].rows
        job = bench.build_stage(
            size, _FEW_STEPS, max(size, bench.ready) if bench.caches else size * _FEW_STEPS
        )
        with bench.open_cache(job) as (_, cached):
            at: list[float] = []
            for _, batch, _ in cached.wrap_loader(build_loader(bench.fabric, job, first_step=0), job.rows):
                at.append(time.monotonic())
                made = sum(count_bytes(part) for name, part in batch.items() if name not in cached.sides)
                self._row_bytes = max(self._row_bytes, made // size)
        return (at[-1] - at[1]) / (len(at) - 2) / size if len(at) > 2 else 0.0


_ROWS = 32, 128


def measure_ending(recipe: Recipe, binder: Binder, sources: StageData, folder: Path) -> EndingMeasurement:
    """Measure the evaluation of a few held-out rows, and the writing of results into a scratch folder.

    Raises:
        GeobindError: The recipe's evaluation cannot run.
    """
    found, measured = _evaluated(recipe, binder)
    files.write_atomic(folder / "recipe.yaml", dump_yaml(recipe.written).encode())
    files.write_json(folder / "run.json", {"recipe": recipe.name, "started": system.utc_now()})
    with captured():
        began = time.monotonic()
        write_results(recipe, binder, [], sources, measured, folder)
        whole = seconds_since(began)
        began = time.monotonic()
        binder.save(folder / "again")
        bundle = seconds_since(began)
    return EndingMeasurement(seconds=found + bundle, report_seconds=max(0.0, whole - bundle))


def _evaluated(recipe: Recipe, binder: Binder) -> tuple[float, EvaluationResults | None]:
    """Return the seconds of the evaluation, and the results of a few rows."""
    options = recipe.evaluate
    data = recipe.evaluation_data
    if options is None or data is None:
        return 0.0, None
    table = open_table(data, recipe.base, tuple(recipe.modalities))
    rows = len(take_first_rows(table.split(options.split), options.limit))
    points: list[tuple[float, float]] = []
    measured = None
    for count in sorted({min(rows, some) for some in _ROWS}):
        few = options.model_copy(update={"limit": count, "calibrate": None, "questions": {}})
        system.release_memory()
        with captured():
            began = time.monotonic()
            untrained = binder if options.untrained else None
            measured = measure_all(binder, table, data, set(), few, untrained=untrained)
            points.append((count, seconds_since(began)))
    line = fit_linear_cost(points)
    calibrating = len(table.split(options.calibrate)) if options.calibrate else 0
    return line(rows) + line.slope * calibrating, measured


_MOST = 4096  # the largest `batch_size: auto`
_PART = 4  # it is at most this fraction of the rows
_FEW = 64  # pairs of an `auto` batch in the checks before the first stage
_MANY = 50_000  # more rows than this are not searched for leaks


class Progress(NamedTuple):
    """The next step of a probe."""

    what: str


Event = Progress | Machine | StageMeasurement | EndingMeasurement


def measure_recipe(recipe: Recipe, folder: Path, seconds: float, limit: int | None = None) -> Iterator[Event]:
    """Yield the measurements of a recipe; neither the run's folder nor the embedding cache changes.

    Args:
        recipe: A checked recipe.
        folder: An empty scratch folder.
        seconds: Time to measure steps and rows, about.
        limit: Available memory in bytes; default: what is free.

    Raises:
        GeobindError: The recipe cannot run; the message is that of the run.
    """
    yield Progress("opening tables, building encoders")
    devices = _devices(recipe)
    ranks = devices * recipe.fabric.num_nodes
    alone = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    recipe = recipe.model_copy(update={"fabric": recipe.fabric.model_copy(update=alone)})
    recipe, _ = resolve_precision(recipe, folder)
    wanted = dict.fromkeys(recipe.precision_of(stage) for stage in recipe.stages)
    fabrics = {precision: make_fabric(recipe.fabric, precision) for precision in wanted}
    fabric = next(iter(fabrics.values()))
    StageData(recipe)  # what is rendered or copied is there when the run begins
    system.release_memory()
    began = time.monotonic()
    sources = StageData(recipe)
    found = [sources.rows(stage) for stage in recipe.stages]
    tried: list[Stage] = []
    for stage, rows in zip(recipe.stages, found, strict=True):
        tried.append(_with_numbers(stage, min(_FEW, _most(recipe, stage, rows)[0])))
        check_loss_inputs(tried[-1], rows)
    binder = build_binder(recipe)
    rehearse(recipe.model_copy(update={"stages": tried}), binder, found)
    sources.check()
    for stage in recipe.stages:
        sources.validation_rows(stage)
    many = sum(map(len, found)) > _MANY
    if not many:
        sources.leakage()
    machine = _machine(fabric, binder, ranks, limit, seconds_since(began), many)
    if machine.memory == "process" and machine.available is not None and devices > 1:
        shared = {"available": machine.available // devices, "says": f"{machine.says}, for each of {devices}"}
        machine = machine.model_copy(update=shared)
    yield machine
    usable = None if machine.available is None else USABLE_SHARE * machine.available
    ends = time.monotonic() + seconds
    with _scratch_cache(folder):
        for number, (stage, rows) in enumerate(zip(recipe.stages, found, strict=True)):
            yield Progress(f"stage {stage.name}")
            most = _most(recipe, stage, rows, ranks)
            size = most[0] if "batch_size" in stage.auto_options else stage.batch_size
            whole = stage.model_copy(update={"batch_size": size})
            clock = StepTimer(folder)
            job = StageRun(
                recipe,
                whole,
                binder,
                rows,
                folder,
                clock,
                "probe",
                validation_rows=sources.validation_rows(stage),
            )
            bench = Bench(fabrics[recipe.precision_of(stage)], job, folder, _caches(job))
            share = max(0.0, ends - time.monotonic()) / (len(found) - number)
            yield StageProbe(bench, ranks, usable, share, most).measure()
        yield Progress("measuring held-out rows, bundle and report")
        yield measure_ending(recipe, binder, sources, folder / "ending")


def _devices(recipe: Recipe) -> int:
    """Return the number of devices of this machine that share a batch."""
    options = recipe.fabric
    if isinstance(options.devices, int):
        return options.devices
    on_cuda = torch.cuda.is_available() and options.accelerator in ("auto", "gpu", "cuda")
    return torch.cuda.device_count() if on_cuda else 1


def _with_numbers(stage: Stage, size: int) -> Stage:
    """Return a stage with numbers for its `auto` options, for the checks before training."""
    changes = {"batch_size": size, "chunk": None, "compile": False, "checkpoint_activations": False}
    return stage.model_copy(update={name: changes[name] for name in stage.auto_options})


def _most(recipe: Recipe, stage: Stage, rows: MixedDataset, ranks: int = 1) -> tuple[int, str]:
    """Return the largest batch that makes sense, and the reason."""
    limits = {f"{_MOST:,} pairs": _MOST, f"a quarter of its {len(rows):,} rows": len(rows) // _PART}
    if stage.mix == "batches" and len(rows.sources) > 1:
        limits["the rows of its smallest table"] = min(len(source.rows) for source in rows.sources)
    queue = stage.loss.queue if isinstance(stage.loss, InfoNCEOptions) else None
    if queue is not None:
        both = min(rows.having(pair.both) for pair in recipe.pairs_of(stage))
        limits["the rows that its queue leaves"] = both - queue
    why = min(limits, key=lambda name: limits[name])
    power = max(2, limits[why] // ranks).bit_length() - 1
    return ranks * 2**power, why


def _caches(job: StageRun) -> bool:
    wanted = job.stage.cache
    return wanted != "off" and (wanted != "auto" or covers_all_rows(job))


def _machine(
    fabric: Fabric, binder: Binder, ranks: int, limit: int | None, opening: float, many: bool
) -> Machine:
    cuda = fabric.device.type == "cuda"
    if limit is not None:
        told: tuple[int | None, str] = limit, "--memory"
    elif cuda:
        # Loaded weights are part of a step's memory.
        told = torch.cuda.mem_get_info(fabric.device)[0], "what the accelerator reports as free"
    else:
        free = system.available_memory()
        told = (free.bytes, free.says) if free else (None, "the system does not report it; see --memory")
    size = sum(value.numel() * value.element_size() for value in binder.state_dict().values())
    notes = ["the search for rows shared by training and evaluation is not in the time"] if many else []
    if ranks > 1:
        notes.append(f"measured on one device of {ranks}: communication between them is not in the time")
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
    """Read embeddings from the existing cache, through links, and write new ones into a scratch folder.

    Tables and other contents of the cache are opened before.
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
