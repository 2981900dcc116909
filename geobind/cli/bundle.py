"""`geobind verify`, `geobind report` and `geobind compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import click

from geobind.cli.options import bundle_argument, json_option, print_json, print_table


@click.command("verify")
@bundle_argument
@click.option("--against", metavar="OLD", help="An earlier bundle: which of its indexes stay valid?")
@json_option
def verify_command(bundle: str, against: str | None, as_json: bool) -> None:
    """Check that BUNDLE, a folder or owner/name on the hub, is what its card says.

    --against OLD also says which modalities embed exactly as in OLD, bit for bit. Exits with 1 if the bundle
    was changed, or if an index of OLD's embeddings is no longer valid.
    """
    from geobind.binder import Binder
    from geobind.bundles import stability

    try:
        binder = Binder.from_pretrained(bundle)
        faults = stability.find_faults(binder)
    except stability.ChangedWeights as error:
        binder, faults = cast("Binder", error.binder), error.faults
    found = stability.compare_bundles(binder, Binder.from_pretrained(against)) if against else []
    if as_json:
        told = [{**one.model_dump(), "index_is_valid": one.index_is_valid} for one in found]
        print_json({"bundle": bundle, "faults": faults, "against": against, "modalities": told})
    else:
        for line in faults:
            click.echo(f"changed: {line}")
        if not faults:
            click.echo(f"{bundle}: weights and proof are what its card says")
        for one in found:
            click.echo(f"{one.verdict:8} {one.modality}: {one.reason}")
    lost = [one for one in found if one.verdict in ("changed", "unsure", "gone")]
    sys.exit(1 if faults or lost else 0)


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="Folder that the recipe's relative paths start from; default: where the recipe lay, or here.",
)
@click.option(
    "--rows", type=click.IntRange(2), default=500, show_default=True, help="Draw from at most this many rows."
)
@click.option("--galleries/--no-galleries", default=True, help="Embed held-out rows and show what they find.")
@json_option
def report_command(run: Path, base: Path | None, rows: int, galleries: bool, as_json: bool) -> None:
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
    if as_json:
        print_json({"report": str(page), "galleries": binder is not None, "why_not": why_not or None})
        return
    click.echo(f"report: {page}")


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
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
@json_option
def compare_command(runs: tuple[Path, ...], out: Path, measures: tuple[str, ...], as_json: bool) -> None:
    """Compare RUNS, the folders of two or more runs, in a table and an HTML page."""
    from geobind.report import build_comparison_tables, compare, write_comparison

    comparison = compare(runs, measures)
    if as_json:
        print_json({"page": str(write_comparison(comparison, out)), **comparison.to_dict()})
        return
    shown = comparison if measures else comparison._replace(tables=comparison.tables[:1])
    for table in build_comparison_tables(shown):
        print_table(table)
    if shown.tables:
        click.echo("* a difference is shown: on the same queries, or else by intervals that do not overlap")
    click.echo(f"page: {write_comparison(comparison, out)}")
