"""Exact ranks of the best positive, by counting larger similarities tile by tile, without a sort."""

# Q queries, G gallery items, N rows of either side, D width; q, g: rows of one tile; R x C: the grid of tiles

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geobind.errors import DataError
from geobind.evaluation.ranking.expectation import Counts
from geobind.evaluation.ranking.flags import count_true
from geobind.evaluation.ranking.rows import (
    Embeddings,
    Rows,
    Sides,
    full_precision,
    same_width,
    sides_of,
    spans,
)

TOLERANCE = 1e-6  # similarities of unit vectors closer than this are tied: float32 products err by about 1e-7
CPU_TILE = 1024  # of 512 to 2048 the quickest: still in cache after the product, and few calls into torch
ACCELERATOR_TILE = 4096
STRIDE = 8  # queries are held in blocks of this many tiles, so that a gallery on disk is read less often


class _Side(NamedTuple):
    """One side of the product with its rows grouped by id, and what is counted for each of them."""

    rows: Rows
    id_N: np.ndarray
    order: np.ndarray | None
    relevant_N: np.ndarray  # positives on the other side
    best_N: Tensor  # similarity of the best of them
    larger_N: Tensor
    reached_N: Tensor  # items above or tied with the best positive
    found_N: Tensor  # positives tied with it, itself included


class _Tile(NamedTuple):
    """A tile of the similarity matrix, its place in the grid, and the rows of either side that it spans."""

    similarity_qg: Tensor
    row: int
    column: int
    at_q: slice
    at_g: slice


def rank_counts(
    query_QD: Embeddings,
    gallery_GD: Embeddings,
    *,
    query_ids: Any = None,
    gallery_ids: Any = None,
    tolerance: float = TOLERANCE,
    tile: int | None = None,
) -> Counts:
    """How many gallery items beat, and how many tie with, each query's best positive.

    Args:
        query_QD: unit-length embeddings (Q, D), a tensor or a numpy array (memory maps welcome).
        gallery_GD: unit-length embeddings (G, D); items that no query wants are fine.
        query_ids: one id per query, such as the place it shows; row numbers when left out.
        gallery_ids: one id per gallery item; an item is a positive of every query of its id.
        tolerance: similarities this close are tied.
        tile: edge of a tile; the answer does not depend on it.

    Raises:
        DataError: embeddings or ids that cannot be used, or a query without a positive.
    """
    sides = sides_of(query_QD, gallery_GD, query_ids, gallery_ids)
    return count_rows(sides, tolerance=tolerance, tile=tile)


def rank_counts_both(
    query_QD: Embeddings,
    gallery_GD: Embeddings,
    *,
    query_ids: Any = None,
    gallery_ids: Any = None,
    tolerance: float = TOLERANCE,
    tile: int | None = None,
) -> tuple[Counts, Counts]:
    """`rank_counts` from query to gallery and from gallery to query, out of one matrix product.

    The arguments and errors are those of `rank_counts`; here each gallery item needs a positive too.
    """
    sides = sides_of(query_QD, gallery_GD, query_ids, gallery_ids)
    return count_rows_both(sides, tolerance=tolerance, tile=tile)


def count_rows(sides: Sides, *, tolerance: float = TOLERANCE, tile: int | None = None) -> Counts:
    """`rank_counts` for checked rows and numbered ids."""
    near, far = _sides(sides)
    _require_positives(near, sides.gallery.name)
    _count(near, far, tolerance, tile, both=False)
    return _answer(near, sides.gallery.size)


def count_rows_both(
    sides: Sides, *, tolerance: float = TOLERANCE, tile: int | None = None
) -> tuple[Counts, Counts]:
    """`rank_counts_both` for checked rows and numbered ids."""
    near, far = _sides(sides)
    _require_positives(near, sides.gallery.name)
    _require_positives(far, sides.query.name)
    _count(near, far, tolerance, tile, both=True)
    return _answer(near, sides.gallery.size), _answer(far, sides.query.size)


def _sides(sides: Sides) -> tuple[_Side, _Side]:
    query, gallery, query_id_Q, gallery_id_G = sides
    same_width(query, gallery)
    device = query.device
    return _side(query, query_id_Q, gallery_id_G, device), _side(gallery, gallery_id_G, query_id_Q, device)


def _side(rows: Rows, id_N: np.ndarray, other_id_M: np.ndarray, device: torch.device) -> _Side:
    # With both sides grouped by id the positives lie along the diagonal: few tiles need to look for them.
    order = None if (np.diff(id_N) >= 0).all() else np.argsort(id_N, kind="stable")
    sorted_N = id_N if order is None else id_N[order]
    known, count = np.unique(other_id_M, return_counts=True)
    at_N = np.minimum(np.searchsorted(known, sorted_N), len(known) - 1)
    relevant_N = np.where(known[at_N] == sorted_N, count[at_N], 0)
    best_N = torch.full((rows.size,), -torch.inf, device=device)
    larger_N, reached_N, found_N = torch.zeros(3, rows.size, dtype=torch.int64, device=device)
    return _Side(rows.ordered(order), sorted_N, order, relevant_N, best_N, larger_N, reached_N, found_N)


def _require_positives(side: _Side, other: str) -> None:
    alone_N = side.relevant_N == 0
    if alone_N.any():
        at = int(np.argmax(alone_N))
        row = at if side.order is None else int(side.order[at])
        raise DataError(
            f"{side.rows.name}: row {row} has no positive among the {other} rows; "
            "add one of the same id, or leave the row out"
        )


