"""Published ways of measuring retrieval, quirks and all, as values: what each printed figure really is.

Protocols exist to be compared with, not to be used: each stands beside the clean table (`evaluate_pairs`). A
publication's "image" is the anchor here, its ground photo or sound the other modality.
"""

# Q queries

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import numpy as np

from geobind.errors import DataError
from geobind.evaluation.ranking.expectation import Counts

Side = Literal["anchor", "other"]


@dataclass(frozen=True)
class Figure:
    """One figure of a publication: what it is called there, and what its code computes."""

    claims: Side  # whose queries the printed name speaks of
    asks: Side  # whose queries the code ranks
    cut: float | None = None  # k of recall@k; None for the median rank
    percent: bool = False  # the cut is a percentage of the gallery
    strict: bool = False  # a hit is rank < k, ranks counted from 1, so that R@10 is R@9

    @property
    def name(self) -> str:
        """The measure by its printed name, such as `R@10`."""
        return "median rank" if self.cut is None else f"R@{self.cut:g}{'%' if self.percent else ''}"

    def value(self, counts: Counts) -> float:
        """What the published code prints, given the counts of the direction in `asks`.

        A rank among ties is the mean of the places they fill, as pandas' `rank` has it; a top-k, which breaks
        ties arbitrarily, is worth its expectation.
        """
        if self.cut is None:
            return float(np.median(counts.rank_Q))
        if self.strict:
            return float(np.mean(counts.rank_Q < self._k(counts.gallery)))
        return float(np.mean(counts.hit_Q(ceil(self._k(counts.gallery)))))

    def clean(self, counts: Counts) -> float:
        """What the printed name promises, given the counts of the direction in `claims`."""
        if self.cut is None:
            return counts.median_rank
        return float(np.mean(counts.hit_Q(ceil(self._k(counts.gallery)))))

    def says(self, anchor: str, other: str) -> str:
        """The direction and measure as printed."""
        return f"{_arrow(self.claims, anchor, other)} {self.name}"

    def means(self, anchor: str, other: str) -> str:
        """The direction and measure as computed."""
        arrow = _arrow(self.asks, anchor, other)
        return f"{arrow} {f'share of ranks < {self.name[2:]}' if self.strict else self.name}"

    def _k(self, gallery: int) -> float:
        return (self.cut or 0) / 100 * gallery if self.percent else self.cut or 0


def _arrow(side: Side, anchor: str, other: str) -> str:
    return f"{anchor} → {other}" if side == "anchor" else f"{other} → {anchor}"


@dataclass(frozen=True)
class Protocol:
    """How one publication measures retrieval, and what of that could not be known."""

    name: str
    paper: str
    code: str  # repository and file that the convention was read in
    split: str
    ranks: str
    figures: tuple[Figure, ...]
    unknown: tuple[str, ...]
    gallery: int | None = None  # rows measured at a time; more are sampled down to it
    batch: int = 1  # rows beyond a whole number of batches are dropped
    divided: bool = False  # distances are divided by each anchor row's mean distance to all others

    def notes(self) -> list[str]:
        """The convention in sentences, for the terminal."""
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
        """Plain values, ready for JSON."""
        return {
            "name": self.name,
            "paper": self.paper,
            "code": self.code,
            "split": self.split,
            "ranks": self.ranks,
            "published_gallery": self.gallery,
            "unknown": list(self.unknown),
        }


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        DataError: There is none; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise DataError(f"no protocol '{name}'; there are clean, {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _both(*cuts: float | None, swapped: bool = False, percent: bool = False) -> tuple[Figure, ...]:
    """Strict figures in both directions; with `swapped` each carries the other one's name."""
    sides: tuple[Side, Side] = ("anchor", "other")
    return tuple(
        Figure(claims, asks, cut, percent=percent and cut is not None, strict=cut is not None)
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
            Figure("anchor", "anchor", 10),
            Figure("anchor", "anchor", 100),
            Figure("anchor", "other"),
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
        figures=(Figure("anchor", "anchor", 5), Figure("anchor", "anchor", 10), Figure("anchor", "other")),
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
        figures=_both(100, 500, 1000, None),
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
        figures=_both(100, None, swapped=True),
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
        figures=_both(10, None, percent=True),
        unknown=(
            "the order of the table that was shuffled, without which its seed (42) does not give its cells",
            "253 test rows that the split has (6,054) and the gallery has not (5,801; GeoSound 9,931)",
            "the probabilistic distance and metadata of its best models, which plain embeddings have not",
        ),
        gallery=5_801,
    ),
)
PROTOCOLS: Mapping[str, Protocol] = {each.name: each for each in _ALL}
