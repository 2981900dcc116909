"""Search over an archive: the tiles nearest to a query, as rows, a table, GeoJSON or a page."""

# N rows, R rows that pass a filter, K hits, D width

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geobind.errors import CheckpointError, DataError
from geobind.search.index import ApproximateIndex, Matches, VectorIndex, create_index, scan
from geobind.search.query import as_query, check_width
from geobind.search.recall import measure_recall

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.archive import Archive
    from geobind.bridge import Bridge

_READ_ROWS = 65_536  # rows of a filter that are read at a time
_MAX_FOOTER = 100_000_000


@dataclass(frozen=True, eq=False)
class Hits:
    """Rows of an archive by their similarity to a query, best first."""

    query: str
    rows_K: NDArray[np.int64]
    similarity_K: NDArray[np.float32]
    ids_K: NDArray[np.object_]
    lat_K: NDArray[np.float64]
    lon_K: NDArray[np.float64]
    time_K: NDArray[np.datetime64] | None
    box_K4: NDArray[np.float64]  # footprints: west, south, east, north

    def __len__(self) -> int:
        return len(self.rows_K)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield each hit as plain values: rank, id, similarity, lat, lon and time."""
        for number in range(len(self)):
            place = [float(axis[number]) for axis in (self.lat_K, self.lon_K)]
            lat, lon = (value if np.isfinite(value) else None for value in place)
            time = None if self.time_K is None else self.time_K[number]
            yield {
                "rank": number + 1,
                "id": str(self.ids_K[number]),
                "similarity": round(float(self.similarity_K[number]), 6),
                "lat": lat,
                "lon": lon,
                "time": None if time is None or np.isnat(time) else f"{np.datetime64(time, 's')}Z",
            }

    def to_geojson(self) -> dict[str, Any]:
        """Return the hits as a FeatureCollection (RFC 7946): footprints, or points of rows without a size."""
        features = [
            {"type": "Feature", "geometry": box_geometry(box_4), "properties": record}
            for record, box_4 in zip(self.records(), self.box_K4.tolist(), strict=True)
        ]
        return {"type": "FeatureCollection", "name": self.query, "features": features}


def box_geometry(box_4: Sequence[float]) -> dict[str, Any] | None:
    """Return a box as a GeoJSON geometry: a point, a polygon, or two on both sides of the antimeridian."""
    west, south, east, north = box_4
    if not np.isfinite(box_4).all():
        return None
    if (west, south) == (east, north):
        return {"type": "Point", "coordinates": [west, south]}
    spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    rings = [
        [[left, south], [right, south], [right, north], [left, north], [left, south]] for left, right in spans
    ]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings}
    return {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}


def search(
    archive: Archive,
    query: Any,
    k: int = 20,
    *,
    bbox: Sequence[float] | None = None,
    time: tuple[Any, Any] | None = None,
    index: VectorIndex | None = None,
    bridge: Bridge | None = None,
) -> Hits:
    """Find the rows of an archive that are nearest to a query.

    Args:
        archive: The embeddings.
        query: One embedding, as `Binder.compose` gives it, or what `embed_query` gives.
        k: Hits.
        bbox: West, south, east, north in degrees that the middles of rows lie in; a west larger than the east
            crosses the antimeridian.
        time: First and last moment; None leaves a side open.
        index: An index of this archive; without one, all rows are read and searched exactly.
        bridge: Score by a bridge (`Binder.bridge`) in place of cosines.

    Returns:
        At most k hits; none where no row passes the filter.

    Raises:
        DataError: A query of another width, a box or times that are none, or an index as well as a bridge.
        CheckpointError: The index is of another archive.
    """
    if index is not None and bridge is not None:
        raise DataError("an index holds embeddings that no bridge has drawn: leave one of the two out")
    asked = as_query(query)
    check_width(asked, archive)
    rows = None if bbox is None and time is None else archive.find_rows(bbox, time)
    if index is not None:
        check_index(index, archive)
        found = index.search(asked.vector, k, rows)
    else:
        found = _scan_archive(archive, asked.vector, k, rows, bridge)
    return describe_rows(archive, found.rows_QK[0], found.similarity_QK[0], asked.label)


def iter_vectors(
    archive: Archive, rows: NDArray[np.int64] | None, *, dtype: Any = np.float32
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield embeddings of rows (None: all) block by block, each with how many came before.

    Args:
        archive: The embeddings.
        rows: Numbers of rows, ascending.
        dtype: Type of the embeddings; None: as stored.
    """
    if rows is None:
        yield from archive.iter_blocks(dtype=dtype)
        return
    for start in range(0, len(rows), _READ_ROWS):
        yield start, archive.read_vectors(rows[start : start + _READ_ROWS], dtype=dtype)


