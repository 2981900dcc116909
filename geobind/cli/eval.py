"""geobind eval."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from geobind.cli.asked import asked_data, mapped_columns
from geobind.cli.eval_more import Asked, check, grids, keep, measure_more, more_options
from geobind.cli.options import bundle_argument, json_option

if TYPE_CHECKING:
    from rich.table import Table as Grid

    from geobind.binder import Binder
    from geobind.data.table import Table
    from geobind.evaluation import Leakage, PairTable, Protocol, Published
    from geobind.evaluation.embedded import Embedded


@click.command("eval")
@bundle_argument
@click.option("--data", required=True, help="A manifest, or `toyearth` (as in the bundle's recipe).")
@click.option("--split", default="test", show_default=True, help="The held-out rows.")
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    help="A published convention beside the clean one: geobind2024, sat2cap, soundingearth, geoclap2023, "
    "psm2024; repeatable.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="MODALITY=COLUMN",
    help="Which column a modality (or key, split, lat, lon, label, group) is read from; repeatable.",
)
@click.option("--root", type=click.Path(path_type=Path), help="Folder that file names are relative to.")
@click.option("--anchor", help="What protocols take for the image; default: the anchor of each stage.")
@click.option("--by", type=click.Choice(["row", "label"]), default="row", show_default=True)
@click.option("--limit", type=click.IntRange(2), help="At most this many rows, the first ones.")
@click.option("--train-split", help="Say what the held-out rows share with this split.")
@more_options
@json_option
def command(
    bundle: str,
    data: str,
    split: str,
    protocols: tuple[str, ...],
    columns: tuple[str, ...],
    root: Path | None,
    anchor: str | None,
    by: Literal["row", "label"],
    limit: int | None,
    train_split: str | None,
    clusters: Literal["cell", "group"] | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure how well the modalities of BUNDLE, a folder or a hub id, find each other on held-out rows."""
    mapped = mapped_columns(columns)

    from geobind.binder import Binder
    from geobind.data.table import open_table
    from geobind.evaluation import leakage, protocol
    from geobind.evaluation.embedded import embed_rows
    from geobind.training.final_evaluation import first_rows, tabulate

    chosen = [protocol(name) for name in dict.fromkeys(protocols) if name != "clean"]
    binder = Binder.from_pretrained(bundle)
    asked = Asked(**given)
    check(asked, split, bundle, binder.modalities)
    options = asked_data(binder, data, mapped, root)
    table = open_table(options, Path.cwd(), tuple(binder.modalities))
    held_out = first_rows(table.split(split), limit)
    leak = leakage(table.split(train_split), held_out, most_images=None) if train_split else None
    pairs = _pairs(binder, anchor)
    _to_device(binder)
    found = embed_rows(binder, held_out)
    clean = tabulate(held_out, found, {frozenset(pair) for pair in _trained(binder)}, by, clusters)
    clean = replace(clean, warnings=(leak.warning,) if leak and leak.warning else ())
    more = measure_more(binder, table, options, held_out, found, by, asked)
    if more.calibrated and asked.keep:
        keep(binder, more.calibrated, bundle)
    results = [result for each in chosen for result in _published(each, found, pairs)]
    if as_json:
        click.echo(json.dumps(_as_dict(bundle, held_out, clean, results, leak) | more.to_dict(), indent=1))
    else:
        _show(clean, results, leak, grids(more, asked))


def _trained(binder: Binder) -> list[tuple[str, str]]:
    """What was aligned, as (anchor, other), in the order of the stages."""
    from geobind.recipe.schema import pairs_done

    stages = binder.card.stages if binder.card else []
    return list(dict.fromkeys(pair for stage in stages for pair in pairs_done(stage)))


def _pairs(binder: Binder, anchor: str | None) -> list[tuple[str, str]]:
    """The pairs that protocols measure, as (anchor, other)."""
    if anchor is not None:
        binder.modality(anchor)
    elif trained := _trained(binder):
        return trained
    anchor = anchor or next(iter(binder.modalities))
    return [(anchor, other) for other in binder.modalities if other != anchor]


def _to_device(binder: Binder) -> None:
    import torch

    binder.to("cuda" if torch.cuda.is_available() else "cpu")


def _published(
    protocol: Protocol, found: Mapping[str, Embedded], pairs: list[tuple[str, str]]
) -> list[Published]:
    """A protocol's figures of every pair that has rows."""
    import numpy as np

    from geobind.evaluation import published

    results: list[Published] = []
    for names in pairs:
        if not all(name in found for name in names):
            continue
        one, two = (found[name] for name in names)
        _, of_one, of_two = np.intersect1d(one.rows_Q, two.rows_Q, return_indices=True)
        if len(of_one) > 1:
            sides = one.embedding_QD[of_one], two.embedding_QD[of_two]
            results.append(published(protocol, *sides, names=names))
    return results


def _as_dict(
    bundle: str, table: Table, clean: PairTable, results: list[Published], leak: Leakage | None
) -> dict[str, Any]:
    return {
        "bundle": bundle,
        "data": table.name,
        "split": table.view,
        "rows": len(table),
        "clean": clean.to_dict(),
        "protocols": [result.to_dict() for result in results],
        "leakage": leak.to_dict() if leak else None,
    }


def _show(clean: PairTable, results: list[Published], leak: Leakage | None, others: Iterable[Grid]) -> None:
    from rich.console import Console

    from geobind.cli.tables import print_table
    from geobind.evaluation import render, render_published

    console = Console()
    print_table(render(clean))
    if leak and not leak.warning:  # the table has warnings
        console.print(f"leakage: {leak.summary()}", markup=False)
    for grid in others:
        console.print(grid)
    for grid in render_published(results):
        print_table(grid)
