"""geobind report."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="Folder that the recipe's relative paths start from; default: where the recipe lay, or here.",
)
@click.option(
    "--rows", type=click.IntRange(2), default=500, show_default=True, help="Draw from at most so many rows."
)
@click.option("--galleries/--no-galleries", default=True, help="Embed held-out rows and show what they find.")
def command(run: Path, base: Path | None, rows: int, galleries: bool) -> None:
    """Write the report of RUN, the folder of a run, again: one HTML page, and its figures as PNG."""
    from geobind.errors import DataError, GeobindError
    from geobind.report import open_held_out, write_report
    from geobind.utils.files import read_json

    binder = held_out = None
    why_not = ""
    if galleries and (run / "bundle").is_dir():
        start = base or Path(str(read_json(run / "run.json").get("base", ".")))
        try:
            binder, held_out = open_held_out(run, start)
        except GeobindError as error:
            why_not = f"Galleries, maps and the shared space need the bundle and its held-out rows. {error}"
            hint = "\n  name the recipe's folder with --base" if isinstance(error, DataError) else ""
            click.echo(f"no galleries: {error}{hint}", err=True)
    page = write_report(run, binder=binder, held_out=held_out, most_rows=rows, why_not=why_not)
    click.echo(f"report: {page}")
