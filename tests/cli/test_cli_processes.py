"""`geobind run --processes`: what it starts, and how it ends."""

from datetime import timedelta

import pytest

from geobind.cli import run

pytestmark = pytest.mark.slow


def test_several_processes_run_the_command_and_a_mistake_ends_them_with_its_code(capfd):
    with pytest.raises(SystemExit) as ended:
        run.launch_processes(2, ["run", "no_such_recipe"])
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert said.count("error: ") == 1  # though both met it
    assert "--resume" not in said  # going on would not help


@pytest.fixture
def several(monkeypatch):
    """A place where processes leave words, and what makes this process one of them."""
    from torch.distributed import HashStore

    store = HashStore()
    monkeypatch.setattr(run, "_store", lambda: store)
    monkeypatch.setattr(run, "_LISTEN", timedelta(seconds=0.1))
    monkeypatch.setenv("WORLD_SIZE", "4")
    return lambda rank: monkeypatch.setenv("RANK", str(rank))


def test_of_an_error_that_all_meet_the_first_process_alone_tells(several):
    several(0)
    assert run.message_of_rank("no rows") == "no rows"
    several(2)
    assert run.message_of_rank("no rows") is None


def test_an_error_of_one_process_has_its_number(several):
    several(2)
    assert run.message_of_rank("no rows") == "process 2: no rows"
    several(0)
    assert run.message_of_rank("no columns") == "no columns"
    several(1)
    assert run.message_of_rank("no rows") == "process 1: no rows"
    assert run.message_of_rank("process 1 of 4 lost another process") == "process 1 of 4 lost another process"


@pytest.mark.parametrize(
    ("code", "told", "exit_code"),
    [
        (-9, "error: process 1 was killed by signal 9; finished stages and the last checkpoint are kept", 1),
        (1, "process 1 failed", 1),
    ],
)
def test_a_process_that_failed_is_told_last_with_what_to_do(capsys, code, told, exit_code):
    with pytest.raises(SystemExit) as ended:
        run._end(1, code)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in last
    assert last.endswith("run again with --resume")
    assert ended.value.code == exit_code


def test_the_first_process_is_the_one_its_launcher_says(monkeypatch):
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert run.is_first()
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert not run.is_first()
    monkeypatch.setenv("RANK", "0")
    assert run.is_first()
