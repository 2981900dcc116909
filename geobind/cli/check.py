"""geobind check."""

from __future__ import annotations

import json
import sys

import click

from geobind.cli.options import json_option, overrides_option, recipe_argument


@click.command("check")
@recipe_argument
@overrides_option
@json_option
def command(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Find every mistake of RECIPE, with file, line, column and the fix, without running it."""
    from geobind.recipe import RecipeProblems, load_recipe

    problems = ()
    checked = None
    try:
        checked = load_recipe(recipe, overrides)
    except RecipeProblems as error:
        problems = error.problems
        if not as_json:
            raise
    if as_json:
        click.echo(json.dumps({"ok": not problems, "problems": [p._asdict() for p in problems]}, indent=1))
        sys.exit(2 if problems else 0)
    if checked is not None:
        click.echo(
            f"{checked.name}: good; {len(checked.modalities)} modalities, {len(checked.stages)} stages"
        )
        for stage in checked.stages:
            trained = ", ".join(f"{n} ({p})" if p != "full" else n for n, p in stage.parts.items())
            click.echo(
                f"  {stage.name}: align {stage.align} with {checked.anchor_of(stage)}, train {trained}"
            )
