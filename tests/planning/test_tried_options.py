"""Options that a plan tries before it chooses them: `compile: auto` and `checkpoint_activations: auto`."""

from types import SimpleNamespace

import pytest
import torch
import toy
from made_up import GB, all_found, stage_found

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
    recipe = toy.recipe(
        tmp_path, "fabric.checkpoint_activations=auto", "stages.0.checkpoint_activations=true"
    )
    assert [stage.checkpoint_activations for stage in recipe.stages] == [True, "auto"]


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


def checkpointed(row=10**6, **changes):
    """Return a stage that takes 4/3 of the time, and `row` bytes a row, if it computes activations twice."""
    steps = tuple(StepCost(rows=n, seconds=4 / 3 * (1 + 0.01 * n), bytes=GB + row * n) for n in (16, 32))
    return stage_found(row=10**8, checkpointed=steps, **changes)


def open_stage(tmp_path, **changes):
    recipe = toy.recipe(tmp_path, "fabric.checkpoint_activations=auto")
    return recipe.stages[0].model_copy(update=changes)


def test_activations_are_computed_twice_where_the_asked_batch_does_not_fit_else(tmp_path):
    plan = predict_stage(open_stage(tmp_path, batch_size=256), checkpointed(), usable=16 * GB)
    assert plan.settled == {"checkpoint_activations": True} and plan.chunk is None
    assert plan.memory_bytes == GB + 256 * 10**6 and plan.warnings == ()
    assert plan.seconds.step == pytest.approx(4 / 3 * 3.56)
    assert "activations are computed twice: kept, 256 pairs would take 26.6" in plan.why
    plan = predict_stage(open_stage(tmp_path, batch_size=64), stage_found(), usable=16 * GB)
    assert plan.settled == {"checkpoint_activations": False}
    assert plan.why.endswith("activations are kept, as the batch fits")


def test_an_open_batch_is_the_largest_that_fits_with_activations_computed_twice(tmp_path):
    stage = open_stage(tmp_path, batch_size="auto")
    plan = predict_stage(stage, checkpointed(), usable=16 * GB)
    assert plan.settled == {"batch_size": 256, "checkpoint_activations": True}
    plan = predict_stage(stage, checkpointed(row=99_000_000), usable=16 * GB)
    assert plan.settled == {"batch_size": 128, "checkpoint_activations": False}  # it saves too little
    assert plan.why.endswith("activations are kept: computing them twice helps no more")
    plan = predict_stage(stage, checkpointed(row=10**6), usable=1.1 * GB)
    assert plan.settled == {"batch_size": 64, "checkpoint_activations": True}  # else not even two pairs fit


@pytest.mark.parametrize(("seconds", "twice"), [(1.5, True), (1.1, False)])
def test_of_two_passes_and_activations_computed_twice_the_faster_is_taken(seconds, twice, tmp_path):
    two = StepCost(rows=64, seconds=seconds * 1.64, bytes=GB + 32 * 10**8 + 64 * 1000, chunk=32)
    stage = open_stage(tmp_path, batch_size=256, chunk="auto")
    plan = predict_stage(stage, checkpointed(two_pass=two), usable=16 * GB)
    assert plan.settled == {"chunk": None if twice else 128, "checkpoint_activations": twice}


def test_two_passes_that_compute_activations_twice_take_longer_and_the_same_for_each_row(tmp_path):
    two = StepCost(rows=64, seconds=2 * 1.64, bytes=GB + 32 * 10**8 + 64 * 1000, chunk=32)
    found = checkpointed(two_pass=two).with_checkpointing
    assert found.two_pass.bytes == GB + 32 * 10**6 + 64 * 1000
    assert found.two_pass.seconds == pytest.approx(4 / 3 * two.seconds)
    plan = predict_stage(open_stage(tmp_path, batch_size=256, chunk=128), found, usable=16 * GB)
    assert plan.memory_bytes == GB + 128 * 10**6 + 256 * 1000
    untold = checkpointed(two_pass=two.model_copy(update={"bytes": None}))
    assert untold.with_checkpointing.two_pass.bytes is None


def test_steps_that_compute_activations_twice_are_measured_where_the_batch_may_not_fit(tmp_path):
    asked = []

    def run(size, steps, **tried):
        asked.append((size, tried))
        return SimpleNamespace(seconds=float(size), bytes=size)

    recipe = toy.recipe(tmp_path, "stages.0.checkpoint_activations=auto", "stages.0.batch_size=64")
    probe = probe_of(recipe, CUDA, run)
    probe._makes_a_batch = lambda size: True
    probe._steps = [StepCost(rows=n, seconds=1.0, bytes=n * GB) for n in (8, 16)]
    probe.usable = 64 * GB
    assert probe._checkpoint() == () and asked == []
    probe.usable = 63 * GB
    assert probe._checkpoint() == tuple(StepCost(rows=n, seconds=n, bytes=n) for n in (8, 16))
    assert asked == [(8, {"checkpoint_activations": True}), (16, {"checkpoint_activations": True})]
    probe._makes_a_batch = lambda size: False
    assert [step.rows for step in probe._checkpoint()] == [16]
    probe.bench.job.stage = toy.recipe(tmp_path).stages[0]
    assert probe._checkpoint() == ()
