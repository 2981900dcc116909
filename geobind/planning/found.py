"""What a probe measures, as plain values that go from one process to another."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from geobind.planning.lines import Line, fit

SPARE = 0.9  # of the memory that is free: what is measured is not all that is held


class Found(BaseModel):
    """Values that a probe sends."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(Found):
    """Training steps of one size, on one device."""

    rows: int
    seconds: float  # of a step, loading included where it is not hidden behind computing
    bytes: int | None  # the most memory held at once; None where that cannot be told
    chunk: int | None = None  # rows at a time, in two passes


class Side(Found):
    """A side of a stage that can be read from the cache."""

    inputs: float  # of all rows, each content once
    missing: float  # of them are not in the cache
    row_bytes: int


class Filling(Found):
    """What looking at the frozen sides, and making their missing rows, takes for all rows of the stage."""

    seconds: float
    bytes: int | None
    sides: dict[str, Side]


class StageFound(Found):
    """Everything measured of one stage."""

    name: str
    rows: int
    sources: tuple[int, ...]  # rows of each
    most: int  # no larger batch makes sense
    most_why: str
    steps: tuple[Step, ...]  # all sides at once, from few rows to many
    two_pass: Step | None = None
    filling: Filling | None = None  # None where nothing is cached
    uncached: dict[str, str] = {}  # frozen sides that are computed in every step, and why
    frozen: tuple[str, ...] = ()
    loading_a_row: float = 0.0  # seconds, if nothing else were done
    other_seconds: float = 0.0  # before the first step and after the last
    watching_seconds: float = 0.0  # of one evaluation on the way
    checkpoint_bytes: int = 0
    checkpoint_seconds: float = 0.0
    trained_bytes: int = 0
    failed: str = ""  # why no more rows were tried

    @property
    def seconds(self) -> Line:
        """Seconds of a step, by rows of a device."""
        return fit((step.rows, step.seconds) for step in self.steps)

    @property
    def bytes(self) -> Line | None:
        """Memory of a step, by rows of a device."""
        known = [(step.rows, step.bytes) for step in self.steps if step.bytes is not None]
        return fit(known) if known else None


class EndingFound(Found):
    """What comes after the last stage."""

    seconds: float  # embedding held-out rows, measuring, the bundle
    report_seconds: float


class Machine(Found):
    """Where it was measured."""

    device: str  # "cpu", or what an accelerator is called
    memory: str  # what the figures of memory are: "process" or "accelerator"
    available: int | None
    says: str
    ranks: int
    opening_seconds: float  # opening tables, building encoders, the checks before the first stage
    bundle_bytes: int
    notes: tuple[str, ...] = ()


class AllFound(Found):
    """Everything that a probe measures."""

    machine: Machine
    stages: tuple[StageFound, ...]
    ending: EndingFound | None = None
    seconds: float = 0.0  # that the probe took
