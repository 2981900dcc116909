"""geobind verify."""

from __future__ import annotations

import json
import sys

import click

from geobind.cli.options import bundle_argument, json_option


@click.command("verify")
@bundle_argument
@click.option("--against", metavar="OLD", help="An earlier bundle: which of its indexes stay valid?")
@json_option
def command(bundle: str, against: str | None, as_json: bool) -> None:
    """See that BUNDLE, a folder or owner/name on the hub, is what its card says.

    With --against each modality is told to embed as it did in OLD, bit for bit, or not. Ends with code 1 if
    the bundle was changed, or if an index of OLD's embeddings may not be used on.
    """
    from geobind.binder import Binder
    from geobind.bundles import stability

    binder = Binder.from_pretrained(bundle)
    faults = stability.faults(binder)
    found = stability.compare(binder, Binder.from_pretrained(against)) if against else []
    if as_json:
        told = [{**one.model_dump(), "index_is_valid": one.index_is_valid} for one in found]
        click.echo(json.dumps({"bundle": bundle, "faults": faults, "against": against, "modalities": told}))
    else:
        for line in faults:
            click.echo(f"changed: {line}")
        if not faults:
            click.echo(f"{bundle}: weights and proof are what its card says")
        for one in found:
            click.echo(f"{one.verdict:8} {one.modality}: {one.reason}")
    lost = [one for one in found if one.verdict in ("changed", "unsure", "gone")]
    sys.exit(1 if faults or lost else 0)
