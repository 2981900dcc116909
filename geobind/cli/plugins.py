"""`geobind modalities` and `geobind cache`."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from geobind.cli.options import json_option, list_plugins, print_json

if TYPE_CHECKING:
    from geobind.embedding_cache.store import EntryInfo
    from geobind.modality import Modality
    from geobind.plugins import Plugin


@click.group("modalities")
def modalities_command() -> None:
    """List the installed modalities, or show one."""


@modalities_command.command("list")
@json_option
def list_modalities(as_json: bool) -> None:
    """List the installed modalities, and plugins that failed to load with their reason."""
    from geobind.plugins import registry

    list_plugins(registry(), "modalities", _row, lambda row: f"{row['role']:9}  {row['plugin']}", as_json)


@modalities_command.command("show")
@click.argument("name")
@json_option
def show_modality(name: str, as_json: bool) -> None:
    """Show the modality NAME: its role, what it accepts, and its options."""
    from geobind.plugins import registry
    from geobind.recipe.describe import list_options

    cls = registry().get(name)
    plugin = registry().plugins[name]
    options = list_options(cls)
    if as_json:
        print_json({**_row(plugin), "accepts": cls.accepts, "options": options})
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


@click.group("cache")
def cache_command() -> None:
    """List, prune or verify the cached embeddings of frozen encoders."""


@cache_command.command("list")
@json_option
def list_entries(as_json: bool) -> None:
    """List the entries, the last used first: what they hold, their size, when they were used."""
    from geobind.embedding_cache.store import count_rows, find_entries, read_limit

    found = find_entries()
    rows: list[dict[str, Any]] = [{**_told(held), "rows": count_rows(held)} for held in found]
    total = sum(held.bytes for held in found)
    if as_json:
        print_json({"entries": rows, "bytes": total, "limit_bytes": read_limit()})
        return
    for row in rows:
        click.echo(
            f"{row['key'][:12]}  {row['rows']:>9,} rows  {row['bytes'] / 1e6:>9,.1f} MB  "
            f"used {row['used']}  {row['what']}"
        )
    click.echo(f"{len(rows)} entries, {total / 1e9:.3g} GB of at most {read_limit() / 1e9:g} GB")


@cache_command.command("prune")
@click.option(
    "--max-gb", type=click.FloatRange(0), help="Keep at most this much; default: the cache's limit."
)
@json_option
def prune_entries(max_gb: float | None, as_json: bool) -> None:
    """Remove the least recently used entries until the cache is small enough; entries in use stay."""
    from geobind.embedding_cache.store import find_entries, read_limit
    from geobind.embedding_cache.store import prune as prune_to

    gone = prune_to(read_limit() if max_gb is None else max_gb * 1e9)
    left = sum(held.bytes for held in find_entries())
    if as_json:
        print_json({"removed": [_told(held) for held in gone], "bytes": left})
        return
    for held in gone:
        click.echo(f"removed {held.key[:12]}  {held.bytes / 1e6:,.1f} MB  {_told(held)['what']}")
    click.echo(f"{left / 1e9:.3g} GB left")


@cache_command.command("verify")
@click.option("--keep", is_flag=True, help="Report what is damaged, without removing it.")
@json_option
def verify_entries(keep: bool, as_json: bool) -> None:
    """Verify every row against its checksum; remove damaged shards, whose rows are computed again."""
    from geobind.embedding_cache.store import verify as verify_all

    checked = list(verify_all(repair=not keep))
    faults = sum(len(one.damaged) for one in checked)
    if as_json:
        print_json([one._asdict() for one in checked])
    else:
        for one in checked:
            for file, fault in one.damaged:
                click.echo(f"{one.key[:12]}/{file}: {fault}{'' if keep else '; removed'}")
        good = sum(one.rows for one in checked)
        click.echo(f"{good:,} rows in {len(checked)} entries are as written; {faults} files are damaged")
    if faults:
        sys.exit(1)


def _told(held: EntryInfo) -> dict[str, Any]:
    facts = held.facts
    kept = "features of its trunk" if facts.get("part") == "trunk" else "embeddings"
    augmented = ", prepared as for training" if facts.get("augmented") else ""
    what = f"{facts.get('modality', 'unknown')}: {kept}{augmented} ({facts.get('plugin', 'unknown')})"
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(held.used))
    return {"key": held.key, "what": what, "bytes": held.bytes, "used": used, "folder": str(held.folder)}
