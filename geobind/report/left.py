"""What a run leaves as JSON, field by field: its stages, its retrieval, its leakage between splits."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict


class Left(BaseModel):
    """A part of what a run left; fields this version does not know are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class PairLoss(Left):
    """What two modalities that a stage compared came to."""

    anchor: str
    other: str
    loss: float | None = None
    temperature: float = math.nan


class WatchDone(Left):
    """What evaluations on the way of a stage found."""

    split: str
    measure: str
    evaluations: int = 0
    best: float = math.nan
    best_steps: int = 0
    kept_steps: int = 0
    planned_steps: int = 0
    stopped_early: bool = False


class StageDone(Left):
    """A finished stage: its `stage.json`."""

    name: str
    anchor: str
    align: str | tuple[str, ...]
    losses: tuple[PairLoss, ...] = ()
    train: dict[str, str] = {}
    pairs: int = 0
    batch_size: int = 0
    steps: int = 0
    loss: float = math.nan
    temperature: float | None = None  # None if several pairs have one each
    seconds: float = math.nan
    quarantined: tuple[tuple[str, str], ...] = ()
    broken: int = 0
    device: str | None = None
    peak_memory_bytes: int | None = None
    process_bytes: int | None = None
    filled: dict[str, float] = {}
    watched: WatchDone | None = None

    @property
    def aligned(self) -> tuple[str, ...]:
        """What it aligned: with its anchor, or if there are pairs without it all with each other."""
        names = (self.align,) if isinstance(self.align, str) else self.align
        return names if all(pair.anchor == self.anchor for pair in self.losses) else (self.anchor, *names)

    @property
    def temperatures(self) -> str:
        """The temperature that each pair ended with."""
        if len(self.losses) < 2:
            return "–" if self.temperature is None else f"{self.temperature:.4f}"
        return ", ".join(f"{pair.anchor}-{pair.other} {pair.temperature:.4f}" for pair in self.losses)


class Measured(Left):
    """One figure, its chance level, and the bounds of its interval."""

    value: float
    chance: float
    low: float
    high: float


class PairDone(Left):
    """Retrieval from one modality to another."""

    query: str
    gallery: str
    mark: str
    queries: int
    gallery_size: int
    metrics: dict[str, Measured]


class SkippedPair(Left):
    """Two modalities that were not compared."""

    modalities: tuple[str, str]
    reason: str


class Retrieved(Left):
    """`retrieval.json`: every ordered pair of modalities."""

    settings: dict[str, Any] = {}
    rows: tuple[PairDone, ...]
    skipped: tuple[SkippedPair, ...] = ()
    clusters: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def drawn(self) -> str:
        """What the bootstrap drew again."""
        return "queries" if self.clusters is None else f"whole clusters of queries, by {self.clusters}"

    @property
    def modalities(self) -> list[str]:
        """The modalities, in the order they were measured in."""
        return list(dict.fromkeys(name for row in self.rows for name in (row.query, row.gallery)))

    @property
    def confidence(self) -> str:
        """What the intervals cover, as in `95 %`."""
        return f"{100 * float(self.settings.get('confidence', 0.95)):g} %"


class NearDone(Left):
    """Distances from held-out rows to the nearest row trained on."""

    least_km: float = math.nan
    median_km: float = math.nan
    within_km: dict[str, float] = {}
    in_shared_cells: float = math.nan


class CopiesDone(Left):
    """Held-out rows with an observation that was trained on, byte for byte."""

    compared: int = 0
    rows: int = 0
    near: int | None = None
    near_unseen: str | None = None


class GroupsDone(Left):
    """Groups with rows on both sides."""

    shared: int = 0
    test_rows: int = 0


class Leak(Left):
    """One stage's training rows against the held-out rows."""

    train_rows: int = 0
    test_rows: int = 0
    near: NearDone | None = None
    copies: dict[str, CopiesDone] = {}
    groups: GroupsDone | None = None
    faults: tuple[str, ...] = ()
