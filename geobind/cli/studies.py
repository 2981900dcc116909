"""`geobind sweep` and `geobind emergence`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geobind.cli.options import json_option, overrides_option, print_json, print_table, recipe_argument

if TYPE_CHECKING:
    from geobind.studies.grid import Cell
    from geobind.studies.runner import CellResult

_log = logging.getLogger(__name__)


@click.command("sweep")
@click.argument("names", nargs=-1, required=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder of the runs; default: runs/sweeps."
)
@click.option("--measure", metavar="NAME", help="A measure for the table, such as R@1; default: R@10.")
@json_option
def sweep_command(names: tuple[str, ...], out: Path | None, measure: str | None, as_json: bool) -> None:
    """Run NAMES: sweep files, folders of them, or shipped ones such as ablations/temperature."""
    from geobind.studies.sweep_file import load_sweeps

    failed, printed = 0, []
    for sweep in [sweep for name in names for sweep in load_sweeps(name)]:
        home = (out or Path("runs") / "sweeps") / sweep.name
        study = run_study(sweep.cells, home, sweep.about or sweep.name, measure, as_json=as_json)
        failed += len(study["failed"])
        printed.append({"name": sweep.name, **study})
    if as_json:
        print_json({"sweeps": printed})
    sys.exit(1 if failed else 0)


def run_study(
    cells: Sequence[Cell], home: Path, title: str, measure: str | None = None, *, as_json: bool = False
) -> dict[str, Any]:
    """Run the cells, print their table unless JSON is wanted, and write their page.

    Returns:
        Plain values for JSON: the page, the runs that failed, and the figures of each setting.
    """
    from geobind.studies.runner import measure_untrained, run_cells
    from geobind.studies.summary import summarise_sweep, sweep_table, to_rich_table, write_sweep

    _log.info("%d runs; results go to %s", len(cells), home)
    ran = run_cells(cells, home)
    summary = summarise_sweep(ran, measure, measure_untrained(cells[0], home))
    page = write_sweep(summary, title, home)
    if not as_json:
        print_table(to_rich_table(sweep_table(summary, title)))
        click.echo(f"page: {page}")
    return {"page": str(page), "failed": report_failures(ran), **summary.to_dict()}


def report_failures(ran: Sequence[CellResult]) -> list[str]:
    """Print the runs that failed; return their folders."""
    failed = [one for one in ran if one.failed]
    for one in failed:
        click.echo(f"failed: {one.cell.title} ({one.folder}); the same command tries it again", err=True)
    return [str(one.folder) for one in failed]


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
    "-o", "--out", type=click.Path(path_type=Path), help="Folder of the runs; default: runs/NAME-emergence."
)
@click.option("--measure", metavar="NAME", help="A measure for the tables, such as R@1; default: R@10.")
@json_option
def emergence_command(
    recipe: str,
    overrides: tuple[str, ...],
    anchors: tuple[str, ...],
    seeds: tuple[int, ...],
    steps: int | None,
    out: Path | None,
    measure: str | None,
    as_json: bool,
) -> None:
    """Bind RECIPE's modalities around each anchor, all to all, and as written, with equal work; compare."""
    from geobind.studies import emergence
    from geobind.studies.emergence import (
        describe_differences,
        pairs_table,
        summarise_emergence,
        ways_table,
        write_emergence,
    )
    from geobind.studies.runner import measure_untrained, run_cells
    from geobind.studies.summary import to_rich_table

    setting = emergence.plan_emergence(recipe, overrides, anchors=anchors, seeds=seeds, steps=steps)
    cells = emergence.build_cells(setting)
    home = out or Path("runs") / f"{Path(recipe).stem}-emergence"
    _log.info("%d runs, joint ones of %s steps; results go to %s", len(cells), setting.steps, home)
    ran = run_cells(cells, home)
    found = summarise_emergence(ran, measure, measure_untrained(cells[0], home))
    page = write_emergence(found, f"Emergence: {Path(recipe).stem}", home)
    failed = report_failures(ran)
    if as_json:
        print_json({"page": str(page), "failed": failed, **found.to_dict()})
    else:
        for table in (ways_table(found), pairs_table(found)):
            print_table(to_rich_table(table))
        for line in describe_differences(found):
            click.echo(line)
        click.echo(f"page: {page}")
    sys.exit(1 if failed else 0)
