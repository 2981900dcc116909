"""Retrieval between every ordered pair of modalities, each marked by how it came about."""

# N rows (places), the same in every modality; D width

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any, cast

import numpy as np
from torch import Tensor

from geobind.errors import DataError
from geobind.evaluation.embeddings import (
    EmbeddingMatrix,
    Embeddings,
    GroundTruth,
    build_ground_truth,
    encode_values,
)
from geobind.evaluation.intervals import compare_means
from geobind.evaluation.retrieval_metrics import (
    Metric,
    QueryScores,
    Retrieval,
    RetrievalSettings,
    retrieval_both,
)
from geobind.recipe.marks import Mark, Marks, mark_by_pairs
from geobind.utils.displays import RetrievalCell, choose_metric, render_matrix

# Encoders that a run's figures are shown beside: before any stage, and trained on the pair itself.
BASELINES = ("untrained", "direct")


@dataclass(frozen=True)
class PairRow:
    """Retrieval from one modality to another."""

    query: str
    gallery: str
    mark: Mark
    queries: int  # rows
    gallery_size: int
    metrics: Mapping[str, Metric]
    beside: Mapping[str, Mapping[str, Metric]] = field(
        default_factory=dict
    )  # of other encoders, by BASELINES

    @property
    def trained(self) -> bool:
        """True if some stage aligned the two, and none has parted them since."""
        return self.mark == "trained"

    def share_of_direct(self, measure: str) -> float | None:
        """Return a recall as a share of what encoders reach that are trained on the pair itself.

        None where there are none, or where their recall is not above chance.
        """
        mine, direct = self.metrics.get(measure), self.beside.get("direct", {}).get(measure)
        if mine is None or direct is None or not measure.startswith("R@") or direct.low <= direct.chance:
            return None
        return mine.value / direct.value

    @classmethod
    def from_retrieval(cls, query: str, gallery: str, mark: Mark, result: Retrieval) -> PairRow:
        """Build the row of one direction from its measures."""
        return cls(query, gallery, mark, result.queries, result.gallery, result.metrics)


@dataclass(frozen=True)
class Gain:
    """A difference from the plain figure of the same queries, with its interval."""

    value: float
    low: float
    high: float
    p: float  # probability of a difference this large, were there none

    @classmethod
    def over(cls, was: QueryScores, now: QueryScores, measure: str) -> Gain:
        """Return the gain in a measure that both have, over the same queries in the same order."""
        was_Q, now_Q = (of.value_QM[:, of.measures.index(measure)] for of in (was, now))
        return cls(*compare_means((now_Q - was_Q).astype(np.float64), now.cluster_Q))


@dataclass(frozen=True)
class BridgedRow:
    """Retrieval from one modality to another by bridged scores, beside that by cosines."""

    row: PairRow
    gain: Mapping[str, Gain]  # by metric, over the same queries and clusters


@dataclass(frozen=True)
class SkippedPair:
    """Two modalities that could not be compared, and why."""

    modalities: tuple[str, str]
    reason: str


