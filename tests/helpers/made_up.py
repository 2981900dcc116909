"""Measurements that are made up, so that what follows from them is known."""

from geobind.planning.models import (
    EndingMeasurement,
    FillCost,
    Machine,
    ProbeResult,
    SideCost,
    StageMeasurement,
    StepCost,
)

GB = 10**9


def stage_found(name="one", base=1.0, each=0.01, fixed=1 * GB, row=10**7, **changes) -> StageMeasurement:
    """A stage whose step of n rows takes `base + each n` seconds and `fixed + row n` bytes."""
    steps = tuple(StepCost(rows=n, seconds=base + each * n, bytes=fixed + row * n) for n in (8, 32))
    values = {"rows": 1000, "sources": (1000,), "most": 256, "most_why": "a quarter of its 1,000 rows"}
    return StageMeasurement(**{"name": name, "steps": steps, **values, **changes})


def machine(**changes) -> Machine:
    values = {"device": "cpu", "memory": "process", "available": 16 * GB, "says": "said", "ranks": 1}
    return Machine(**{**values, "opening_seconds": 2.0, "bundle_bytes": 5000, **changes})


def filling(missing=500.0, seconds=30.0) -> FillCost:
    return FillCost(
        seconds=seconds, bytes=2 * GB, sides={"cold": SideCost(inputs=1000, missing=missing, row_bytes=100)}
    )


def all_found(*stages: StageMeasurement, **changes) -> ProbeResult:
    ending = EndingMeasurement(seconds=4.0, report_seconds=3.0)
    return ProbeResult(machine=machine(**changes), stages=stages, ending=ending, seconds=9.0)