def _scan_archive(
    archive: Archive,
    query_D: NDArray[np.float32],
    k: int,
    rows: NDArray[np.int64] | None,
    bridge: Bridge | None,
) -> Matches:
    blocks = (
        (np.arange(start, start + len(block)) if rows is None else rows[start : start + len(block)], block)
        for start, block in iter_vectors(archive, rows, dtype=None)
    )
    if bridge is None:
        return scan(blocks, query_D, k, archive.width)
    # Extended by four numbers, whose cosine is 4/9 of the bridge's score.
    query_1D = query_D[None]
    extended = ((numbers, bridge.embed_pair(query_1D, block)[1].numpy()) for numbers, block in blocks)
    drawn_1E = bridge.embed_pair(query_1D, query_1D)[0].numpy()
    found = scan(extended, drawn_1E, k, drawn_1E.shape[1])
    return found._replace(similarity_QK=found.similarity_QK * np.float32(9 / 4))


def describe_rows(
    archive: Archive, rows_K: NDArray[np.int64], similarity_K: NDArray[np.float32], label: str
) -> Hits:
    """Return rows of an archive as hits."""
    return Hits(
        label,
        rows_K,
        similarity_K,
        archive.read_ids(rows_K),
        archive.lat_N[rows_K],
        archive.lon_N[rows_K],
        None if archive.time_N is None else archive.time_N[rows_K],
        archive.footprint(rows_K),
    )


def explain_no_rows(archive: Archive, bbox: Sequence[float] | None, time: Any) -> str:
    """Return why no row passed a filter: what the archive spans, and a box whose latitudes come first."""
    lat_N, lon_N = archive.lat_N, archive.lon_N
    words = f"no row of {archive.path} passes the filter"
    if bbox is not None and np.isfinite(lat_N).any():
        west, south, east, north = bbox
        spans = [float(fold(axis)) for fold in (np.nanmin, np.nanmax) for axis in (lon_N, lat_N)]
        words += f"; its rows span {','.join(f'{value:g}' for value in spans)} (W,S,E,N)"
        swapped = (south, west, north, east)
        sensible = abs(west) <= 90 and abs(east) <= 90 and west <= east
        if sensible and len(archive.find_rows(swapped)):
            words += ", and latitude and longitude of the box changed places: write longitude first"
    if time is not None and archive.time_N is not None and not np.isnat(archive.time_N).all():
        known_N = archive.time_N[~np.isnat(archive.time_N)]
        words += (
            f"; its times go from {np.datetime64(known_N.min(), 's')} to {np.datetime64(known_N.max(), 's')}"
        )
    return words


# Indexes of archives ----------------------------------------------------------------------------------


def archive_digest(archive: Archive) -> str:
    """Return a digest of an archive from its file's footer: sizes, places and checks of all its parts.

    Raises:
        DataError: The file has no footer.
    """
    with archive.path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(8)[:4], "little")
        if not 0 < length <= min(size - 8, _MAX_FOOTER):
            raise DataError(f"{archive.path}: is no whole Parquet file")
        file.seek(size - 8 - length)
        footer = file.read(length)
    return hashlib.sha256(b"%d:" % size + footer).hexdigest()


