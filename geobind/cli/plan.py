"""`geobind plan` and its table."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.table import Table

from geobind.cli.options import (
    json_option,
    memory_option,
    overrides_option,
    print_json,
    print_table,
    recipe_argument,
)
from geobind.planning.models import RunPlan
from geobind.utils.formatting import NBSP, format_count, format_duration, format_size
from geobind.utils.progress import is_interactive

_log = logging.getLogger(__name__)


@click.command("plan")
@recipe_argument
@overrides_option
@click.option(
    "--seconds",
    default=12.0,
    show_default=True,
    type=click.FloatRange(1, 3600),
    help="How long to measure, about; starting comes on top.",
)
@memory_option
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run to come: it takes the plan's numbers, and its report compares.",
)
@json_option
def plan_command(
    recipe: str,
    overrides: tuple[str, ...],
    seconds: float,
    memory: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Predict what a run of RECIPE takes of time, memory and disk, by measuring a few real steps of it.

    Changes neither the run's folder, apart from --out, nor the embedding cache.
    """
    from geobind.recipe import load_recipe
    from geobind.utils.system import parse_size

    checked = load_recipe(recipe, overrides)
    limit = parse_size(memory) if memory else None

    from geobind.data.cache import cache_root
    from geobind.planning.auto import make_plan
    from geobind.planning.models import write_plan
    from geobind.planning.predict import find_shortages

    with _progress() as say:
        plan = make_plan(checked, seconds=seconds, limit=limit, say=say)
    short = find_shortages(plan, _free(out or Path()), _free(cache_root()))
    plan = plan.model_copy(update={"notes": (*plan.notes, *(f"warning: {line}" for line in short))})
    if out:
        write_plan(plan, out)
    if as_json:
        print_json(plan.model_dump(mode="json"))
        return
    print_table(plan_table(plan))
    for line in plan_lines(plan):
        click.echo(line)
    if out:
        click.echo(f"written to {out / 'plan.json'}: `geobind run ... --out {out}` takes these numbers")


@contextmanager
def _progress() -> Generator[Callable[[str], None]]:
    """Report what is being measured: in place on a terminal, line by line elsewhere."""
    if not is_interactive():
        yield lambda what: _log.info("measuring: %s", what)
        return
    from rich.console import Console

    with Console(stderr=True, emoji=False).status("measuring") as status:
        yield lambda what: status.update(f"measuring: {what}")


def _free(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist."""
    there = next((one for one in (folder.absolute(), *folder.absolute().parents) if one.exists()), Path("/"))
    return shutil.disk_usage(there).free


def plan_table(plan: RunPlan) -> Table:
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
            format_duration(stage.seconds.epoch),
            format_duration(stage.seconds.filling) if stage.cached else "–",
            format_duration(stage.seconds.stage),
            format_size(stage.memory_bytes) if stage.memory_bytes is not None else "–",
            format_size(stage.disk.cache + stage.disk.trained),
        )
    opening, blank = format_duration(plan.opening_seconds), [""] * 5
    table.add_row("opening", *blank, opening, "", "")
    table.add_row("evaluation", *blank, format_duration(plan.evaluation_seconds), "",
                  format_size(plan.bundle_bytes))  # fmt: skip
    table.add_row("report", *blank, format_duration(plan.report_seconds), "", "")
    most = format_size(plan.memory_bytes) if plan.memory_bytes is not None else "–"
    table.add_section()
    table.add_row(
        "whole run", *blank, format_duration(plan.seconds), most, format_size(plan.disk_bytes), style="bold"
    )
    return table


def plan_lines(plan: RunPlan) -> Iterator[str]:
    """Yield the reasons for each stage's method, the resolved options, and warnings."""
    for stage in plan.stages:
        yield f"{stage.name}: {stage.why}"
        if stage.settled:
            yield f"  left open and settled: {stage.settled_words}"
        if stage.loading_bytes:
            yield f"  prepared rows that wait take up to {format_size(stage.loading_bytes)} beside its memory"
        for warning in stage.warnings:
            yield f"  warning: {warning}"
    memory = plan.memory
    if memory.available_bytes is not None and memory.usable_bytes is not None:
        yield (
            f"memory: {format_size(memory.available_bytes)} ({memory.says}), "
            f"of which {format_size(memory.usable_bytes)} are counted on"
        )
    else:
        yield f"memory: {memory.says}"
    checkpoint = max((stage.disk.checkpoint for stage in plan.stages), default=0)
    taken = format_size(checkpoint)
    yield f"while a stage runs, its checkpoint takes {taken}, and twice that while it is replaced"
    yield from plan.notes
    yield f"measured in {format_duration(plan.probe_seconds)} on {format_count(plan.devices, 'device')}"


def _short(seconds: float) -> str:
    return format_duration(seconds) if seconds >= 1 else f"{1000 * seconds:.0f}{NBSP}ms"
