"""Signals: a run that is asked to stop saves a checkpoint after its step, says so, and goes on exactly."""

import json
import os
import signal
import threading

import fault_world
import pytest
import torch

from geobind.cli import main
from geobind.data import loader
from geobind.evaluation import held_out
from geobind.training import cache, interruption, metrics, stage
from geobind.training.interruption import Stopped, defer_signals, handle_signals

RARE = ("stages.0.checkpoint_seconds=600", "stages.1.checkpoint_seconds=600")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138}


def before(monkeypatch, owner, name, number, after=0):
    """Send this process a signal before a call, the so-many-th of its kind."""
    call, left = getattr(owner, name), iter(range(after + 1))

    def watched(*args, **named):
        if next(left, None) == after:
            os.kill(os.getpid(), number)
        return call(*args, **named)

    monkeypatch.setattr(owner, name, watched)


@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGTERM, 3), (signal.SIGTERM, 5), (signal.SIGTERM, 8), (signal.SIGINT, 3), (signal.SIGUSR1, 3)],
)
def test_a_signal_ends_the_step_saves_it_and_the_run_goes_on_to_the_same_end(
    home, whole, monkeypatch, capfd, number, after
):
    with monkeypatch.context() as patch, pytest.raises(Stopped) as caught:
        before(patch, metrics.Recorder, "add", number, after)
        fault_world.train(home, *RARE)
    name, step = ("one", after) if after < 6 else ("two", after - 6)
    assert str(caught.value) == (
        f"{signal.Signals(number).name}: stopped after step {step} of stage '{name}'; a checkpoint is saved"
    )
    assert caught.value.exit_code == CODES[number]
    assert caught.value.__notes__ == [f"finished work is kept in {home / 'run'}; continue with --resume"]
    assert "Finishing this step and saving a checkpoint" in capfd.readouterr().err
    assert len(metrics.MetricsFile(home / "run" / "metrics.csv")._rows()) == after + 1
    fault_world.train(home, *RARE, resume=True)
    assert fault_world.outcome(home / "run") == whole()


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (cache.CacheEntry, "add", 1),  # while the cache fills
        (stage, "defer_signals", 1),  # before the first step of the second stage
        (held_out, "build_retrieval_table", 0),
        (stage.Checkpoint, "save", 2),
    ],
)
def test_a_signal_at_any_other_time_ends_the_run_at_once(home, whole, monkeypatch, owner, name, after):
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGTERM: stopped"):
        before(patch, owner, name, signal.SIGTERM, after)
        fault_world.train(home)
    assert not (home / "run" / "bundle").exists()
    fault_world.train(home, resume=True)
    assert fault_world.outcome(home / "run") == whole()


def test_what_was_made_for_the_cache_is_kept(home, monkeypatch):
    from geobind.embedding_cache import build

    monkeypatch.setattr(build, "_SECONDS", 1000.0)  # nothing is written before the end
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        before(patch, build.CacheBuilder, "_keep", signal.SIGTERM, 2)
        fault_world.train(home)
    shards = list((home / "cache" / "embeddings").rglob("*.safetensors"))
    assert len(shards) == 1


def test_what_a_stage_tells_at_its_end_counts_what_was_before_the_interruption(home, monkeypatch):
    table = home / "wheel.jsonl"
    lines = table.read_text().splitlines(keepends=True)
    broken = max(i for i, line in enumerate(lines) if '"train"' in line and '"spoke"' in line)
    lines[broken] = lines[broken].replace('"spoke": [', '"spoke": [1.0, ')  # eleven numbers
    table.write_text("".join(lines))
    options = (*RARE, "max_broken=0.1")

    def told(folder):
        done = json.loads((folder / "run" / "stages" / "01_one" / "stage.json").read_text())
        return done["loss"], done["losses"], done["broken"], done["quarantined"]

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="after step 5 of stage 'one'"):
        before(patch, metrics.Recorder, "add", signal.SIGTERM, after=5)  # the last one: all is read
        fault_world.train(home, *options)
    fault_world.train(home, *options, resume=True)
    interrupted = told(home)
    (home / "run").rename(home / "before")
    fault_world.train(home, *options)
    assert interrupted == told(home)
    assert interrupted[2] == 1


