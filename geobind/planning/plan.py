"""A plan as plain values: what `geobind plan --json` prints and what lies in a run's folder as plan.json."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from geobind.errors import CheckpointError
from geobind.utils import files

FILE = "plan.json"
Way = Literal["direct", "cached", "two-pass"]


class Planned(BaseModel):
    """Values of a plan; fields this version does not know are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Seconds(Planned):
    """What a stage's time goes to."""

    step: float
    loading: float  # of a step's batch, which goes on while the step before is computed
    epoch: float
    filling: float  # making rows for the cache, once
    watching: float  # evaluations on the way, all of them
    other: float  # before the first step, after the last, and writing checkpoints
    stage: float


class Disk(Planned):
    """What a stage writes, in bytes."""

    cache: int
    trained: int
    checkpoint: int  # while it runs


class SidePlan(Planned):
    """A side that is read from the cache."""

    rows: int
    missing: int  # of them, to be made
    bytes: int  # of those


class StagePlan(Planned):
    """What one stage will take."""

    name: str
    key: str  # the fingerprint of the stage as the recipe says it
    settled: dict[str, int | None]  # what the recipe left open
    rows: int
    batch_size: int
    chunk: int | None
    steps: int
    epoch_steps: int
    way: Way
    why: str
    cached: dict[str, SidePlan]
    uncached: dict[str, str]
    seconds: Seconds
    memory_bytes: int | None
    disk: Disk
    warnings: tuple[str, ...] = ()


class Memory(Planned):
    """The memory that figures are compared with."""

    kind: str  # "process" or "accelerator"
    available_bytes: int | None
    usable_bytes: int | None
    says: str


class Plan(Planned):
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


def write_plan(plan: Plan, folder: Path) -> Path:
    """Write a plan where a run finds it.

    Raises:
        StorageError: The folder cannot be written.
    """
    files.write_json(folder / FILE, plan.model_dump(mode="json"))
    return folder / FILE


def read_plan(folder: Path) -> Plan | None:
    """Return the plan of a run, if there is one.

    Raises:
        CheckpointError: It is damaged.
    """
    values = files.read_json(folder / FILE)
    try:
        return Plan.model_validate(values) if values else None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{folder / FILE}: {where}: {first['msg']}; remove it to plan anew") from None
