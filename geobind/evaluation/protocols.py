"""Published retrieval conventions: the figures they print and the splits they use.

Protocols exist to be compared with, not to be used: each stands beside the clean table (`evaluate_pairs`). A
publication's "image" is the anchor here, its ground photo or sound the other modality.
"""

# Q queries, N rows that have both modalities, D width, B queries at a time

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from geobind.errors import DataError
from geobind.evaluation.embeddings import (
    EmbeddingMatrix,
    Embeddings,
    RetrievalSides,
    check_same_width,
    full_precision,
    iterate_slices,
)
from geobind.evaluation.ranks import TOLERANCE, RankCounts, count_rows_both

Side = Literal["anchor", "other"]


@dataclass(frozen=True)
class ProtocolMetric:
    """One metric of a publication: its printed name, and what the code computes."""

    claims: Side  # whose queries the printed name speaks of
    asks: Side  # whose queries the code ranks
    cut: float | None = None  # k of recall@k; None for the median rank
    percent: bool = False  # the cut is a percentage of the gallery
    strict: bool = False  # a hit is rank < k, ranks counted from 1, so that R@10 is R@9

    @property
    def name(self) -> str:
        """The printed name, such as `R@10`."""
        return "median rank" if self.cut is None else f"R@{self.cut:g}{'%' if self.percent else ''}"

    def value(self, counts: RankCounts) -> float:
        """Compute what the published code prints, given the counts of the direction in `asks`.

        A rank among ties is the mean of the places they fill, as pandas' `rank` has it; a top-k, which breaks
        ties arbitrarily, is worth its expectation.
        """
        if self.cut is None:
            return float(np.median(counts.rank_Q))
        if self.strict:
            return float(np.mean(counts.rank_Q < self._k(counts.gallery)))
        return float(np.mean(counts.hit_Q(ceil(self._k(counts.gallery)))))

    def clean(self, counts: RankCounts) -> float:
        """Compute what the printed name promises, given the counts of the direction in `claims`."""
        if self.cut is None:
            return counts.median_rank
        return float(np.mean(counts.hit_Q(ceil(self._k(counts.gallery)))))

    def says(self, anchor: str, other: str) -> str:
        """Return the direction and metric as printed."""
        return f"{_arrow(self.claims, anchor, other)} {self.name}"

    def means(self, anchor: str, other: str) -> str:
        """Return the direction and metric as computed."""
        arrow = _arrow(self.asks, anchor, other)
        return f"{arrow} {f'share of ranks < {self.name[2:]}' if self.strict else self.name}"

    def _k(self, gallery: int) -> float:
        return (self.cut or 0) / 100 * gallery if self.percent else self.cut or 0


def _arrow(side: Side, anchor: str, other: str) -> str:
    return f"{anchor} → {other}" if side == "anchor" else f"{other} → {anchor}"


@dataclass(frozen=True)
class Protocol:
    """Retrieval convention of one publication, and what is not known about it."""

    name: str
    paper: str
    code: str  # repository and file that the convention was read in
    split: str
    ranks: str
    figures: tuple[ProtocolMetric, ...]
    unknown: tuple[str, ...]
    gallery: int | None = None  # rows measured at a time; more are sampled down to it
    batch: int = 1  # rows beyond a whole number of batches are dropped
    divided: bool = False  # distances are divided by each anchor row's mean distance to all others

    def notes(self) -> list[str]:
        """Return the convention in sentences, for the terminal."""
        size = f"published {self.gallery:,} rows" if self.gallery else "every row of the split"
        return [
            f"paper: {self.paper}",
            f"code: {self.code}",
            f"split: {self.split}",
            f"gallery: {size}" + (f", cut to whole batches of {self.batch}" if self.batch > 1 else ""),
            f"ranks: {self.ranks}",
            *(f"not known: {gap}" for gap in self.unknown),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "name": self.name,
            "paper": self.paper,
            "code": self.code,
            "split": self.split,
            "ranks": self.ranks,
            "published_gallery": self.gallery,
            "unknown": list(self.unknown),
        }


def get_protocol(name: str) -> Protocol:
    """Return the protocol of that name.

    Raises:
        DataError: There is none; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise DataError(f"no protocol '{name}'; there are clean, {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _both_directions(
    *cuts: float | None, swapped: bool = False, percent: bool = False
) -> tuple[ProtocolMetric, ...]:
    """Return strict metrics in both directions; `swapped` gives each the other's name."""
    sides: tuple[Side, Side] = ("anchor", "other")
    return tuple(
        ProtocolMetric(claims, asks, cut, percent=percent and cut is not None, strict=cut is not None)
        for claims, asks in zip(sides, sides[::-1] if swapped else sides, strict=True)
        for cut in cuts
    )


