"""Options that a plan tries before it chooses them: `compile: auto`."""

from types import SimpleNamespace

import pytest
import torch
import toy
from made_up import all_found, stage_found

from geobind.errors import TrainingError
from geobind.planning import auto
from geobind.planning.auto import AutoResolver, with_values
from geobind.planning.models import NOT_ON_A_CPU, CompileCost, StepCost
from geobind.planning.predict import choose_compile, predict_run, predict_stage
from geobind.planning.probe import StageProbe
from geobind.recipe.parsing import parse_yaml
from geobind.training.launch import make_fabric

pytestmark = pytest.mark.usefixtures("toys")


def test_a_stage_takes_the_option_of_the_recipe_unless_it_says_another(tmp_path):
    recipe = toy.recipe(tmp_path, "fabric.compile=auto", "stages.1.compile=false")
    assert [stage.compile for stage in recipe.stages] == ["auto", False]
    assert [stage.auto_options for stage in recipe.stages] == [("compile",), ()]
    recipe = toy.recipe(tmp_path, "fabric.compile=true", "stages.1.compile=max-autotune")
    assert [stage.compile_mode for stage in recipe.stages] == ["default", "max-autotune"]
    assert [stage.compile_mode for stage in toy.recipe(tmp_path).stages] == [None, None]


@pytest.mark.parametrize(
    ("compiled", "compiling", "steps", "chosen"),
    [
        (0.7, 60.0, 1_000, True),  # 760 s in place of 1,000
        (0.7, 60.0, 200, False),  # 200 s in place of 200
        (0.96, 0.0, 10**6, False),  # what clocks err by
        (1.2, 0.0, 10**6, False),
    ],
)
def test_encoders_are_compiled_where_the_steps_of_the_stage_pay_for_it(compiled, compiling, steps, chosen):
    cost = CompileCost(plain=1.0, compiled=compiled, compiling=compiling)
    found = choose_compile(stage_found(compile=cost), steps)
    assert found.value is chosen
    (why,) = found.why
    assert why.startswith("compiled: " if chosen else "not compiled: ")
    assert f"a step takes {compiled:.2f} of its 1,000 ms" in why and f"in {steps:,} steps" in why


def test_compiled_steps_are_planned_with_the_time_of_compiling(tmp_path):
    stage = toy.recipe(tmp_path, "fabric.compile=auto", "stages.0.epochs=100").stages[0]
    plain = predict_stage(stage, stage_found(compile=CompileCost(failed="no compiler here")))
    assert plain.settled == {"compile": False} and plain.settled_words == "compile false"
    assert plain.why.endswith("not compiled: no compiler here")
    cost = CompileCost(plain=1.0, compiled=0.5, compiling=40.0)
    plan = predict_stage(stage, stage_found(compile=cost))
    assert plan.settled == {"compile": True} and "; compiled: a step takes 0.50" in plan.why
    assert plan.seconds.step == plain.seconds.step / 2
    assert plan.seconds.other == plain.seconds.other + 40.0


def probe_of(recipe, fabric, run):
    """Return the probe of a first stage whose steps are made up."""
    bench = SimpleNamespace(fabric=fabric, job=SimpleNamespace(stage=recipe.stages[0]), run=run)
    probe = StageProbe(bench, 1, None, 1.0, (256, "all"))
    probe._steps = [StepCost(rows=8, seconds=1.0, bytes=None)]
    return probe


def ran(seconds, whole):
    return SimpleNamespace(seconds=seconds, outcome=SimpleNamespace(seconds=whole, filled={"seconds": 1.0}))


CUDA = SimpleNamespace(device=torch.device("cuda"))


def test_compiled_steps_are_timed_beside_plain_ones_and_the_first_ones_count_as_compiling(tmp_path):
    asked = []

    def run(size, steps, **tried):
        asked.append((size, steps, tried))
        return ran(0.5, 70.0) if tried else ran(1.0, 13.0)

    cost = probe_of(toy.recipe(tmp_path, "fabric.compile=auto"), CUDA, run)._compile()
    assert asked == [(8, 10, {}), (8, 10, {"compile": True})]
    # Of 70 s one was the cache's, five were ten steps; of 13 s one and ten; two are of any run.
    assert cost == CompileCost(plain=1.0, compiled=0.5, compiling=64.0 - 2.0)


def test_encoders_that_cannot_be_compiled_stay_plain_with_the_reason(tmp_path):
    def run(size, steps, **tried):
        if tried:
            raise TrainingError("torch.compile cannot compile its encoders (why)\nmore")
        return ran(1.0, 13.0)

    cost = probe_of(toy.recipe(tmp_path, "fabric.compile=auto"), CUDA, run)._compile()
    assert cost.failed == "torch.compile cannot compile its encoders (why)"
    assert choose_compile(stage_found(compile=cost), 10**6).value is False


def test_on_a_cpu_nothing_is_compiled_and_no_process_measures_it(tmp_path, monkeypatch, logged):
    recipe = toy.recipe(tmp_path, "fabric={accelerator: cpu, compile: auto}")
    fabric = make_fabric(recipe.fabric, "32-true")
    assert probe_of(recipe, fabric, None)._compile().failed == NOT_ON_A_CPU
    monkeypatch.setattr(auto, "run_probe_process", lambda *_, **__: pytest.fail("a process was started"))
    result = AutoResolver()(recipe, tmp_path, fabric)
    assert [stage.compile for stage in result.stages] == [False, False]
    written = parse_yaml((tmp_path / "recipe.yaml").read_text(), "")[0]["stages"]
    assert [stage["compile"] for stage in written] == [False, False]
    assert f"compile: auto is false: {NOT_ON_A_CPU}" in logged()


def test_what_was_chosen_is_kept_with_the_run_and_taken_when_it_goes_on(tmp_path, monkeypatch, logged):
    costs = [CompileCost(plain=1.0, compiled=0.5), CompileCost(plain=1.0, compiled=1.0)]
    asked = []

    def ask(*_, **__):
        asked.append(1)
        stages = (stage_found(name, compile=cost) for name, cost in zip(("one", "two"), costs, strict=True))
        return all_found(*stages)

    monkeypatch.setattr(auto, "run_probe_process", ask)
    recipe = toy.recipe(tmp_path, "fabric.compile=auto")
    for said in ("measured just now", "as planned before"):
        result = AutoResolver()(recipe, tmp_path, CUDA_ALONE)
        assert [stage.compile for stage in result.stages] == [True, False]
        assert f"one: compile true ({said}" in logged()
    assert asked == [1]
    changed = toy.recipe(tmp_path, "fabric.compile=auto", "stages.0.chunk=auto")
    AutoResolver()(changed, tmp_path, CUDA_ALONE)
    AutoResolver()(toy.recipe(tmp_path, "stages.0.compile=auto"), tmp_path, CUDA_ALONE)
    assert asked == [1, 1, 1]  # a plan that leaves something open is none
    values = {"one": {"compile": True}, "two": {"compile": False}}
    assert with_values(recipe, values).written == result.written
    assert [stage.settled for stage in predict_run(recipe, ask()).stages] == [
        {"compile": True},
        {"compile": False},
    ]


CUDA_ALONE = SimpleNamespace(device=torch.device("cuda"), world_size=1, is_global_zero=True)