@dataclass(frozen=True, repr=False)
class PairTable:
    """Every ordered pair of modalities, in the order the modalities were given: `retrieval.json`."""

    rows: tuple[PairRow, ...]
    skipped: tuple[SkippedPair, ...] = ()
    settings: RetrievalSettings = field(default_factory=RetrievalSettings)
    clusters: str | None = None  # what rows of one cluster have in common, such as `group`
    warnings: tuple[str, ...] = ()  # what makes the figures look better than they are
    cluster_note: str = ""  # which queries count as one, and why
    bridged: tuple[BridgedRow, ...] = ()  # emergent pairs without the anchor, where there is a bank
    bridge_note: str = ""  # which bank, and how it is used
    scores: Any = field(default=None, repr=False, compare=False)  # of each query, by (query, gallery)

    def bridged_row(self, query: str, gallery: str) -> BridgedRow | None:
        """Return the bridged figures of a direction, where there are any."""
        return next(
            (one for one in self.bridged if (one.row.query, one.row.gallery) == (query, gallery)), None
        )

    @property
    def baselines(self) -> tuple[str, ...]:
        """The baselines that some pair has."""
        return tuple(name for name in BASELINES if any(name in row.beside for row in self.rows))

    def set_beside(self, baseline: str, other: PairTable) -> PairTable:
        """Return this table with the figures of other encoders beside those of the same pairs."""
        theirs = {(row.query, row.gallery): row.metrics for row in other.rows}
        rows = [
            replace(row, beside={**row.beside, baseline: theirs[row.query, row.gallery]})
            if (row.query, row.gallery) in theirs
            else row
            for row in self.rows
        ]
        return replace(self, rows=tuple(rows))

    @property
    def drawn(self) -> str:
        """The units that intervals take as independent."""
        return "queries" if self.clusters is None else f"whole clusters of queries ({self.clusters})"

    @property
    def confidence(self) -> str:
        """The confidence level of the intervals, as in `95 %`."""
        return f"{100 * self.settings.confidence:g} %"

    @property
    def modalities(self) -> list[str]:
        """The modalities, in the order they were measured in."""
        return list(dict.fromkeys(name for row in self.rows for name in (row.query, row.gallery)))

    def __repr__(self) -> str:
        """Return one line: how many pairs of how many modalities, and the range of one metric."""
        metric, cells = self._read_cells()
        values = [cell.value for cell in cells]
        shown = f"; {metric} {min(values):.3g} to {max(values):.3g}" if values else ""
        return f"PairTable({len(self.rows)} directions of {len(self.modalities)} modalities{shown})"

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """Return the matrix of one metric, R@10 where it was measured, as a notebook shows it."""
        metric, cells = self._read_cells()
        return render_matrix(repr(self), metric, self.modalities, cells)

    def _read_cells(self) -> tuple[str, list[RetrievalCell]]:
        """Return the metric that a display shows, and its cells."""
        metric = choose_metric(self.rows[0].metrics if self.rows else ())
        return metric, [
            RetrievalCell(row.query, row.gallery, row.mark, figure.value, figure.chance)
            for row in self.rows
            if (figure := row.metrics.get(metric)) is not None
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON, with the conventions of the figures."""
        return {
            "settings": self.settings.to_dict(),
            "conventions": {
                "rank": "1 + larger + ties / 2, mean over ties; best positive of a query",
                "recall_percent": "of the gallery, rounded up",
                "interval": f"Wilson score with Student's t over {self.drawn}, gallery fixed",
                "p": "of chance, two-sided, from the same variance",
            },
            "clusters": self.clusters,
            "cluster_note": self.cluster_note,
            "warnings": list(self.warnings),
            "rows": [asdict(row) for row in self.rows],
            "bridged": [asdict(row) for row in self.bridged],
            "bridge_note": self.bridge_note,
            "skipped": [
                {"modalities": list(pair.modalities), "reason": pair.reason} for pair in self.skipped
            ],
        }


def evaluate_pairs(
    embeddings: Mapping[str, Embeddings],
    trained: Collection[Collection[str]] | Marks,
    *,
    ids: Any = None,
    labels: Any = None,
    places: Any = None,
    clusters: Any = None,
    presence: Mapping[str, Any] | None = None,
    settings: RetrievalSettings | None = None,
) -> PairTable:
    """Measure retrieval between all modalities, both ways, and mark each pair.

    Row i of every modality shows the same place. A pair is measured on the rows that both its modalities
    have: its gallery holds those alone, and pairs with fewer than two are listed as skipped.

    Args:
        embeddings: Unit-length embeddings (N, D) by modality; rows excluded by `presence` may hold anything.
        trained: The pairs that some stage aligned, such as `{frozenset({"satellite", "audio"})}`: pairs that
            a chain of them joins are emergent, others unconnected. Or the mark of every pair, as
            `geobind.recipe.marks.mark_pairs` gives it.
        ids: One per row; rows of one id (several sounds of a place) are positives of each other.
        labels: One class per row, None where unknown; adds label_mAP and label_nDCG.
        places: (N, 2) latitude and longitude in degrees, NaN or None where unknown; adds place_nDCG.
        clusters: Cluster of each row, or None; intervals take the rows of one as dependent.
        presence: By modality, (N,) booleans; a modality without an entry has every row.
        settings: Cut-offs, tolerance, resamples.

    Raises:
        DataError: Embeddings, ids, labels, places or presence that do not fit, naming modality and row.
    """
    settings = settings or RetrievalSettings()
    size = _check_row_counts(embeddings)
    known = _build_truth(size, ids, labels, places, clusters)
    present = _check_presence(presence or {}, embeddings, size)
    marks = _check_marks(trained, embeddings)
    whole = {name: EmbeddingMatrix(values, name) for name, values in embeddings.items()}
    for name, rows in whole.items():
        rows.ordered(_present_rows(present[name])).check()
    measured: list[PairRow] = []
    skipped: list[SkippedPair] = []
    scores: dict[tuple[str, str], QueryScores] = {}
    for one, two in combinations(whole, 2):
        both_N = present[one] & present[two]
        if both_N.sum() < 2:
            skipped.append(SkippedPair((one, two), f"{int(both_N.sum())} rows have both; two are needed"))
            continue
        mark = marks[frozenset((one, two))]
        for row, score in _measure_both_ways(whole[one], whole[two], mark, known, both_N, settings):
            measured.append(row)
            scores[row.query, row.gallery] = score
    order = {name: at for at, name in enumerate(whole)}
    measured.sort(key=lambda row: (order[row.query], order[row.gallery]))
    return PairTable(tuple(measured), tuple(skipped), settings, scores=scores)


def _measure_both_ways(
    one: EmbeddingMatrix,
    two: EmbeddingMatrix,
    mark: Mark,
    known: GroundTruth,
    both_N: np.ndarray,
    settings: RetrievalSettings,
) -> Iterator[tuple[PairRow, QueryScores]]:
    """Measure retrieval both ways among the rows that have both modalities."""
    rows = _present_rows(both_N)
    part = known.take(rows)
    both = retrieval_both(one.ordered(rows), two.ordered(rows), part, part, settings)
    for query, gallery, result in zip((one, two), (two, one), both, strict=True):
        row = PairRow.from_retrieval(query.name, gallery.name, mark, result)
        yield row, result.scores._replace(row_Q=np.flatnonzero(both_N))


def _check_row_counts(embeddings: Mapping[str, Embeddings]) -> int:
    if len(embeddings) < 2:
        raise DataError(
            f"{len(embeddings)} modalities to compare ({', '.join(embeddings)}); give at least two"
        )
    sizes = {name: int(values.shape[0]) if values.ndim else 0 for name, values in embeddings.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in sizes.items())
        raise DataError(
            f"modalities differ in rows ({listed}); give each one row per place, "
            "and say with `presence` what is missing"
        )
    return next(iter(sizes.values()))


def _build_truth(size: int, ids: Any, labels: Any, places: Any, clusters: Any) -> GroundTruth:
    id_N = np.arange(size) if ids is None else encode_values(ids, size, "ids")
    if (id_N < 0).any():
        raise DataError(f"ids: row {int(np.argmax(id_N < 0))} has no id; every row needs one")
    return build_ground_truth(size, id_N, labels, places, clusters=clusters)


def _check_presence(
    presence: Mapping[str, Any], embeddings: Mapping[str, Embeddings], size: int
) -> dict[str, np.ndarray]:
    present = {name: np.ones(size, dtype=bool) for name in embeddings}
    for name, values in presence.items():
        if name not in embeddings:
            raise DataError(
                f"presence names '{name}', which has no embeddings; known: {', '.join(embeddings)}"
            )
        given = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
        if given.shape != (size,) or given.dtype != np.bool_:
            raise DataError(f"presence of {name}: {given.dtype} of shape {given.shape}; give {size} booleans")
        present[name] = given
    return present


def _check_marks(trained: Collection[Collection[str]] | Marks, embeddings: Mapping[str, Embeddings]) -> Marks:
    if isinstance(trained, Mapping):
        return cast("Marks", trained)
    aligned = {frozenset([pair] if isinstance(pair, str) else pair) for pair in trained}
    for pair in aligned:
        if len(pair) != 2:
            raise DataError(f"trained pair {sorted(pair)} does not name two modalities")
        unknown = sorted(pair - set(embeddings))
        if unknown:
            raise DataError(f"trained pair {sorted(pair)}: no embeddings of '{unknown[0]}' were given")
    return mark_by_pairs(embeddings, aligned)


def _present_rows(present_N: np.ndarray) -> np.ndarray | None:
    """Return the numbers of the rows present; None if all are, so that no row is copied."""
    return None if present_N.all() else np.flatnonzero(present_N)
