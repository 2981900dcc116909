"""Watching a stage: evaluations on held-out rows, the best weights, stopping early, going on exactly."""

import csv
import json

import numpy as np
import pytest
import torch
import toy
from safetensors.torch import load_file
from toy import Right

from geobind.binder import Binder
from geobind.errors import DataError, TrainingError
from geobind.recipe.parsing import RecipeProblems
from geobind.recipe.schema import Watch
from geobind.report import page as writing
from geobind.report.run_files import read_run
from geobind.training import checkpoint, metrics, validation
from geobind.training.run import run
from geobind.training.validation import EarlyStopping, subsample

pytestmark = pytest.mark.usefixtures("toy_registry")
WATCH = "stages.0.watch={every: 4, limit: 24, measure: R@1, patience: 2, least: 0.3}"
NOISY = ("modalities.left.dropout=0.2", "modalities.right.noise=0.1", "fabric.accelerator=cpu")
ALONE = (*NOISY, "stages.0.epochs=4")


class Killed(BaseException):
    """Stands in for a kill: nothing below it is caught."""


def toy_run(folder, *overrides, resume=False, text=toy.RECIPE):
    folder.mkdir(exist_ok=True)
    return run(toy.recipe(folder, *ALONE, *overrides, text=text), folder / "run", resume=resume).folder


@pytest.fixture
def one_stage():
    """The recipe without its second stage."""
    return toy.RECIPE.split("  - {name: two")[0]


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("geobind.report.write_report", lambda *_, **__: None)


