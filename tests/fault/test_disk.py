"""A disk that is full, or cannot be written, ends a run with a word, and the run can be gone on with."""

import errno
import os
from pathlib import Path

import fault_world
import pytest

from geobind.cli import main
from geobind.errors import StorageError
from geobind.training.metrics import MetricsFile

FULL = OSError(errno.ENOSPC, "No space left on device")


class Filled:
    """A file on a disk that is full after a few letters more."""

    def __init__(self, file):
        self.file = file

    def write(self, text):
        self.file.write(text[:7])
        self.file.flush()
        raise FULL

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


class Disk:
    """A disk that is full whenever a file of one name is written, half of which is then there."""

    def __init__(self, monkeypatch):
        self.name, self.after, self.error = "", 0, FULL
        write, opened = Path.write_bytes, Path.open
        monkeypatch.setattr(Path, "write_bytes", lambda path, content: self.write(write, path, content))
        monkeypatch.setattr(Path, "open", lambda path, *a, **k: self.open(opened, path, *a, **k))

    def fill(self, name, after=0, error=FULL):
        self.name, self.after, self.error = name, after, error

    def hit(self, path):
        if not self.name or self.name not in path.as_posix():
            return False
        self.after -= 1
        return self.after < 0

    def write(self, write, path, content):
        if self.hit(path):
            write(path, bytes(content)[: len(content) // 2])
            raise self.error
        return write(path, content)

    def open(self, opened, path, mode="r", *rest, **named):
        file = opened(path, mode, *rest, **named)
        locks = self.error is FULL and path.suffix == ".lock"  # which are empty
        if "a" not in mode or locks or not self.hit(path):
            return file
        if self.error is FULL:
            return Filled(file)
        file.close()
        raise self.error


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


# What is written in a run, in order, and how many times before the disk is full.
WRITTEN = [
    ("run.json", 0),
    ("01_one/.state.ckpt", 2),
    ("metrics.csv", 3),
    ("01_one/.trained.safetensors", 0),
    ("01_one/.stage.json", 0),
    ("02_two/.state.ckpt", 1),
    ("02_two/.stage.json", 0),
    ("bundle/.model.safetensors", 0),
    ("bundle/.binder.json", 0),
    ("retrieval.json", 0),
    ("figures/", 1),
    ("report.html", 0),
]


@pytest.mark.slow
def test_whatever_is_written_when_the_disk_is_full_the_run_goes_on_to_the_same_end(home, disk, whole):
    for number, (name, after) in enumerate(WRITTEN):
        disk.fill(name, after)
        with pytest.raises(StorageError) as caught:
            fault_world.train(home, resume=number > 0)
        assert "the disk is full" in str(caught.value) and "--resume" in str(caught.value), name
        assert name.replace("/.", "/").strip("/") in str(caught.value)
        assert caught.value.exit_code == 1
        assert not list((home / "run").rglob("*.part")), name
    disk.fill("")
    fault_world.train(home, resume=True)
    assert fault_world.outcome(home / "run") == whole()


def test_a_full_disk_under_the_embedding_cache_costs_the_cache_alone(home, disk, whole, logged):
    disk.fill("embeddings/")
    fault_world.train(home)
    assert "two: hub is not cached: cannot write" in logged()
    assert fault_world.outcome(home / "run") == whole("stages.1.cache=off")


@pytest.mark.parametrize(("code", "said"), [(errno.EROFS, "Read-only"), (errno.EACCES, "Permission denied")])
def test_a_folder_that_cannot_be_written_is_named_with_the_reason(home, disk, code, said):
    disk.fill("run/", error=OSError(code, os.strerror(code)))
    with pytest.raises(StorageError, match=rf"cannot write .*run/run\.lock: {said}"):
        fault_world.train(home)


def test_a_full_disk_wherever_else_it_is_met_is_said_without_a_traceback(monkeypatch, capsys):
    from geobind.cli import data

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "x.csv")

    monkeypatch.setattr(data.data_command, "invoke", full)
    with pytest.raises(SystemExit) as caught:
        main(["data", "show", "x"], standalone_mode=False)
    assert caught.value.code == 1
    assert "error: the disk is full: " in capsys.readouterr().err


TORN = ["", "stage,st", "one,2", "one,2,0.51234,0.07,0.01,1.2", "\0\0\0\0", "one,2,0.5\n"]


@pytest.mark.parametrize("tail", TORN)
def test_a_row_of_metrics_that_was_cut_is_dropped(tmp_path, tail):
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    row = {"loss": "1", "temperature": "0.1", "lr": "0.1", "grad_norm": "1", "samples_per_second": "1"}
    metrics.add("one", [{"step": step, **row} for step in range(2)])
    whole = path.read_text()
    path.write_text(whole + tail)
    metrics.rewind("one", 5)
    assert path.read_text() == whole
    metrics.rewind("one", 1)
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:2])
