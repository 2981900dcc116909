"""Parts of a benchmark: none can spoil the others, and none takes more than its time."""

import os
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks"
CPU = SimpleNamespace(device="cpu")


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import parts

    yield parts
    sys.modules.pop("parts", None)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        def run(deadline):
            self.now += seconds
            return SimpleNamespace(text="", figures={})

        return run


# Faults


def cases(parts, **runs):
    """A part whose cases do these things, or have these figures."""

    def run(what, deadline):
        return parts.Found("done", {"what": what() if callable(what) else what})

    made = [parts.Case(name, partial(run, what)) for name, what in runs.items()]
    return lambda setup: made


def raises(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize("execute", ["run_here", "run_apart"])
def test_a_case_that_raises_is_named_with_its_first_line_and_the_rest_goes_on(parts, execute):
    bad = raises(ValueError("no such thing\nand more"))
    chosen = [
        parts.Part("one", 60, cases(parts, a=1, b=bad, c=3)),
        parts.Part("two", 60, cases(parts, d=4)),
    ]
    one, two = parts.run_parts(chosen, CPU, seconds=100, execute=getattr(parts, execute))
    assert [row.status for row in one.rows] == ["ok", "failed: ValueError: no such thing", "ok"]
    assert one.status == "failed: 1 of 3: b"
    assert (two.status, two.rows[0].figures) == ("ok", {"what": 4})


def test_a_part_that_cannot_make_its_cases_is_named_and_the_rest_goes_on(parts):
    def broken(setup):
        yield from cases(parts, a=1)(setup)
        raise ImportError("no module named x")

    chosen = [parts.Part("one", 60, broken), parts.Part("two", 60, cases(parts, b=2))]
    one, two = parts.run_parts(chosen, CPU, seconds=100, execute=parts.run_here)
    assert [row.status for row in one.rows] == ["ok", "failed: ImportError: no module named x"]
    assert two.status == "ok"


def test_a_part_whose_process_dies_keeps_its_rows_and_the_rest_goes_on(parts):
    chosen = [
        parts.Part("one", 60, cases(parts, a=1, b=lambda: os._exit(7), c=3)),
        parts.Part("two", 60, cases(parts, d=4)),
    ]
    one, two = parts.run_parts(chosen, CPU, seconds=100, execute=parts.run_apart)
    assert [row.case for row in one.rows] == ["a"]
    assert one.status == "failed: its process ended early, by exit code 7"
    assert two.status == "ok"


def test_a_part_that_hangs_is_ended_and_the_rest_goes_on(parts):
    clock = Clock()
    chosen = [
        parts.Part("one", 60, cases(parts, a=1, b=lambda: time.sleep(1000))),
        parts.Part("two", 60, cases(parts, c=3)),
    ]

    def execute(part, setup, deadline, add):
        def add_late(row):  # in this process; that of the part has a clock of its own
            add(row)
            clock.now += 60 + parts.GRACE

        return parts.run_apart(part, setup, deadline, add_late if part.name == "one" else add)

    one, two = parts.run_parts(chosen, CPU, seconds=100, clock=clock, execute=execute)
    assert one.status == "failed: still at work 10 s past its time, and ended"
    assert [row.case for row in one.rows] == ["a"]
    assert two.status == "ok"


def test_what_needs_cuda_is_skipped_on_a_cpu_and_a_part_of_nothing_else_too(parts):
    part = parts.Part("one", 60, lambda setup: [parts.Case("a", raises(KeyError()), needs_cuda=True)])
    (one,) = parts.run_parts([part], CPU, seconds=100, execute=parts.run_here)
    assert (one.rows[0].status, one.status) == ("skipped: needs CUDA", "skipped: needs CUDA")


# Time


def test_cases_that_do_not_fit_are_skipped_and_each_part_has_its_own_time(parts):
    clock = Clock()

    def slow(setup):
        return [parts.Case(name, clock.passes(12), 10) for name in "abcd"]

    chosen = [parts.Part("one", 30, slow), parts.Part("two", 30, slow), parts.Part("three", 30, slow)]
    noted = []
    found = parts.run_parts(chosen, CPU, seconds=50, clock=clock, execute=parts.run_here, note=noted.append)
    one, two, three = found
    # Of 30 seconds: 12, 12, and 6 left.
    late = "skipped: no time: 6 s left, needs 10"
    assert [row.status for row in one.rows] == ["ok", "ok", late, late]
    assert (one.status, one.seconds) == ("ok, but no time for 2 of 4", 24)
    # Of 50 seconds 26 are left: 12, 12, and 2 left.
    assert [row.status for row in two.rows] == ["ok", "ok", *["skipped: no time: 2 s left, needs 10"] * 2]
    assert {row.status for row in three.rows} == {"skipped: no time: 2 s left, needs 10"}
    assert three.status == "skipped: no time: 2 s left, needs 10"
    assert noted == found


def test_parts_for_which_no_time_is_left_are_skipped_whole(parts):
    clock = Clock()
    long = parts.Part("one", 30, lambda setup: [parts.Case("a", clock.passes(60))])
    one, two = parts.run_parts([long, long], CPU, seconds=40, clock=clock, execute=parts.run_here)
    assert one.status == "ok"
    assert (two.status, two.rows) == ("skipped: no time: none left of 40 s", [])
