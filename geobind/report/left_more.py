"""What a run leaves as JSON beside retrieval: calibration, the modality gap, arithmetic, probes."""

from __future__ import annotations

import math

from pydantic import Field

from geobind.report.left import Left, Measured


class ErrorDone(Left):
    """An expected calibration error."""

    value: float
    low: float
    high: float
    perfect: float


class BinDone(Left):
    """Predictions of about the same probability."""

    low: float
    high: float
    share: float
    predicted: float
    happened: float


class ReliabilityDone(Left):
    """Probabilities beside outcomes."""

    predictions: int
    predicted: float
    happened: float
    log_loss: float
    equal_width: ErrorDone
    equal_mass: ErrorDone
    bins: tuple[BinDone, ...] = ()


class ChoiceDone(Left):
    """Probabilities over a gallery."""

    query: str
    gallery: str
    temperature: float
    gallery_size: int
    fitted: ReliabilityDone
    before: ReliabilityDone


class MatchingDone(Left):
    """Probabilities of single pairs."""

    modalities: tuple[str, str]
    scale: float
    bias: float
    fitted: ReliabilityDone


class CalibrationDone(Left):
    """`calibration.json`."""

    fitted_on: str
    measured_on: str
    choices: tuple[ChoiceDone, ...] = ()
    matchings: tuple[MatchingDone, ...] = ()


class PairGapDone(Left):
    """How two modalities lie to each other."""

    modalities: tuple[str, str]
    rows: int
    distance: Measured
    separable: Measured
    alignment: Measured


class SpreadDone(Left):
    """How evenly a modality fills the sphere."""

    modality: str
    rows: int
    uniformity: Measured


class GapDone(Left):
    """`gap.json`."""

    pairs: tuple[PairGapDone, ...] = ()
    spreads: tuple[SpreadDone, ...] = ()


class SumQueryDone(Left):
    """What a sum, or one of its parts, finds."""

    name: str
    queries: int
    gallery_size: int
    metrics: dict[str, Measured]
    preferred: dict[str, Measured] = Field(default_factory=dict)


class SumDone(Left):
    """A sum beside its parts."""

    parts: dict[str, float]
    gallery: str
    truth: str
    says: str
    queries: tuple[SumQueryDone, ...]

    @property
    def title(self) -> str:
        """The sum as a heading."""
        return f"{self.queries[0].name} → {self.gallery}"


class ArithmeticDone(Left):
    """`arithmetic.json`."""

    sums: tuple[SumDone, ...] = ()


class ProbeMetric(Left):
    """A figure of a probe; what it leaves out is not shown."""

    value: float
    low: float = math.nan
    high: float = math.nan
    chance: float = math.nan


class ZeroShotDone(Left):
    """Recognition without examples."""

    metrics: dict[str, ProbeMetric] = Field(default_factory=dict)


class PointDone(Left):
    """Recognition with some examples of each class."""

    shots: int | str
    metrics: dict[str, ProbeMetric] = Field(default_factory=dict)


class CurveDone(Left):
    """A classifier at several numbers of examples."""

    classifier: str
    points: tuple[PointDone, ...] = ()


class FactDone(Left):
    """A number of each place, read off embeddings."""

    name: str
    rows: int = 0
    r2: ProbeMetric
    nearest_place: float | None = None
    error: float = math.nan


class ProbesDone(Left):
    """`probes.json`, which `geobind probe --out` writes."""

    modality: str
    data: str = ""
    split: str = ""
    kind: str = "classes"
    classes: tuple[str, ...] = ()
    queries: int = 0
    majority: float = math.nan
    zero_shot: dict[str, ZeroShotDone] = Field(default_factory=dict)
    curves: dict[str, tuple[CurveDone, ...]] = Field(default_factory=dict)
    facts: dict[str, tuple[FactDone, ...]] = Field(default_factory=dict)

    @property
    def shots(self) -> list[int | str]:
        """The numbers of examples that some curve has."""
        points = (point for curves in self.curves.values() for curve in curves for point in curve.points)
        return list(dict.fromkeys(point.shots for point in points))
