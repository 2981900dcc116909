"""Predictions of time, memory and disk from measurements, and the choice of batch sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import geobind
from geobind.data.sampler import BatchSampler
from geobind.errors import RecipeError
from geobind.planning.models import (
    USABLE_SHARE,
    Disk,
    Machine,
    Memory,
    ProbeResult,
    RunPlan,
    Seconds,
    SidePlan,
    StageMeasurement,
    StagePlan,
    StepMethod,
)
from geobind.recipe import Recipe, Stage
from geobind.training.resume import stage_folders
from geobind.utils import formatting
from geobind.utils.formatting import format_size
from geobind.utils.system import utc_now

_WORTH = 0.95  # of the time of plain steps: what compiled ones take at most, compiling included
_TWICE = 4 / 3  # assumed cost of a step in two passes, where it was not measured


class BatchChoice(NamedTuple):
    """The choice of batch size and chunk."""

    batch_size: int  # over all devices
    chunk: int | None  # rows of a device at a time; None: all at once
    bytes: int | None  # peak memory; None where it is unknown
    why: str  # the reason
    fits: bool


def choose_batch(
    found: StageMeasurement,
    *,
    batch_size: int | None,
    chunk: int | str | None,
    ranks: int,
    usable: float | None,
) -> BatchChoice:
    """Choose the batch size and chunk that a recipe leaves to `auto`, and predict their memory.

    Args:
        found: Measurements of the stage.
        batch_size: The recipe's; None for `auto`.
        chunk: The recipe's: a number, None, or "auto".
        ranks: Devices that share a batch.
        usable: Bytes that a step may take; None where they are unknown.

    Raises:
        RecipeError: Not even the smallest batch fits, or the memory of a batch is unknown.
    """
    why = ""
    if batch_size is None:
        batch_size, why = _largest(found, chunk if isinstance(chunk, int) else None, ranks, usable)
    local = max(1, batch_size // ranks)
    direct = predict_memory(found, local, None)
    at_once = f"{_pairs(local)} at once take {format_share(direct, usable)}"
    fits = direct is None or usable is None or direct <= usable
    if isinstance(chunk, int) and chunk < local:
        taken = predict_memory(found, local, chunk)
        fits = taken is None or usable is None or taken <= usable
        return BatchChoice(
            batch_size, chunk, taken, f"{_pairs(chunk)} at a time take {format_share(taken, usable)}", fits
        )
    if chunk != "auto" or fits:
        return BatchChoice(batch_size, None, direct, "; ".join(filter(None, (at_once, why))), fits)
    chunk = max(2, 2 ** ((local - 1).bit_length() - 1))
    while chunk > 2 and (predict_memory(found, local, chunk) or 0) > (usable or 0):
        chunk //= 2
    taken = predict_memory(found, local, chunk)
    fits = taken is None or usable is None or taken <= usable
    return BatchChoice(
        batch_size, chunk, taken, f"{_pairs(local)} at once would take {format_share(direct, usable)}", fits
    )


class CheckpointingChoice(NamedTuple):
    """Whether a stage computes activations twice."""

    value: bool
    found: StageMeasurement  # what holds for it
    batch: BatchChoice
    why: str  # the reason


def choose_checkpointing(
    found: StageMeasurement,
    *,
    batch_size: int | None,
    chunk: int | str | None,
    ranks: int,
    usable: float | None,
) -> CheckpointingChoice:
    """Choose activations that are computed twice where an `auto` batch is larger, or what fits is faster, so.

    The arguments are those of `choose_batch`.

    Raises:
        RecipeError: Not even the smallest batch fits, or the memory of a batch is unknown.
    """
    choose = partial(choose_batch, batch_size=batch_size, chunk=chunk, ranks=ranks, usable=usable)
    again = found.with_checkpointing
    if again is None:
        batch = choose(found)
        reason = "memory is not reported" if batch.bytes is None or usable is None else "the batch fits"
        reason = f"larger batches could not be tried ({found.failed})" if found.failed else reason
        return CheckpointingChoice(False, found, batch, f"activations are kept, as {reason}")
    ways: list[tuple[tuple[float, ...], CheckpointingChoice]] = []
    for twice, measured in ((True, again), (False, found)):
        try:
            batch = choose(measured)
        except RecipeError:
            if not twice and not ways:
                raise
            continue
        local = max(1, batch.batch_size // ranks)
        step = predict_step_seconds(measured, local, batch.chunk)
        rows = min(local, chunk if isinstance(chunk, int) else local)
        if twice:
            kept = format_share(predict_memory(found, local, rows), usable)
            why = f"activations are computed twice: kept, {_pairs(rows)} would take {kept}"
        else:
            why = "activations are kept: computing them twice helps no more"
        cost = -batch.batch_size, not batch.fits, step if batch.fits else batch.bytes or 0, twice
        ways.append((cost, CheckpointingChoice(twice, measured, batch, why)))
    return min(ways, key=lambda way: way[0])[1]


class CompileChoice(NamedTuple):
    """Whether a stage compiles its encoders."""

    value: bool = False
    ratio: float = 1.0  # of a step's time to that without
    seconds: float = 0.0  # of compiling
    why: tuple[str, ...] = ()  # the reason, where it was asked for


def choose_compile(found: StageMeasurement, steps: int) -> CompileChoice:
    """Choose to compile where it saves more than a twentieth of the steps' time: so much short runs err."""
    cost = found.compile
    if cost is None:
        return CompileChoice()
    if cost.failed:
        return CompileChoice(why=(f"not compiled: {cost.failed}",))
    ratio, compiling = cost.compiled / cost.plain, formatting.format_duration(cost.compiling)
    told = f"a step takes {ratio:.2f} of its {1000 * cost.plain:,.0f} ms, and compiling {compiling}"
    told += f", in {steps:,} steps"
    if steps * cost.compiled + cost.compiling > _WORTH * steps * cost.plain:
        return CompileChoice(why=(f"not compiled: {told}",))
    return CompileChoice(True, ratio, cost.compiling, (f"compiled: {told}",))


