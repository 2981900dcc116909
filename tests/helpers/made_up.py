"""Measurements that are made up, so that what follows from them is known."""

from geobind.planning.models import AllFound, EndingFound, Filling, Machine, Side, StageFound, Step

GB = 10**9


def stage_found(name="one", base=1.0, each=0.01, fixed=1 * GB, row=10**7, **changes) -> StageFound:
    """A stage whose step of n rows takes `base + each n` seconds and `fixed + row n` bytes."""
    steps = tuple(Step(rows=n, seconds=base + each * n, bytes=fixed + row * n) for n in (8, 32))
    values = {"rows": 1000, "sources": (1000,), "most": 256, "most_why": "a quarter of its 1,000 rows"}
    return StageFound(**{"name": name, "steps": steps, **values, **changes})


def machine(**changes) -> Machine:
    values = {"device": "cpu", "memory": "process", "available": 16 * GB, "says": "said", "ranks": 1}
    return Machine(**{**values, "opening_seconds": 2.0, "bundle_bytes": 5000, **changes})


def filling(missing=500.0, seconds=30.0) -> Filling:
    return Filling(
        seconds=seconds, bytes=2 * GB, sides={"cold": Side(inputs=1000, missing=missing, row_bytes=100)}
    )


def all_found(*stages: StageFound, **changes) -> AllFound:
    ending = EndingFound(seconds=4.0, report_seconds=3.0)
    return AllFound(machine=machine(**changes), stages=stages, ending=ending, seconds=9.0)