def build_index(
    archive: Archive, kind: str = "exact", *, queries_QD: Any = None, count: int = 200
) -> VectorIndex:
    """Build an index of an archive; the recall of an approximate one is measured on the archive's own rows.

    Args:
        archive: The embeddings.
        kind: `exact`, or what a plugin provides, such as `faiss`.
        queries_QD: Queries to measure recall with; see `measure_recall`.
        count: Queries to draw otherwise.

    Raises:
        PluginError: There is no such kind, or the package that it needs is not installed.
    """
    index = create_index(kind)
    for _, block in archive.iter_blocks(dtype=None):
        index.add(block)
    index.archive, index.model = archive_digest(archive), archive.model
    if isinstance(index, ApproximateIndex):
        place_NLL = np.stack([archive.lat_N, archive.lon_N], axis=1)
        placed = bool(np.isfinite(place_NLL).all())
        measure_recall(index, place_NLL if placed else None, queries_QD, count=count)
    return index


def check_index(index: VectorIndex, archive: Archive) -> None:
    """Check that an index is of an archive as it is now.

    Raises:
        CheckpointError: It is of another one.
    """
    if index.archive != archive_digest(archive) or len(index) != len(archive):
        other = "" if index.model == archive.model else ", embedded by another model"
        raise CheckpointError(
            f"the index is of another archive than {archive.path}{other} ({len(index):,} rows, the archive "
            f"has {len(archive):,}); build it again: geobind index build {archive.path} --out FOLDER"
        )


# Files ------------------------------------------------------------------------------------------------


def write_geojson(collection: Mapping[str, Any], path: Path) -> None:
    """Write a FeatureCollection."""
    from geobind.utils.files import write_atomic

    write_atomic(path, (json.dumps(collection, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def write_gallery(
    archive: Archive,
    hits: Hits,
    path: Path,
    raster: Path | None = None,
    show: Callable[[str], Any] | None = None,
) -> None:
    """Write a page of the hits: a picture, the similarity and the place of each.

    Args:
        archive: What was searched.
        hits: At most some hundred.
        path: The HTML file; nothing in it is fetched from elsewhere.
        raster: The raster that the archive was made of, to cut pictures from.
        show: Returns what to show of a row by its id, or None; in place of a raster.

    Raises:
        DataError: The raster cannot be read.
    """
    from geobind.modality import Place
    from geobind.report.media import build_media
    from geobind.report.page import render_template
    from geobind.utils.files import write_atomic

    records = list(hits.records())
    if raster is not None:
        found = [_read_tile(archive, record, raster) for record in records]
    else:
        found = [show(record["id"]) if show else None for record in records]
    items = [
        {
            "record": record,
            "place": "" if record["lat"] is None else str(Place(record["lat"], record["lon"])),
            "shown": None if raw is None else build_media(raw),
        }
        for record, raw in zip(records, found, strict=True)
    ]
    values = {"query": hits.query, "archive": archive.path.name, "rows": len(archive), "items": items}
    write_atomic(path, render_template("hits.html", **values))


def _read_tile(archive: Archive, record: Mapping[str, Any], raster: Path) -> Any:
    """Return the pixels of a hit, or why there are none."""
    from geobind.data.options import RasterOptions
    from geobind.data.rasters.window import read_window

    if archive.grid is None or record["lat"] is None:
        raise DataError(
            f"{archive.path}: its rows are not tiles of a raster, so {raster} has no pictures of them"
        )
    known = {name: archive.metadata.reading.get(name) for name in ("bands", "stretch")}
    options = RasterOptions.model_validate(
        {"size_m": archive.grid.size_m, "min_valid": 0, **{n: v for n, v in known.items() if v}}
    )
    try:
        return read_window(raster, record["lat"], record["lon"], options)
    except DataError as error:
        return error