def found(folder):
    with (folder / "validation.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def done(folder, stage="01_one"):
    return json.loads((folder / "stages" / stage / "stage.json").read_text())


def trained(folder, stage="01_one"):
    return load_file(folder / "stages" / stage / "trained.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_watching_changes_nothing_that_is_trained(one_stage, tmp_path):
    plain = toy_run(tmp_path / "plain", text=one_stage)
    seen = toy_run(tmp_path / "seen", "stages.0.watch={every: 3, keep: last, limit: 24}", text=one_stage)
    assert same(trained(plain), trained(seen))
    assert [row["step"] for row in found(seen)] == ["2", "5", "8", "11", "14", "17", "20", "23"]


def test_what_is_found_is_what_evaluation_finds_with_the_weights_that_are_kept(one_stage, tmp_path):
    folder = toy_run(tmp_path, "stages.0.watch={every: 5, limit: 24, measure: R@1}", text=one_stage)
    told = done(folder)["watched"]
    assert told["best"] == pytest.approx(max(float(row["R@1"]) for row in found(folder)), rel=1e-5)
    rows = [4 * i for i in range(24)]  # at even distances
    binder = Binder.load(folder / "bundle")
    left_ND, right_ND = (binder.embed(n, [toy.view(i, n) for i in rows]) for n in ("left", "right"))
    similarity = left_ND @ right_ND.T
    hits = [(similarity.argmax(axis) == torch.arange(24)).float().mean().item() for axis in (0, 1)]
    assert told["best"] == pytest.approx(np.mean(hits))


def test_the_loss_is_that_of_batches_as_large_as_those_of_training(one_stage, tmp_path):
    folder = toy_run(
        tmp_path, "stages.0.watch={every: 99, limit: 40, measure: loss, keep: last}", text=one_stage
    )
    binder = Binder.load(folder / "bundle")
    rows = [96 * i // 40 for i in range(40)]
    left_ND, right_ND = (binder.embed(n, [toy.view(i, n) for i in rows]) for n in ("left", "right"))
    scale = 1 / done(folder)["temperature"]
    losses = []
    for at in (0, 16):  # 40 rows are two batches of 16, and some that fill none
        logits = scale * left_ND[at : at + 16] @ right_ND[at : at + 16].T
        target = torch.arange(16)
        cross = torch.nn.functional.cross_entropy
        losses.append((cross(logits, target) + cross(logits.T, target)).item() / 2)
    assert float(found(folder)[-1]["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)


def test_a_stage_stops_when_nothing_gets_better_and_keeps_the_best(one_stage, tmp_path, logged):
    folder = toy_run(tmp_path, WATCH, text=one_stage)
    told, rows = done(folder)["watched"], found(folder)
    assert told["stopped_early"] and done(folder)["steps"] == 4 * len(rows) < told["planned_steps"] == 24
    best = max(rows, key=lambda row: float(row["R@1"]))
    assert told["kept_steps"] == int(best["step"]) + 1
    assert f"one: stopped after {4 * len(rows)} of 24 steps, weights after" in logged()
    assert not list((folder / "stages" / "01_one").glob("best-*"))


def test_the_best_weights_are_those_of_their_evaluation_and_not_the_last(one_stage, tmp_path, monkeypatch):
    values = iter([0.1, 0.9, 0.3])
    monkeypatch.setattr(validation, "measure_pairs", lambda *_: {"loss": 1.0, "R@1": next(values)})
    told = toy_run(tmp_path / "kept", "stages.0.watch={every: 8, measure: R@1, limit: 24}", text=one_stage)
    assert done(told)["watched"]["kept_steps"] == 16
    weights, temperature = after(tmp_path / "stopped", 16, one_stage, monkeypatch)
    assert same(trained(told), weights)
    assert done(told)["temperature"] == pytest.approx(temperature)


def after(folder, steps, text, monkeypatch):
    """The weights and the temperature of a run that ends after some of its steps, in a checkpoint."""
    with monkeypatch.context() as patch:
        kill_in(patch, metrics.Recorder, "add", after=steps)
        with pytest.raises(Killed):
            toy_run(folder, text=text)
    state = torch.load(folder / "run" / "stages" / "01_one" / "state.ckpt", weights_only=True)
    assert state["step"] == steps
    modules = state["modules"]
    weights = {f"{n}.{k}": v for n in ("left", "right") for k, v in modules[f"encoder.{n}"].items()}
    log_scale = next(value for key, value in modules["loss.left-right"].items() if "log_scale" in key)
    return weights, 1 / log_scale.exp().item()


def kill_in(patch, owner, name, after):
    """Allow a function so many calls; the next one kills the process before it does anything."""
    real, calls = getattr(owner, name), iter(range(10_000))

    def dies(*args, **kwargs):
        if next(calls) == after:
            raise Killed
        return real(*args, **kwargs)

    patch.setattr(owner, name, dies)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A watched and averaged run that nothing interrupts."""
    patch = pytest.MonkeyPatch()
    patch.setattr("geobind.plugins.registry", toy.registry)
    torch.set_num_threads(1)
    first = toy.RECIPE.split("  - {name: two")[0]
    yield toy_run(tmp_path_factory.mktemp("undisturbed"), WATCH, "stages.0.ema=0.9", text=first)
    patch.undo()


# Steps between checkpoints, and the call that is not come back from.
POINTS = [
    (1, metrics.Recorder, "add", 9),
    (1, metrics.MetricsFile, "sync", 7),  # after an evaluation, before the checkpoint
    (1, validation.files, "write_tensors", 1),  # before the second best weights
    (1, checkpoint.files, "write_state", 3),  # after the first ones, before a checkpoint tells of them
    (1, validation.Validator, "finish", 0),  # after it has stopped
    (5, metrics.Recorder, "add", 4),
    (5, metrics.Recorder, "add", 9),  # two best ones later than the checkpoint
    (5, validation.files, "write_tensors", 0),
    (5, checkpoint.files, "write_state", 2),
    (5, validation.Validator, "prune", 2),  # after the checkpoint, before older weights are removed
]


@pytest.mark.slow
def test_wherever_it_is_killed_a_watched_run_goes_on_to_the_same_bits(undisturbed, tmp_path, one_stage):
    for number, (every, owner, name, after) in enumerate(POINTS):
        folder = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint.Checkpoint, "due", lambda _, step, every=every: step % every == 0)
            with pytest.MonkeyPatch.context() as killer:
                kill_in(killer, owner, name, after)
                with pytest.raises(Killed):
                    toy_run(folder, WATCH, "stages.0.ema=0.9", text=one_stage)
            toy_run(folder, WATCH, "stages.0.ema=0.9", text=one_stage, resume=True)
        run_ = folder / "run"
        assert found(run_) == found(undisturbed), POINTS[number]
        assert done(run_)["watched"] == done(undisturbed)["watched"]
        assert same(trained(run_), trained(undisturbed))


def test_a_run_killed_after_its_stage_stopped_does_not_train_on(one_stage, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_in(patch, validation.Validator, "finish", 0)
        with pytest.raises(Killed):
            toy_run(tmp_path, WATCH, text=one_stage)
        before = found(tmp_path / "run")
    kill_in(monkeypatch, metrics.Recorder, "add", 0)  # no step may be taken
    assert found(toy_run(tmp_path, WATCH, text=one_stage, resume=True)) == before


def test_the_report_draws_what_was_found_and_says_what_was_kept(undisturbed):
    run_ = read_run(undisturbed)
    curve = run_.curves["one"]["validation:R@1"]
    assert [*curve.step_S] == [int(row["step"]) for row in found(undisturbed)]
    assert run_.stages[0].watched.stopped_early
    page = writing.write_report(undisturbed).read_text()
    assert "validation, R@1 of stage one over its steps" in page
    assert (
        "It stopped after" in page
        and "Embeddings that one left bit-identical, every digit as before:" in page
    )
    card = (undisturbed / "bundle" / "README.md").read_text()
    assert f"one ended with its weights after {done(undisturbed)['watched']['kept_steps']} of" in card


def test_the_mean_moves_only_when_weights_do(one_stage, tmp_path, monkeypatch):
    moves = []
    monkeypatch.setattr(validation.WeightAverage, "update", lambda self: moves.append(1))
    toy_run(tmp_path, "stages.0.ema=0.9", "stages.0.accumulate=2", text=one_stage)
    assert len(moves) == 12  # of 24 steps


def test_frozen_sides_are_embedded_once(tmp_path, monkeypatch):
    asked = []
    real = validation.ValidationInputs.embed

    def counted(self, *args):
        asked.append(self.name)
        return real(self, *args)

    monkeypatch.setattr(validation.ValidationInputs, "embed", counted)
    toy_run(tmp_path, "stages.1.watch={every: 2, limit: 24}")
    assert asked.count("cold") == 1 and asked.count("right") == 4


@pytest.mark.parametrize("part", ["{right: head}", "{right: {part: lora, rank: 2}}"])
def test_heads_and_adapters_can_be_watched_and_averaged(tmp_path, part, monkeypatch):
    if "lora" in part:
        pytest.importorskip("peft")
    values = iter([0.9, 0.1, 0.2, 0.3])
    monkeypatch.setattr(validation, "measure_pairs", lambda *_: {"loss": 1.0, "R@1": next(values)})
    watch = "stages.1.watch={every: 2, limit: 24, measure: R@1}"
    folder = toy_run(tmp_path, watch, "stages.1.ema=0.5", f"stages.1.train={part}")
    assert done(folder, "02_two")["watched"]["kept_steps"] == 2
    binder = Binder.load(folder / "bundle")
    assert same(
        binder.encoders["right"].state_dict(),
        {key.removeprefix("right."): value for key, value in trained(folder, "02_two").items()},
    )
    if part == "{right: head}":
        first = trained(folder)
        assert torch.equal(first["right.trunk.0.weight"], trained(folder, "02_two")["right.trunk.0.weight"])


def test_small_gains_add_up_and_the_best_is_simply_the_best():
    state, watch = EarlyStopping(), Watch(every=1, measure="R@10", patience=2, least=0.1)
    assert [state.judge(v, n, watch) for n, v in enumerate([0.5, 0.55, 0.61], start=1)] == [True] * 3
    assert state.get("waited") == 0 and not state.get("stopped_after")  # 0.61 is 0.11 above 0.5
    assert not state.judge(0.6, 4, watch) and state.judge(0.62, 5, watch)
    assert state.get("stopped_after") == 5 and state.get("best_steps") == 5


def test_of_losses_the_least_is_the_best():
    state, watch = EarlyStopping(), Watch(every=1, measure="loss", patience=1)
    assert [state.judge(v, n, watch) for n, v in enumerate([2.0, 1.0, 1.5], start=1)] == [True, True, False]
    assert state.get("best") == 1.0 and state.get("stopped_after") == 3


WATCHED = """\
name: held
width: 8
anchor: hub
workers: 0
fabric: {accelerator: cpu}
modalities: {hub: {}, spoke: {}, rim: {}}
data: {manifest: wheel.jsonl}
stages:
  - {name: one, align: [spoke, rim], train: [hub, spoke, rim], batch_size: 16, steps: 6,
     watch: {every: 3, split: val, limit: 30, measure: R@3}}
"""


def write_table(folder, val=20):
    toy.write_wheel(folder / "wheel.jsonl")
    rows = [json.loads(line) for line in (folder / "wheel.jsonl").read_text().splitlines()]
    for row in rows[: 3 * val : 3]:
        row["split"] = "val"
    (folder / "wheel.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def test_rows_of_a_table_that_lack_modalities_are_watched_pair_by_pair(tmp_path):
    write_table(tmp_path)
    folder = run(toy.recipe(tmp_path, text=WATCHED), tmp_path / "run").folder
    row = found(folder)[-1]
    pairs = [float(row[f"R@3:hub-{name}"]) for name in ("spoke", "rim")]
    assert float(row["R@3"]) == pytest.approx(np.mean(pairs), rel=1e-4)
    leaks = json.loads((folder / "leakage.json").read_text())
    assert list(leaks) == ["one, watched on wheel.jsonl"]
    assert leaks["one, watched on wheel.jsonl"]["test_rows"] == done(folder)["watched"]["evaluations"] * 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stages.0.watch.split=dev", "has no rows of split 'dev'; its splits: 'test'"),
        ("stages.0.watch.measure=R@40", "so that R@40 is always 1; give it more than 40"),
        ("stages.0.watch.data={manifest: other.jsonl}", "has no rows of split 'val'"),
    ],
)
def test_rows_to_watch_on_are_checked_before_training(tmp_path, change, said):
    write_table(tmp_path)
    toy.write_wheel(tmp_path / "other.jsonl")
    with pytest.raises(DataError, match="one") as caught:
        run(toy.recipe(tmp_path, change, text=WATCHED), tmp_path / "run")
    assert said in str(caught.value)
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stages.0.watch.split=train", "stages.0.watch.split: this stage trains on split 'train'"),
        ("evaluate={split: val}", "`evaluate` measures on split 'val' too"),
        ("stages.0.watch.measure=R10", "stages.0.watch.measure"),
        ("stages.0.watch.data={manifest: none.jsonl}", "no such file: none.jsonl"),
        ("stages.0.watch.evry=2", "unknown key; did you mean 'every'?"),
    ],
)
def test_mistakes_of_a_watch_are_found_with_the_recipe(tmp_path, change, said):
    write_table(tmp_path)
    with pytest.raises(RecipeProblems) as caught:
        toy.recipe(tmp_path, change, text=WATCHED)
    assert said in str(caught.value)


def test_broken_rows_are_left_out_of_the_watch_and_said(tmp_path, logged, one_stage, monkeypatch):
    def broken(self, split, anchor):
        pairs = real(self, split, anchor)
        return [p._replace(other=(1.0,)) if split == "val" and n == 4 else p for n, p in enumerate(pairs)]

    real = Right.pairs
    monkeypatch.setattr(Right, "pairs", broken)
    watch = "stages.0.watch={every: 30, limit: 24, measure: R@1}"
    folder = toy_run(tmp_path / "few", watch, "max_broken=0.05", text=one_stage)
    assert "1 of 24 validation rows have no usable 'right'; they are left out:\n  ten numbers" in (logged())
    hits = 2 * 23 * float(found(folder)[-1]["R@1"])  # of 23 rows, both ways
    assert hits == pytest.approx(round(hits), abs=1e-3)
    with pytest.raises(DataError, match=r"more than max_broken \(0\.01\) allows"):
        toy_run(tmp_path / "many", watch, text=one_stage)


def test_embeddings_that_are_not_finite_end_the_stage(one_stage, tmp_path, monkeypatch):
    real = validation.ValidationInputs.embed

    def spoilt(self, *args):
        sides = real(self, *args)
        return sides._replace(embedding_ND=sides.embedding_ND / 0)

    monkeypatch.setattr(validation.ValidationInputs, "embed", spoilt)
    with pytest.raises(TrainingError, match="stage 'one': 'left' embeds to values not finite after step 3"):
        toy_run(tmp_path, WATCH, text=one_stage)


def test_rows_are_taken_at_even_distances_from_all_sources(tmp_path):
    write_table(tmp_path)
    recipe = toy.recipe(tmp_path, text=WATCHED)
    from geobind.training.stage_data import StageData

    rows = StageData(recipe).rows(recipe.stages[0])
    few = subsample(rows, 10)
    assert [few[i].key for i in range(10)] == [rows[i * len(rows) // 10].key for i in range(10)]
    assert subsample(rows, 10_000) is rows


def test_an_average_is_what_is_evaluated_and_kept(one_stage, tmp_path):
    plain = toy_run(tmp_path / "plain", text=one_stage)
    mean = toy_run(tmp_path / "mean", "stages.0.ema={decay: 0.5, warmup: false}", text=one_stage)
    assert not torch.equal(trained(plain)["left.head.weight"], trained(mean)["left.head.weight"])
    # Batch statistics are those of the weights themselves.
    assert torch.equal(
        trained(plain)["left.trunk.1.running_mean"], trained(mean)["left.trunk.1.running_mean"]
    )
    assert done(plain)["temperature"] == done(mean)["temperature"]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_evaluations_compute_in_the_precision_of_the_stage(tmp_path, one_stage, monkeypatch, precision):
    seen, forward, embedded = {True: set(), False: set()}, toy.Net.forward, validation.Validator._embed
    evaluating = []

    def noted(net, batch):
        found = forward(net, batch)
        seen[bool(evaluating)].add(found.dtype)
        return found

    def told(*arguments):
        evaluating.append(True)
        try:
            return embedded(*arguments)
        finally:
            evaluating.pop()

    monkeypatch.setattr(toy.Net, "forward", noted)
    monkeypatch.setattr(validation.Validator, "_embed", told)
    toy_run(tmp_path, WATCH, f"fabric.precision={precision}", text=one_stage)
    assert seen[True] == {torch.float64 if precision == "64-true" else torch.bfloat16}
