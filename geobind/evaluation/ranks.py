"""Exact ranks of matches, counted in tiles, and expected measures under ties.

The value of a ranking with ties is the mean of each measure over all ways to break them.
A tied group fills T places after the L items that beat it; each order of the group is equally likely. A
constant embedding is one group of everything, so what it scores is the chance level. The idea is McSherry and
Najork's (ECIR 2008); the closed forms here are checked against random rankings in the tests.
"""

# q, g: rows and columns of a tile

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geobind.errors import DataError
from geobind.evaluation.embeddings import (
    EmbeddingMatrix,
    Embeddings,
    RetrievalSides,
    build_retrieval_sides,
    check_same_width,
    full_precision,
    iterate_slices,
)

LANE = 64


def count_true(flag_qg: Tensor, axis: int) -> Tensor:
    """Count the true flags of each row (axis 1) or column (axis 0).

    Eight one-byte flags are added as one 64-bit word: a tenth of the time of a sum over booleans, which
    widens each flag first. A byte holds up to 255, so words are added `LANE` at a time.
    """
    rows, columns = flag_qg.shape
    if rows % LANE or columns % (8 * LANE):
        return flag_qg.sum(axis, dtype=torch.int64)
    word_qw = flag_qg.view(torch.int64)
    grouped = (
        word_qw.view(rows, -1, LANE).sum(2) if axis == 1 else word_qw.view(-1, LANE, columns // 8).sum(1)
    )
    return grouped.view(torch.uint8).sum(axis, dtype=torch.int64)


# Q queries, P positives of one query, G gallery items


@lru_cache(maxsize=8)
def harmonic_numbers(size: int) -> np.ndarray:
    """Return the harmonic numbers H_0 .. H_size, H_n = 1 + 1/2 + ... + 1/n."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, size + 1))])


@lru_cache(maxsize=8)
def cumulative_discounts(size: int) -> np.ndarray:
    """Return cumulative DCG discounts, 1 / log2(1 + rank) each (Järvelin and Kekäläinen, 2002)."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, size + 2)))])


@dataclass(frozen=True)
class RankCounts:
    """Rank counts of each query's best positive, ties included; every rank metric follows from them."""

    larger_Q: np.ndarray  # items that beat the best positive
    tied_Q: np.ndarray  # items tied with it, itself included
    found_Q: np.ndarray  # positives among the tied
    relevant_Q: np.ndarray  # positives in the gallery
    gallery: int

    @property
    def rank_Q(self) -> np.ndarray:
        """Mean rank of the best positive: 1 + larger + ties / 2 when there is one positive."""
        return self.larger_Q + (self.tied_Q + 1) / (self.found_Q + 1)

    @property
    def strict_rank_Q(self) -> np.ndarray:
        """Rank with every tie broken for the positive, as some code does; a constant embedding gets 1."""
        return 1 + self.larger_Q

    def chance(self) -> RankCounts:
        """Return the counts of a constant embedding: the whole gallery tied."""
        everything_Q = np.full_like(self.tied_Q, self.gallery)
        return RankCounts(
            np.zeros_like(self.larger_Q), everything_Q, self.relevant_Q, self.relevant_Q, self.gallery
        )

    def hit_Q(self, k: int) -> np.ndarray:
        """Compute the probability of a positive in the first `k`; clip((k - larger) / tied, 0, 1) for one.

        With m positives among T tied items, of which the first j = k - larger are seen, a miss has the
        hypergeometric probability C(T - m, j) / C(T, j).
        """
        seen_Q = np.clip(k - self.larger_Q, 0, self.tied_Q)
        return np.where(
            self.found_Q == 1, seen_Q / self.tied_Q, 1 - _miss_probability(self.tied_Q, self.found_Q, seen_Q)
        )

    @property
    def reciprocal_Q(self) -> np.ndarray:
        """Mean of 1 / rank of the best positive; (H_(L+T) - H_L) / T for one positive."""
        table = harmonic_numbers(self.gallery)
        value_Q = (table[self.larger_Q + self.tied_Q] - table[self.larger_Q]) / self.tied_Q
        several_Q = self.found_Q > 1
        if several_Q.any():
            triples = np.stack([self.larger_Q, self.tied_Q, self.found_Q], axis=1)[several_Q]
            distinct, back = np.unique(triples, axis=0, return_inverse=True)
            value_Q[several_Q] = np.array([_reciprocal(*map(int, triple)) for triple in distinct])[
                back.ravel()
            ]
        return value_Q

    @property
    def median_rank(self) -> float:
        """Median over queries of `rank_Q`."""
        return float(np.median(self.rank_Q))

    def chance_median_rank(self) -> float:
        """Compute the median rank of random rankings: the k at which chance recall@k passes one half.

        (G + 1) / 2 for one positive. With m it lies below the chance mean rank, (G + 1) / (m + 1), for the
        best of m ranks is skewed; that mean is what `median_rank` of a constant embedding is.
        """
        count, how_often = np.unique(self.relevant_Q, return_counts=True)
        none = np.zeros_like(count)
        pooled = RankCounts(none, np.full_like(count, self.gallery), count, count, self.gallery)
        low, high = 1, self.gallery
        while low < high:
            middle = (low + high) // 2
            if np.average(pooled.hit_Q(middle), weights=how_often) >= 0.5 - 1e-9:
                high = middle
            else:
                low = middle + 1
        # A cumulative probability of exactly one half leaves the median anywhere up to the next rank.
        even = abs(np.average(pooled.hit_Q(low), weights=how_often) - 0.5) < 1e-9
        return low + 0.5 if even else float(low)


def _miss_probability(total: np.ndarray, wanted: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return C(total - wanted, drawn) / C(total, drawn): the probability of drawing no wanted item."""
    possible = drawn <= total - wanted
    remaining = np.where(possible, total - wanted - drawn, 0)

    def log_factorial(n: np.ndarray) -> np.ndarray:
        return torch.lgamma(torch.from_numpy(n + 1.0)).numpy()

    log_ratio = log_factorial(total - wanted) + log_factorial(total - drawn)
    log_ratio -= log_factorial(remaining) + log_factorial(total)
    return np.where(possible, np.exp(np.minimum(log_ratio, 0.0)), 0.0)


def _reciprocal(larger: int, tied: int, positives: int) -> float:
    """Return the mean of 1 / (larger + place of the first positive among `tied` shuffled items)."""
    place = np.arange(0, tied - positives + 2)
    none_yet = _miss_probability(np.full_like(place, tied), np.full_like(place, positives), place)
    return float(np.sum((none_yet[:-1] - none_yet[1:]) / (larger + place[1:])))


def average_precision(
    larger_P: np.ndarray,
    tied_P: np.ndarray,
    positives_larger_P: np.ndarray,
    positives_tied_P: np.ndarray,
    gallery: int,
) -> float:
    """Compute the average precision of one query, ties broken at random.

    For a positive with L items and A positives above it, in a group of T items with r other positives, let
    s = r / (T - 1) be the share of positives in the rest of the group. The mean over its places j = 1 .. T of
    (A + 1 + s (j - 1)) / (L + j) is s + (A + 1 - s (L + 1)) (H_(L+T) - H_L) / T.

    Args:
        larger_P: L, for each positive.
        tied_P: T, itself included.
        positives_larger_P: A.
        positives_tied_P: r + 1, itself included.
        gallery: How many items there are.
    """
    table = harmonic_numbers(gallery)
    share_P = (positives_tied_P - 1) / np.maximum(tied_P - 1, 1)
    spread_P = (table[larger_P + tied_P] - table[larger_P]) / tied_P
    return float(np.mean(share_P + (positives_larger_P + 1 - share_P * (larger_P + 1)) * spread_P))


def chance_average_precision(relevant: int, gallery: int) -> float:
    """Compute the average precision of a random ranking: `average_precision` with everything tied."""
    share = (relevant - 1) / max(gallery - 1, 1)
    return float(share + (1 - share) * harmonic_numbers(gallery)[gallery] / gallery)


def discounted_gain(larger_P: np.ndarray, tied_P: np.ndarray, gain_P: np.ndarray, gallery: int) -> float:
    """Compute the DCG of one query, ties broken at random: gains at the mean discount of their group."""
    table = cumulative_discounts(gallery)
    return float(np.sum(gain_P * (table[larger_P + tied_P] - table[larger_P]) / tied_P))


def ideal_gain(gain_P: np.ndarray, gallery: int) -> float:
    """Compute the largest possible DCG: gains in falling order."""
    return float(np.sum(np.sort(gain_P)[::-1] * np.diff(cumulative_discounts(gallery)[: len(gain_P) + 1])))


def chance_gain(gain_P: np.ndarray, gallery: int) -> float:
    """Compute the DCG of a random ranking: the mean gain of the gallery at every place."""
    return float(gain_P.sum() * cumulative_discounts(gallery)[gallery] / gallery)


# Q queries, G gallery items, N rows of either side, D width; q, g: rows of one tile; R x C: the grid of tiles


TOLERANCE = 1e-6  # similarities of unit vectors closer than this are tied: float32 products err by about 1e-7
CPU_TILE = 1024  # of 512 to 2048 the quickest: still in cache after the product, and few calls into torch
ACCELERATOR_TILE = 4096
STRIDE = 8  # queries are held in blocks of this many tiles, so that a gallery on disk is read less often


class _RankedSide(NamedTuple):
    """One side of the product: rows grouped by id, and the counts of each."""

    rows: EmbeddingMatrix
    id_N: np.ndarray
    order: np.ndarray | None
    relevant_N: np.ndarray  # positives on the other side
    best_N: Tensor  # similarity of the best of them
    larger_N: Tensor
    reached_N: Tensor  # items above or tied with the best positive
    found_N: Tensor  # positives tied with it, itself included


class _Tile(NamedTuple):
    """A tile of the similarity matrix, its grid position, and the rows it spans."""

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
) -> RankCounts:
    """Count the gallery items that beat, and that tie with, each query's best positive.

    Args:
        query_QD: Unit-length embeddings (Q, D), a tensor or a numpy array (memory maps welcome).
        gallery_GD: Unit-length embeddings (G, D); items without a query are allowed.
        query_ids: One id per query, such as the place it shows; row numbers when left out.
        gallery_ids: One id per gallery item; an item is a positive of every query of its id.
        tolerance: Similarities this close are tied.
        tile: Edge of a tile; the answer does not depend on it.

    Raises:
        DataError: Embeddings or ids that cannot be used, or a query without a positive.
    """
    sides = build_retrieval_sides(query_QD, gallery_GD, query_ids, gallery_ids)
    return count_rows(sides, tolerance=tolerance, tile=tile)


def rank_counts_both(
    query_QD: Embeddings,
    gallery_GD: Embeddings,
    *,
    query_ids: Any = None,
    gallery_ids: Any = None,
    tolerance: float = TOLERANCE,
    tile: int | None = None,
) -> tuple[RankCounts, RankCounts]:
    """Compute `rank_counts` in both directions from one matrix product.

    The arguments and errors are those of `rank_counts`; here each gallery item needs a positive too.
    """
    sides = build_retrieval_sides(query_QD, gallery_GD, query_ids, gallery_ids)
    return count_rows_both(sides, tolerance=tolerance, tile=tile)


def count_rows(sides: RetrievalSides, *, tolerance: float = TOLERANCE, tile: int | None = None) -> RankCounts:
    """Compute `rank_counts` for checked rows and encoded ids."""
    near, far = _build_sides(sides)
    _require_positives(near, sides.gallery.name)
    _count_in_tiles(near, far, tolerance, tile, both=False)
    return _collect_counts(near, sides.gallery.size)


def count_rows_both(
    sides: RetrievalSides, *, tolerance: float = TOLERANCE, tile: int | None = None
) -> tuple[RankCounts, RankCounts]:
    """Compute `rank_counts_both` for checked rows and encoded ids."""
    near, far = _build_sides(sides)
    _require_positives(near, sides.gallery.name)
    _require_positives(far, sides.query.name)
    _count_in_tiles(near, far, tolerance, tile, both=True)
    return _collect_counts(near, sides.gallery.size), _collect_counts(far, sides.query.size)


def _build_sides(sides: RetrievalSides) -> tuple[_RankedSide, _RankedSide]:
    query, gallery, query_id_Q, gallery_id_G = sides
    check_same_width(query, gallery)
    device = query.device
    return _build_side(query, query_id_Q, gallery_id_G, device), _build_side(
        gallery, gallery_id_G, query_id_Q, device
    )


def _build_side(
    rows: EmbeddingMatrix, id_N: np.ndarray, other_id_M: np.ndarray, device: torch.device
) -> _RankedSide:
    # With both sides grouped by id the positives lie along the diagonal: few tiles need to look for them.
    order = None if (np.diff(id_N) >= 0).all() else np.argsort(id_N, kind="stable")
    sorted_N = id_N if order is None else id_N[order]
    known, count = np.unique(other_id_M, return_counts=True)
    at_N = np.minimum(np.searchsorted(known, sorted_N), len(known) - 1)
    relevant_N = np.where(known[at_N] == sorted_N, count[at_N], 0)
    best_N = torch.full((rows.size,), -torch.inf, device=device)
    larger_N, reached_N, found_N = torch.zeros(3, rows.size, dtype=torch.int64, device=device)
    return _RankedSide(rows.ordered(order), sorted_N, order, relevant_N, best_N, larger_N, reached_N, found_N)


def _require_positives(side: _RankedSide, other: str) -> None:
    alone_N = side.relevant_N == 0
    if alone_N.any():
        at = int(np.argmax(alone_N))
        row = at if side.order is None else int(side.order[at])
        raise DataError(
            f"{side.rows.name}: row {row} has no positive among the {other} rows; "
            "add one of the same id, or leave the row out"
        )


def _count_in_tiles(
    query: _RankedSide, gallery: _RankedSide, tolerance: float, tile: int | None, *, both: bool
) -> None:
    """Count in two passes: the best positive of every row, then all comparisons.

    Both read the same product. A positive computed in another way (a dot product per pair) differs in its
    last bits, and would count as its own rival.
    """
    if tile is not None and tile < 1:
        raise DataError(f"tile is {tile}; give the edge of a tile, 1 or more")
    device = query.best_N.device
    edge = tile or (CPU_TILE if device.type == "cpu" else ACCELERATOR_TILE)
    match_RC = _find_matching_tiles(query.id_N, gallery.id_N, edge)
    # A tile with every positive of its rows and of its columns is compared on the spot, not computed twice.
    closed_RC = match_RC & (match_RC.sum(0) == 1) & (match_RC.sum(1, keepdims=True) == 1)
    with full_precision(device), torch.no_grad():
        for part in _iterate_tiles(query, gallery, edge, match_RC):
            positive_qg = _find_positives(query, gallery, part)
            inside_qg = torch.where(positive_qg, part.similarity_qg, -torch.inf)
            torch.maximum(query.best_N[part.at_q], inside_qg.amax(1), out=query.best_N[part.at_q])
            torch.maximum(gallery.best_N[part.at_g], inside_qg.amax(0), out=gallery.best_N[part.at_g])
            if closed_RC[part.row, part.column]:
                _compare_both(query, gallery, part, positive_qg, tolerance, both)
        for part in _iterate_tiles(query, gallery, edge, ~closed_RC):
            positive_qg = _find_positives(query, gallery, part) if match_RC[part.row, part.column] else None
            _compare_both(query, gallery, part, positive_qg, tolerance, both)


def _find_matching_tiles(query_id_Q: np.ndarray, gallery_id_G: np.ndarray, edge: int) -> np.ndarray:
    """Find the tiles (R, C) that may hold positives: the ids of their rows and columns overlap."""
    first_R, first_C = query_id_Q[::edge], gallery_id_G[::edge]
    last_R, last_C = (np.append(id_N[edge - 1 : -1 : edge], id_N[-1]) for id_N in (query_id_Q, gallery_id_G))
    return (first_R[:, None] <= last_C) & (first_C <= last_R[:, None])


def _find_positives(query: _RankedSide, gallery: _RankedSide, part: _Tile) -> Tensor:
    match_qg = query.id_N[part.at_q, None] == gallery.id_N[part.at_g]
    return torch.from_numpy(match_qg).to(part.similarity_qg.device)


def _compare_both(
    query: _RankedSide,
    gallery: _RankedSide,
    part: _Tile,
    positive_qg: Tensor | None,
    tolerance: float,
    both: bool,
) -> None:
    _compare(query, part.similarity_qg, positive_qg, part.at_q, 1, tolerance)
    if both:
        _compare(gallery, part.similarity_qg, positive_qg, part.at_g, 0, tolerance)


def _compare(
    side: _RankedSide,
    similarity_qg: Tensor,
    positive_qg: Tensor | None,
    at: slice,
    axis: int,
    tolerance: float,
) -> None:
    best = side.best_N[at].unsqueeze(axis)
    side.larger_N[at] += count_true(similarity_qg > best + tolerance, axis)
    reached_qg = similarity_qg >= best - tolerance
    side.reached_N[at] += count_true(reached_qg, axis)
    if positive_qg is not None:
        side.found_N[at] += count_true(reached_qg.logical_and_(positive_qg), axis)


def _iterate_tiles(
    query: _RankedSide, gallery: _RankedSide, edge: int, wanted_RC: np.ndarray
) -> Iterator[_Tile]:
    """Yield the wanted tiles of the similarity matrix; each is valid until the next."""
    device = query.best_N.device
    # One buffer for all tiles: fresh pages for each would cost as much as the counting.
    room = torch.empty(edge * edge, device=device)
    rows, columns = (
        list(iterate_slices(0, query.rows.size, edge)),
        list(iterate_slices(0, gallery.rows.size, edge)),
    )
    for block in iterate_slices(0, len(rows), STRIDE):
        first = rows[block.start].start
        block_D = query.rows.block(slice(first, rows[block.stop - 1].stop), device)
        for column in np.flatnonzero(wanted_RC[block].any(0)):
            at_g = columns[column]
            gallery_gD = gallery.rows.block(at_g, device)
            for row in block.start + np.flatnonzero(wanted_RC[block, column]):
                at_q = rows[row]
                query_qD = block_D[at_q.start - first : at_q.stop - first]
                similarity_qg = room[: len(query_qD) * len(gallery_gD)].view(len(query_qD), len(gallery_gD))
                torch.mm(query_qD, gallery_gD.T, out=similarity_qg)
                yield _Tile(similarity_qg, int(row), int(column), at_q, at_g)


def _collect_counts(side: _RankedSide, gallery: int) -> RankCounts:
    """Return the counts in the caller's order of rows."""
    larger_N, reached_N, found_N = (
        part.cpu().numpy() for part in (side.larger_N, side.reached_N, side.found_N)
    )
    back = slice(None) if side.order is None else np.argsort(side.order)
    # A positive always ties with itself, even if tolerance is 0 and some library repeats a product inexactly.
    tied_N, found_N = np.maximum(reached_N - larger_N, 1), np.maximum(found_N, 1)
    return RankCounts(larger_N[back], tied_N[back], found_N[back], side.relevant_N[back], gallery)
