"""A protocol's figures for two modalities, each beside what its name promises."""

# N rows that have both modalities, D width, B queries at a time

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geobind.errors import DataError
from geobind.evaluation.protocols.conventions import Protocol, Side
from geobind.evaluation.ranking.expectation import Counts
from geobind.evaluation.ranking.ranks import TOLERANCE, count_rows_both
from geobind.evaluation.ranking.rows import Embeddings, Rows, Sides, full_precision, same_width, spans

if TYPE_CHECKING:
    from rich.table import Table

_BLOCK = 1024


@dataclass(frozen=True)
class Printed:
    """One published figure: its printed name, its value here, what it measures, and the clean value."""

    says: str
    value: float
    means: str
    clean: float  # of what `says` promises, on the same rows


@dataclass(frozen=True)
class Published:
    """What a publication's code would print of two modalities."""

    protocol: Protocol
    anchor: str
    other: str
    available: int  # rows that have both
    gallery: int  # rows measured
    figures: tuple[Printed, ...]

    @property
    def caveat(self) -> str | None:
        """Why the figures cannot stand beside the published ones, where the gallery's size alone says so."""
        wanted = self.protocol.gallery
        if wanted is None or self.gallery == wanted:
            return None
        return f"gallery of {self.gallery:,} rows, published {wanted:,}: not comparable"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            **self.protocol.to_dict(),
            "anchor": self.anchor,
            "other": self.other,
            "rows": self.available,
            "gallery": self.gallery,
            "caveat": self.caveat,
            "figures": [dict(vars(figure)) for figure in self.figures],
        }


def published(
    protocol: Protocol,
    anchor_ND: Embeddings,
    other_ND: Embeddings,
    *,
    names: tuple[str, str] = ("anchor", "other"),
    seed: int = 0,
) -> Published:
    """Measures two modalities as a publication did.

    Args:
        protocol: The convention.
        anchor_ND: Unit-length embeddings (N, D) of what the publication calls images.
        other_ND: Unit-length embeddings (N, D); row i belongs to row i of the anchor, and to no other.
        names: What the two are called.
        seed: Draws the gallery where there are more rows than the publication's.

    Raises:
        DataError: Embeddings that cannot be used, or of different numbers of rows.
    """
    anchor, other = Rows(anchor_ND, names[0]).check(), Rows(other_ND, names[1]).check()
    if anchor.size != other.size:
        raise DataError(f"{anchor.size} rows of {names[0]} against {other.size} of {names[1]}; give pairs")
    rows_N = gallery_rows(anchor.size, protocol, seed)
    anchor, other = anchor.ordered(rows_N), other.ordered(rows_N)
    clean = _counts(anchor, other, TOLERANCE)
    # The published code compares float32 products as they are: ties are equal to the last bit.
    coded = _counts(anchor, other, 0.0)
    if _divided(protocol, "other"):
        coded["other"] = divided_counts(other, anchor)
    figures = tuple(
        Printed(
            figure.says(*names),
            figure.value(coded[figure.asks]),
            figure.means(*names) + (", distances divided" if _divided(protocol, figure.asks) else ""),
            figure.clean(clean[figure.claims]),
        )
        for figure in protocol.figures
    )
    return Published(protocol, *names, len(anchor_ND), anchor.size, figures)


def _divided(protocol: Protocol, asks: Side) -> bool:
    """Whether a direction's ranks feel the division, which scales all that an anchor row is ranked among."""
    return protocol.divided and asks == "other"


def gallery_rows(available: int, protocol: Protocol, seed: int) -> NDArray[np.int64]:
    """The rows a protocol measures: drawn without replacement where there are too many, in rising order."""
    rows_N = np.arange(available)
    if protocol.gallery is not None and available > protocol.gallery:
        rows_N = np.sort(np.random.default_rng(seed).choice(rows_N, protocol.gallery, replace=False))
    whole = len(rows_N) - len(rows_N) % protocol.batch
    return rows_N[: whole or None]  # fewer rows than a batch are kept: there is nothing else to measure


def _counts(anchor: Rows, other: Rows, tolerance: float) -> dict[Side, Counts]:
    id_N = np.arange(anchor.size)
    there, back = count_rows_both(Sides(anchor, other, id_N, id_N), tolerance=tolerance)
    return {"anchor": there, "other": back}


def divided_counts(query: Rows, gallery: Rows) -> Counts:
    """Ranks by Euclidean distance divided by the gallery row's mean distance to all queries.

    It takes from rows that are near everything what they gain by that (SoundingEarth, lib/evaluation.py). Row
    i of the gallery is the positive of row i of the queries.
    """
    same_width(query, gallery)
    with full_precision(query.device), torch.no_grad():
        gallery_ND = gallery.block(slice(0, gallery.size), query.device)
        blocks = list(spans(0, query.size, _BLOCK))
        sum_N = torch.zeros(gallery.size, dtype=torch.float64, device=query.device)
        for at in blocks:
            sum_N += _distance(query.block(at), gallery_ND).sum(0, dtype=torch.float64)
        mean_N = sum_N / query.size
        larger_N, tied_N = np.zeros((2, query.size), dtype=np.int64)
        for at in blocks:
            distance_BN = _distance(query.block(at), gallery_ND).double()
            # A mean of zero is that of rows which all lie in one point: everything ties.
            ratio_BN = torch.where(mean_N > 0, distance_BN / mean_N, 1.0)
            own_B1 = ratio_BN.diagonal(at.start)[:, None]
            larger_N[at] = (ratio_BN < own_B1).sum(1).cpu().numpy()
            tied_N[at] = (ratio_BN == own_B1).sum(1).cpu().numpy()
    one_N = np.ones_like(tied_N)
    return Counts(larger_N, tied_N, one_N, one_N, gallery.size)


def _distance(query_BD: Tensor, gallery_ND: Tensor) -> Tensor:
    return (2 - 2 * query_BD @ gallery_ND.T).clamp(min=0).sqrt()


def render_published(results: Sequence[Published]) -> list[Table]:
    """One rich table for each result: printed name and value, what it measures, and the clean value."""
    return [_grid(result) for result in results]


def _grid(result: Published) -> Table:
    from rich.table import Table

    notes = result.protocol.notes()
    if result.caveat:
        notes.insert(0, f"[bold]{result.caveat}[/bold]")
    title = (
        f"As {result.protocol.name} prints it: {result.anchor} and {result.other}, {result.gallery:,} rows"
    )
    grid = Table(title=title, caption="\n".join(notes), caption_justify="left")
    for column in ("printed as", "value", "what it measures", "clean"):
        grid.add_column(column, justify="right" if column in ("value", "clean") else "left")
    for figure in result.figures:
        median = figure.says.endswith("rank")
        value, clean = (f"{v:,.1f}" if median else f"{v:.3f}" for v in (figure.value, figure.clean))
        grid.add_row(figure.says, value, figure.means, clean)
    return grid
