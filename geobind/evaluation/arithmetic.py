"""Embedding arithmetic: retrieval by sums of embeddings."""

# Q queries, G gallery items, R kinds of rivals, D width, N rows

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from geobind.binder import Binder
from geobind.data.options import DataOptions
from geobind.data.table import Table, first_observation
from geobind.errors import DataError
from geobind.evaluation.embedded import EmbeddedRows
from geobind.evaluation.intervals import estimate_share
from geobind.evaluation.retrieval_metrics import Metric, Retrieval, RetrievalSettings, retrieval
from geobind.recipe.embedding_sum import EmbeddingSum
from geobind.scoring import add_embeddings
from geobind.utils.hashing import derive_seed
from geobind.utils.vectors import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.data.dataset import Composer


Truth = Literal["composed", "row", "label"]
TIED = 1e-6


@dataclass(frozen=True)
class SumQuery:
    """Retrieval by a sum, or by one of its parts alone."""

    name: str
    queries: int
    gallery_size: int
    metrics: Mapping[str, Metric]
    preferred: Mapping[str, Metric]  # by kind of rival: how often the right answer is more similar than it

    @classmethod
    def from_retrieval(cls, name: str, result: Retrieval, preferred: Mapping[str, Metric]) -> SumQuery:
        """Build it from the measures of its retrieval."""
        return cls(name, result.queries, result.gallery, result.metrics, preferred)


@dataclass(frozen=True)
class SumResult:
    """A sum beside its parts, on one gallery."""

    parts: Mapping[str, float]  # weights by modality
    gallery: str
    truth: Truth
    says: str  # what the queries, the right answers and the gallery are
    settings: RetrievalSettings
    queries: Annotated[tuple[SumQuery, ...], Field(min_length=1)]  # the sum first

    @property
    def title(self) -> str:
        """The sum as a heading."""
        return f"{self.queries[0].name} → {self.gallery}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "parts": dict(self.parts), "settings": self.settings.to_dict()}


def evaluate_sum_of_rows(
    embedded: Mapping[str, EmbeddedRows],
    wanted: EmbeddingSum,
    labels: Sequence[Any] | None = None,
    settings: RetrievalSettings | None = None,
    *,
    clusters: Sequence[Any] | None = None,
) -> SumResult:
    """Measure whether several observations of one place find it better together than alone.

    Args:
        embedded: Embeddings by modality, of the same table.
        wanted: The sum to evaluate.
        labels: A class for each row: any row of it is then right; default: the row itself is.
        settings: Cut-offs, confidence.
        clusters: A cluster for each row, or None: rows of one are no independent queries.

    Raises:
        DataError: Fewer than two rows have all the modalities.
    """
    settings = settings or RetrievalSettings()
    names = (*wanted.parts, wanted.gallery)
    rows_Q = _shared_rows(embedded, names)
    if labels is not None:
        rows_Q = rows_Q[[labels[row] is not None for row in rows_Q]]
    if len(rows_Q) < 2:
        raise DataError(f"sum '{wanted}': {len(rows_Q)} rows have {', '.join(names)}; two are needed")
    ids = rows_Q if labels is None else [labels[row] for row in rows_Q]
    parts = {name: embedded[name].of(rows_Q) for name in wanted.parts}
    gallery_GD = embedded[wanted.gallery].of(rows_Q)
    of_rows = None if clusters is None else [clusters[row] for row in rows_Q]
    fixed: dict[str, Any] = {"query_ids": ids, "gallery_ids": ids, "settings": settings}
    queries = [
        SumQuery.from_retrieval(name, retrieval(query_QD, gallery_GD, query_clusters=of_rows, **fixed), {})
        for name, query_QD in _build_queries(wanted, parts).items()
    ]
    truth = "row" if labels is None else "label"
    right = "its own row" if labels is None else "any row of its class"
    says = f"observations of one place added; {right} is right, among {len(rows_Q):,} rows"
    return SumResult(wanted.weights, wanted.gallery, truth, says, settings, tuple(queries))


def evaluate_sum_of_two_places(
    wanted: EmbeddingSum,
    parts: Mapping[str, Tensor],
    right_QD: Tensor,
    others_GD: Tensor,
    rivals: Mapping[str, Tensor],
    says: str,
    settings: RetrievalSettings | None = None,
) -> SumResult:
    """Add observations of different places, and look for what shows both, among rivals that show one or none.

    Args:
        wanted: The sum to evaluate.
        parts: Embeddings (Q, D) of each part, row i for query i.
        right_QD: The right answers.
        others_GD: Other items in the gallery of all queries.
        rivals: By kind, embeddings (Q, D) of each query's rival.
        says: Description of the task.
        settings: Cut-offs, resamples.
    """
    settings = settings or RetrievalSettings()
    gallery_GD = torch.cat([right_QD, others_GD])
    ids = [*range(len(right_QD))], [*range(len(gallery_GD))]
    queries = [
        SumQuery.from_retrieval(
            name,
            retrieval(query_QD, gallery_GD, query_ids=ids[0], gallery_ids=ids[1], settings=settings),
            _compare_with_rivals(query_QD, right_QD, rivals, settings.confidence),
        )
        for name, query_QD in _build_queries(wanted, parts).items()
    ]
    return SumResult(wanted.weights, wanted.gallery, "composed", says, settings, tuple(queries))