def _count(query: _Side, gallery: _Side, tolerance: float, tile: int | None, *, both: bool) -> None:
    """Two passes: the best positive of every row, from the few tiles that hold one; then all comparisons.

    Both read the same product. A positive computed in another way (a dot product per pair) differs in its
    last bits, and would count as its own rival.
    """
    if tile is not None and tile < 1:
        raise DataError(f"tile is {tile}; give the edge of a tile, 1 or more")
    device = query.best_N.device
    edge = tile or (CPU_TILE if device.type == "cpu" else ACCELERATOR_TILE)
    match_RC = _matching_tiles(query.id_N, gallery.id_N, edge)
    # A tile with every positive of its rows and of its columns is compared on the spot, not computed twice.
    closed_RC = match_RC & (match_RC.sum(0) == 1) & (match_RC.sum(1, keepdims=True) == 1)
    with full_precision(device), torch.no_grad():
        for part in _tiles(query, gallery, edge, match_RC):
            positive_qg = _positives(query, gallery, part)
            inside_qg = torch.where(positive_qg, part.similarity_qg, -torch.inf)
            torch.maximum(query.best_N[part.at_q], inside_qg.amax(1), out=query.best_N[part.at_q])
            torch.maximum(gallery.best_N[part.at_g], inside_qg.amax(0), out=gallery.best_N[part.at_g])
            if closed_RC[part.row, part.column]:
                _compare_both(query, gallery, part, positive_qg, tolerance, both)
        for part in _tiles(query, gallery, edge, ~closed_RC):
            positive_qg = _positives(query, gallery, part) if match_RC[part.row, part.column] else None
            _compare_both(query, gallery, part, positive_qg, tolerance, both)


def _matching_tiles(query_id_Q: np.ndarray, gallery_id_G: np.ndarray, edge: int) -> np.ndarray:
    """Which tiles (R, C) may hold positives: the ids of their rows and of their columns overlap."""
    first_R, first_C = query_id_Q[::edge], gallery_id_G[::edge]
    last_R, last_C = (np.append(id_N[edge - 1 : -1 : edge], id_N[-1]) for id_N in (query_id_Q, gallery_id_G))
    return (first_R[:, None] <= last_C) & (first_C <= last_R[:, None])


def _positives(query: _Side, gallery: _Side, part: _Tile) -> Tensor:
    match_qg = query.id_N[part.at_q, None] == gallery.id_N[part.at_g]
    return torch.from_numpy(match_qg).to(part.similarity_qg.device)


def _compare_both(
    query: _Side, gallery: _Side, part: _Tile, positive_qg: Tensor | None, tolerance: float, both: bool
) -> None:
    _compare(query, part.similarity_qg, positive_qg, part.at_q, 1, tolerance)
    if both:
        _compare(gallery, part.similarity_qg, positive_qg, part.at_g, 0, tolerance)


def _compare(
    side: _Side, similarity_qg: Tensor, positive_qg: Tensor | None, at: slice, axis: int, tolerance: float
) -> None:
    best = side.best_N[at].unsqueeze(axis)
    side.larger_N[at] += count_true(similarity_qg > best + tolerance, axis)
    reached_qg = similarity_qg >= best - tolerance
    side.reached_N[at] += count_true(reached_qg, axis)
    if positive_qg is not None:
        side.found_N[at] += count_true(reached_qg.logical_and_(positive_qg), axis)


def _tiles(query: _Side, gallery: _Side, edge: int, wanted_RC: np.ndarray) -> Iterator[_Tile]:
    """The wanted tiles of the similarity matrix; each lives until the next is asked for."""
    device = query.best_N.device
    # One buffer for all tiles: fresh pages for each would cost as much as the counting.
    room = torch.empty(edge * edge, device=device)
    rows, columns = list(spans(0, query.rows.size, edge)), list(spans(0, gallery.rows.size, edge))
    for held in spans(0, len(rows), STRIDE):
        first = rows[held.start].start
        held_D = query.rows.block(slice(first, rows[held.stop - 1].stop), device)
        for column in np.flatnonzero(wanted_RC[held].any(0)):
            at_g = columns[column]
            gallery_gD = gallery.rows.block(at_g, device)
            for row in held.start + np.flatnonzero(wanted_RC[held, column]):
                at_q = rows[row]
                query_qD = held_D[at_q.start - first : at_q.stop - first]
                similarity_qg = room[: len(query_qD) * len(gallery_gD)].view(len(query_qD), len(gallery_gD))
                torch.mm(query_qD, gallery_gD.T, out=similarity_qg)
                yield _Tile(similarity_qg, int(row), int(column), at_q, at_g)


def _answer(side: _Side, gallery: int) -> Counts:
    """The counts, in the caller's order of rows."""
    larger_N, reached_N, found_N = (
        part.cpu().numpy() for part in (side.larger_N, side.reached_N, side.found_N)
    )
    back = slice(None) if side.order is None else np.argsort(side.order)
    # A positive always ties with itself, even if tolerance is 0 and some library repeats a product inexactly.
    tied_N, found_N = np.maximum(reached_N - larger_N, 1), np.maximum(found_N, 1)
    return Counts(larger_N[back], tied_N[back], found_N[back], side.relevant_N[back], gallery)
