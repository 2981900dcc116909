"""Recall of approximate indexes, measured on their own rows with filters of several shares."""

# N rows, Q queries, R rows that pass a filter, K matches, LL latitude and longitude in degrees

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from geobind.search.index import ApproximateIndex, MeasuredRecall, check_queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARES = (1.0, 0.5, 0.1, 0.01, 0.001)
COUNTS = (10, 100)
_FILTERS = 5  # for each share
_MIXED = 8  # rows of a mixture


def measure_recall(
    index: ApproximateIndex,
    place_NLL: NDArray[np.float64] | None = None,
    queries_QD: Any = None,
    *,
    count: int = 200,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> tuple[MeasuredRecall, ...]:
    """Measure recall at each effort of an index, and store it in the index.

    Filters are boxes around rows drawn at random, or random rows where no places are given. Queries of three
    kinds are drawn: rows, sums of two rows, and mixtures of several with either sign, which lie off the rows
    as embeddings of other modalities do. The recall stored is that of the kind with the lowest.

    Args:
        index: The index.
        place_NLL: The places of its rows.
        queries_QD: Queries to measure with in place of those drawn.
        count: Queries to draw, of each kind.
        shares: Shares of the rows that filters let pass.
        seed: Of the draw.

    Returns:
        One entry for each share, number of matches and effort.

    Raises:
        DataError: The index is empty, or the queries do not fit it.
    """
    random = np.random.default_rng(seed)
    vectors = index.exact.vectors
    kinds = _draw_queries(vectors, count, random) if queries_QD is None else [queries_QD]
    query_QD = np.concatenate([check_queries(kind, vectors.shape[1]) for kind in kinds])
    kind_Q = np.repeat(np.arange(len(kinds)), [len(kind) for kind in kinds])
    index.prepare()
    measured: list[MeasuredRecall] = []
    searched = {share for share in shares if share * len(vectors) >= 1 and (share == 1 or index.filters)}
    for share in sorted(searched, reverse=True):
        filters = list(_draw_filters(len(vectors), place_NLL, share, random))
        groups = [
            (rows, np.arange(number, len(query_QD), len(filters))) for number, rows in enumerate(filters)
        ]
        groups = [(rows, chosen) for rows, chosen in groups if len(chosen)]
        for k in COUNTS:
            truth = [index.exact.search(query_QD[chosen], k, rows).rows_QK for rows, chosen in groups]
            for effort in index.efforts:
                recall_Q = np.zeros(len(query_QD))
                for (rows, chosen), true_QK in zip(groups, truth, strict=True):
                    found = index.approximate(query_QD[chosen], k, rows, effort)
                    recall_Q[chosen] = [
                        np.isin(true_K, one.rows_QK).mean()
                        for true_K, one in zip(true_QK, found, strict=True)
                    ]
                recall = min(float(recall_Q[kind_Q == kind].mean()) for kind in range(len(kinds)))
                measured.append(
                    MeasuredRecall(share=share, k=k, effort=effort, recall=recall, queries=len(query_QD))
                )
                if recall == 1.0:  # more effort looks at more rows
                    break
    index.measured = measured
    return tuple(measured)


def _draw_queries(
    vectors: NDArray[Any], count: int, random: np.random.Generator
) -> list[NDArray[np.float32]]:
    """Draw queries of each kind."""
    rows_QMD = vectors[random.integers(0, len(vectors), (count, _MIXED))].astype(np.float32)
    weight_QM = random.standard_normal((count, _MIXED)).astype(np.float32)
    kinds = [rows_QMD[:, 0], rows_QMD[:, 0] + rows_QMD[:, 1], np.einsum("qm,qmd->qd", weight_QM, rows_QMD)]
    return [np.where(kind.any(axis=1, keepdims=True), kind, rows_QMD[:, 0]) for kind in kinds]


def _draw_filters(
    total: int, place_NLL: NDArray[np.float64] | None, share: float, random: np.random.Generator
) -> Iterator[NDArray[np.int64] | None]:
    """Yield the rows of boxes that hold a share of all rows; None for all."""
    if share >= 1:
        yield None
        return
    for _ in range(_FILTERS):
        if place_NLL is None:
            far_N = random.random(total)
        else:
            centre_LL = place_NLL[random.integers(total)]
            north_N = np.abs(place_NLL[:, 0] - centre_LL[0])
            east_N = np.abs((place_NLL[:, 1] - centre_LL[1] + 180) % 360 - 180)
            far_N = np.maximum(north_N, east_N * np.cos(np.radians(centre_LL[0])))
        left = max(1, round(share * total))
        yield np.sort(np.argpartition(far_N, left - 1)[:left])
