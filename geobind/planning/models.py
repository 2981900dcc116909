"""Plans, probe measurements and linear cost fits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from geobind.data.shares import choose_share_size
from geobind.errors import CheckpointError
from geobind.utils import files
from geobind.utils.formatting import format_first_fault

FILE = "plan.json"
StepMethod = Literal["direct", "cached", "two-pass"]


class PlanModel(BaseModel):
    """Base of plan values; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Seconds(PlanModel):
    """Seconds of a stage, by purpose."""

    step: float
    loading: float  # of a batch, while the previous step is computed
    epoch: float
    filling: float  # computing rows for the cache, once
    watching: float  # all validations
    other: float  # before the first step, after the last, and checkpoints
    stage: float


class Disk(PlanModel):
    """Bytes that a stage writes."""

    cache: int
    trained: int
    checkpoint: int  # while it runs


class SidePlan(PlanModel):
    """A modality that is read from the cache."""

    rows: int
    missing: int  # of them, still to be computed
    bytes: int  # of the missing rows


class StagePlan(PlanModel):
    """The prediction for one stage."""

    name: str
    key: str  # the fingerprint of the stage as written in the recipe
    settled: dict[str, bool | int | None]  # the values of its `auto` options
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
    loading_bytes: int = 0  # beside it, for rows that loader processes have ready
    disk: Disk
    warnings: tuple[str, ...] = ()

    @property
    def settled_words(self) -> str:
        """The values of its `auto` options in words."""
        words = {
            name: "none" if value is None else str(value).lower() for name, value in self.settled.items()
        }
        return ", ".join(f"{name} {word}" for name, word in words.items())


class Memory(PlanModel):
    """The available memory."""

    kind: str  # "process" or "accelerator"
    available_bytes: int | None
    usable_bytes: int | None
    says: str


class RunPlan(PlanModel):
    """The prediction for a run."""

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
    """Write a plan into a run's folder.

    Raises:
        StorageError: The folder cannot be written.
    """
    files.write_json(folder / FILE, plan.model_dump(mode="json"))
    return folder / FILE


def read_plan(folder: Path) -> RunPlan | None:
    """Return the plan in a run's folder, None if there is none.

    Raises:
        CheckpointError: It is damaged.
    """
    values = files.read_json(folder / FILE)
    try:
        return RunPlan.model_validate(values) if values else None
    except ValidationError as error:
        raise CheckpointError(
            f"{folder / FILE}: {format_first_fault(error)}; remove it to plan anew"
        ) from None


_HALVINGS = 80  # bisection steps


class LinearCost(NamedTuple):
    """A cost linear in rows: `base + slope * rows`, neither of them negative."""

    base: float
    slope: float

    def __call__(self, rows: float) -> float:
        """Return the cost of a number of rows."""
        return self.base + self.slope * rows


def fit_linear_cost(points: Iterable[tuple[float, float]]) -> LinearCost:
    """Fit a line through the two measurements with most rows, exact at the last of them.

    More rows never cost less: where the two say otherwise, or the line would start below zero, the last
    one alone decides, as a constant or as a multiple of the rows.

    Args:
        points: Pairs of rows and cost, one at least; of equal rows the last counts.
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
    """Estimate the number of distinct items among `total` from the distinct items in a sample.

    If D items are equally frequent, n draws show D (1 - exp(-n / D)) of them. Solves for D, and evaluates
    the same formula with all items drawn.

    Args:
        found: Distinct items in the sample.
        looked: Size of the sample.
        total: Number of all items.
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


USABLE_SHARE = 0.9  # of the free memory: not all memory is measured


