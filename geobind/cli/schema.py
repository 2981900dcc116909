"""geobind schema."""

from __future__ import annotations

import json

import click


@click.command("schema")
def command() -> None:
    """Print the JSON schema of recipes, options of every installed modality included.

    Save it and start a recipe with `# yaml-language-server: $schema=recipe.schema.json`: editors then
    complete and check as you type.
    """
    from geobind.plugins import registry
    from geobind.recipe.describe import editor_schema

    click.echo(json.dumps(editor_schema(registry()), indent=1))
