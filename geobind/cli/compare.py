"""geobind compare."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("compare.html"),
    show_default=True,
    help="The page to write.",
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="NAME",
    help="A measure for the table here, such as R@1 or mean_rank; repeatable.",
)
def command(runs: tuple[Path, ...], out: Path, measures: tuple[str, ...]) -> None:
    """Set RUNS, the folders of two or more runs, side by side: a table here, and an HTML page."""
    from rich.console import Console

    from geobind.report import compare, render_comparison, write_comparison

    comparison = compare(runs, measures)
    shown = comparison if measures else comparison._replace(tables=comparison.tables[:1])
    for table in render_comparison(shown):
        Console().print(table)
    if shown.tables:
        click.echo("* the intervals of the two runs do not overlap")
    click.echo(f"page: {write_comparison(comparison, out)}")