def predict_memory(found: StageMeasurement, local: int, chunk: int | None) -> int | None:
    """Return the peak memory of a step, filling the cache included; None where it is unknown.

    In two passes that is the memory of a chunk, plus the input and embeddings of every row of the batch.
    """
    line = found.bytes
    if line is None:
        return None
    filling = (found.filling.bytes if found.filling else None) or 0
    if chunk is None or chunk >= local:
        return round(max(line(local), filling))
    each = 0.0
    two = found.two_pass
    if two is not None and two.bytes is not None and two.chunk is not None:
        each = max(0.0, two.bytes - line(two.chunk)) / two.rows
        if two.chunk == chunk:
            return round(max(two.bytes + each * max(0, local - two.rows), filling))
    return round(max(line(chunk) + each * local, filling))


def predict_step_seconds(found: StageMeasurement, local: int, chunk: int | None) -> float:
    """Return the seconds of a step, of computing or of loading, whichever is longer."""
    computing = found.seconds(local)
    if chunk is not None and chunk < local:
        two = found.two_pass
        computing *= _TWICE if two is None else max(1.0, two.seconds / found.seconds(two.rows))
    return max(computing, found.loading_a_row * local)


def format_share(taken: float | None, usable: float | None) -> str:
    """Format a need of memory beside the usable memory."""
    if taken is None:
        return "an amount of memory that this system does not report"
    return format_size(taken) if usable is None else f"{format_size(taken)} of {format_size(usable)}"