class Measurement(BaseModel):
    """Base of the values that the probe process sends."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StepCost(Measurement):
    """Training steps of one size, on one device."""

    rows: int
    seconds: float  # of a step, with loading where computing does not hide it
    bytes: int | None  # peak memory; None where it cannot be measured
    chunk: int | None = None  # rows at a time, in two passes


NOT_ON_A_CPU = "it is tried on CUDA alone, as compiling takes minutes on a CPU"


class CompileCost(Measurement):
    """Steps of one size with compiled encoders and without."""

    plain: float = 0.0  # seconds of a step
    compiled: float = 0.0
    compiling: float = 0.0  # seconds that the first steps take longer
    failed: str = ""  # why it was not measured


class SideCost(Measurement):
    """Cost of a modality that can be read from the cache."""

    inputs: float  # distinct inputs of all rows
    missing: float  # of them, not in the cache yet
    row_bytes: int


class LoadingMemory(Measurement):
    """The bounds on the memory of rows that loader processes have ready."""

    workers: int  # on one device
    row_bytes: int  # of a prepared row
    allowed_bytes: int

    def bytes(self, local: int) -> int:
        """Return the memory of rows in flight, and of a batch that is put together, by rows on a device."""
        if not self.workers:
            return 0
        size = choose_share_size(local, self.workers, self.row_bytes, self.allowed_bytes)
        joined = local * self.row_bytes if size.rows < local else 0
        return size.bytes_in_flight(self.workers, self.row_bytes) + joined


class FillCost(Measurement):
    """Cost of filling the cache for all rows of a stage."""

    seconds: float
    bytes: int | None
    sides: dict[str, SideCost]


class StageMeasurement(Measurement):
    """All measurements of one stage."""

    name: str
    rows: int
    sources: tuple[int, ...]  # rows of each
    most: int  # the largest batch that makes sense
    most_why: str
    steps: tuple[StepCost, ...]  # one pass, from few rows to many
    two_pass: StepCost | None = None
    checkpointed: tuple[StepCost, ...] = ()  # as `steps`, activations being computed twice
    compile: CompileCost | None = None  # None where it is not asked for
    filling: FillCost | None = None  # None where nothing is cached
    uncached: dict[str, str] = {}  # frozen modalities computed in every step, and why
    frozen: tuple[str, ...] = ()
    loading_a_row: float = 0.0  # seconds, without any other work
    loading: LoadingMemory | None = None  # None where it was not measured
    other_seconds: float = 0.0  # before the first step and after the last
    watching_seconds: float = 0.0  # of one validation
    checkpoint_bytes: int = 0
    checkpoint_seconds: float = 0.0
    trained_bytes: int = 0
    failed: str = ""  # why larger batches were not tried

    @property
    def seconds(self) -> LinearCost:
        """Seconds of a step, by rows on a device."""
        return fit_linear_cost((step.rows, step.seconds) for step in self.steps)

    @property
    def bytes(self) -> LinearCost | None:
        """Memory of a step, by rows on a device."""
        known = [(step.rows, step.bytes) for step in self.steps if step.bytes is not None]
        return fit_linear_cost(known) if known else None

    @property
    def with_checkpointing(self) -> StageMeasurement | None:
        """The stage with activations that are computed twice; None where that was not measured."""
        if not self.checkpointed:
            return None
        found, two = self.model_copy(update={"steps": self.checkpointed}), self.two_pass
        if two is None or two.chunk is None:
            return found
        # Two passes take in proportion as much longer, and for each row of the batch as much more memory.
        seconds = two.seconds * found.seconds(two.rows) / self.seconds(two.rows)
        lines = self.bytes, found.bytes
        taken = two.bytes
        if taken is not None and lines[0] is not None and lines[1] is not None:
            taken = max(0, round(taken - lines[0](two.chunk) + lines[1](two.chunk)))
        return found.model_copy(
            update={"two_pass": two.model_copy(update={"seconds": seconds, "bytes": taken})}
        )


class EndingMeasurement(Measurement):
    """Cost of the work after the last stage."""

    seconds: float  # embedding held-out rows, measuring, the bundle
    report_seconds: float


class Machine(Measurement):
    """The machine of the measurement."""

    device: str  # "cpu", or the name of an accelerator
    memory: str  # whose memory is measured: "process" or "accelerator"
    available: int | None
    says: str
    ranks: int
    opening_seconds: float  # opening tables, building encoders, the checks before the first stage
    bundle_bytes: int
    notes: tuple[str, ...] = ()


class ProbeResult(Measurement):
    """All measurements of a recipe."""

    machine: Machine
    stages: tuple[StageMeasurement, ...]
    ending: EndingMeasurement | None = None
    seconds: float = 0.0  # of the whole measurement
