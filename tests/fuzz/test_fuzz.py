import random
from pathlib import Path

import pytest

if not Path("/proc/self/statm").exists():
    pytest.skip("limits of memory are set as Linux does it", allow_module_level=True)

import fuzz_documents
import fuzz_mutations
import fuzz_pool
import fuzz_readers
import fuzz_seeds

from geobind import plugins
from geobind.report import comparison, page, run_files

pytestmark = pytest.mark.slow

SLICE = 480  # of the tens of thousands that fuzz_readers.py reads


def test_nothing_damaged_crashes_hangs_fills_the_memory_or_fails_without_a_reason():
    results = list(fuzz_readers.fuzz(SLICE, seed=0, workers=1))
    assert len(results) == SLICE
    faults = [f"{result.task}: {result.outcome}" for result in results if result.fault]
    assert not faults, "\n".join(faults)
    # Both must happen, or the test tests nothing.
    assert 20 < sum(result.outcome == "read" for result in results) < SLICE - 100


def test_what_is_whole_is_read_in_every_format(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    import fuzz_targets

    for module, name in (
        (plugins, "registry"),
        (page, "draw_svg"),
        (page, "draw_png"),
        (comparison, "draw_svg"),
        (page, "read_run"),
        (comparison, "read_run"),
        (run_files, "parse_yaml"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # which install() and others replace
    fuzz_documents.install()
    for kind, contents in fuzz_seeds.seeds().items():
        folder = tmp_path / kind.replace(":", "_").replace("/", "_")
        assert fuzz_targets.outcome(kind, contents[0], folder, 0) == "read", kind
        assert all(fuzz_mutations.mended(kind, content) == content for content in contents)


def troubled():
    return _trouble


def _trouble(what, folder):
    if what == "crash":
        import os

        os.abort()
    if what == "hang":
        import time

        time.sleep(60)
    if what == "loop":
        while True:
            pass
    if what == "memory":
        bytearray(2 * fuzz_pool.SPARE)
    return "fine"


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("crash", "died with -6"),
        ("hang", "hung: it slept for"),
        ("loop", "hung: it ran for"),
        ("memory", "MemoryError"),
        ("", "fine"),
    ],
)
def test_the_pool_notices_every_kind_of_trouble_and_goes_on(what, word):
    trouble, after = fuzz_pool.run([(what,), ("",)], troubled, workers=1, limit_s=2)
    assert word in trouble.outcome
    assert trouble.fault == bool(what)
    assert after.outcome == "fine"


@pytest.mark.parametrize(
    ("ran", "queued", "why"),
    [
        (1, 598, ""),
        (59, 540, ""),
        (61, 0, "ran for 61 s"),
        (61, 500, "ran for 61 s"),
        (1, 10, "slept for 589 s"),
    ],
)
def test_a_process_that_waits_for_its_turn_does_not_hang(ran, queued, why):
    assert fuzz_pool.hang(600, ran, queued, limit_s=60) == why


def test_what_is_damaged_depends_on_the_generator_alone():
    (short,) = fuzz_documents.seeds()["run:calibration.json"]
    first, again = ([fuzz_documents.damaged_json(short, random.Random(i)) for i in range(2000)] for _ in "ab")
    assert first == again
