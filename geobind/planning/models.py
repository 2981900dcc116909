"""Plans, probe measurements and linear cost fits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from geobind.errors import CheckpointError
from geobind.utils import files

FILE = "plan.json"
StepMethod = Literal["direct", "cached", "two-pass"]


class PlanModel(BaseModel):
    """Values of a plan; fields this version does not know are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Seconds(PlanModel):
    """What a stage's time goes to."""

    step: float
    loading: float  # of a step's batch, which goes on while the step before is computed
    epoch: float
    filling: float  # making rows for the cache, once
    watching: float  # evaluations on the way, all of them
    other: float  # before the first step, after the last, and writing checkpoints
    stage: float


class Disk(PlanModel):
    """What a stage writes, in bytes."""

    cache: int
    trained: int
    checkpoint: int  # while it runs


class SidePlan(PlanModel):
    """A side that is read from the cache."""

    rows: int
    missing: int  # of them, to be made
    bytes: int  # of those


class StagePlan(PlanModel):
    """What one stage will take."""

    name: str
    key: str  # the fingerprint of the stage as the recipe says it
    settled: dict[str, int | None]  # what the recipe left open
    rows: int
    batch_size: int
    chunk: int | None
    steps: int
    epoch_steps: int
    way: StepMethod
    why: str
    cached: dict[str, SidePlan]
    uncached: dict[str, str]
    seconds: Seconds
    memory_bytes: int | None
    disk: Disk
    warnings: tuple[str, ...] = ()


class Memory(PlanModel):
    """The memory that figures are compared with."""

    kind: str  # "process" or "accelerator"
    available_bytes: int | None
    usable_bytes: int | None
    says: str


class RunPlan(PlanModel):
    """What a run will take."""

    recipe: str
    made: str
    version: str
    device: str
    devices: int
    memory: Memory
    opening_seconds: float
    stages: tuple[StagePlan, ...]
    evaluation_seconds: float
    report_seconds: float
    seconds: float
    memory_bytes: int | None
    disk_bytes: int
    bundle_bytes: int
    probe_seconds: float
    notes: tuple[str, ...] = ()


def write_plan(plan: RunPlan, folder: Path) -> Path:
    """Write a plan where a run finds it.

    Raises:
        StorageError: The folder cannot be written.
    """
    files.write_json(folder / FILE, plan.model_dump(mode="json"))
    return folder / FILE


def read_plan(folder: Path) -> RunPlan | None:
    """Return the plan of a run, if there is one.

    Raises:
        CheckpointError: It is damaged.
    """
    values = files.read_json(folder / FILE)
    try:
        return RunPlan.model_validate(values) if values else None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{folder / FILE}: {where}: {first['msg']}; remove it to plan anew") from None


_HALVINGS = 80  # of the range in which a root is looked for


class LinearCost(NamedTuple):
    """What so many rows take: `base + slope * rows`, neither of them negative."""

    base: float
    slope: float

    def __call__(self, rows: float) -> float:
        """Return what these rows take."""
        return self.base + self.slope * rows


def fit_linear_cost(points: Iterable[tuple[float, float]]) -> LinearCost:
    """Return the line through the two measurements with most rows, exact at the last of them.

    More rows never take less: where the two say so, or a line through them would begin below zero, the
    last one alone decides, as a constant or as a multiple of the rows.

    Args:
        points: Rows, and what they took; of equal rows the last counts. One at least.
    """
    known = sorted(dict(points).items())
    rows, value = known[-1]
    if len(known) == 1:
        return LinearCost(value, 0.0)
    before, less = known[-2]
    slope = (value - less) / (rows - before)
    if slope <= 0:
        return LinearCost(value, 0.0)
    base = value - slope * rows
    return LinearCost(base, slope) if base >= 0 else LinearCost(0.0, value / rows)


def estimate_distinct(found: int, looked: int, total: int) -> float:
    """Estimate how many different things there are among `total`, from those found among a sample.

    If D things are equally frequent, n draws show D (1 - exp(-n / D)) of them; D is solved for, and put
    in again with all of them drawn.

    Args:
        found: Different things in the sample.
        looked: Things in the sample.
        total: Things there are.
    """
    if found >= looked or total <= looked:
        return float(total if found >= looked else found)
    low, high = float(found), float(found) * 1e6
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if _shown(middle, looked) < found:
            low = middle
        else:
            high = middle
    return min(float(total), max(float(found), _shown(low, total)))


def _shown(kinds: float, draws: float) -> float:
    return -kinds * math.expm1(-draws / kinds)


USABLE_SHARE = 0.9  # of the memory that is free: what is measured is not all that is held


class Measurement(BaseModel):
    """Values that a probe sends."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StepCost(Measurement):
    """Training steps of one size, on one device."""

    rows: int
    seconds: float  # of a step, loading included where it is not hidden behind computing
    bytes: int | None  # the most memory held at once; None where that cannot be told
    chunk: int | None = None  # rows at a time, in two passes


class SideCost(Measurement):
    """A side of a stage that can be read from the cache."""

    inputs: float  # of all rows, each content once
    missing: float  # of them are not in the cache
    row_bytes: int


class FillCost(Measurement):
    """What looking at the frozen sides, and making their missing rows, takes for all rows of the stage."""

    seconds: float
    bytes: int | None
    sides: dict[str, SideCost]


class StageMeasurement(Measurement):
    """Everything measured of one stage."""

    name: str
    rows: int
    sources: tuple[int, ...]  # rows of each
    most: int  # no larger batch makes sense
    most_why: str
    steps: tuple[StepCost, ...]  # all sides at once, from few rows to many
    two_pass: StepCost | None = None
    filling: FillCost | None = None  # None where nothing is cached
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
    def seconds(self) -> LinearCost:
        """Seconds of a step, by rows of a device."""
        return fit_linear_cost((step.rows, step.seconds) for step in self.steps)

    @property
    def bytes(self) -> LinearCost | None:
        """Memory of a step, by rows of a device."""
        known = [(step.rows, step.bytes) for step in self.steps if step.bytes is not None]
        return fit_linear_cost(known) if known else None


class EndingMeasurement(Measurement):
    """What comes after the last stage."""

    seconds: float  # embedding held-out rows, measuring, the bundle
    report_seconds: float


class Machine(Measurement):
    """Where it was measured."""

    device: str  # "cpu", or what an accelerator is called
    memory: str  # what the figures of memory are: "process" or "accelerator"
    available: int | None
    says: str
    ranks: int
    opening_seconds: float  # opening tables, building encoders, the checks before the first stage
    bundle_bytes: int
    notes: tuple[str, ...] = ()


class ProbeResult(Measurement):
    """Everything that a probe measures."""

    machine: Machine
    stages: tuple[StageMeasurement, ...]
    ending: EndingMeasurement | None = None
    seconds: float = 0.0  # that the probe took
