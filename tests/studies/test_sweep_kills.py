"""Sweeps that are killed: no half of a stage is taken over and no cell lives on; changed rows are noticed."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import toy

from geobind import plugins
from geobind.studies import runner
from geobind.training.metrics import FIELDS, MetricsFile
from geobind.training.resume import read_finished_stage

FILES = {"trained.safetensors": b"weights", "stage.json": b'{"key": "k"}', "validation.json": b"{}"}
ROW = {name: "1" for name in FIELDS if name != "stage"}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(plugins, "registry", toy.registry)  # which `toy.recipe` replaces for good


class Killed(BaseException):
    pass


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """A cell that has finished its stage, and one that wants it."""
    stages = {}

    def folders(recipe, folder):
        yield folder / "stages" / "01_one", stages.get(folder, "k")

    monkeypatch.setattr(runner, "stage_folders", folders)
    done, wants = tmp_path / "done", tmp_path / "wants"
    home = done / "stages" / "01_one"
    home.mkdir(parents=True)
    for name, content in FILES.items():
        (home / name).write_bytes(content)
    MetricsFile(done / "metrics.csv").add("one", [ROW])
    return done, wants


def prepare_old(wants):
    """A stage of an earlier recipe stands where the other is to come."""
    home = wants / "stages" / "01_one"
    home.mkdir(parents=True)
    (home / "stage.json").write_text('{"key": "old"}')
    (home / "trained.safetensors").write_bytes(b"old weights")


@pytest.mark.parametrize("old", [False, True])
def test_a_shared_stage_is_whole_or_not_there_whenever_the_sweep_is_killed(cells, monkeypatch, old):
    done, wants = cells
    killed = 0
    for owner, name in (
        (os, "link"),
        (os, "rename"),
        (os, "replace"),
        (os, "unlink"),
        (os, "rmdir"),
        (os, "mkdir"),
    ):
        for number in range(50):
            shutil.rmtree(wants, ignore_errors=True)
            wants.mkdir()
            if old:
                prepare_old(wants)
            call, left = getattr(owner, name), iter(range(number))

            def dying(*args, call=call, left=left, **named):
                if next(left, None) is None:
                    raise Killed
                return call(*args, **named)

            home = wants / "stages" / "01_one"
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, dying)
                try:
                    runner._share(None, wants, [done])
                    ended = True
                except Killed:
                    ended = False
            if read_finished_stage(home).get("key") == "k":
                assert {path.name: path.read_bytes() for path in home.iterdir()} == FILES
                assert "one" in (wants / "metrics.csv").read_text()
            assert runner._share(None, wants, [done]) in (0, 1)  # and the next sweep takes it over, or has it
            assert {path.name: path.read_bytes() for path in home.iterdir()} == FILES
            assert "one" in (wants / "metrics.csv").read_text()
            if ended:
                break
            killed += 1
    assert killed > 5


def test_a_stage_without_its_weights_is_not_finished(cells):
    done, wants = cells
    home = wants / "stages" / "01_one"
    home.mkdir(parents=True)
    (home / "stage.json").write_bytes(FILES["stage.json"])  # what a killed sweep of an earlier version left
    assert read_finished_stage(home) == {}
    assert runner._share(None, wants, [done]) == 1
    (done / "stages" / "01_one" / "trained.safetensors").unlink()
    shutil.rmtree(home)
    assert runner._share(None, wants, [done]) == 0


@pytest.mark.slow
def test_a_run_trains_a_stage_again_whose_weights_are_gone(tmp_path):
    from geobind.training.run import run

    recipe = toy.recipe(tmp_path, "stages.0.steps=2", "stages.0.epochs=null", "stages.1.steps=2")
    run(recipe, tmp_path / "run")
    weights = tmp_path / "run" / "stages" / "01_one" / "trained.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    run(recipe, tmp_path / "run", resume=True)
    assert weights.read_bytes() == before


def test_a_cell_is_run_again_once_rows_of_a_manifest_have_changed(tmp_path, monkeypatch):
    recipe = toy.wheel(tmp_path)
    folder = tmp_path / "cell"
    (folder / "bundle").mkdir(parents=True)
    key = runner._compute_key(recipe)
    (folder / "cell.json").write_text(json.dumps({"key": key}))
    assert not runner._is_done(folder, key)  # its bundle is not whole
    (folder / "bundle" / "binder.json").write_text("{}")
    assert runner._is_done(folder, runner._compute_key(recipe))
    table = tmp_path / "wheel.jsonl"
    table.write_text(table.read_text().replace('"even"', '"level"'))
    assert not runner._is_done(folder, runner._compute_key(recipe))


def test_a_cell_is_run_again_once_the_rows_it_is_measured_on_have_changed(tmp_path):
    toy.write_wheel(tmp_path / "other.jsonl")
    recipe = toy.wheel(tmp_path, "evaluate={split: test, data: {manifest: other.jsonl}}")
    before = runner._compute_key(recipe)
    assert runner._compute_key(recipe) == before
    table = tmp_path / "other.jsonl"
    table.write_text(table.read_text().replace('"even"', '"level"'))
    assert runner._compute_key(recipe) != before


CHILD = """
import os, sys, time
from geobind.utils.system import end_with_parent
end_with_parent()
os.write(int(sys.argv[1]), b"up")
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
surroundings = {**os.environ, "GEOBIND_PARENT": str(os.getpid())}
command = [sys.executable, "-c", sys.argv[2], sys.argv[1]]
subprocess.Popen(command, pass_fds=[int(sys.argv[1])], env=surroundings)
os.close(int(sys.argv[1]))
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends processes with their parent")
def test_a_cell_does_not_live_on_when_its_sweep_is_killed():
    reader, writer = os.pipe()
    sweep = subprocess.Popen([sys.executable, "-c", PARENT, str(writer), CHILD], pass_fds=[writer])
    os.close(writer)
    assert os.read(reader, 2) == b"up"
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    assert os.read(reader, 1) == b""  # only the cell could still write: it has ended
    os.close(reader)


def test_a_process_whose_environment_names_no_parent_is_left_alone(monkeypatch):
    from geobind.utils.system import end_with_parent

    monkeypatch.delenv("GEOBIND_PARENT", raising=False)
    end_with_parent()
