"""Maps of queries over the tiles of an archive: similarity, probability, classes, changes and regions."""

# H rows and W columns of a map, N rows of the archive, R those on the map, Q queries, C classes, D width

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from geobind.errors import CheckpointError, DataError
from geobind.scoring import PairScales, probabilities, require_scales
from geobind.search.hits import Hits, describe_rows, iter_vectors
from geobind.search.query import Query, as_query, check_width

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.archive import Archive, TileGrid
    from geobind.binder import Binder
    from geobind.bridge import Bridge

MAX_PIXELS = 400_000_000
MAX_CLASSES = 250  # numbers of a byte, without 0 for nothing
_OVERLAP = 0.1  # of two regions, as intersection over union, above which the less similar one is left out


@dataclass(frozen=True, eq=False)
class QueryMap:
    """The similarity of each tile to a query, as an image: one pixel a tile, NaN where there is none."""

    label: str
    similarity_HW: NDArray[np.float32]
    rows_HW: NDArray[np.int64]  # of the archive; -1 where there is none
    transform: tuple[float, float, float, float, float, float]  # x = a column + b row + c, y = d, e, f
    crs: str
    model: str  # digest of the model
    source: str = ""  # name of the raster
    probability_HW: NDArray[np.float32] | None = None
    probability_of: str = ""  # what it is the probability of, in words
    span: tuple[str, str] | None = None  # first and last time of its tiles, ISO 8601
    change: bool = False  # a difference of similarities, with 0 in its middle


@dataclass(frozen=True, eq=False)
class ClassMap:
    """The query that each tile is most similar to: numbers from 1 in the order of `labels`, 0 for no tile."""

    labels: tuple[str, ...]
    class_HW: NDArray[np.uint8]
    of: QueryMap  # the largest similarity of each tile

    @property
    def shares(self) -> list[float]:
        """The share of the tiles that each class has, in the order of `labels`."""
        counts = np.bincount(self.class_HW.ravel(), minlength=len(self.labels) + 1)[1:]
        return (counts / max(1, counts.sum())).tolist()


class _Canvas(NamedTuple):
    """The part of a grid that a map shows, and the archive's rows on it."""

    rows_R: NDArray[np.int64]
    down_R: NDArray[np.int64]
    across_R: NDArray[np.int64]
    shape: tuple[int, int]
    transform: tuple[float, float, float, float, float, float]
    grid: TileGrid


def map_query(
    archive: Archive,
    query: Any,
    *,
    bbox: Sequence[float] | None = None,
    time: tuple[Any, Any] | None = None,
    binder: Binder | None = None,
    prior: float = 0.5,
    bridge: Bridge | None = None,
) -> QueryMap:
    """Map the cosine similarity of every tile of an archive to a query.

    Args:
        archive: Embeddings of the tiles of one raster.
        query: One embedding, as `Binder.compose` gives it, or what `embed_query` gives.
        bbox: West, south, east, north in degrees: the map is cut to the tiles inside.
        time: First and last moment of the tiles.
        binder: A calibrated binder adds the probability of a match; the query must be one observation.
        prior: Share of matches among tiles that probabilities assume.
        bridge: Score by a bridge (`Binder.bridge`) in place of cosines; not with probabilities.

    Raises:
        DataError: The archive has no grid, two rows in one cell, or none that pass the filter; the map would
            be too large; or there is no calibration for the query.
    """
    asked = as_query(query)
    if binder is not None and bridge is not None:
        raise DataError("probabilities were fitted to cosines, not to bridged scores: give one of them")
    scales = None if binder is None else _require_scales(binder, asked, archive)
    canvas, score_1R = _score_tiles(archive, [asked], bbox, time, bridge)
    drawn = _draw_map(archive, canvas, score_1R[0], asked.label)
    if scales is None:
        return drawn
    shown = torch.from_numpy(drawn.similarity_HW)
    probability_HW = probabilities(shown, scales, str(asked.modality), "pair", prior).numpy()
    words = f"a match of {asked.modality} and {archive.modality}, where {prior:.1%} of tiles match"
    return replace(drawn, probability_HW=probability_HW, probability_of=words)