_TOP_K = "a hit is a place in the top k of a row; the median rank is over columns, the other direction"
_STRICT = "a hit is rank < k with ranks from 1 and the mean rank for ties, so that R@100 is R@99"

_ALL = (
    Protocol(
        name="geobind2024",
        paper="GeoBind, IGARSS 2024 (arXiv:2404.11720), tables 1 and 2",
        code="none was released; Sat2Cap's is assumed, whose row table 1 repeats",
        split="a held-out test set of 10,000 samples",
        ranks=_TOP_K,
        figures=(
            ProtocolMetric("anchor", "anchor", 10),
            ProtocolMetric("anchor", "anchor", 100),
            ProtocolMetric("anchor", "other"),
        ),
        unknown=(
            "which rows are held out, and whether table 2 (sounds, R@100) was made by the same code",
            "whether R@100 of table 2 is strict (rank < k), as in the code of GeoCLAP",
        ),
        gallery=10_000,
    ),
    Protocol(
        name="sat2cap",
        paper="Sat2Cap, CVPR Workshops 2024 (arXiv:2307.15904)",
        code="mvrl/Sat2Cap, sat2cap/evaluations/metrics.py, class Retrieval",
        split="one shard of the held-out photos, its first batch",
        ranks=_TOP_K,
        figures=(
            ProtocolMetric("anchor", "anchor", 5),
            ProtocolMetric("anchor", "anchor", 10),
            ProtocolMetric("anchor", "other"),
        ),
        unknown=(
            "the rows of the shard, which was not released",
            "the batch measured: 3,000 is the program's default, 10,000 what the papers say",
        ),
        gallery=10_000,
    ),
    Protocol(
        name="soundingearth",
        paper="Heidler et al., Int. J. of Applied Earth Observation 116, 2023 (arXiv:2108.00688)",
        code="khdlr/SoundingEarth, lib/evaluation.py and data_loading.py",
        split="by the recording's number modulo 10: 2 and 5 test, 7 validation (`soundingearth_split`)",
        ranks=_STRICT + "; distances are divided by each image's mean distance to all sounds, which moves "
        "the ranks of images",
        figures=_both_directions(100, 500, 1000, None),
        unknown=(
            "the gallery size: rows were dropped where an image or a recording was missing",
            "the scale of embeddings before the distance; here they have unit length",
        ),
        batch=16,
        divided=True,
    ),
    Protocol(
        name="geoclap2023",
        paper="GeoCLAP, BMVC 2023 (arXiv:2309.10667)",
        code="mvrl/geoclap, metrics.py, evaluate.py and data_prep/data_split.py",
        split="at random, 70/10/20: 35,554/5,079/10,159 rows of 50,792 (`geoclap_split`)",
        ranks=_STRICT + "; rows are images but ranks are taken in columns, so that the two directions carry "
        "each other's name",
        figures=_both_directions(100, None, swapped=True),
        unknown=(
            "the order of the table that was shuffled, without which its seed (42) does not give its rows",
            "whether the paper's table was corrected by hand",
        ),
        gallery=10_159,
    ),
    Protocol(
        name="psm2024",
        paper="PSM, ACM Multimedia 2024 (arXiv:2408.07050)",
        code="mvrl/PSM, geoclap/metrics.py, evaluate.py and data_prep/data_split_soundingEarth.py",
        split="by cells of 10 km with 25 recordings or more (`psm_split`); GeoSound: by cells of 1 degree",
        ranks=_STRICT.replace("R@100 is R@99", "R@10% of 1,000 is R@99")
        + "; k is not rounded: of 5,801 rows a hit is rank < 580.1",
        figures=_both_directions(10, None, percent=True),
        unknown=(
            "the order of the table that was shuffled, without which its seed (42) does not give its cells",
            "253 test rows that the split has (6,054) and the gallery has not (5,801; GeoSound 9,931)",
            "the probabilistic distance and metadata of its best models, which plain embeddings have not",
        ),
        gallery=5_801,
    ),
)
PROTOCOLS: Mapping[str, Protocol] = {each.name: each for each in _ALL}


_BLOCK = 1024


@dataclass(frozen=True)
class ProtocolValue:
    """One published figure: printed name, value here, what it measures, clean value."""

    says: str
    value: float
    means: str
    clean: float  # of what `says` promises, on the same rows


@dataclass(frozen=True)
class ProtocolResult:
    """Figures that a publication's code would print for two modalities."""

    protocol: Protocol
    anchor: str
    other: str
    available: int  # rows that have both
    gallery: int  # rows measured
    figures: tuple[ProtocolValue, ...]

    @property
    def caveat(self) -> str | None:
        """The reason why the figures are not comparable with the published ones; None if unknown."""
        wanted = self.protocol.gallery
        if wanted is None or self.gallery == wanted:
            return None
        return f"gallery of {self.gallery:,} rows, published {wanted:,}: not comparable"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            **self.protocol.to_dict(),
            "anchor": self.anchor,
            "other": self.other,
            "rows": self.available,
            "gallery": self.gallery,
            "caveat": self.caveat,
            "figures": [dict(vars(figure)) for figure in self.figures],
        }


