"""Proof of append: what a new stage leaves as it was, why a stage is run again, which indexes stay valid."""

import json
import re

import pyarrow.json as pj
import pyarrow.parquet as pq
import pytest
import torch
import toy
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from geobind.binder import Binder
from geobind.bundles import stability
from geobind.bundles.stability import ModalityState, describe_difference, hash_embeddings
from geobind.cli import main
from geobind.errors import CheckpointError, TrainingError
from geobind.training import resume as keys
from geobind.training import run as runs
from geobind.training import stability as proving
from geobind.training.run import run

pytestmark = pytest.mark.usefixtures("toy_registry")
FIRST = toy.RECIPE.split("  - {name: two")[0].replace("epochs: 3", "epochs: 1")
GROWN = toy.RECIPE.replace("epochs: 3", "epochs: 1")
CPU = "fabric.accelerator=cpu"


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("geobind.report.write_report", lambda *_, **__: None)


def go(folder, text, *overrides, resume=False):
    return run(toy.recipe(folder, CPU, *overrides, text=text), folder / "run", resume=resume).bundle


@pytest.fixture
def grown(tmp_path, logged):
    """A run, its bundle as it was, and the bundle after a stage more."""
    old = go(tmp_path, FIRST).rename(tmp_path / "old")
    logged()
    return old, go(tmp_path, GROWN, resume=True), logged()


def test_a_new_stage_leaves_what_it_does_not_train_bit_identical_and_says_so(grown):
    old, new, said = grown
    assert "one: finished before, unchanged; not run again" in said
    assert (
        "two: bit-identical to before (every digit; archives stay valid): left (32 rows embedded), cold"
        in said
    )
    told = Binder.load(new).card.proof
    assert [stage.stage for stage in told.stages] == ["one", "two"] and told.find_breaks() == []
    assert told.stages[1].identical == ["left", "cold"] and told.stages[1].changed == ["right"]
    assert Binder.load(old).card.proof.stages == told.stages[:1]
    assert (
        "Embeddings that two left bit-identical, every digit as before: left (32 rows), cold (32 rows)."
        in (new / "README.md").read_text()
    )


def test_the_proof_is_of_the_embeddings_that_the_bundles_give(grown):
    old, new, _ = grown
    state = Binder.load(new).card.proof.stages[1].after["left"]
    rows = [toy.view(i, "left") for i in range(32)]
    for bundle in (old, new):
        found = Binder.load(bundle).embed("left", rows, batch_size=32)
        assert hash_embeddings(found) == state.embeddings
    assert Binder.load(new).card.proof.stages[1].keys["left"][:2] == ("row0", "row1")


def test_of_an_old_bundle_the_indexes_of_what_was_not_trained_stay_valid(grown):
    old, new, _ = grown
    found = {one.modality: one for one in stability.compare_bundles(Binder.load(new), Binder.load(old))}
    assert {name: one.verdict for name, one in found.items()} == {
        "left": "same",
        "right": "changed",
        "cold": "same",
    }
    assert found["left"].reason == "the same weights, and the same bits for 32 rows"
    assert found["left"].index_is_valid and not found["right"].index_is_valid


def test_verify_tells_it_and_its_exit_code_is_for_programs(grown, tmp_path):
    old, new, _ = grown
    ask = CliRunner().invoke
    told = ask(main, ["verify", str(new), "--against", str(old)])
    assert told.exit_code == 1 and "changed  right: the weights of its encoder changed" in told.output
    assert ask(main, ["verify", str(new)]).exit_code == 0
    plain = json.loads(ask(main, ["verify", str(old), "--against", str(old), "--json"]).output)
    assert [one["index_is_valid"] for one in plain["modalities"]] == [True] * 3 and plain["faults"] == []


def tamper(file, key):
    tensors = load_file(file)
    tensors[key].view(-1)[0] += 1e-6
    save_file(tensors, file)


def test_a_tampered_bundle_is_found_out(grown):
    old, new, _ = grown
    tamper(new / "model.safetensors", "left.head.weight")
    told = CliRunner().invoke(main, ["verify", str(new), "--against", str(old)])
    assert told.exit_code == 1
    assert "changed: 'left': its weights are not those that the card names" in told.output
    assert "changed  left: the weights of its encoder changed" in told.output


def test_weights_that_were_tampered_with_are_not_gone_on_with(tmp_path):
    go(tmp_path, FIRST)
    tamper(tmp_path / "run" / "stages" / "01_one" / "trained.safetensors", "left.head.weight")
    with pytest.raises(CheckpointError, match="the weights of 'left' are not those that the stage trained"):
        go(tmp_path, GROWN, resume=True)


def test_a_stage_that_changes_what_it_does_not_train_is_stopped(tmp_path, monkeypatch):
    real = proving.Prover.compute_states

    def meddle(self, fabric):
        self.binder.encoders["cold"].head.weight.data += 1
        return real(self, fabric)

    monkeypatch.setattr(proving.Prover, "compute_states", meddle)
    with pytest.raises(TrainingError, match="stage 'one' changed the weights of cold, which it does not"):
        go(tmp_path, FIRST)


def test_an_encoder_that_gives_another_result_each_time_is_told(tmp_path, monkeypatch, logged):
    def forward(self, x_BF):
        return self.head(self.trunk(x_BF)) + 1e-3 * torch.rand(1)

    monkeypatch.setattr(toy.Net, "forward", forward)
    go(tmp_path, FIRST)
    go(tmp_path, GROWN, "stages.1.cache=off", resume=True)
    said = logged()
    assert "two: warning: left, cold changed their embeddings of the same rows with the same weights" in said
    assert "two: warning: 'left' changed since stage 'one': its weights are the same, but its" in said