def _largest(found: StageMeasurement, chunk: int | None, ranks: int, usable: float | None) -> tuple[int, str]:
    if found.bytes is None or usable is None:
        raise RecipeError(
            f"stage '{found.name}': `batch_size: auto` needs the available memory and that of a step, "
            f"which this system does not report; write a number"
        )
    batch = found.most
    while batch >= 2 * ranks or batch == found.most:
        taken = predict_memory(found, batch // ranks, chunk) or 0
        if taken <= usable:
            if batch == found.most:
                return batch, f"no more than {found.most_why}"
            more = predict_memory(found, 2 * batch // ranks, chunk)
            return batch, f"{2 * batch:,} pairs would take {format_share(more, usable)}"
        batch //= 2
    taken = format_share(predict_memory(found, 2, chunk), usable)
    raise RecipeError(
        f"stage '{found.name}': `batch_size: auto`: even {2 * ranks} pairs take {taken}; free memory, set "
        f"the available memory with --memory, or take smaller encoders"
    )


def _pairs(count: int) -> str:
    return f"{count:,} pairs"


def predict_run(recipe: Recipe, found: ProbeResult) -> RunPlan:
    """Predict the time, memory and disk space of a run.

    Raises:
        RecipeError: An `auto` option cannot be resolved on this machine.
    """
    machine = found.machine
    usable = None if machine.available is None else USABLE_SHARE * machine.available
    keys = [key for _, key in stage_folders(recipe, Path())]
    stages = tuple(
        predict_stage(stage, measured, ranks=machine.ranks, usable=_usable(machine, measured), key=key)
        for stage, measured, key in zip(recipe.stages, found.stages, keys, strict=True)
    )
    evaluation = found.ending.seconds if found.ending else 0.0
    report = found.ending.report_seconds if found.ending else 0.0
    held = [stage.memory_bytes for stage in stages if stage.memory_bytes is not None]
    return RunPlan(
        recipe=recipe.name,
        made=utc_now(),
        version=geobind.__version__,
        device=machine.device,
        devices=machine.ranks,
        memory=Memory(
            kind=machine.memory,
            available_bytes=machine.available,
            usable_bytes=None if usable is None else int(usable),
            says=machine.says,
        ),
        opening_seconds=machine.opening_seconds,
        stages=stages,
        evaluation_seconds=evaluation,
        report_seconds=report,
        seconds=machine.opening_seconds + sum(stage.seconds.stage for stage in stages) + evaluation + report,
        memory_bytes=max(held, default=None),
        disk_bytes=sum(stage.disk.cache + stage.disk.trained for stage in stages) + machine.bundle_bytes,
        bundle_bytes=machine.bundle_bytes,
        probe_seconds=found.seconds,
        notes=machine.notes,
    )


def _usable(machine: Machine, found: StageMeasurement) -> float | None:
    """Return the bytes that a step may take: where a CPU computes, less what loading takes of them."""
    if machine.available is None:
        return None
    loading = found.loading.bytes(max(1, found.most // machine.ranks)) if found.loading else 0
    return USABLE_SHARE * machine.available - (loading if machine.memory == "process" else 0)


def predict_stage(
    stage: Stage, found: StageMeasurement, *, ranks: int = 1, usable: float | None = None, key: str = ""
) -> StagePlan:
    """Predict the time, memory and disk space of a stage.

    Args:
        stage: The stage as written in the recipe.
        found: Its measurements.
        ranks: Devices that share a batch.
        usable: Bytes that a step may take; None where they are unknown.
        key: The fingerprint of the stage as written in the recipe.

    Raises:
        RecipeError: An `auto` option cannot be resolved.
    """
    asked = None if "batch_size" in stage.auto_options else stage.batch_size
    twice = choose_checkpointing(found, batch_size=asked, chunk=stage.chunk, ranks=ranks, usable=usable)
    found, chosen = twice.found, twice.batch
    shares = tuple(size / max(1, sum(found.sources)) for size in found.sources)
    epoch = BatchSampler(found.sources, chosen.batch_size, 0, shares, stage.mix == "rows").steps_per_epoch
    steps = stage.steps if stage.steps is not None else (stage.epochs or 0) * epoch
    compiled = choose_compile(found, steps)
    seconds = _seconds(stage, found, chosen, steps, epoch, max(1, chosen.batch_size // ranks), compiled)
    sides = found.filling.sides if found.filling else {}
    cached = {
        name: SidePlan(
            rows=round(side.inputs), missing=round(side.missing), bytes=round(side.missing * side.row_bytes)
        )
        for name, side in sides.items()
    }
    settled = {"batch_size": chosen.batch_size, "chunk": chosen.chunk, "compile": compiled.value}
    settled |= {"checkpoint_activations": twice.value}
    why = [*_why(found, chosen, cached, seconds, steps / max(1, epoch)), *compiled.why]
    if "checkpoint_activations" in stage.auto_options:
        why.append(twice.why)
    way: StepMethod = "two-pass" if chosen.chunk is not None else "cached" if cached else "direct"
    return StagePlan(
        name=stage.name,
        key=key,
        settled={name: settled[name] for name in stage.auto_options},
        rows=found.rows,
        batch_size=chosen.batch_size,
        chunk=chosen.chunk,
        steps=steps,
        epoch_steps=epoch,
        way=way,
        why="; ".join(why),
        cached=cached,
        uncached=found.uncached,
        seconds=seconds,
        memory_bytes=chosen.bytes,
        loading_bytes=found.loading.bytes(max(1, chosen.batch_size // ranks)) if found.loading else 0,
        disk=Disk(
            cache=sum(side.bytes for side in cached.values()),
            trained=found.trained_bytes,
            checkpoint=found.checkpoint_bytes,
        ),
        warnings=tuple(_warnings(found, chosen, usable)),
    )


def _seconds(
    stage: Stage,
    found: StageMeasurement,
    chosen: BatchChoice,
    steps: int,
    epoch: int,
    local: int,
    compiled: CompileChoice,
) -> Seconds:
    step = compiled.ratio * predict_step_seconds(found, local, chosen.chunk)
    filling = found.filling.seconds if found.filling else 0.0
    every = stage.checkpoint_seconds
    saves = steps if every <= step else int(steps * step / every)
    other = found.other_seconds + saves * found.checkpoint_seconds + compiled.seconds
    watching = math.ceil(steps / stage.watch.every) * found.watching_seconds if stage.watch else 0.0
    return Seconds(
        step=step,
        loading=found.loading_a_row * local,
        epoch=epoch * step,
        filling=filling,
        watching=watching,
        other=other,
        stage=filling + steps * step + watching + other,
    )


def _why(
    found: StageMeasurement, chosen: BatchChoice, cached: dict[str, SidePlan], seconds: Seconds, epochs: float
) -> Iterator[str]:
    if chosen.chunk is not None:
        yield f"two-pass with chunk {chosen.chunk:,}: {chosen.why}"
    else:
        yield f"{'cached' if cached else 'direct'}: {chosen.why}"
    for name, side in cached.items():
        if not side.missing:
            yield f"the {side.rows:,} rows of {name}, frozen, are in the cache already"
        else:
            yield (
                f"{name} is frozen, so its {formatting.format_count(side.missing, 'row')} are made once, in "
                f"{formatting.format_duration(seconds.filling)}, and read in {epochs:.3g} epochs"
            )
    for name, reason in found.uncached.items():
        yield f"{name} is frozen but computed in every step{f' ({reason})' if reason else ''}"
    if seconds.loading > 0.9 * seconds.step:
        yield "loading takes longer than computing: more `workers` may help"


def _warnings(found: StageMeasurement, chosen: BatchChoice, usable: float | None) -> Iterator[str]:
    if not chosen.fits:
        yield (
            f"{chosen.batch_size:,} pairs take {format_share(chosen.bytes, usable)}: more than there is; "
            f"write `chunk: auto` or `checkpoint_activations: auto`, or a smaller batch_size"
        )
    if found.failed:
        yield f"measuring larger batches ended early: {found.failed}"


def find_shortages(plan: RunPlan, free_bytes: int, cache_free_bytes: int) -> Sequence[str]:
    """Return messages about disks too small for the run's folder or the cache."""
    cache = sum(stage.disk.cache for stage in plan.stages)
    checkpoints = 2 * max((stage.disk.checkpoint for stage in plan.stages), default=0)
    here = plan.disk_bytes - cache + checkpoints
    found: list[str] = []
    if here > free_bytes:
        found.append(
            f"the run's folder takes {formatting.format_size(here)}, "
            f"and its disk has {formatting.format_size(free_bytes)}"
        )
    if cache > cache_free_bytes:
        found.append(
            f"the cache takes {formatting.format_size(cache)} more; "
            f"its disk has {formatting.format_size(cache_free_bytes)}"
        )
    return found
