"""The accelerator benchmark: all of it runs on a CPU, in its small mode."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks"
NEEDS_CUDA = {
    "frozen weights, 16-mixed",
    "InfoNCE against float64, TF32",
    "SigLIP against float64, TF32",
    "training in 16-mixed",
    "pinned loading, 0 workers",
    "pinned loading, 2 workers",
    "reduce-overhead",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with what `--small` leaves."""
    folder = tmp_path_factory.mktemp("small")
    command = [sys.executable, FOLDER / "accelerator.py", "--small", "--out", folder]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def report(folder):
    return json.loads((folder / "accelerator.json").read_text(encoding="utf-8"))


def test_every_part_of_the_small_mode_is_ok_but_for_what_needs_cuda(small):
    found = report(small)
    assert [part["name"] for part in found["parts"]] == [
        "checks", "training", "batch", "loss", "input", "choices", "compile"
    ]  # fmt: skip
    assert {part["status"] for part in found["parts"]} == {"ok"}
    rows = {row["case"]: row for part in found["parts"] for row in part["rows"]}
    skipped = {case for case, row in rows.items() if row["status"] == "skipped: needs CUDA"}
    assert skipped == NEEDS_CUDA
    assert {row["status"] for case, row in rows.items() if case not in skipped} == {"ok"}
    assert all(row["text"] and row["figures"] for case, row in rows.items() if case not in skipped)
    assert (found["small"], found["device"], found["seed"]) == (True, "cpu", 0)
    assert {"torch", "open_clip_torch", "geobind", "python", "processor"} <= set(found["machine"])


def test_training_counts_the_work_of_trained_frozen_and_cached_towers(small):
    training = next(part for part in report(small)["parts"] if part["name"] == "training")
    _, both, frozen, cached = (row["figures"] for row in training["rows"])
    # Two passes through both; two and one; two through one.
    assert both["flops_per_pair"] == 2 * cached["flops_per_pair"]
    assert cached["flops_per_pair"] < frozen["flops_per_pair"] < both["flops_per_pair"]
    assert cached["open_clip_flops_per_pair"] == frozen["flops_per_pair"]
    for figures in (both, frozen, cached):
        one, other = figures["first_losses"]
        assert one == pytest.approx(other, rel=0.01)  # the same towers and rows, in bfloat16


def test_the_chunked_step_has_the_loss_and_the_gradient_of_the_direct_one(small):
    batch = next(part for part in report(small)["parts"] if part["name"] == "batch")
    first = {row["case"]: row["figures"]["first"] for row in batch["rows"]}
    direct, chunk = first["direct, both towers trained"], first["chunk, both towers trained"]
    assert chunk == pytest.approx(direct, rel=0.01)


def test_the_table_has_a_line_for_every_part_and_case(small):
    lines = (small / "accelerator.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]
    parts = report(small)["parts"]
    assert len(cells) == 1 + sum(1 + len(part["rows"]) for part in parts)
    assert {len(row) for row in cells} == {5}
    assert sum(line.startswith("|---") for line in lines) == 1


def test_without_cuda_the_large_mode_is_refused_with_the_way_out(tmp_path):
    command = [sys.executable, FOLDER / "accelerator.py", "--out", tmp_path]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "this machine has no CUDA device; --small runs on a CPU"


FULL = """
import os, pathlib, sys, time
import torch
import accelerator_speed as speed
import stages
from parts import Deadline, Setup

whole = stages.Tower.forward

def forward(self, batch):
    if len(batch) > 12:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    return whole(self, batch)

stages.Tower.forward = forward
os.environ["GEOBIND_CACHE"] = sys.argv[1]
setup, deadline = Setup(True, "cpu", pathlib.Path(sys.argv[1])), Deadline(time.monotonic() + 200)
for way in speed.WAYS[:2]:
    print(speed.largest(setup, way, 1.0, {}, deadline).text)
try:
    speed.train(setup, speed.CONTESTS[0], 1.0, [], deadline)
except Exception as error:
    print(stages.is_out_of_memory(error), stages.is_out_of_memory(ValueError("out of memory")))
"""


def test_the_batch_is_doubled_until_memory_is_full_and_chunks_go_on(tmp_path):
    command = [sys.executable, "-c", FULL, tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert ended.returncode == 0, ended.stderr
    direct, chunk, full = ended.stdout.splitlines()
    assert direct.startswith("8 rows (memory is full at 16)")
    assert chunk.startswith("32 rows (the largest that was to be tried)")
    assert full == "True False"