def embedded(monkeypatch):
    """How often each encoder embeds as many rows at once as a proof does."""
    seen, forward = [], toy.Net.forward

    def counting(self, x_BF):
        seen.extend([id(self)] * (len(x_BF) == proving.ROWS))
        return forward(self, x_BF)

    monkeypatch.setattr(toy.Net, "forward", counting)
    return seen


@pytest.mark.parametrize(("between", "more"), [(None, 0), ("weights", 1), ("buffers", 1)])
def test_what_a_stage_left_is_embedded_again_before_the_next_only_if_a_bit_of_it_has_changed(
    tmp_path, monkeypatch, between, more
):
    finish, encoder = runs._write_stage, toy.Numbers.encoder

    def with_buffer(self, width, *, pretrained=True):
        net = encoder(self, width, pretrained=pretrained)
        net.register_buffer("mask", torch.ones(3), persistent=False)
        return net

    def meddle(fabric, job, *rest):
        done = finish(fabric, job, *rest)
        if job.stage.name == "one" and between:
            cold = job.binder.encoders["cold"]
            (cold.head.weight.data if between == "weights" else cold.mask).view(-1)[0] += 1
        return done

    monkeypatch.setattr(toy.Numbers, "encoder", with_buffer)
    monkeypatch.setattr(runs, "_write_stage", meddle)
    seen = embedded(monkeypatch)
    go(tmp_path, GROWN, "stages.1.cache=off", "evaluate=null")
    assert len(seen) == 3 * 3 + more  # of three modalities: before, after the first stage, after the second


def test_another_library_between_two_stages_is_told_from_other_weights():
    was = ModalityState(weights="a", rows="r", count=3, embeddings="x")
    assert describe_difference(was, was) == ""
    assert describe_difference(was, was.model_copy(update={"weights": "b"})) == "its weights changed"
    said = describe_difference(was, was.model_copy(update={"embeddings": "y"}))
    assert said == "its weights are the same, but its embeddings of the same rows changed"
    assert describe_difference(was, was.model_copy(update={"rows": "s", "embeddings": "y"})) == ""


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.one.optimizer.lr=0.02"], "optimizer.lr was 0.01 and is 0.02"),
        (["seed=3"], "seed was 0 and is 3"),
        (["fabric.precision=bf16-mixed"], "precision was not set and is bf16-mixed"),
        (["modalities.right.noise=0.5"], "right.noise was 0.0 and is 0.5"),
        (["stages.one.watch={every: 3, limit: 20}"], "watch was not set and is {'every': 3"),
    ],
)
def test_a_stage_that_is_run_again_says_why(tmp_path, logged, overrides, said):
    go(tmp_path, FIRST)
    logged()
    go(tmp_path, FIRST, *overrides, resume=True)
    assert f"one: align right with left, train left, right (run again: {said}" in logged()


def test_what_follows_a_changed_stage_says_that_it_does(tmp_path, logged):
    go(tmp_path, GROWN)
    logged()
    go(tmp_path, GROWN, "stages.one.optimizer.lr=0.02", resume=True)
    assert "two: align right with cold, train right (run again: a stage before it was run again)" in (
        logged()
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_manifest_that_says_something_else_makes_a_stage_run_again_and_a_copy_does_not(tmp_path, kind):
    def state(lacks):
        table = toy.write_wheel(tmp_path / "wheel.jsonl", lacks=lacks)
        if kind == "parquet":
            pq.write_table(pj.read_json(table), tmp_path / "wheel.parquet")
        recipe = toy.wheel(tmp_path, f"data={{manifest: wheel.{kind}}}")
        (key,) = [key for _, key in keys.stage_folders(recipe, tmp_path)][:1]
        return key, keys.fingerprint_parts(recipe, recipe.stages[0])

    (one, was), (copy, _), (other, now) = map(state, (lambda _: "", lambda _: "", lambda _: "rim"))
    assert one == copy != other
    assert re.fullmatch(
        rf"the content of wheel\.{kind} was \w{{12}} and is \w{{12}}", keys.explain_rerun({"parts": was}, now)
    )


def test_a_stage_finished_before_there_were_reasons_is_run_again_without(tmp_path):
    recipe = toy.recipe(tmp_path)
    assert keys.explain_rerun({"key": "old"}, keys.fingerprint_parts(recipe, recipe.stages[0])) == (
        "something that it depends on changed"
    )


def test_younger_options_at_their_defaults_leave_fingerprints_as_they_were(tmp_path):
    plain = toy.recipe(tmp_path)
    said = toy.recipe(tmp_path, "stages.0.watch=null", "stages.0.ema=null", "stages.0.checkpoint_seconds=9")
    folders = [[key for _, key in keys.stage_folders(r, tmp_path)] for r in (plain, said)]
    assert folders[0] == folders[1]
    mean = [toy.recipe(tmp_path, f"stages.0.ema={ema}") for ema in ("0.9", "{decay: 0.9}", "{decay: 0.8}")]
    one, two, three = ([key for _, key in keys.stage_folders(r, tmp_path)] for r in mean)
    assert one == two != three and one[0] != folders[0][0]
    assert not {"watch", "ema", "chunk", "accumulate"} & set(
        keys.fingerprint_parts(plain, plain.stages[0])["stage"]
    )
