"""Memory that is full and processes that die are said as what they are, with what to change."""

import os
import signal
import time

import fault_world
import pytest
import torch
import toy

from geobind.data import loader
from geobind.errors import DataError, TrainingError
from geobind.training import interruption, metrics


def raising(monkeypatch, error, after=3):
    """Make one forward pass fail, counted from the first."""
    forward, left = toy.Net.forward, iter(range(after + 1))

    def watched(self, x_BF):
        if next(left, None) == after:
            raise error
        return forward(self, x_BF)

    monkeypatch.setattr(toy.Net, "forward", watched)


FULL = {
    "accelerator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore"),
    "torch on a CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 10 bytes."),
    "python": MemoryError(),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FULL)
def test_full_memory_names_what_to_change_and_the_run_goes_on(home, whole, monkeypatch, kind):
    with monkeypatch.context() as patch, pytest.raises(TrainingError) as caught:
        raising(patch, FULL[kind], after=8)
        fault_world.train(home)
    said = str(caught.value)
    assert "stage 'one': the memory of the machine is full" in said
    assert "the last checkpoint is kept; continue from it with --resume" in said
    assert "`chunk: 8`" in said and "a smaller `batch_size` than 16" in said
    assert caught.value.exit_code == 1
    if kind == "accelerator":
        fault_world.train(home, resume=True)
        assert fault_world.outcome(home / "run") == whole()


def test_on_an_accelerator_half_precision_is_named_too():
    stage = type("S", (), {"name": "one", "precision": None, "batch_size": 512, "chunk": 64})
    with (
        pytest.raises(TrainingError, match=r"the accelerator \(cuda:1\) is full") as caught,
        interruption.explain_failures(stage, torch.device("cuda:1"), precision="32-true", workers="auto"),
    ):
        raise FULL["accelerator"]
    assert "`chunk: 32`" in str(caught.value) and "`precision: bf16-mixed`" in str(caught.value)


def test_other_errors_are_left_as_they_are(home, monkeypatch):
    raising(monkeypatch, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match=r"^mat1"):
        fault_world.train(home)


@pytest.mark.parametrize("moment", ["while it computes", "while it waits"])
def test_a_loading_process_that_is_killed_is_named_and_the_run_goes_on(
    home, whole, monkeypatch, children, moment
):
    def kill():
        (child,) = children()
        os.kill(child.pid, signal.SIGKILL)
        if moment == "while it computes":
            time.sleep(5)  # torch interrupts it

    with monkeypatch.context() as patch:
        add, left = metrics.Recorder.add, iter(range(3))

        def add_then_kill(self, *what):
            add(self, *what)
            if next(left, None) == 2:
                kill()

        patch.setattr(metrics.Recorder, "add", add_then_kill)
        with pytest.raises(TrainingError) as caught:
            fault_world.train(home, "workers=1")
    said = str(caught.value)
    assert "stage 'one': a process that loads data died (" in said
    assert "fewer `workers`" in said and "--shm-size" in said and "continue from it with --resume" in said
    fault_world.train(home, resume=True)
    assert fault_world.outcome(home / "run") == whole()


class Slow(torch.utils.data.Dataset):
    def __getitem__(self, index):
        if index:
            time.sleep(60)
        return index


@pytest.mark.slow
def test_a_loading_process_that_hangs_is_ended(monkeypatch, children):
    monkeypatch.setattr(loader, "_PATIENCE", 1)
    loaded = loader.load_batches(Slow(), [[0], [1]], sum, 1)
    assert next(loaded) == 0
    started = time.monotonic()
    with pytest.raises(
        DataError, match="brought nothing for 1 s: the disk or network they read from may hang"
    ):
        next(loaded)
    assert time.monotonic() - started < 15
    assert not children()
