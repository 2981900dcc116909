"""State on disk that was damaged is noticed to the bit, and a folder belongs to one run at a time."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import fault_world
import pytest
from fault_moments import Moments, Target

from geobind.errors import CheckpointError, StorageError
from geobind.training.interruption import Stopped
from geobind.training.resume import LOCK, run_lock
from geobind.utils import files

FORK = multiprocessing.get_context("fork")


def flip(path, where=0.5):
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)


@pytest.fixture
def halfway(home):
    """A run that was killed in the middle of its second stage."""
    ended = fault_world.live(home, moments=Moments(Target("step", 18)), resume=False)
    assert ended.killed
    return home


DAMAGE = {
    "one bit": lambda path: flip(path),
    "one bit of its end": lambda path: flip(path, 0.999),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "empty": lambda path: path.write_bytes(b""),
    "something else": lambda path: path.write_bytes(b"\0" * 4096),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_its_stage_can_start_over(halfway, whole, damage):
    checkpoint = halfway / "run" / "stages" / "02_two" / "state.ckpt"
    DAMAGE[damage](checkpoint)
    with pytest.raises(CheckpointError, match=r"02_two/state\.ckpt: .*remove it to start over"):
        fault_world.train(halfway, resume=True)
    if damage == "one bit":
        checkpoint.unlink()
        fault_world.train(halfway, resume=True)
        assert fault_world.outcome(halfway / "run") == whole()


def test_weights_of_a_finished_stage_that_changed_are_named_and_can_be_made_again(halfway, whole):
    stage = halfway / "run" / "stages" / "01_one"
    flip(stage / "trained.safetensors", 0.9)
    with pytest.raises(
        CheckpointError, match=r"01_one/trained\.safetensors: the weights of '\w+' are not those"
    ):
        fault_world.train(halfway, resume=True)
    for path in stage.iterdir():
        path.unlink()
    fault_world.train(halfway, resume=True)
    found, expected = fault_world.outcome(halfway / "run"), whole()
    assert found[:2] == expected[:2]
    assert sorted(found.losses) == sorted(expected.losses)  # the second stage kept its own


@pytest.mark.parametrize("half", ['{"key": "', "", "[]"])
def test_half_a_stage_json_is_named(halfway, half):
    (halfway / "run" / "stages" / "01_one" / "stage.json").write_text(half)
    with pytest.raises(CheckpointError, match=r"stage\.json: not .*remove it to start over"):
        fault_world.train(halfway, resume=True)


def test_a_cut_row_of_metrics_is_made_again(halfway, whole):
    metrics = halfway / "run" / "metrics.csv"
    metrics.write_bytes(metrics.read_bytes()[:-9] + b"\0\0")
    fault_world.train(halfway, resume=True)
    assert fault_world.outcome(halfway / "run").weights == whole().weights


def test_a_shard_of_the_cache_with_another_bit_costs_its_rows_alone(halfway, whole, logged):
    for shard in (halfway / "cache" / "embeddings").rglob("*.safetensors"):
        flip(shard, 0.2)  # of the index, which is looked at whenever it is opened
    os.environ["GEOBIND_CACHE"] = str(halfway / "cache")
    fault_world.train(halfway, resume=True)
    assert "warning: embedding cache: dropped" in logged()
    assert fault_world.outcome(halfway / "run") == whole()


def test_a_state_of_an_earlier_version_without_a_hash_is_read(tmp_path):
    path = tmp_path / "state.ckpt"
    files.write_state(path, {"step": 3})
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"geobind sha256: ")])
    assert files.read_state(path) == {"step": 3}


def hold(folder, ready):
    with run_lock(folder):
        ready.set()
        time.sleep(60)


def test_two_runs_in_a_folder_are_refused_by_name_and_a_killed_one_is_no_obstacle(home, whole):
    ready = FORK.Event()
    other = FORK.Process(target=hold, args=(home / "run", ready))
    other.start()
    try:
        assert ready.wait(20)
        with pytest.raises(StorageError) as caught:
            fault_world.train(home)
        said = f"run: process {other.pid} on {socket.gethostname()}, since 20"
        assert said in str(caught.value) and "choose another folder (--out)" in str(caught.value)
        assert not (home / "run" / "run.json").exists()
        assert (home / "run" / LOCK).exists()  # it is the other's
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.join()
    assert json.loads((home / "run" / LOCK).read_text())["pid"] == other.pid
    fault_world.train(home)
    assert not (home / "run" / LOCK).exists()
    assert fault_world.outcome(home / "run") == whole()


def test_children_do_not_keep_a_folder_that_their_dead_parent_had(tmp_path):
    """As processes that load data do, which live on for seconds."""
    told = FORK.Queue()

    def parent():
        with run_lock(tmp_path):
            child = FORK.Process(target=time.sleep, args=(60,))
            child.start()
            told.put(child.pid)
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=parent)
    process.start()
    orphan = told.get(timeout=20)
    process.join()
    try:
        with run_lock(tmp_path):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_whoever_waited_for_a_folder_does_not_share_it(tmp_path):
    """The one before removes the file at its end; whoever opened that one takes the next."""
    with run_lock(tmp_path):
        first = (tmp_path / LOCK).stat().st_ino
        (tmp_path / LOCK).unlink()  # as another process, which has just ended, might
        (tmp_path / "keep").write_text("")
        with run_lock(tmp_path):
            assert (tmp_path / LOCK).stat().st_ino != first or Path("/proc").exists()


def test_without_locks_a_run_works_all_the_same(tmp_path, monkeypatch):

    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "lockf", none)
    with run_lock(tmp_path):
        pass
    monkeypatch.setattr(files, "fcntl", None)
    with pytest.raises(Stopped), run_lock(tmp_path):
        raise Stopped(15)
