"""List what plugins of one kind provide, and the plugins that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from geobind.registering import C, Plugin, Registry


def list_plugins(
    found: Registry[C],
    key: str,
    row_of: Callable[[Plugin[C]], dict[str, Any]],
    line_of: Callable[[dict[str, Any]], str],
    as_json: bool,
) -> None:
    """Print all of a registry.

    Args:
        found: The registry.
        key: What its rows are called in JSON.
        row_of: What is told of one plugin; its `name` among it.
        line_of: What of a row stands beside its name where people read it.
        as_json: For programs.
    """
    rows = [row_of(plugin) for plugin in found.plugins.values()]
    broken = [{"plugin": str(one.source), "reason": one.reason} for one in found.broken]
    if as_json:
        click.echo(json.dumps({key: rows, "broken": broken}, indent=1))
        return
    wide = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        click.echo(f"{row['name']:{wide}}  {line_of(row)}")
    if not rows:
        click.echo(f"no {found.kind} is installed; is geobind itself? pip install -e .")
    for one in broken:
        click.echo(f"failed to load: {one['plugin']}: {one['reason']}", err=True)