def _build_queries(wanted: EmbeddingSum, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the embeddings of the sum, then of each part alone."""
    added = add_embeddings(parts, wanted.weights)
    return {" + ".join(wanted.words): added, **{name: unit(part) for name, part in parts.items()}}


def _shared_rows(embedded: Mapping[str, EmbeddedRows], names: Sequence[str]) -> NDArray[np.int64]:
    absent = [name for name in names if name not in embedded]
    if absent:
        raise DataError(f"no row has '{absent[0]}'")
    return reduce(np.intersect1d, (embedded[name].rows_Q for name in names))


def _compare_with_rivals(
    query_QD: Tensor, right_QD: Tensor, rivals: Mapping[str, Tensor], confidence: float
) -> dict[str, Metric]:
    """Measure how often the right answer beats each of the query's own rivals."""
    own_Q = (query_QD * right_QD).sum(1)
    ahead_QR = np.stack([(own_Q - (query_QD * rival_QD).sum(1)).numpy() for rival_QD in rivals.values()], 1)
    won_QR = np.where(np.abs(ahead_QR) <= TIED, 0.5, ahead_QR > 0)
    found = {kind: estimate_share(won_QR[:, r]) for r, kind in enumerate(rivals)}
    return {
        kind: Metric(one.value, 0.5, *one.bounds(confidence), one.p_value(0.5)) for kind, one in found.items()
    }


MAX_QUERIES = 500
MIN_PLACES = 10  # with fewer, rivals of different kinds would be the same picture


def evaluate_sum_of_composed_places(
    binder: Binder,
    table: Table,
    options: DataOptions,
    embedded: Mapping[str, EmbeddedRows],
    wanted: EmbeddingSum,
    *,
    max_queries: int = MAX_QUERIES,
    settings: RetrievalSettings | None = None,
) -> SumResult:
    """Add observations of two places, and look for the first's land at the second's moment.

    The gallery holds that truth for every query, rendered, and four rivals: the first place as it was, the
    second as it was, the two swapped, and truths in which the land or the moment is that of a third place.
    To find the truth a sum must take the land from one part and the moment from the other; a part alone
    cannot tell it from a rival that agrees in what that part shows.

    Args:
        binder: The encoders.
        table: Rows of a dataset that renders composed places, such as toy Earth.
        options: The `data` block that they are read by.
        embedded: Their embeddings, by modality.
        wanted: The part that shows the land, the part that tells of the moment, and the gallery.
        max_queries: Largest number of rows used; more are sampled.
        settings: Cut-offs, resamples.

    Raises:
        DataError: The dataset does not render composed places, there are too few rows, or the sum is not of
            two parts.
    """
    compose = _check_composer(table, options, wanted)
    random = np.random.default_rng(derive_seed(0, "sums"))
    land_Q = random.permutation(len(table))[:max_queries]
    # Shifts along one shuffled circle, such that no two kinds of rival are the same picture.
    moment_Q, third_Q = np.roll(land_Q, -1), np.roll(land_Q, -3)

    def rendered(land: NDArray[np.int64], moment: NDArray[np.int64]) -> Tensor:
        column = str(options.columns.get(wanted.gallery, wanted.gallery))
        raws = compose(column, table.rows_N[land], table.rows_N[moment])
        return binder.embed(wanted.gallery, map(first_observation, raws))

    land, moment = wanted.parts
    rivals = {
        "the first place as it was": embedded[wanted.gallery].of(land_Q),
        "the second place as it was": embedded[wanted.gallery].of(moment_Q),
        "the two swapped": rendered(moment_Q, land_Q),
        "the same land, another moment": rendered(land_Q, third_Q),
        "other land, the same moment": rendered(third_Q, moment_Q),
    }
    first, _, *rendered_rivals = (
        rivals.values()
    )  # every second place is also a first: once is enough in a gallery
    return evaluate_sum_of_two_places(
        wanted,
        {land: embedded[land].of(land_Q), moment: embedded[moment].of(moment_Q)},
        rendered(land_Q, moment_Q),
        torch.cat([first, *rendered_rivals]),
        rivals,
        f"the land of one place, by its {land}, at the season, hour and weather of another, by its {moment}",
        settings,
    )


def _check_composer(table: Table, options: DataOptions, wanted: EmbeddingSum) -> Composer:
    compose = options.dataset.composer() if options.dataset is not None else None
    if options.dataset is None or compose is None:
        raise DataError(
            f"{table.name}: no column shows the land of one place at another's moment; toy Earth renders it"
        )
    title = options.dataset.title
    if len(wanted.parts) != 2:
        raise DataError(f"sum '{wanted}': {title} takes the land from one part and the moment from another")
    if len(table) < MIN_PLACES:
        raise DataError(f"{table.name}: {len(table)} rows; sums of two places need {MIN_PLACES}")
    return compose
