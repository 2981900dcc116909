"""A plan for people: a table of stages, and a line of reasons for each."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from geobind.planning.models import Plan
from geobind.utils.formatting import NBSP, count, duration, size


def table_of(plan: Plan) -> Table:
    """Return the stages of a plan, and the whole run, as a table."""
    title = f"{plan.recipe}: what it takes on {plan.device}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    for head in ("batch", "steps", "step", "epoch", "cache", "whole", "memory", "disk"):
        table.add_column(head, justify="right", no_wrap=True)
    for stage in plan.stages:
        table.add_row(
            stage.name,
            f"{stage.batch_size:,}" + (f" by {stage.chunk:,}" if stage.chunk else ""),
            f"{stage.steps:,}",
            _short(stage.seconds.step),
            duration(stage.seconds.epoch),
            duration(stage.seconds.filling) if stage.cached else "–",
            duration(stage.seconds.stage),
            size(stage.memory_bytes) if stage.memory_bytes is not None else "–",
            size(stage.disk.cache + stage.disk.trained),
        )
    opening, blank = duration(plan.opening_seconds), [""] * 5
    table.add_row("opening", *blank, opening, "", "")
    table.add_row("evaluation", *blank, duration(plan.evaluation_seconds), "",
                  size(plan.bundle_bytes))  # fmt: skip
    table.add_row("report", *blank, duration(plan.report_seconds), "", "")
    most = size(plan.memory_bytes) if plan.memory_bytes is not None else "–"
    table.add_section()
    table.add_row("whole run", *blank, duration(plan.seconds), most, size(plan.disk_bytes), style="bold")
    return table


def lines_of(plan: Plan) -> Iterator[str]:
    """Yield why each stage is computed as it is, what was settled, and warnings."""
    for stage in plan.stages:
        yield f"{stage.name}: {stage.why}"
        if stage.settled:
            said = ", ".join(f"{name}: {value or 'none'}" for name, value in stage.settled.items())
            yield f"  left open and settled: {said}"
        for warning in stage.warnings:
            yield f"  warning: {warning}"
    memory = plan.memory
    if memory.available_bytes is not None and memory.usable_bytes is not None:
        yield (
            f"memory: {size(memory.available_bytes)} ({memory.says}), "
            f"of which {size(memory.usable_bytes)} are counted on"
        )
    else:
        yield f"memory: {memory.says}"
    checkpoint = max((stage.disk.checkpoint for stage in plan.stages), default=0)
    yield f"while a stage runs, its checkpoint takes {size(checkpoint)}, and twice that while it is replaced"
    yield from plan.notes
    yield f"measured in {duration(plan.probe_seconds)} on {count(plan.devices, 'device')}"


def _short(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.0f}{NBSP}ms"
