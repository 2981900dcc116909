"""geobind sweep, and what `geobind run --sweep` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from geobind.studies.grid import Cell
    from geobind.studies.runner import Ran


@click.command("sweep")
@click.argument("names", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the runs; default: runs/sweeps.")
@click.option("--measure", metavar="NAME", help="A measure for the table, such as R@1; default: R@10.")
def command(names: tuple[str, ...], out: Path | None, measure: str | None) -> None:
    """Run NAMES: sweep files, folders of them, or shipped ones such as ablations/temperature."""
    from geobind.studies.sweep_file import read_sweeps

    failed = 0
    for sweep in [sweep for name in names for sweep in read_sweeps(name)]:
        home = (out or Path("runs") / "sweeps") / sweep.name
        failed += run_study(sweep.cells, home, sweep.about or sweep.name, measure)
    sys.exit(1 if failed else 0)


def run_study(cells: Sequence[Cell], home: Path, title: str, measure: str | None = None) -> int:
    """Run the cells, print their table, write their page; return how many failed."""
    from rich.console import Console

    from geobind.studies.runner import run_cells
    from geobind.studies.summary import rich_table, summarise, table_of, write_sweep

    click.echo(f"{len(cells)} runs; results go to {home}", err=True)
    ran = run_cells(cells, home)
    summary = summarise(ran, measure)
    Console().print(rich_table(table_of(summary, title)))
    click.echo(f"page: {write_sweep(summary, title, home)}")
    return tell_failures(ran)


def tell_failures(ran: Sequence[Ran]) -> int:
    """Name the runs that failed; return how many."""
    failed = [one for one in ran if one.failed]
    for one in failed:
        click.echo(f"failed: {one.cell.title} ({one.folder}); the same command tries it again", err=True)
    return len(failed)
