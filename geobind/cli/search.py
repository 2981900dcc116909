"""Commands of queries: `search`, `index` and `map` over archives, `similarity`, `compose` and `classify`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geobind.cli.options import (
    Compute,
    bundle_argument,
    bundle_option,
    compute_options,
    json_option,
    out_file,
    print_json,
    print_table,
)
from geobind.errors import DataError

if TYPE_CHECKING:
    from geobind.archive import Archive
    from geobind.binder import Binder
    from geobind.bridge import Bridge
    from geobind.maps import ClassMap, QueryMap
    from geobind.search import Hits, MeasuredRecall, Query
    from geobind.search.query import QueryPart

_log = logging.getLogger(__name__)
_AUTO_ROWS = 5_000_000  # from which an exact search of all rows takes longer than people like to wait

archive_argument = click.argument("archive", type=click.Path(path_type=Path))
weight_option = click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="NAME=NUMBER",
    help="How much a part counts, in the order of the parts of that modality; negative ones subtract.",
)
bbox_option = click.option(
    "--bbox", metavar="W,S,E,N", help="Degrees; a west larger than the east crosses the antimeridian."
)
time_option = click.option(
    "--time",
    metavar="A/B",
    help="First and last time, ISO 8601, such as 2024-06-01/2024-08-31 or 2024-06-01/..",
)


def query_option(*names: str, about: str, required: bool = False) -> Callable[[Any], Any]:
    """Return a repeatable option of query parts."""
    return click.option(*names, multiple=True, metavar="NAME=VALUE", required=required, help=about)


def inputs_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name what an archive was made of, to show its rows."""
    for option in (
        click.option(
            "--root", type=click.Path(path_type=Path), help="Of --data: folder that file names start from."
        ),
        click.option(
            "--column",
            "columns",
            multiple=True,
            metavar="MODALITY=COLUMN",
            help="Of --data: a column, as given to `geobind embed`; repeatable.",
        ),
        click.option(
            "--data", help="The folder, manifest or dataset that the archive was made of, for its pictures."
        ),
    ):
        command = option(command)
    return command


def find_inputs(
    archive: Archive, binder: Binder, bundle: str, data: str, columns: tuple[str, ...], root: Path | None
) -> Callable[[str], Any]:
    """Return a function from a row's id to what is shown of it; None where there is nothing.

    Raises:
        DataError: `data` has none of the archive's rows.
    """
    from geobind.cli.embed import open_data
    from geobind.modality import choose_picture

    given = {"columns": columns, "root": root, "split": None, "pattern": None}
    source = open_data(bundle, archive.modality, data, given)
    if all(source.find(str(name)) is None for name in archive.read_ids(slice(0, 1000))):
        raise DataError(
            f"--data {data}: has no row of {archive.path}; give what `geobind embed` was given: the same "
            "folder, or the manifest with the same --column"
        )
    modality = binder.modality(archive.modality)
    return lambda name: choose_picture(modality, source.find(name))


bridge_option = click.option(
    "--bridge", is_flag=True, help="Score by the bundle's bridge, for modalities that never trained together."
)
_QUERY = 'Part of the query, such as text="church bells" or audio=@rain.wav; repeatable, parts are added.'


def _place_and_time(bbox: str | None, time: str | None) -> tuple[Any, Any]:
    from geobind.search.query import parse_bbox, parse_time

    return None if bbox is None else parse_bbox(bbox), None if time is None else parse_time(time)


def _open(path: Path, bundle: str, compute: Compute) -> tuple[Archive, Binder]:
    """Open an archive and the bundle that it was made with.

    Raises:
        GeobindError: One cannot be read, or the bundle is another one.
    """
    from geobind.archive import Archive

    archive = Archive.open(path)
    binder = compute.load(bundle)
    archive.check_model(binder)
    return archive, binder


def _embed(binder: Binder, queries: Sequence[str], weights: Sequence[str], option: str = "--query") -> Query:
    from geobind.search.query import embed_query, parse_query

    return embed_query(binder, parse_query(queries, weights, binder.modalities, option=option))


