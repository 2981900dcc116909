"""geobind run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from geobind.cli.options import overrides_option, recipe_argument


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
def command(
    recipe: str, overrides: tuple[str, ...], out: Path | None, resume: bool, swept: tuple[str, ...]
) -> None:
    """Run RECIPE, a YAML file or the name of a shipped recipe: train its stages, measure, save a bundle."""
    from geobind.recipe import load_recipe

    if swept:
        _sweep(recipe, overrides, out, swept)
        return
    checked = load_recipe(recipe, overrides)
    folder = out or Path("runs") / checked.name
    click.echo(f"{checked.name}: {len(checked.stages)} stages; results go to {folder}", err=True)

    from rich.console import Console

    from geobind.evaluation import summary
    from geobind.training.run import run

    finished = run(checked, folder, resume=resume)
    if finished.table is not None:
        Console().print(summary(finished.table))
        click.echo(f"chance in brackets; intervals and more measures: {finished.folder / 'retrieval.json'}")
    click.echo(f"bundle: {finished.bundle}")


def _sweep(recipe: str, overrides: tuple[str, ...], out: Path | None, swept: tuple[str, ...]) -> None:
    from geobind.cli.sweep import run_study
    from geobind.studies.cells import grid, parse_axis

    axes = [parse_axis(text) for text in swept]
    title = f"{Path(recipe).stem} by {' and '.join(axis.name for axis in axes)}"
    home = out or Path("runs") / f"{Path(recipe).stem}-sweep"
    sys.exit(1 if run_study(grid(recipe, axes, overrides), home, title) else 0)