def evaluate_protocol(
    protocol: Protocol,
    anchor_ND: Embeddings,
    other_ND: Embeddings,
    *,
    names: tuple[str, str] = ("anchor", "other"),
    seed: int = 0,
) -> ProtocolResult:
    """Measure two modalities as a publication did.

    Args:
        protocol: The convention.
        anchor_ND: Unit-length embeddings (N, D) of what the publication calls images.
        other_ND: Unit-length embeddings (N, D); row i belongs to row i of the anchor, and to no other.
        names: Names of the two modalities.
        seed: Draws the gallery where there are more rows than the publication's.

    Raises:
        DataError: Embeddings that cannot be used, or of different numbers of rows.
    """
    anchor, other = EmbeddingMatrix(anchor_ND, names[0]).check(), EmbeddingMatrix(other_ND, names[1]).check()
    if anchor.size != other.size:
        raise DataError(f"{anchor.size} rows of {names[0]} against {other.size} of {names[1]}; give pairs")
    rows_N = select_gallery_rows(anchor.size, protocol, seed)
    anchor, other = anchor.ordered(rows_N), other.ordered(rows_N)
    clean = _count_both(anchor, other, TOLERANCE)
    # The published code compares float32 products as they are: ties are equal to the last bit.
    coded = _count_both(anchor, other, 0.0)
    if _is_divided(protocol, "other"):
        coded["other"] = count_divided_ranks(other, anchor)
    figures = tuple(
        ProtocolValue(
            figure.says(*names),
            figure.value(coded[figure.asks]),
            figure.means(*names) + (", distances divided" if _is_divided(protocol, figure.asks) else ""),
            figure.clean(clean[figure.claims]),
        )
        for figure in protocol.figures
    )
    return ProtocolResult(protocol, *names, len(anchor_ND), anchor.size, figures)


def _is_divided(protocol: Protocol, asks: Side) -> bool:
    """Return whether dividing distances changes a direction's ranks: it does not for anchor queries."""
    return protocol.divided and asks == "other"


def select_gallery_rows(available: int, protocol: Protocol, seed: int) -> NDArray[np.int64]:
    """Select the rows that a protocol measures, sampled without replacement if there are too many."""
    rows_N = np.arange(available)
    if protocol.gallery is not None and available > protocol.gallery:
        rows_N = np.sort(np.random.default_rng(seed).choice(rows_N, protocol.gallery, replace=False))
    whole = len(rows_N) - len(rows_N) % protocol.batch
    return rows_N[: whole or None]  # fewer rows than a batch are kept: there is nothing else to measure


def _count_both(anchor: EmbeddingMatrix, other: EmbeddingMatrix, tolerance: float) -> dict[Side, RankCounts]:
    id_N = np.arange(anchor.size)
    forth, back = count_rows_both(RetrievalSides(anchor, other, id_N, id_N), tolerance=tolerance)
    return {"anchor": forth, "other": back}


def count_divided_ranks(query: EmbeddingMatrix, gallery: EmbeddingMatrix) -> RankCounts:
    """Rank by Euclidean distance divided by the gallery row's mean distance to all queries.

    It takes from rows that are near everything what they gain by that (SoundingEarth, lib/evaluation.py). Row
    i of the gallery is the positive of row i of the queries.
    """
    check_same_width(query, gallery)
    with full_precision(query.device), torch.no_grad():
        gallery_ND = gallery.block(slice(0, gallery.size), query.device)
        blocks = list(iterate_slices(0, query.size, _BLOCK))
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
    return RankCounts(larger_N, tied_N, one_N, one_N, gallery.size)


def _distance(query_BD: Tensor, gallery_ND: Tensor) -> Tensor:
    return (2 - 2 * query_BD @ gallery_ND.T).clamp(min=0).sqrt()


# N rows in the order of the publication's table; C cells, in the order in which shuffled rows meet them


Words = NDArray[np.str_]

MIN_CELL_ROWS = 25  # rows of a cell that may be held out
HELD_OUT = {"10km": 0.35, "degree": 0.10}  # share of those cells that is
VALIDATION = 0.40  # share of the held-out cells
SEED = 42  # of both random splits, in the published code


