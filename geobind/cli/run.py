"""geobind run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from geobind.cli.options import memory_option, overrides_option, recipe_argument
from geobind.cli.processes import is_first, launch


@click.command("run")
@recipe_argument
@overrides_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the run; default: runs/NAME of the recipe."
)
@click.option("--resume", is_flag=True, help="Go on with the run in that folder.")
@click.option(
    "--sweep",
    "swept",
    multiple=True,
    metavar="A.B=C,D",
    help="Run once with each of these values, finished runs skipped; repeatable: every combination.",
)
@click.option("--processes", type=click.IntRange(min=1), help="Train with so many processes of this machine.")
@click.option("--plan", is_flag=True, help="Measure first what the run will take, for the report to compare.")
@memory_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: bool,
    swept: tuple[str, ...],
    processes: int | None,
    plan: bool,
    memory: str | None,
) -> None:
    """Run RECIPE, a YAML file or the name of a shipped recipe: train its stages, measure, save a bundle."""
    from geobind.recipe import load_recipe

    if swept:
        if processes is not None:
            raise click.UsageError("--sweep runs one process; leave --processes out")
        _sweep(recipe, overrides, out, swept)
        return
    if processes is not None:
        devices = f"fabric.devices={processes}"
        load_recipe(recipe, (*overrides, devices))  # what is wrong with it is said once
        launch(processes, _words(recipe, (*overrides, devices), out, resume, plan, memory))
    checked = load_recipe(recipe, overrides)
    folder = out or Path("runs") / checked.name
    if is_first():
        click.echo(f"{checked.name}: {len(checked.stages)} stages; results go to {folder}", err=True)

    from geobind.cli.tables import print_table
    from geobind.evaluation import summary
    from geobind.planning.auto import Settling
    from geobind.report.page import PAGE
    from geobind.training.run import run
    from geobind.utils.system import parse_size

    settling = Settling(always=plan, limit=parse_size(memory) if memory else None)
    finished = run(checked, folder, resume=resume, settle=settling)
    if finished.table is not None:
        print_table(summary(finished.table))
        click.echo(f"chance in brackets; intervals and more measures: {finished.folder / 'retrieval.json'}")
    if is_first():
        page = finished.folder / PAGE
        if page.exists():
            click.echo(f"report: {page}")
        click.echo(f"bundle: {finished.bundle}")


def _words(
    recipe: str, overrides: Iterable[str], out: Path | None, resume: bool, plan: bool, memory: str | None
) -> list[str]:
    """The same command for each of several processes."""
    words = ["run", recipe, *(word for change in overrides for word in ("--set", change))]
    words += ["--out", str(out)] if out else []
    words += ["--memory", memory] if memory else []
    return words + ["--resume"] * resume + ["--plan"] * plan


def _sweep(recipe: str, overrides: tuple[str, ...], out: Path | None, swept: tuple[str, ...]) -> None:
    from geobind.cli.sweep import run_study
    from geobind.studies.grid import grid, parse_axis

    axes = [parse_axis(text) for text in swept]
    title = f"{Path(recipe).stem} by {' and '.join(axis.name for axis in axes)}"
    home = out or Path("runs") / f"{Path(recipe).stem}-sweep"
    sys.exit(1 if run_study(grid(recipe, axes, overrides), home, title) else 0)
