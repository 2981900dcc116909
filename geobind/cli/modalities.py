"""geobind modalities."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from geobind.cli.listing import list_plugins
from geobind.cli.options import json_option

if TYPE_CHECKING:
    from geobind.modality import Modality
    from geobind.registering import Plugin


@click.group("modalities")
def command() -> None:
    """List the installed modalities, or show one."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the installed modalities, and plugins that failed to load with their reason."""
    from geobind.plugins import registry

    list_plugins(registry(), "modalities", _row, lambda row: f"{row['role']:9}  {row['plugin']}", as_json)


@command.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show the modality NAME: its role, what it accepts, and its options."""
    from geobind.plugins import registry
    from geobind.recipe.describe import options_of

    cls = registry().get(name)
    plugin = registry().plugins[name]
    options = options_of(cls)
    if as_json:
        click.echo(json.dumps({**_row(plugin), "accepts": cls.accepts, "options": options}, indent=1))
        return
    click.echo(f"{name}: {(cls.__doc__ or '').strip().splitlines()[0] if cls.__doc__ else ''}")
    click.echo(f"  plugin   {plugin.source}")
    click.echo(f"  role     {cls.role}")
    click.echo(f"  accepts  {cls.accepts or 'not stated'}")
    click.echo("  options")
    for option in options:
        shift = "  " * option["path"].count(".")
        default = "must be given" if option["required"] else f"default {json.dumps(option['default'])}"
        click.echo(f"    {shift}{option['path'].split('.')[-1]}: {option['type']}, {default}")
        if option["help"]:
            click.echo(f"    {shift}    {option['help']}")


def _row(plugin: Plugin[Modality]) -> dict[str, Any]:
    source = plugin.source
    return {
        "name": plugin.cls.name,
        "role": plugin.cls.role,
        "plugin": str(source),
        "distribution": source.distribution,
        "version": source.version,
    }
