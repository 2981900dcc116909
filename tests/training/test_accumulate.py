"""Several steps to a move of the weights: their mean gradient, nothing lost in a checkpoint, what is said."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
import toy
from click.testing import CliRunner
from lightning_fabric import Fabric
from safetensors.torch import load_file

from geobind.cli import main
from geobind.errors import RecipeError
from geobind.recipe import load_recipe
from geobind.recipe.describe import describe_details, recipe_warnings, stage_facts
from geobind.recipe.schema import build_pairs
from geobind.training import metrics
from geobind.training.distributed import Ranks
from geobind.training.gradients import AccumulationStep, GradientAccumulator, accumulation_step
from geobind.training.losses import InfoNCE
from geobind.training.module import ContrastiveModule
from geobind.training.run import run

pytestmark = pytest.mark.usefixtures("toy_registry")
REGISTRY = toy.plugins.registry  # of what is installed
THREE = ("stages.0.accumulate=3", "stages.0.epochs=null", "stages.0.steps=8", "stages.1.steps=1")


def toy_run(folder: Path, *overrides: str, resume: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    return run(toy.recipe(folder, *overrides), folder / "run", resume=resume).folder


def rows_of(folder: Path):
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["stage"] == "one"]


def same(one: Path, other: Path) -> bool:
    a, b = (load_file(folder / "bundle" / "model.safetensors") for folder in (one, other))
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(toy.plugins, "registry", toy.registry)
    torch.set_num_threads(1)
    yield toy_run(tmp_path_factory.mktemp("whole"), *THREE, "modalities.left.dropout=0.2")
    patch.undo()


# Turns


def test_every_third_step_moves_the_weights_and_so_does_the_last():
    turns = [accumulation_step(step, 3, 8) for step in range(8)]
    assert [turn.last for turn in turns] == [False, False, True, False, False, True, False, True]
    assert [turn.of for turn in turns] == [3] * 6 + [2] * 2
    assert [accumulation_step(step, 1, 8) for step in (0, 7)] == [AccumulationStep(), AccumulationStep()]


def test_each_step_has_a_row_and_those_that_move_the_weights_a_norm(whole):
    rows = rows_of(whole)
    assert [int(row["step"]) for row in rows] == list(range(8))
    assert [bool(row["grad_norm"]) for row in rows] == [False, False, True, False, False, True, False, True]
    assert [row["temperature"] for row in rows[:3]] == [rows[0]["temperature"]] * 3
    assert rows[3]["temperature"] != rows[0]["temperature"]


@pytest.mark.parametrize("chunk", [None, 3])
def test_the_gradient_is_the_mean_of_the_steps(chunk):
    torch.manual_seed(0)
    parts = {name: toy.Net(8, 0.0, False) for name in ("hub", "rim")}
    pairs = build_pairs("hub", ["rim"])
    bind = ContrastiveModule(parts, {"hub-rim": InfoNCE()}, pairs, Ranks(lambda part, **_: part, 1), 8)
    fabric = Fabric(accelerator="cpu", devices=1)
    gradients = GradientAccumulator(fabric, bind, fabric.setup(bind), chunk)
    steps = [{name: torch.randn(8, 10) for name in parts} for _ in range(3)]
    alone = []
    for batches in steps:
        gradients(batches, None)
        alone.append([parameter.grad.clone() for parameter in bind.parameters()])
        bind.zero_grad()
    for number, batches in enumerate(steps):
        found = gradients(batches, None, None, AccumulationStep(number, 3))
        assert found.total.item() == pytest.approx(
            float(sum(found.pairs.values()))
        )  # of this step, not a share
    for parameter, *each in zip(bind.parameters(), *alone, strict=True):
        assert torch.allclose(parameter.grad, sum(each) / 3, rtol=1e-4, atol=1e-7)


def test_an_encoder_that_one_step_of_a_turn_trains_is_moved_and_one_that_none_does_is_not():
    torch.manual_seed(0)
    parts = {name: toy.Net(8, 0.0, False) for name in ("hub", "spoke", "rim")}
    pairs = build_pairs("hub", ["spoke", "rim"])
    losses = {pair.name: InfoNCE() for pair in pairs}
    bind = ContrastiveModule(parts, losses, pairs, Ranks(lambda part, **_: part, 1), 8, partial=True)
    fabric = Fabric(accelerator="cpu", devices=1)
    gradients = GradientAccumulator(fabric, bind, fabric.setup(bind))
    there = torch.tensor([[1, 1, 0]] * 4).bool()
    rows = {name: torch.randn(4, 10) for name in ("hub", "spoke")}
    gradients(rows, there, None, AccumulationStep(0, 2))
    first = parts["spoke"].head.weight.grad.clone()
    gradients({"hub": rows["hub"]}, torch.tensor([[1, 0, 0]] * 4).bool(), None, AccumulationStep(1, 2))
    assert torch.equal(parts["spoke"].head.weight.grad, first)
    assert first.any()


# Whole runs


@pytest.mark.slow
def test_a_killed_run_goes_on_from_a_move_and_ends_with_the_same_weights(whole, tmp_path, monkeypatch):
    add = metrics.Recorder.add

    def add_then_stop(self, step, broken):
        add(self, step, broken)
        if step.number == 4:
            raise KeyboardInterrupt

    options = (*THREE, "modalities.left.dropout=0.2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.Recorder, "add", add_then_stop)
        with pytest.raises(KeyboardInterrupt):
            toy_run(tmp_path, *options)
    state = torch.load(tmp_path / "run" / "stages" / "01_one" / "state.ckpt", weights_only=True)
    assert state["step"] == 3
    toy_run(tmp_path, *options, resume=True)
    assert same(whole, tmp_path / "run")
    assert [row["loss"] for row in rows_of(whole)] == [row["loss"] for row in rows_of(tmp_path / "run")]


@pytest.mark.slow
def test_a_queue_holds_the_steps_of_a_turn(tmp_path):
    queued = "stages.0.loss={name: infonce, direction: anchor_to_other, queue: 48}"
    folder = toy_run(tmp_path, *THREE, "stages.0.train=[left]", queued)
    losses = [float(row["loss"]) for row in rows_of(folder)]
    assert losses[1] > losses[0]  # the weights have not moved: there are more negatives
    assert losses[2] > losses[0]


# What is said


def said(tmp_path, *options):
    recipe = toy.recipe(tmp_path, *options)
    return " ".join(recipe_warnings(recipe, recipe.stages[0]))


def test_accumulating_is_said_to_add_no_negatives_and_what_does(tmp_path):
    assert "accumulate: 4 steps to a move add no negatives: a row meets the 15 others of its batch; " in said(
        tmp_path, "stages.0.accumulate=4", "fabric.devices=2"
    )
    assert (
        "`batch_size: 64` with `chunk: 8` takes as many rows to a move in the same memory, and a row meets 63"
        in said(tmp_path, "stages.0.accumulate=4", "fabric.devices=2")
    )
    assert "15 others of its batch and 40 that are queued" in said(
        tmp_path,
        "stages.0.accumulate=4",
        "stages.0.train=[left]",
        "stages.0.loss={name: infonce, direction: anchor_to_other, queue: 40}",
    )
    assert "accumulate: 9 exceeds the 7 steps" in said(
        tmp_path, "stages.0={name: one, align: right, train: [left], batch_size: 16, steps: 7, accumulate: 9}"
    )
    assert said(tmp_path) == ""


def test_what_changes_nothing_is_said(tmp_path):
    assert "chunk: 16 cuts nothing, as there are 16 rows" in said(tmp_path, "stages.0.chunk=16")
    assert "chunk: 8 cuts nothing, as a process has 8 rows" in said(
        tmp_path, "stages.0.chunk=8", "fabric.devices=2"
    )
    assert said(tmp_path, "stages.0.chunk=8") == said(tmp_path, "stages.0.chunk=auto") == ""


@pytest.mark.slow
def test_check_and_run_warn(tmp_path, logged):
    recipe = toy.recipe(tmp_path, "stages.0.accumulate=2", "stages.0.chunk=4")
    told = list(describe_details(recipe, recipe.stages[0]))
    assert told == [
        "steps: two passes, 4 rows of a process at a time, the gradient of all",
        "steps: every 2 move the weights once, by their mean gradient",
    ]
    assert "add no negatives" in stage_facts(recipe, recipe.stages[0])["warnings"][0]
    arguments = ["check", str(tmp_path / "toy.yaml"), "--set", "stages.0.accumulate=2"]
    printed = CliRunner().invoke(main, arguments)
    assert "    warning: accumulate: 2 steps to a move add no negatives" in printed.output
    found = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)
    said = ["add no negatives" in " ".join(stage["warnings"]) for stage in found["stages"]]
    assert said == [True, False]
    toy_run(tmp_path, "stages.0.accumulate=2", "stages.0.steps=2", "stages.0.epochs=null", "stages.1.steps=1")
    assert "warning: stage 'one': accumulate: 2 steps to a move add no negatives" in logged()


@pytest.mark.parametrize("word", ["0", "-1", "1.5", "auto"])
def test_steps_to_a_move_are_a_positive_number(tmp_path, word):
    with pytest.raises(RecipeError, match=r"stages\.0\.accumulate"):
        toy.recipe(tmp_path, f"stages.0.accumulate={word}")


def test_the_recipe_of_the_page_on_big_batches_is_good(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "big_batches.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "places.csv").touch()
    (tmp_path / "page.yaml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy.plugins, "registry", REGISTRY)
        recipe = load_recipe(tmp_path / "page.yaml")
    assert recipe.stages[0].chunk == 64
    assert not list(recipe_warnings(recipe, recipe.stages[0]))
