"""`geobind new`."""

from __future__ import annotations

from pathlib import Path

import click

_into = click.option(
    "--into", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Folder to write it in."
)


@click.group("new")
def new_command() -> None:
    """Begin a modality, a dataset or a recipe, from a template that runs at once."""


@new_command.command("modality")
@click.argument("name")
@click.option(
    "--numbers", is_flag=True, help="Of rows of numbers, such as columns of a table; default: of grids."
)
@_into
def new_modality(name: str, numbers: bool, into: Path) -> None:
    """Write a package that provides the modality NAME: class, tests, recipe on toy Earth."""
    _write("modality", name, into, numbers)


@new_command.command("dataset")
@click.argument("name")
@_into
def new_dataset(name: str, into: Path) -> None:
    """Write a package that provides the dataset NAME: reader, tests, example, recipe."""
    _write("dataset", name, into)


@new_command.command("recipe")
@click.argument("template", required=False)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="File.  [default: TEMPLATE.yaml]"
)
def new_recipe(template: str | None, out: Path | None) -> None:
    """Write a recipe from TEMPLATE; without one, list the templates."""
    from geobind.scaffold.writing import list_recipe_templates, write_recipe

    if template is None:
        templates = list_recipe_templates()
        for name, line in templates.items():
            click.echo(f"{name:{max(map(len, templates))}}  {line}")
        return
    file = out or Path(f"{template}.yaml")
    write_recipe(template, file)
    click.echo(f"{file}: fill in your files, then `geobind check {file}` and `geobind run {file}`")


def _write(kind: str, name: str, into: Path, numbers: bool = False) -> None:
    from geobind.scaffold.writing import write_package

    folder = write_package("modality" if kind == "modality" else "dataset", name, into, numbers=numbers)
    click.echo(f"{folder}: begun; next\n  cd {folder}\n  pip install -e '.[test]'\n  pytest")
    click.echo("  geobind run recipe.yaml")