def _choose_bridge(binder: Binder, query: Query, archive: Archive) -> Bridge:
    """Return the bridge of a query's modality and the archive's.

    Raises:
        DataError: There is none, or the query is a sum.
    """
    if query.modality is None:
        raise DataError(
            f"--bridge: {query.label} is a sum; a bridge joins two modalities: give one observation"
        )
    bridge = binder.bridge(query.modality, archive.modality)
    if bridge is None:
        reason = (
            "the bundle has no bank" if binder.bank is None else "they trained together, or one is the anchor"
        )
        raise DataError(
            f"--bridge: none between {query.modality} and {archive.modality}: {reason}; leave it out"
        )
    return bridge


@click.command("search")
@archive_argument
@bundle_option
@query_option("--query", "queries", about=_QUERY, required=True)
@weight_option
@bbox_option
@time_option
@bridge_option
@click.option("-k", "k", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Hits.")
@click.option(
    "--index", "folder", type=click.Path(path_type=Path), help="An index made by `geobind index build`."
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="A GeoJSON file for the hits."
)
@click.option("--gallery", type=click.Path(path_type=Path, dir_okay=False), help="An HTML page for the hits.")
@click.option(
    "--raster",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The raster that the page cuts pictures from.",
)
@inputs_options
@compute_options(workers=False)
@json_option
def search_command(
    archive: Path,
    bundle: str,
    queries: tuple[str, ...],
    weights: tuple[str, ...],
    bbox: str | None,
    time: str | None,
    bridge: bool,
    k: int,
    folder: Path | None,
    out: Path | None,
    gallery: Path | None,
    raster: Path | None,
    data: str | None,
    columns: tuple[str, ...],
    root: Path | None,
    as_json: bool,
    compute: Compute,
) -> None:
    """Find the rows of ARCHIVE, a file of `geobind embed`, that are nearest to a query of any modalities.

    The search is exact, also inside a box; with an index it is exact wherever the recall that was measured is
    below 0.99.
    """
    where, when = _place_and_time(bbox, time)
    pictured = "--raster" if raster is not None else "--data" if data is not None else None
    if pictured is not None and gallery is None:
        raise DataError(f"{pictured} has pictures for a page: name one with --gallery hits.html")
    if raster is not None and data is not None:
        raise DataError("--raster and --data: pictures come from one of the two; leave one out")
    from geobind.search import load_index, search
    from geobind.search.hits import check_index, explain_no_rows, write_gallery, write_geojson

    known = None if folder is None else load_index(folder)
    opened, binder = _open(archive, bundle, compute)
    if known is not None:
        check_index(known, opened)
    query = _embed(binder, queries, weights)
    chosen = _choose_bridge(binder, query, opened) if bridge else None
    hits = search(opened, query, k, bbox=where, time=when, index=known, bridge=chosen)
    if not len(hits):
        raise DataError(explain_no_rows(opened, where, when))
    if out is not None:
        write_geojson(hits.to_geojson(), out)
    if gallery is not None:
        show = None if data is None else find_inputs(opened, binder, bundle, data, columns, root)
        write_gallery(opened, hits, gallery, raster, show)
        if raster is None and data is None:
            _log.warning("%s: has no pictures; --raster or --data says what to take them from", gallery)
    if as_json:
        print_json({"query": hits.query, "archive": str(archive), "hits": list(hits.records())})
        return
    _print_hits(hits)
    for path in (out, gallery):
        if path is not None:
            click.echo(f"{path}: {len(hits)} hits")


def _print_hits(hits: Hits) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(hits.query))
    records = list(hits.records())
    names = ["rank", "similarity", "lat", "lon", *(["time"] if hits.time_K is not None else []), "id"]
    for name in names:
        table.add_column(name, justify="left" if name in ("id", "time") else "right", no_wrap=name != "id")
    for record in records:
        table.add_row(*(_format_cell(name, record[name]) for name in names))
    print_table(table)


