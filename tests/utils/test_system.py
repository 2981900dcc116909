"""Memory of the process."""

import os
import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
from geobind.utils import system
kept = system.keep_freed_memory() if sys.argv[1] == "keep" else True
faults = []
for step in range(16):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**21) for _ in range(3)]
    del tensors
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(kept), sum(faults[8:]))
"""


def count_faults(word):
    # By luck glibc keeps what is freed by itself; told to map all of it, it never does.
    mapped = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    run = [sys.executable, "-c", STEPS, word]
    kept, faults = subprocess.run(run, env=mapped, capture_output=True, text=True, check=True).stdout.split()
    if not int(kept):
        pytest.skip("this C library has no such setting")
    return int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults as Linux does")
def test_the_memory_of_a_step_is_mapped_once_and_not_again_in_every_step():
    assert 10 * count_faults("keep") < count_faults("do not")
