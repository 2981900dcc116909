"""`geobind check`, `geobind schema` and `geobind recipes`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from geobind.cli.options import json_option, overrides_option, print_json, recipe_argument


@click.command("check")
@recipe_argument
@overrides_option
@json_option
def check_command(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Find every mistake of RECIPE, with file, line, column and the fix, without running it.

    A manifest that is not there is a mistake; but where a recipe comes with geobind, it is only said.
    """
    from geobind.recipe import RecipeProblems, load_recipe
    from geobind.recipe.describe import (
        describe_details,
        describe_stage,
        describe_unpublished,
        recipe_warnings,
        stage_facts,
    )
    from geobind.recipe.shipped import is_shipped
    from geobind.recipe.validation import find_missing_files

    problems = ()
    checked = None
    try:
        checked = load_recipe(recipe, overrides, files=not is_shipped(recipe))
    except RecipeProblems as error:
        problems = error.problems
        if not as_json:
            raise
    if as_json:
        stages = [stage_facts(checked, stage) for stage in checked.stages] if checked else []
        told = {"ok": not problems, "problems": [p._asdict() for p in problems], "stages": stages}
        print_json(told)
        sys.exit(2 if problems else 0)
    if checked is not None:
        click.echo(
            f"{checked.name}: good; {len(checked.modalities)} modalities, {len(checked.stages)} stages"
        )
        for stage in checked.stages:
            click.echo(f"  {stage.name}: {describe_stage(checked, stage)}")
            for line in describe_details(checked, stage):
                click.echo(f"    {line}")
            for line in recipe_warnings(checked, stage):
                click.echo(f"    warning: {line}")
        for line in describe_unpublished(checked):
            click.echo(f"  note: {line}")
        for path, manifest in find_missing_files(checked):
            click.echo(f"  not here yet: {manifest} (--set {'.'.join(map(str, path))}=FILE names another)")


@click.command("schema")
def schema_command() -> None:
    """Print the JSON schema of recipes, options of every installed modality included.

    Save it and start a recipe with `# yaml-language-server: $schema=recipe.schema.json`: editors then
    complete and check as you type.
    """
    from geobind.plugins import registry
    from geobind.recipe.describe import build_editor_schema

    print_json(build_editor_schema(registry()))


@click.group("recipes", invoke_without_command=True)
@json_option
@click.pass_context
def recipes_command(ctx: click.Context, as_json: bool) -> None:
    """List the recipes that come with geobind, show one, or copy it to change it."""
    if ctx.invoked_subcommand is not None:
        return
    from geobind.recipe import list_shipped

    found = {name: _first_comment(path.read_text(encoding="utf-8")) for name, path in list_shipped().items()}
    if as_json:
        print_json(found)
    else:
        for name, line in found.items():
            click.echo(f"{name:{max(map(len, found))}}  {line}")


@recipes_command.command("show")
@click.argument("name")
def show_recipe(name: str) -> None:
    """Print the recipe NAME, with its comments."""
    click.echo(_read_shipped(name), nl=False)


@recipes_command.command("copy")
@click.argument("name")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="File.  [default: NAME.yaml]"
)
def copy_recipe(name: str, out: Path | None) -> None:
    """Write the recipe NAME as a file of your own; one that is there already stays."""
    from geobind.errors import DataError
    from geobind.utils.files import write_atomic

    content, file = _read_shipped(name), out or Path(f"{name}.yaml")
    if file.exists():
        raise DataError(f"{file}: is there already; name another file with --out")
    write_atomic(file, content.encode())
    click.echo(f"{file}: change it, then `geobind check {file}` and `geobind run {file}`")


def _read_shipped(name: str) -> str:
    """Return the text of a shipped recipe.

    Raises:
        RecipeProblems: There is none of that name.
    """
    from geobind.recipe import list_shipped
    from geobind.recipe.shipped import find_recipe

    shipped = list_shipped()
    return (shipped[name] if name in shipped else find_recipe(name)).read_text(encoding="utf-8")


def _first_comment(text: str) -> str:
    first = text.splitlines()[0] if text else ""
    return first.lstrip("# ") if first.startswith("#") else ""