def _format_cell(name: str, value: Any) -> str:
    from rich.markup import escape

    if value is None:
        return "–"
    form = {"similarity": ".3f", "lat": ".5f", "lon": ".5f"}.get(name)
    return escape(format(value, form) if form else str(value))


# Indexes ----------------------------------------------------------------------------------------------


@click.group("index")
def index_command() -> None:
    """Build an index of an archive, or show the recall that was measured of one."""


@index_command.command("build")
@archive_argument
@click.option("--kind", default="auto", show_default=True, help="exact, faiss, or what a plugin provides.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The index's folder."
)
@click.option(
    "--measure",
    "count",
    type=click.IntRange(10, 10_000),
    default=200,
    show_default=True,
    help="Queries of each kind to measure recall with, drawn from the archive's rows.",
)
@click.option(
    "--queries",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A .npy file of queries to measure with instead, such as of `geobind embed BUNDLE text`.",
)
@json_option
def build_command(
    archive: Path, kind: str, out: Path, count: int, queries: Path | None, as_json: bool
) -> None:
    """Build an index of ARCHIVE and measure its recall at several filter shares."""
    from geobind.archive import Archive
    from geobind.data.readers.arrays import read_npy
    from geobind.extras import is_installed
    from geobind.search import build_index, create_index
    from geobind.search.index import read_card

    opened = Archive.open(archive)
    if kind == "auto":
        kind = "faiss" if len(opened) >= _AUTO_ROWS and is_installed("faiss") else "exact"
    create_index(kind)  # known and installed, before anything is read
    given = None if queries is None else read_npy(queries)
    index = build_index(opened, kind, queries_QD=given, count=count)
    index.save(out)
    if as_json:
        print_json({"folder": str(out), **read_card(out).model_dump()})
        return
    _print_index(kind, len(index), index.measured)
    click.echo(f"{out}: index '{kind}' of {len(index):,} rows")


@index_command.command("info")
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def info_command(folder: Path, as_json: bool) -> None:
    """Show what the index in FOLDER holds, and its measured recall."""
    from geobind.search.index import read_card

    card = read_card(folder)
    if as_json:
        print_json(card.model_dump())
        return
    click.echo(f"{folder}: index '{card.kind}' of {card.rows:,} rows, {card.dtype} x {card.width}")
    click.echo(f"archive {card.archive[:12] or 'unknown'}, model {card.model[:12] or 'unknown'}")
    _print_index(card.kind, card.rows, card.measured)


def _print_index(kind: str, rows: int, measured: Sequence[MeasuredRecall]) -> None:
    from rich.table import Table

    from geobind.search.index import MIN_RECALL, choose_effort
    from geobind.utils.formatting import format_decimal, format_percent

    if not measured:
        click.echo(f"index '{kind}' is exact: recall 1 with every filter")
        return
    shares = sorted({one.share for one in measured}, reverse=True)
    table = Table(
        title="Recall of the nearest rows by share of rows that pass the filter",
        caption=f"Used: the least effort with recall {MIN_RECALL} at the measured shares around a filter's.",
    )
    table.add_column("k", justify="right")
    table.add_column("effort", justify="right")
    for share in shares:
        table.add_column(format_percent(share), justify="right")
    known = {(one.k, one.effort, one.share): one.recall for one in measured}
    for k, effort in sorted({(one.k, one.effort) for one in measured}):
        values = [known.get((k, effort, share)) for share in shares]
        table.add_row(str(k), str(effort), *("" if v is None else format_decimal(v) for v in values))
    for k in sorted({one.k for one in measured}):
        chosen = [choose_effort(measured, max(1, round(share * rows)), rows, k) for share in shares]
        table.add_row(str(k), "used", *("exact" if effort is None else str(effort) for effort in chosen))
    print_table(table)


# Maps -------------------------------------------------------------------------------------------------


