"""Retrieval of each modality from every subset of the others: do several inputs find it better than one?"""

# Q queries, D width of the space

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from geobind.evaluation.embedded import EmbeddedRows
from geobind.evaluation.pairs import Gain
from geobind.evaluation.retrieval_metrics import Metric, Retrieval, retrieval
from geobind.fuser import Fuser
from geobind.fusion import fuse
from geobind.scoring import Calibration, add_embeddings
from geobind.utils.formatting import format_number

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = ("R@1", "R@10", "MRR", "median_rank")
COMPARED = "R@10"
MOST_SUBSETS = 256


@dataclass(frozen=True)
class FuserScore:
    """Retrieval by a fuser, on the same rows."""

    metrics: Mapping[str, Metric]
    over_single: Gain  # of R@10
    over_product: Gain
    over_sum: Gain


@dataclass(frozen=True)
class SubsetRow:
    """Retrieval of one modality from several others together."""

    inputs: tuple[str, ...]
    gallery: str
    queries: int
    calibrated: bool  # whether the experts were weighed, or count alike
    metrics: Mapping[str, Metric]
    best_single: str  # the input with the highest R@10 on the same rows
    single: Metric  # its R@10
    over_single: Gain  # of R@10
    over_sum: Gain  # of R@10 over the plain sum of embeddings, `Binder.compose`
    fuser: FuserScore | None = None


def evaluate_subsets(
    embedded: Mapping[str, EmbeddedRows],
    calibration: Calibration | None = None,
    clusters: Sequence[Any] | None = None,
    fuser: Fuser | None = None,
) -> list[SubsetRow]:
    """Measure retrieval of each modality from every subset of two or more of the others.

    Args:
        embedded: Embeddings by modality, of the same table.
        calibration: Weighs the inputs; without it all weigh the same.
        clusters: A cluster for each row of the table: rows of one are no independent queries.
        fuser: Measured beside the product of experts, on the modalities that it knows.
    """
    rows = (
        row
        for gallery in embedded
        for inputs in _subsets([name for name in embedded if name != gallery])
        if (row := _measure(embedded, inputs, gallery, calibration, clusters, fuser)) is not None
    )
    return list(islice(rows, MOST_SUBSETS))


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for size in range(2, len(names) + 1):
        yield from combinations(names, size)


def _measure(
    embedded: Mapping[str, EmbeddedRows],
    inputs: tuple[str, ...],
    gallery: str,
    calibration: Calibration | None,
    clusters: Sequence[Any] | None,
    fuser: Fuser | None,
) -> SubsetRow | None:
    """Measure one subset on the rows that have all of it; None with fewer than two."""
    rows_Q = reduce(np.intersect1d, (embedded[name].rows_Q for name in (*inputs, gallery)))
    if len(rows_Q) < 2:
        return None
    parts = {name: embedded[name].of(rows_Q) for name in inputs}
    gallery_QD = embedded[gallery].of(rows_Q)
    of_rows = None if clusters is None else [clusters[row] for row in rows_Q]

    def find(query_QD: Tensor) -> Retrieval:
        return retrieval(query_QD, gallery_QD, query_clusters=of_rows)

    fused = fuse(parts, gallery, calibration)
    found, added = find(fused.mean_ND), find(add_embeddings(parts))
    alone = {name: find(part) for name, part in parts.items()}
    by_fuser = None
    if fuser is not None and {*inputs, gallery} <= set(fuser.modalities):
        by_fuser = find(fuser.infer(parts, [gallery])[gallery].mean_ND)
    best = max(alone, key=lambda name: alone[name].metrics[COMPARED].value)
    gain = partial(Gain.over, measure=COMPARED)
    return SubsetRow(
        inputs,
        gallery,
        len(rows_Q),
        fused.calibrated,
        {name: found.metrics[name] for name in SHOWN},
        best,
        alone[best].metrics[COMPARED],
        gain(alone[best].scores, found.scores),
        gain(added.scores, found.scores),
        by_fuser
        and FuserScore(
            {name: by_fuser.metrics[name] for name in SHOWN},
            *(gain(other.scores, by_fuser.scores) for other in (alone[best], found, added)),
        ),
    )


def build_subset_table(rows: Sequence[SubsetRow]) -> Table:
    """Build the table of subsets: each beside its best single input and beside the plain sum."""
    from rich.table import Table

    weighed = rows and all(row.calibrated for row in rows)
    note = "inputs weighed by calibration" if weighed else "inputs weigh the same where none is calibrated"
    grid = Table(title="Several inputs together", caption=f"product of experts; {note}; 95 % intervals")
    for name in ("inputs to gallery", COMPARED, "best single input", "gain over it", "over the plain sum"):
        grid.add_column(name, justify="left" if name == "inputs to gallery" else "right")
    for row in rows:
        pair = f"{' + '.join(row.inputs)} to {row.gallery}"
        single = f"{format_number(row.single.value)} {row.best_single}"
        gains = map(_write_gain, (row.over_single, row.over_sum))
        grid.add_row(pair, format_number(row.metrics[COMPARED].value), single, *gains)
    return grid


def build_fuser_table(rows: Sequence[SubsetRow], fuser: Fuser) -> Table | None:
    """Build the table of what a fuser gains; None where it knows none of the subsets."""
    from rich.markup import escape
    from rich.table import Table

    known = [(row, row.fuser) for row in rows if row.fuser is not None]
    if not known:
        return None
    grid = Table(
        title="Several inputs together, by the fuser",
        caption=f"{escape(repr(fuser))}; its rows held several modalities together, so no pair of them is "
        "emergent for it; 95 % intervals",
    )
    for name in ("inputs to gallery", COMPARED, "gain over best single", "over product", "over plain sum"):
        grid.add_column(name, justify="left" if name == "inputs to gallery" else "right")
    for row, found in known:
        gains = map(_write_gain, (found.over_single, found.over_product, found.over_sum))
        grid.add_row(
            f"{' + '.join(row.inputs)} to {row.gallery}", format_number(found.metrics[COMPARED].value), *gains
        )
    return grid


def _write_gain(gain: Gain) -> str:
    low, high = (f"{bound:+.3f}".replace("0.", ".") for bound in (gain.low, gain.high))  # one line of 80
    return f"{gain.value:+.3f}\n[dim]{low} to {high}[/dim]"
