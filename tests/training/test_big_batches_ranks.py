"""Two processes give the losses and weights of one: in every kind of step; many runs of one launch."""

import csv
import json
from pathlib import Path

import pytest
import torch
import toy
from safetensors.torch import load_file
from toy_runs import run_ranks

from geobind.training.run import run

pytestmark = pytest.mark.slow

TOY = [
    "modalities.left.norm=false",
    "modalities.right.norm=false",
    "fabric.accelerator=cpu",
    "stages.1.steps=1",
]
TOY += ["stages.0.epochs=null", "stages.0.steps=5"]
LACKING = ["", "spoke", "rim", "spoke", "spoke", "hub", "rim", "", "spoke", "spoke", "rim"]
WHEEL = ["stages.0.batch_size=6", "stages.0.pairs=all", "stages.0.steps=13", "stages.0.weights.rim=0.5"]
WHEEL += [f"modalities.{name}.norm=false" for name in ("hub", "spoke", "rim")]
SIGLIP = "stages.0.loss={name: siglip, positives: label, hardness: 0.5}"
QUEUE = "stages.0.loss={name: infonce, direction: anchor_to_other, queue: 40, ignore_within_m: 300000}"

# What a run of one process is told, and what one of two is told besides.
CASES = {
    "both": (TOY, ["stages.0.loss={name: infonce, local: false}"]),
    "one_way": ([*TOY, "stages.0.loss={name: infonce, direction: anchor_to_other}"], []),
    "queue": ([*TOY, "stages.0.train=[left]", QUEUE], []),
    "wheel": (WHEEL, ["stages.0.loss={name: infonce, local: false}"]),
    "local": (TOY, []),
    "local_queue": (
        [*TOY, "stages.0.train=[left]", QUEUE],
        ["stages.0.chunk=3"],
    ),
    "local_chunk": ([*TOY, SIGLIP], ["stages.0.chunk=5"]),
    "all": (
        [*TOY, "stages.0.accumulate=2"],
        ["stages.0.chunk=3"],
    ),
    "wheel_accumulate": ([*WHEEL, "stages.0.accumulate=3"], []),
    "wheel_all": (
        [*WHEEL, "stages.0.accumulate=3"],
        ["stages.0.chunk=2"],
    ),
}


def run_cases(words: list[str]) -> None:
    folder, told = words
    torch.set_num_threads(1)
    for name, options in json.loads(told).items():
        make = toy.wheel if name.startswith("wheel") else toy.recipe
        run(make(Path(folder, name), *options), Path(folder, name) / "run")


def prepared(folder: Path) -> Path:
    for name in CASES:
        (folder / name).mkdir(parents=True)
        if name.startswith("wheel"):
            toy.write_wheel(folder / name / "wheel.jsonl", lacks=lambda i: LACKING[i % 11])
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of every case, run by two processes."""
    folder = prepared(tmp_path_factory.mktemp("pair"))
    told = {name: [*one, *more, "fabric.devices=2"] for name, (one, more) in CASES.items()}
    run_ranks(folder, run_cases, [str(folder), json.dumps(told)])
    return folder


def rows_of(folder: Path):
    with (folder / "run" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A runner of cases in one process, each set of options once."""
    folder, found = prepared(tmp_path_factory.mktemp("alone")), {}

    def of(name: str) -> Path:
        options = tuple(CASES[name][0])
        if options not in found:
            make = toy.wheel if name.startswith("wheel") else toy.recipe
            run(make(folder / name, *options), folder / name / "run")
            found[options] = folder / name
        return found[options]

    return of


@pytest.mark.usefixtures("toy_registry")
@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_losses_and_weights_of_one(name, pair, alone):
    folder = alone(name)
    one, two = rows_of(folder), rows_of(pair / name)
    assert len(one) == len(two) > 0
    losses = [key for key in one[0] if key.startswith("loss")]
    for here, there in zip(one, two, strict=True):
        for key in losses:
            assert bool(here[key]) == bool(there[key])
            assert float(here[key] or 0) == pytest.approx(float(there[key] or 0), rel=1e-4, abs=1e-5)
        assert bool(here["grad_norm"]) == bool(there["grad_norm"])
        assert float(here["grad_norm"] or 0) == pytest.approx(
            float(there["grad_norm"] or 0), rel=1e-3, abs=1e-5
        )
    whole, theirs = (load_file(one / "run" / "bundle" / "model.safetensors") for one in (folder, pair / name))
    assert all(torch.allclose(whole[key], theirs[key], atol=5e-5) for key in whole)
