"""One, two and four processes, weights on each or shared among them: the same losses and weights.

All of it takes two starts: four processes that run and are interrupted, one of them killed, and two nodes of
one process each, launched by torchrun, that go on.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import deep
import pytest
import torch
from safetensors.torch import load_file
from toy_runs import Ended, end_ranks

from geobind import plugins

pytestmark = pytest.mark.slow

PROGRAM = Path(deep.__file__)
LAUNCH = [sys.executable, "-m", "torch.distributed.run"]
FSDP2 = "fabric.strategy=fsdp2"
HALF = "stages.0.precision=bf16-mixed"
NORMED = ("modalities.near.batch_norm=true", "modalities.far.batch_norm=true")
WHEEL = ("stages.0.steps=6", "stages.0.batch_size=8")
LACKS = ("", "spoke", "rim", "spoke", "rim", "spoke", "rim")
BRIEF = ("stages.0.steps=3", "stages.1.steps=1")
# Sums in another order differ in the last bits of float32, and AdamW makes more of it.
LOSS, NORM, WEIGHT = 1e-5, 1e-4, 1e-5


def equal_runs(one: Path, other: Path, *, but: tuple[str, ...] = ()) -> None:
    for (stage, step, loss, norm), (*place, loss_, norm_) in zip(
        deep.figures(one), deep.figures(other), strict=True
    ):
        assert place == [stage, step]
        assert loss_ == pytest.approx(loss, rel=LOSS), place
        assert norm_ == pytest.approx(norm, rel=NORM), place
    a, b = (load_file(run / "bundle" / "model.safetensors") for run in (one, other))
    assert a.keys() == b.keys()
    for key in (key for key in a if not key.endswith(but)):
        assert a[key].dtype == b[key].dtype
        assert torch.allclose(a[key], b[key], atol=WEIGHT, rtol=0), key


def stderr(processes: list[Ended]) -> str:
    return "\n".join(ended.said for ended in processes)


def job(out: Path, *overrides: str, **more) -> str:
    return json.dumps({"out": str(out), "set": list(overrides), **more})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    for name in ("one", "ddp", "fsdp2"):  # of whose rows a process often has none with some modality
        (folder / f"wheel_{name}").mkdir()
        deep.toy.write_wheel(folder / f"wheel_{name}" / "wheel.jsonl", lacks=lambda i: LACKS[i % 7])
    return folder


@pytest.fixture(scope="module")
def alone(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "registry", deep.registry)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        deep.run_one(str(home / "one"))
        deep.run_one(str(home / "norm_one"), NORMED)
        deep.run_one(str(home / "norm_own_one"), [*NORMED, *BRIEF])
        deep.run_one(str(home / "wheel_one"), WHEEL, wheel=True)
        yield home / "one" / "run"
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def four(home):
    """The files of four processes, the third of them killed in the last of their runs."""
    jobs = [
        job(home / "ddp"),
        job(home / "fsdp2", FSDP2),
        job(home / "half_ddp", HALF, *BRIEF),
        job(home / "half_fsdp2", HALF, FSDP2, *BRIEF),
        job(home / "norm_ddp", *NORMED),
        job(home / "norm_fsdp2", *NORMED, FSDP2, "fabric.checkpoint_activations=true"),
        job(home / "norm_own", *NORMED, *BRIEF, "fabric.sync_batchnorm=false"),
        job(home / "wheel_ddp", *WHEEL, wheel=True),
        job(home / "wheel_fsdp2", *WHEEL, FSDP2, wheel=True),
        job(home / "ddp_halted", halt=2),
        job(home / "norm_halted", *NORMED, halt=2),
        job(home / "fsdp2_killed", FSDP2, kill=[2, 3]),
    ]
    done = end_ranks(home, deep.main, jobs, ranks=4)
    for name in ("ddp_halted", "fsdp2_killed"):
        shutil.copytree(home / name, home / f"{name}_alone")
    return done


@pytest.fixture(scope="module")
def two_nodes(home, four):
    """Two launchers, of one process each, go on with what four processes began."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [
        job(home / "ddp_halted", resume=True),
        job(home / "fsdp2_killed", FSDP2, resume=True),
        job(home / "norm_halted", *NORMED, resume=True),
        job(home / "ddp"),
    ]
    where = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=static", "--master-addr=127.0.0.1"]
    agents = [
        subprocess.Popen(
            [*LAUNCH, *where, f"--master-port={port}", f"--node-rank={node}", PROGRAM, *jobs],
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    said = [agent.communicate(timeout=120)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(said)
    return said


def test_four_processes_give_the_losses_and_weights_of_one(alone, four, home):
    equal_runs(alone, home / "ddp" / "run")


def test_four_processes_that_share_the_weights_give_those_of_one(alone, four, home):
    equal_runs(alone, home / "fsdp2" / "run")


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_batch_norms_take_the_statistics_of_all_processes(alone, four, home, name):
    equal_runs(home / "norm_one" / "run", home / f"norm_{name}" / "run")


def test_batch_norms_take_those_of_each_process_only_where_that_is_asked_for(alone, four, home):
    (_, _, one, _), *_ = deep.figures(home / "norm_own_one" / "run")
    (_, _, other, _), *_ = deep.figures(home / "norm_own" / "run")
    assert abs(one / other - 1) > 1e-3
    warned = [line for line in stderr(four).splitlines() if "trains BatchNorm" in line]
    assert [line.split(":")[0] for line in warned] == ["stage 'one'", "stage 'two'"]  # by rank zero alone
    assert all("the result depends on the number of processes" in line for line in warned)


def test_what_four_processes_began_with_batch_norms_two_nodes_go_on_with(alone, two_nodes, home):
    equal_runs(home / "norm_one" / "run", home / "norm_halted" / "run")


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_processes_without_a_row_of_some_modality_change_nothing(alone, four, home, name):
    # A batch norm takes away the bias before it, whose gradient is rounding that AdamW makes steps of.
    inert = ("trunk.0.bias", "trunk.1.running_mean")
    equal_runs(home / "wheel_one" / "run", home / f"wheel_{name}" / "run", but=inert)


def test_sharing_the_weights_changes_nothing_in_half_precision(four, home):
    equal_runs(home / "half_ddp" / "run", home / "half_fsdp2" / "run")


def test_a_killed_process_ends_the_others_with_what_to_do(four, home):
    assert four[2].code == -signal.SIGKILL
    said = [line for line in stderr(four).splitlines() if "lost another process" in line]
    assert said
    assert "run again with --resume, with any number of processes" in stderr(four)
    assert (home / "fsdp2_killed_alone" / "run" / "stages" / "01_one" / "state.ckpt").exists()


@pytest.mark.parametrize("name", ["ddp_halted", "fsdp2_killed"])
def test_what_four_processes_began_two_nodes_go_on_with(alone, two_nodes, home, name):
    equal_runs(alone, home / name / "run")
    assert "finished before" not in two_nodes[0]


@pytest.mark.parametrize("name", ["ddp_halted", "fsdp2_killed"])
def test_what_four_processes_began_one_goes_on_with(alone, four, home, name):
    deep.run_one(str(home / f"{name}_alone"), resume=True)
    equal_runs(alone, home / f"{name}_alone" / "run")


def test_what_the_first_process_finds_wrong_ends_all_at_once(two_nodes, home):
    told = [json.loads((home / "ddp" / f"told-{rank}.json").read_text()) for rank in range(2)]
    assert "holds a run already: continue it (--resume)" in told[0]["RecipeError"]
    assert told[1] == {"SystemExit": "2"}  # the exit code, and no second message