def map_classes(
    archive: Archive,
    queries: Mapping[str, Any],
    *,
    bbox: Sequence[float] | None = None,
    time: tuple[Any, Any] | None = None,
) -> ClassMap:
    """Map which of several queries each tile is most similar to; the first of equal ones.

    Args:
        archive: Embeddings of the tiles of one raster.
        queries: At least two, by the names of their classes.
        bbox: As for `map_query`.
        time: As for `map_query`.

    Raises:
        DataError: As `map_query`; fewer than two classes, or too many.
    """
    if not 2 <= len(queries) <= MAX_CLASSES:
        raise DataError(f"a map of classes needs 2 to {MAX_CLASSES} of them, not {len(queries)}")
    asked = [as_query(query) for query in queries.values()]
    canvas, score_QR = _score_tiles(archive, asked, bbox, time)
    label = ", ".join(f"{name}: {one.label}" for name, one in zip(queries, asked, strict=True))
    class_HW = np.zeros(canvas.shape, np.uint8)
    class_HW[canvas.down_R, canvas.across_R] = 1 + score_QR.argmax(axis=0)
    return ClassMap(tuple(queries), class_HW, _draw_map(archive, canvas, score_QR.max(axis=0), label))


def map_change(later: QueryMap, earlier: QueryMap) -> QueryMap:
    """Subtract one map from another of the same grid: two times of a place, or two queries.

    Raises:
        CheckpointError: The maps are of different models.
        DataError: They are of different grids.
    """
    if later.model != earlier.model:
        raise CheckpointError(
            f"the maps are of two models ({later.model[:12]} and {earlier.model[:12]}), whose similarities "
            "cannot be compared; embed both rasters with one bundle"
        )
    here, there = _corner_words(later), _corner_words(earlier)
    if here != there:
        raise DataError(
            f"the maps lie on different grids ({here}; {there}): make both archives of rasters with one CRS, "
            "origin and size, with the same --size-m and --stride-m"
        )
    label = f"({later.label}) - ({earlier.label})"
    if later.label == earlier.label:
        label = f"change of {later.label}"
    return replace(
        later,
        label=label,
        similarity_HW=later.similarity_HW - earlier.similarity_HW,
        rows_HW=np.where(earlier.rows_HW >= 0, later.rows_HW, -1),
        source=" - ".join(dict.fromkeys([later.source, earlier.source])),
        probability_HW=None,
        probability_of="",
        change=True,
    )


def _corner_words(drawn: QueryMap) -> str:
    height, width = drawn.similarity_HW.shape
    corner = " ".join(f"{value:.10g}" for value in drawn.transform)
    return f"{height} x {width} tiles at {corner}, {' '.join(drawn.crs.split())[:60]}"


def _score_tiles(
    archive: Archive,
    queries: Sequence[Query],
    bbox: Sequence[float] | None,
    time: tuple[Any, Any] | None,
    bridge: Bridge | None = None,
) -> tuple[_Canvas, NDArray[np.float32]]:
    """Score the tiles of a map by several queries (Q, R), in one pass over the embeddings."""
    for one in queries:
        check_width(one, archive)
    canvas = _lay_out(archive, bbox, time)
    return canvas, _score_rows(archive, np.stack([one.vector for one in queries]), canvas.rows_R, bridge)


def _draw_map(archive: Archive, canvas: _Canvas, score_R: NDArray[np.float32], label: str) -> QueryMap:
    """Return the scores of a map's tiles as its pixels."""
    similarity_HW = np.full(canvas.shape, np.nan, np.float32)
    similarity_HW[canvas.down_R, canvas.across_R] = score_R
    rows_HW = np.full(canvas.shape, -1, np.int64)
    rows_HW[canvas.down_R, canvas.across_R] = canvas.rows_R
    return QueryMap(
        label,
        similarity_HW,
        rows_HW,
        canvas.transform,
        canvas.grid.crs,
        archive.model,
        archive.metadata.source,
        span=_time_span(archive, canvas.rows_R),
    )


def _lay_out(archive: Archive, bbox: Sequence[float] | None, time: tuple[Any, Any] | None) -> _Canvas:
    """Find the rows of a map and their pixels.

    Raises:
        DataError: As `map_query`.
    """
    grid, down_N, across_N = archive.grid, archive.row_N, archive.column_N
    if grid is None or down_N is None or across_N is None:
        raise DataError(
            f"{archive.path}: its rows are not tiles of one raster, so they have no map; search it instead, "
            "or embed a raster: geobind embed BUNDLE MODALITY --raster scene.tif --out scene.parquet"
        )
    rows_R = archive.find_rows(bbox, time)
    if not len(rows_R):
        raise DataError(f"{archive.path}: no tile passes the filter")
    down_R, across_R = down_N[rows_R].astype(np.int64), across_N[rows_R].astype(np.int64)
    outside = (down_R < 0) | (down_R >= grid.rows) | (across_R < 0) | (across_R >= grid.columns)
    if outside.any():
        raise DataError(f"{archive.path}: damaged: row {rows_R[outside][0]} lies outside of its grid")
    top, left, height, width = 0, 0, grid.rows, grid.columns
    if bbox is not None:
        top, left = int(down_R.min()), int(across_R.min())
        height, width = int(down_R.max()) - top + 1, int(across_R.max()) - left + 1
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{archive.path}: a map of {height:,} x {width:,} tiles is larger than {MAX_PIXELS:,}; cut it "
            "with --bbox W,S,E,N"
        )
    cell_R = (down_R - top) * width + (across_R - left)
    if len(cell_R) > 1 and (np.diff(np.sort(cell_R)) == 0).any():
        raise DataError(
            f"{archive.path}: has several rows in one cell of its grid; choose those of one time: --time A/B"
        )
    a, b, c, d, e, f = grid.transform
    moved = (a, b, c + a * left + b * top, d, e, f + d * left + e * top)
    return _Canvas(rows_R, down_R - top, across_R - left, (height, width), moved, grid)