def test_a_study_stops_where_a_cell_was_asked_to(home, monkeypatch):
    from geobind.studies import runner

    class Ended:
        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def wait(self):
            return 143

    monkeypatch.setattr(runner.subprocess, "Popen", Ended)
    cell = type("Cell", (), {"overrides": (), "recipe": "x.yaml", "title": "seed=1"})
    with pytest.raises(Stopped, match="SIGTERM: the study stops after 'seed=1'; the same command") as caught:
        runner._run(cell, None, home)
    assert caught.value.exit_code == 143


def test_a_signal_that_comes_by_two_ways_is_one(monkeypatch):
    """A scheduler sends it to all processes, and a launcher or a study passes it on."""
    fabric = type("Fabric", (), {"world_size": 1, "is_global_zero": True})
    with (
        pytest.raises(Stopped, match="stopped immediately"),
        handle_signals(),
        defer_signals(fabric, "one", 1) as asked,
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked(0).exit_code == 143
        monkeypatch.setattr(interruption, "_REPEAT_SECONDS", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("a second signal waited")


def test_a_second_signal_does_not_wait_for_the_step():
    fabric = type("Fabric", (), {"world_size": 1, "is_global_zero": True})
    with (
        pytest.raises(Stopped, match="SIGINT: stopped immediately"),
        handle_signals(),
        defer_signals(fabric, "one", 1),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal waited")


def test_all_ranks_stop_where_one_was_asked_to():
    asked = []

    class Fabric:
        world_size, is_global_zero, device = 2, False, torch.device("cpu")

        def all_reduce(self, heard, reduce_op):
            asked.append((heard.item(), reduce_op))
            return torch.tensor(15.0)

    with handle_signals(), defer_signals(Fabric(), "one", 4) as stopped:
        found = [stopped(step) for step in range(4)]
    assert asked == [(0.0, "max")]  # only every fourth step waits for the others
    assert found[:3] == [None] * 3
    assert (found[3].exit_code, str(found[3])) == (143, "")  # the first process says it


def test_handlers_are_put_back_and_other_threads_left_alone():
    there = {number: signal.getsignal(number) for number in CODES}
    with handle_signals():
        assert all(signal.getsignal(number) is interruption._on_signal for number in CODES)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(handle_signals().__enter__()))
        thread.start()
        thread.join()
        assert seen == [None]
    assert {number: signal.getsignal(number) for number in CODES} == there


def test_the_command_line_says_how_to_go_on_and_exits_as_shells_expect(monkeypatch, capsys):
    from geobind.cli import data

    def stop(*_, **__):
        error = Stopped(signal.SIGTERM, "SIGTERM: stopped after step 3 of stage 'one'; a checkpoint is saved")
        error.add_note("finished work is kept in runs/x; continue with --resume")
        raise error

    monkeypatch.setattr(data.data_command, "invoke", stop)
    with pytest.raises(SystemExit) as caught:
        main(["data", "show", "x"], standalone_mode=False)
    assert caught.value.code == 143
    assert capsys.readouterr().err == (
        "SIGTERM: stopped after step 3 of stage 'one'; a checkpoint is saved\n"
        "finished work is kept in runs/x; continue with --resume\n"
    )


def test_processes_that_load_data_live_through_signals_sent_to_the_whole_group(
    home, whole, monkeypatch, children
):
    """As Ctrl-C in a terminal, and SLURM, send them; the main process alone would be too easy."""
    add, left = metrics.Recorder.add, iter(range(3))

    def add_then_send(self, *what):
        add(self, *what)
        if next(left, None) == 2:
            (child,) = children()
            for process in (child.pid, os.getpid()):
                os.kill(process, signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="after step 2 of stage 'one'"):
        patch.setattr(metrics.Recorder, "add", add_then_send)
        fault_world.train(home, *RARE, "workers=1")
    fault_world.train(home, *RARE, resume=True)
    assert fault_world.outcome(home / "run") == whole()


def test_a_loading_process_heeds_the_second_sigterm_which_is_meant_for_it():
    child = os.fork()
    if not child:
        loader._ignore_signals(0)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.write(2, b"")
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
