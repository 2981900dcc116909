"""geobind plan."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import click

from geobind.cli.options import json_option, memory_option, overrides_option, recipe_argument


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
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run to come: it takes the plan's numbers, and its report compares.",
)
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    seconds: float,
    memory: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Predict what a run of RECIPE takes of time, memory and disk, by measuring a few real steps of it.

    Neither the run's folder (but for --out) nor the embedding cache is touched.
    """
    from geobind.recipe import load_recipe
    from geobind.utils.system import parse_size

    checked = load_recipe(recipe, overrides)
    limit = parse_size(memory) if memory else None

    from rich.console import Console

    from geobind.data.cache import cache_root
    from geobind.planning.auto import make_plan
    from geobind.planning.models import write_plan
    from geobind.planning.predict import shortage
    from geobind.planning.show import lines_of, table_of

    with _progress() as say:
        plan = make_plan(checked, seconds=seconds, limit=limit, say=say)
    short = shortage(plan, _free(out or Path()), _free(cache_root()))
    plan = plan.model_copy(update={"notes": (*plan.notes, *(f"warning: {line}" for line in short))})
    if out:
        write_plan(plan, out)
    if as_json:
        click.echo(json.dumps(plan.model_dump(mode="json"), indent=1))
        return
    Console(soft_wrap=True).print(table_of(plan))
    for line in lines_of(plan):
        click.echo(line)
    if out:
        click.echo(f"written to {out / 'plan.json'}: `geobind run ... --out {out}` takes these numbers")


@contextmanager
def _progress() -> Generator[Callable[[str], None]]:
    """Show what is being measured, on a terminal in place, elsewhere line by line."""
    if not sys.stderr.isatty():
        yield lambda what: click.echo(f"measuring: {what}", err=True)
        return
    from rich.console import Console

    with Console(stderr=True).status("measuring") as status:
        yield lambda what: status.update(f"measuring: {what}")


def _free(folder: Path) -> int:
    """Return the bytes free on the disk of a folder, there or not."""
    there = next((one for one in (folder.absolute(), *folder.absolute().parents) if one.exists()), Path("/"))
    return shutil.disk_usage(there).free
