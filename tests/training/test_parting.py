"""A process closes its connections before Python ends, and does not wait for what nobody will receive."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc"),
]

THREADS = """
import atexit, os, sys, torch
from torch import distributed as dist

def gloo_threads():
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)

atexit.register(lambda: print("left", gloo_threads() > 0))  # called after what is registered later
from geobind.training import distributed
if sys.argv[1] == "closes":
    distributed.close_at_exit()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist.all_reduce(torch.ones(3), group=distributed.control_group())
print("had", gloo_threads() > 0)
"""

ALONE = """
import sys, torch
from torch import distributed as dist
from geobind.training import distributed

distributed._CLOSE_SECONDS, rank = 1, int(sys.argv[2])
distributed.close_at_exit()
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 2), rank=rank, world_size=2)
if rank == 0:
    sent = dist.all_reduce(torch.ones(3), async_op=True)
    raise SystemExit("an error in the midst of a step")
sys.stdin.read()  # never takes part, and stays until it is told to go
"""


def python(program, *words, **more):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stdout=-1, stderr=-1, text=True, **more
    )


@pytest.mark.parametrize(("word", "left"), [("closes", "False"), ("does not", "True")])
def test_gloo_threads_have_ended_before_python_does_only_if_it_is_seen_to(word, left):
    said = python(THREADS, word).communicate(timeout=60)[0].split()
    assert said == ["had", "True", "left", left]


def test_a_process_with_something_on_its_way_ends_with_an_error_though_nobody_receives_it(tmp_path):
    other = python(ALONE, tmp_path / "store", 1, stdin=-1)
    failed = python(ALONE, tmp_path / "store", 0)
    said = failed.communicate(timeout=60)[1]
    assert (failed.returncode, said.strip()) == (1, "an error in the midst of a step")
    assert other.poll() is None
    other.communicate(timeout=60)
