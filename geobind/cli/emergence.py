"""geobind emergence."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from geobind.cli.options import overrides_option, recipe_argument


def _seeds(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter("write whole numbers with commas between them, such as 0,1,2") from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise click.BadParameter("write different whole numbers from 0")
    return seeds


@click.command("emergence")
@recipe_argument
@overrides_option
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    metavar="NAME",
    help="An anchor to compare; default: each modality.",
)
@click.option("--seeds", default="0,1,2", show_default=True, callback=_seeds, help="Seeds, with commas.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Steps of each joint stage; default: the work of RECIPE's own stages.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the runs; default: runs/NAME-emergence."
)
@click.option("--measure", metavar="NAME", help="A measure for the tables, such as R@1; default: R@10.")
def command(
    recipe: str,
    overrides: tuple[str, ...],
    anchors: tuple[str, ...],
    seeds: tuple[int, ...],
    steps: int | None,
    out: Path | None,
    measure: str | None,
) -> None:
    """Bind RECIPE's modalities around each anchor, all to all, and as written, with equal work; compare."""
    from rich.console import Console

    from geobind.cli.sweep import tell_failures
    from geobind.studies import emergence
    from geobind.studies.emergence import find, pairs_table, verdicts, ways_table, write_emergence
    from geobind.studies.runner import run_cells
    from geobind.studies.summary import rich_table

    setting = emergence.plan(recipe, overrides, anchors=anchors, seeds=seeds, steps=steps)
    cells = emergence.cells_of(setting)
    home = out or Path("runs") / f"{Path(recipe).stem}-emergence"
    click.echo(f"{len(cells)} runs, joint ones of {setting.steps} steps; results go to {home}", err=True)
    ran = run_cells(cells, home)
    found = find(ran, measure)
    for table in (ways_table(found), pairs_table(found)):
        Console().print(rich_table(table))
    for line in verdicts(found):
        click.echo(line)
    click.echo(f"page: {write_emergence(found, f'Emergence: {Path(recipe).stem}', home)}")
    sys.exit(1 if tell_failures(ran) else 0)