@click.command("map")
@archive_argument
@bundle_option
@query_option("--query", "queries", about=_QUERY)
@weight_option
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="LABEL:NAME=VALUE",
    help='A class of a map of classes, such as "water: text=open sea"; repeatable, in place of --query.',
)
@query_option("--minus", about="Map how much more similar tiles are to --query than to this; repeatable.")
@click.option(
    "--before", type=click.Path(path_type=Path), help="Map the change since this archive of the same grid."
)
@bbox_option
@time_option
@bridge_option
@out_file("-o", "--out", about="The GeoTIFF to write.")
@click.option(
    "--probability", is_flag=True, help="Add a band with the probability of a match; needs calibration."
)
@click.option(
    "--prior",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.5,
    show_default=True,
    help="Share of matching tiles that probabilities assume.",
)
@click.option(
    "--paint", metavar="COLOURS", help="Write a painted GeoTIFF and a legend, too, such as viridis."
)
@click.option("--stac", is_flag=True, help="Write a STAC item beside the map.")
@click.option(
    "--peaks", type=click.Path(path_type=Path, dir_okay=False), help="A GeoJSON file for the best regions."
)
@click.option("-k", "k", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Regions.")
@compute_options(workers=False)
@json_option
def map_command(
    archive: Path,
    bundle: str,
    out: Path,
    peaks: Path | None,
    k: int,
    compute: Compute,
    as_json: bool,
    **given: Any,
) -> None:
    """Draw a map of a query over ARCHIVE as a cloud-optimized GeoTIFF: one pixel for each tile.

    With --class several queries make a map of classes; --minus and --before subtract another query or date.
    """
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise DataError(f"--out {out}: a map is a GeoTIFF: let its name end in .tif")
    _check_map_options(given)
    classes = _parse_classes(given["classes"])
    where, when = _place_and_time(given["bbox"], given["time"])
    from geobind.maps import ClassMap, find_regions, map_classes
    from geobind.maps.cog import colour_table, write_stac_item
    from geobind.search.hits import write_geojson

    if given["paint"] is not None:
        colour_table(given["paint"])  # known, before anything is read
    opened, binder = _open(archive, bundle, compute)
    if out.name == opened.metadata.source and out.exists():
        raise DataError(f"--out {out}: is the raster that {archive} was made of; give the map another name")
    if classes:
        queries = {label: _embed(binder, parts, (), "--class") for label, parts in classes.items()}
        drawn = map_classes(opened, queries, bbox=where, time=when)
    else:
        drawn = _draw(opened, binder, given, where, when)
    written = _write_maps(drawn, out, given["paint"])
    if given["stac"]:
        written.append(write_stac_item(drawn, out))
    if peaks is not None:
        regions = find_regions(opened, drawn.of if isinstance(drawn, ClassMap) else drawn, k)
        write_geojson(regions.to_geojson(), peaks)
        written.append(peaks)
    facts = _describe_map(drawn, written)
    if as_json:
        print_json(facts)
    else:
        _print_map(facts)


def _check_map_options(given: Mapping[str, Any]) -> None:
    """Check options of `geobind map` that need or exclude each other.

    Raises:
        DataError: Two exclude each other, or there is nothing to map.
    """
    if bool(given["queries"]) == bool(given["classes"]):
        raise DataError(
            'give either --query text="deep snow", or several --class, such as --class "snow: text=deep snow"'
        )
    excluded = {
        "classes": ("minus", "before", "probability", "weights", "paint", "bridge"),
        "bridge": ("minus", "probability"),
        "minus": ("before", "probability"),
        "before": ("probability",),
    }
    for name, others in excluded.items():
        for other in others:
            if given[name] and given[other]:
                raise DataError(
                    f"{_OPTION.get(other, f'--{other}')} has no meaning with "
                    f"{_OPTION.get(name, f'--{name}')}; leave one out"
                )


_OPTION = {"classes": "--class", "weights": "--weight"}


def _parse_classes(texts: Sequence[str]) -> dict[str, list[str]]:
    """Parse LABEL:NAME=VALUE; parts of one label are added.

    Raises:
        DataError: One is not of that form.
    """
    classes: dict[str, list[str]] = {}
    for text in texts:
        label, colon, part = text.partition(":")
        if not label.strip() or not colon or "=" not in part or "=" in label:
            raise DataError(f'--class {text}: write LABEL:NAME=VALUE, such as "water: text=open sea"')
        classes.setdefault(label.strip(), []).append(part.strip())
    return classes


def _draw(archive: Archive, binder: Binder, given: Mapping[str, Any], where: Any, when: Any) -> QueryMap:
    """Return the map of a query, or its difference from another query's or another archive's."""
    from geobind.archive import Archive
    from geobind.maps import map_change, map_query

    query = _embed(binder, given["queries"], given["weights"])
    calibrated = binder if given["probability"] else None
    bridge = _choose_bridge(binder, query, archive) if given["bridge"] else None
    # A mistake in them is named before the first archive is read.
    other = _embed(binder, given["minus"], (), "--minus") if given["minus"] else None
    before = None if given["before"] is None else Archive.open(given["before"], binder)
    drawn = map_query(
        archive, query, bbox=where, time=when, binder=calibrated, prior=given["prior"], bridge=bridge
    )
    if other is not None:
        return map_change(drawn, map_query(archive, other, bbox=where, time=when))
    if before is not None:
        return map_change(drawn, map_query(before, query, bbox=where, bridge=bridge))
    return drawn


def _write_maps(drawn: QueryMap | ClassMap, out: Path, paint: str | None) -> list[Path]:
    from geobind.maps import ClassMap, paint_map, write_map
    from geobind.maps.cog import draw_legend

    legend = out.with_name(f"{out.stem}_legend.png")
    written = [write_map(drawn, out)]
    if isinstance(drawn, ClassMap):
        draw_legend(drawn, legend)
        written.append(legend)
    elif paint is not None:
        written.append(paint_map(drawn, out.with_name(f"{out.stem}_{paint}.tif"), paint))
        draw_legend(drawn, legend, paint)
        written.append(legend)
    return written


def _describe_map(drawn: QueryMap | ClassMap, written: Sequence[Path]) -> dict[str, Any]:
    """Return the facts of a map as plain values: its size, its classes or its values, and its files."""
    import numpy as np

    from geobind.maps import ClassMap

    shown = drawn.of if isinstance(drawn, ClassMap) else drawn
    known = shown.similarity_HW[np.isfinite(shown.similarity_HW)]
    height, width = shown.similarity_HW.shape
    facts = {"label": shown.label, "height": height, "width": width, "tiles": len(known)}
    if isinstance(drawn, ClassMap):
        facts["classes"] = dict(zip(drawn.labels, map(float, drawn.shares), strict=True))
    elif len(known):
        percentiles = zip(("low", "median", "high"), np.percentile(known, (2, 50, 98)).tolist(), strict=True)
        facts["difference" if drawn.change else "similarity"] = dict(percentiles)
    return {**facts, "files": [str(path) for path in written]}


def _print_map(facts: Mapping[str, Any]) -> None:
    from geobind.utils.formatting import format_percent

    click.echo(f"{facts['label']}: {facts['height']} x {facts['width']} pixels, {facts['tiles']:,} tiles")
    for label, share in facts.get("classes", {}).items():
        click.echo(f"  {label}: {format_percent(share)}")
    for word in ("similarity", "difference"):
        if word in facts:
            low, median, high = (f"{facts[word][name]:.3f}" for name in ("low", "median", "high"))
            click.echo(f"  {word}: {median} (median), {low} to {high} (2nd to 98th percentile)")
    for path in facts["files"]:
        click.echo(path)


# Embeddings compared ----------------------------------------------------------------------------------


@click.command("compose")
@bundle_argument
@query_option("--query", "queries", about=_QUERY, required=True)
@weight_option
@out_file("-o", "--out", about="A .npy file for the embedding.")
@compute_options(workers=False)
@json_option
def compose_command(
    bundle: str,
    queries: tuple[str, ...],
    weights: tuple[str, ...],
    out: Path,
    compute: Compute,
    as_json: bool,
) -> None:
    """Add observations of any modalities with BUNDLE, a folder or a hub id: one embedding of unit length."""
    from geobind.utils.files import write_npy

    query = _embed(compute.load(bundle), queries, weights)
    write_npy(out, query.vector[None])
    if as_json:
        print_json({"file": str(out), "query": query.label, "rows": 1, "width": len(query.vector)})
        return
    click.echo(f"{out}: {query.label}, 1 x {len(query.vector)} float32, unit length")


@click.command("similarity")
@bundle_argument
@click.argument("observations", nargs=-1, required=True, metavar="NAME=VALUE...")
@compute_options(workers=False)
@json_option
def similarity_command(bundle: str, observations: tuple[str, ...], as_json: bool, compute: Compute) -> None:
    """Compare observations with BUNDLE, each such as text="rain" or audio=@rain.wav, by cosine similarity."""
    if len(observations) < 2:
        raise DataError('give at least two observations, such as text="rain" audio=@rain.wav')
    import torch
    from rich.markup import escape
    from rich.table import Table

    binder = compute.load(bundle)
    parts = _parse_observations(binder, observations)
    embedded = torch.cat([binder.embed(part.modality, [part.raw]) for part in parts])
    similarity_NN = binder.similarity(embedded, embedded).tolist()
    if as_json:
        print_json({"observations": [str(part) for part in parts], "similarity": similarity_NN})
        return
    table = Table(title="Cosine similarity")
    table.add_column("")
    for number in range(len(parts)):
        table.add_column(str(number + 1), justify="right")
    for number, (part, row) in enumerate(zip(parts, similarity_NN, strict=True)):
        table.add_row(f"{number + 1} {escape(str(part))}", *(f"{value:.3f}" for value in row))
    print_table(table)


@click.command("classify")
@bundle_argument
@click.argument("observations", nargs=-1, required=True, metavar="NAME=VALUE...")
@click.option("--label", "labels", multiple=True, required=True, help="A class; repeatable, at least two.")
@click.option("--through", default="text", show_default=True, help="The modality that describes the classes.")
@click.option(
    "--template",
    "templates",
    multiple=True,
    default=("{}",),
    show_default=True,
    help="A sentence with {} for the label; repeatable, their embeddings are averaged.",
)
@click.option("--temperature", type=float, help="Of the softmax; default: fitted, else CLIP's 0.01.")
@compute_options(workers=False)
@json_option
def classify_command(
    bundle: str,
    observations: tuple[str, ...],
    labels: tuple[str, ...],
    through: str,
    templates: tuple[str, ...],
    temperature: float | None,
    as_json: bool,
    compute: Compute,
) -> None:
    """Classify observations zero-shot with BUNDLE, each such as satellite=@tile.png, by labels in words."""
    if len(set(labels)) < 2:
        raise DataError("a choice needs at least two labels: --label forest --label water")
    from rich.markup import escape
    from rich.table import Table

    binder = compute.load(bundle)
    parts = _parse_observations(binder, observations)
    rows = [
        binder.classify(
            part.modality,
            [part.raw],
            list(labels),
            through=through,
            templates=templates,
            temperature=temperature,
        )[0].tolist()
        for part in parts
    ]
    if as_json:
        named = [dict(zip(labels, row, strict=True)) for row in rows]
        print_json([{"observation": str(p), "probabilities": n} for p, n in zip(parts, named, strict=True)])
        return
    table = Table(title="Probability of each class")
    for name in ("observation", "class", *labels):
        table.add_column(escape(name), justify="left" if name in ("observation", "class") else "right")
    for part, row in zip(parts, rows, strict=True):
        best = labels[max(range(len(labels)), key=row.__getitem__)]
        table.add_row(escape(str(part)), escape(best), *(f"{value:.3f}" for value in row))
    print_table(table)


def _parse_observations(binder: Binder, observations: Sequence[str]) -> list[QueryPart]:
    from geobind.search.query import parse_query

    return parse_query(observations, (), binder.modalities, option="NAME=VALUE")
