"""`precision: auto` of a recipe: what is faster where a run begins, kept until it ends."""

import json

import pytest
import torch
import toy
from toy_runs import toy_run

from geobind import precision
from geobind.precision import choose_training_precision
from geobind.training import launch
from geobind.training.launch import resolve_precision

pytestmark = pytest.mark.usefixtures("toy_registry")


def let_auto_be(chosen, monkeypatch):
    monkeypatch.setattr(launch, "choose_training_precision", lambda device: (chosen, "so says the test"))


@pytest.mark.parametrize(("share", "expected"), [(0.5, "bf16-mixed"), (0.95, "32-true")])
def test_bfloat16_trains_where_a_step_is_faster_in_it(share, expected, monkeypatch):
    monkeypatch.setattr(precision, "_time", lambda call, device: share if call.__defaults__[0] else 1.0)
    chosen, reason = choose_training_precision(torch.device("cpu"))
    assert chosen == expected and f"{share:.2f}" in reason


def test_a_step_of_the_trial_runs_in_both_types():
    assert choose_training_precision(torch.device("cpu"))[0] in ("32-true", "bf16-mixed")


def test_a_recipe_without_auto_stays_as_it_is_and_nothing_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "make_fabric", lambda *_: pytest.fail("a Fabric was launched"))
    recipe = toy.recipe(tmp_path, "stages.0.precision=bf16-mixed")
    assert resolve_precision(recipe, tmp_path) == (recipe, None)


def test_auto_of_the_recipe_and_of_a_stage_are_replaced_and_others_kept(tmp_path, monkeypatch):
    let_auto_be("bf16-mixed", monkeypatch)
    recipe = toy.recipe(tmp_path, "fabric.precision=auto", "stages.1.precision=32-true")
    resolved, chosen = resolve_precision(recipe, tmp_path)
    assert [resolved.precision_of(stage) for stage in resolved.stages] == ["bf16-mixed", "32-true"]
    assert chosen == ("bf16-mixed", "so says the test")
    recipe = toy.recipe(tmp_path, "stages.1.precision=auto")
    resolved, _ = resolve_precision(recipe, tmp_path)
    assert [resolved.precision_of(stage) for stage in resolved.stages] == ["32-true", "bf16-mixed"]


def test_a_run_that_goes_on_keeps_the_precision_that_it_began_with(tmp_path, monkeypatch, caplog):
    let_auto_be("bf16-mixed", monkeypatch)
    folder = toy_run(tmp_path, "fabric.precision=auto")
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["precision"], facts["precision_reason"]) == ("bf16-mixed", "so says the test")
    let_auto_be("32-true", monkeypatch)
    with caplog.at_level("INFO"):
        toy_run(tmp_path, "fabric.precision=auto", resume=True)
    assert "precision: auto is bf16-mixed: the run began with it" in caplog.text
    assert caplog.text.count("finished before, unchanged") == 2