def _score_rows(
    archive: Archive, query_QD: NDArray[np.float32], rows_R: NDArray[np.int64], bridge: Bridge | None
) -> NDArray[np.float32]:
    """Compute the cosine similarity of rows to queries (Q, R), holding one block at a time."""
    query_DQ = torch.from_numpy(query_QD).T
    score_QR = np.empty((len(query_QD), len(rows_R)), np.float32)
    chosen_R = None if len(rows_R) == len(archive) else rows_R  # all of them are in order
    for start, block_BD in iter_vectors(archive, chosen_R):
        if bridge is None:
            score_QB = (torch.from_numpy(block_BD) @ query_DQ).T.clamp(-1, 1)
        else:
            score_QB = bridge.score(query_QD, block_BD)
        score_QR[:, start : start + len(block_BD)] = score_QB.numpy()
    return score_QR


def _time_span(archive: Archive, rows_R: NDArray[np.int64]) -> tuple[str, str] | None:
    if archive.time_N is None:
        return None
    known_K = archive.time_N[rows_R]
    known_K = known_K[~np.isnat(known_K)]
    if not len(known_K):
        return None
    first, last = (np.datetime64(moment, "s") for moment in (known_K.min(), known_K.max()))
    return f"{first}Z", f"{last}Z"


def _require_scales(binder: Binder, query: Query, archive: Archive) -> PairScales:
    """Return the calibration of a query's modality with the archive's.

    Raises:
        DataError: There is none; a sum of observations, or a bare embedding, has none at all.
    """
    if query.modality is None:
        raise DataError(
            f"{query.label}: only a query of one observation has a probability; sums are not calibrated"
        )
    return require_scales(binder.card and binder.card.calibration, query.modality, archive.modality)


# Regions ----------------------------------------------------------------------------------------------


def find_regions(
    archive: Archive, drawn: QueryMap, k: int = 20, *, overlap: float = _OVERLAP, least: float | None = None
) -> Hits:
    """Find the most similar tiles of a map that do not overlap (non-maximum suppression).

    Args:
        archive: That of the map.
        drawn: The map.
        k: At most so many.
        overlap: Intersection over union with a more similar one, above which a tile is left out.
        least: Similarity below which none is taken.

    Raises:
        DataError: k is below 1, or the overlap not between 0 and 1.
    """
    if k < 1:
        raise DataError(f"k must be at least 1, not {k}")
    if not 0 <= overlap <= 1:
        raise DataError(f"overlap must lie between 0 and 1, not {overlap:g}")
    if archive.grid is None:
        raise DataError(f"{archive.path}: its rows are not tiles of one raster")
    side = archive.grid.size_m / archive.grid.stride_m  # of a tile, in pixels of the map
    reach = max(0, math.ceil(side) - 1)
    open_HW = np.where(np.isnan(drawn.similarity_HW), -np.inf, drawn.similarity_HW)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < k:
        row, column = divmod(int(open_HW.argmax()), open_HW.shape[1])
        if open_HW[row, column] < (-1.0 if least is None else least):
            break
        chosen.append((row, column))
        open_HW[row, column] = -np.inf
        near = np.s_[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
        down = np.abs(np.arange(max(0, row - reach), row + reach + 1)[: open_HW[near].shape[0]] - row)
        across = np.abs(
            np.arange(max(0, column - reach), column + reach + 1)[: open_HW[near].shape[1]] - column
        )
        shared = np.maximum(side - down, 0)[:, None] * np.maximum(side - across, 0)
        open_HW[near][shared / (2 * side**2 - shared) > overlap] = -np.inf
    places = tuple(np.array(chosen, np.int64).reshape(-1, 2).T)
    return describe_rows(archive, drawn.rows_HW[places], drawn.similarity_HW[places], drawn.label)
