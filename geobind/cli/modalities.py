"""geobind modalities."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from geobind.cli.options import json_option

if TYPE_CHECKING:
    from geobind.plugins import Plugin


@click.group("modalities")
def command() -> None:
    """List the installed modalities, or show one."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the installed modalities, and plugins that failed to load with their reason."""
    from geobind.plugins import registry

    found = registry()
    rows = [_row(plugin) for plugin in found.plugins.values()]
    broken = [{"plugin": str(b.source), "reason": b.reason} for b in found.broken]
    if as_json:
        click.echo(json.dumps({"modalities": rows, "broken": broken}, indent=1))
        return
    wide = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        click.echo(f"{row['name']:{wide}}  {row['role']:9}  {row['plugin']}")
    if not rows:
        click.echo("no modality is installed; is geobind itself? pip install -e .")
    for item in broken:
        click.echo(f"failed to load: {item['plugin']}: {item['reason']}", err=True)


@command.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show the modality NAME: its role, what it accepts, and its options."""
    from geobind.plugins import registry
    from geobind.recipe.editor import options_of

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


def _row(plugin: Plugin) -> dict[str, Any]:
    source = plugin.source
    return {
        "name": plugin.modality.name,
        "role": plugin.modality.role,
        "plugin": str(source),
        "distribution": source.distribution,
        "version": source.version,
    }
