"""Two processes that watch a stage together: what they find, when they stop; weights whole, or shared
and the run interrupted."""

import csv
import json

import deep
import pytest
import torch
from safetensors.torch import load_file
from toy_runs import run_ranks

from geobind import plugins

pytestmark = pytest.mark.slow

# 70 rows are two blocks, one for each process; the second, smaller one is filled up.
WATCH = "stages.0.watch={every: 2, limit: 70, measure: R@1, patience: 1, least: 0.9}"
MEAN = "stages.0.ema=0.8"
FSDP2 = "fabric.strategy=fsdp2"


def job(out, *overrides, **more):
    return json.dumps({"out": str(out), "set": [WATCH, MEAN, *overrides], **more})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One process alone, and one launch of two that do everything else."""
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "registry", deep.registry)
        torch.set_num_threads(1)
        deep.run_one(str(folder / "one"), [WATCH, MEAN])
    jobs = [
        job(folder / "ddp"),
        job(folder / "halted", FSDP2, halt=2),
        job(folder / "halted", FSDP2, resume=True),
    ]
    run_ranks(folder, deep.main, jobs)
    return folder


def found(folder):
    with (folder / "run" / "validation.csv").open() as file:
        return [(int(row["step"]), float(row["loss"]), float(row["R@1"])) for row in csv.DictReader(file)]


def watched(folder):
    return json.loads((folder / "run" / "stages" / "01_one" / "stage.json").read_text())["watched"]


@pytest.mark.parametrize("name", ["ddp", "halted"])
def test_processes_find_together_what_one_finds(home, name):
    for one, other in zip(found(home / "one"), found(home / name), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ["ddp", "halted"])
def test_all_stop_at_the_same_step_and_keep_the_same_weights(home, name):
    one, other = watched(home / "one"), watched(home / name)
    assert one["stopped_early"] and {**one, "best": 0} == {**other, "best": 0}
    a, b = (load_file(home / run / "run" / "bundle" / "model.safetensors") for run in ("one", name))
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)