def soundingearth_split(keys: ArrayLike) -> Words:
    """Return SoundingEarth's split: recording number modulo 10, 2 and 5 test, 7 validation, the rest train.

    Source: khdlr/SoundingEarth, data_loading.py. It goes by the recordings' own numbers, not by the order of
    rows; `numpy.arange(n)` stands in where rows have no number. Takes whole numbers (N,) and gives (N,) of
    "train", "val", "test".
    """
    digit_N = np.asarray(keys) % 10
    return np.select([np.isin(digit_N, (2, 5)), digit_N == 7], ["test", "val"], "train")


def geoclap_split(n: int, seed: int = SEED) -> Words:
    """Return GeoCLAP's split of `n` rows: shuffled, then cut at 70 and 80 %.

    Source: mvrl/geoclap, data_prep/data_split.py; `n` = 50,792 gives 35,554/5,079/10,159. The seed is the
    published one, and the shuffle is pandas' (numpy's legacy generator): the rows are GeoCLAP's if, and only
    if, they come in the order of its metadata table, which was not published.
    """
    word_N = np.empty(n, dtype="<U5")
    order_N = np.random.RandomState(seed).permutation(n)
    for word, part_P in zip(
        ("train", "val", "test"), np.split(order_N, [int(0.70 * n), int(0.8 * n)]), strict=True
    ):
        word_N[part_P] = word
    return word_N


def psm_split(
    lat: ArrayLike, lon: ArrayLike, seed: int = SEED, cells: Literal["10km", "degree"] = "10km"
) -> Words:
    """Return PSM's split by cells: a share of those with 25 rows or more is held out, at each density.

    Source: mvrl/PSM, geoclap/data_prep/data_split_soundingEarth.py ("10km": SoundingEarth, 35 % of the cells)
    and data_split.py ("degree": GeoSound, 10 %, before rows are sampled to match the sources' shares, which
    is left out here). Two quirks of the 10 km cells are kept: a cell's width follows each row's own latitude,
    and one cell number stands for several places on Earth, since 360 columns are counted where there are
    thousands. As with `geoclap_split`, the cells held out are PSM's only for rows in its order.

    Args:
        lat: Degrees north (N,).
        lon: Degrees east (N,).
        seed: Shuffles the rows and draws the cells; the published one by default.
        cells: Which of the two.

    Returns:
        "train", "val" or "test" for each row (N,).

    Raises:
        DataError: A row without a place.
    """
    lat_N, lon_N = np.asarray(lat, dtype=np.float64), np.asarray(lon, dtype=np.float64)
    unknown_N = ~(np.isfinite(lat_N) & np.isfinite(lon_N))
    if unknown_N.any():
        raise DataError(f"psm_split: row {int(np.argmax(unknown_N))} has no place; leave such rows out")
    cell_N = _number_cells(lat_N, lon_N, cells)
    shuffled_N = cell_N[np.random.RandomState(seed).permutation(len(cell_N))]
    sorted_C, first_C, count_C = np.unique(shuffled_N, return_index=True, return_counts=True)
    met_C = np.argsort(first_C)
    held_out, validation = _draw_cells(sorted_C[met_C], count_C[met_C], HELD_OUT[cells], seed)
    return np.select([np.isin(cell_N, validation), np.isin(cell_N, held_out)], ["val", "test"], "train")


def _number_cells(lat_N: NDArray[np.float64], lon_N: NDArray[np.float64], cells: str) -> NDArray[np.int64]:
    if cells == "degree":
        return (lat_N + 90).astype(np.int64) * 360 + (lon_N + 180).astype(np.int64)
    km_per_degree = 111.0
    row_N = (lat_N + 90) // (10.0 / km_per_degree)
    column_N = (lon_N + 180) // (10.0 / (km_per_degree * np.cos(np.radians(lat_N))))
    return row_N.astype(np.int64) * 360 + column_N.astype(np.int64)


def _draw_cells(
    cell_C: NDArray[np.int64], count_C: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the held-out cells, and those of them for validation."""
    large = count_C >= MIN_CELL_ROWS
    cell_C, count_C = cell_C[large], count_C[large]
    if not len(cell_C):
        return cell_C, cell_C
    few, many = np.quantile(count_C, 0.33), np.quantile(count_C, 0.66)
    random = np.random.RandomState(seed)
    held_out: list[NDArray[np.int64]] = []
    validation: list[NDArray[np.int64]] = []
    for density in (count_C <= few, (count_C > few) & (count_C <= many), count_C > many):
        candidates = cell_C[density]
        if len(candidates):
            held_out.append(random.choice(candidates, int(share * len(candidates)), replace=False))
        if len(candidates) and len(held_out[-1]):
            validation.append(random.choice(held_out[-1], int(VALIDATION * len(held_out[-1])), replace=False))
    nothing = np.zeros(0, dtype=np.int64)
    return np.concatenate([nothing, *held_out]), np.concatenate([nothing, *validation])
