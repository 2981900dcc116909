"""geobind recipes."""

from __future__ import annotations

import json

import click

from geobind.cli.options import json_option


@click.command("recipes")
@json_option
def command(as_json: bool) -> None:
    """List the recipes that come with geobind; `geobind run NAME` runs one."""
    from geobind.recipe import shipped

    found = {name: _first_comment(path.read_text(encoding="utf-8")) for name, path in shipped().items()}
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for name, line in found.items():
            click.echo(f"{name}  {line}")


def _first_comment(text: str) -> str:
    first = text.splitlines()[0] if text else ""
    return first.lstrip("# ") if first.startswith("#") else ""
