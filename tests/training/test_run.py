"""Whole runs of two tiny modalities: what is trained, what stays frozen, what survives being killed."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
import toy
from safetensors.torch import load_file
from toy_runs import losses, run_apart, same, toy_run, weights

import geobind
from geobind import plugins
from geobind.binder import Binder
from geobind.errors import DataError, GeobindError, PluginError, RecipeError, StorageError, TrainingError
from geobind.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("toy_registry")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(plugins, "registry", toy.registry)
    torch.set_num_threads(1)
    yield toy_run(
        tmp_path_factory.mktemp("whole"), "modalities.left.dropout=0.2", "modalities.right.noise=0.1"
    )
    patch.undo()


def test_training_lowers_the_loss_and_binds_the_two(whole):
    one = [loss for stage, _, loss in losses(whole) if stage == "one"]
    assert len(one) == 18
    assert sum(one[-3:]) < 0.6 * sum(one[:3])


def test_every_step_is_in_the_metrics_once(whole):
    assert [(stage, step) for stage, step, _ in losses(whole)] == [("one", i) for i in range(18)] + [
        ("two", i) for i in range(7)
    ]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(whole, tmp_path):
    options = ("modalities.left.dropout=0.2", "modalities.right.noise=0.1")
    assert same(weights(whole), weights(toy_run(tmp_path / "again", *options)))
    assert not same(weights(whole), weights(toy_run(tmp_path / "other", *options, "seed=1")))


@pytest.mark.slow
def test_a_recipe_file_runs_into_the_folder_of_its_name(tmp_path, monkeypatch):
    toy.recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    finished = geobind.run("toy.yaml")
    assert finished.folder == Path("runs") / load_recipe("toy.yaml").name
    assert finished.bundle.is_dir()


@pytest.mark.slow
def test_worker_processes_change_nothing(whole, tmp_path):
    options = ("modalities.left.dropout=0.2", "modalities.right.noise=0.1", "workers=1")
    few = toy_run(tmp_path / "workers", *options)
    assert losses(few)[:20] == losses(whole)[:20]


def test_frozen_encoders_are_bit_equal_after_a_stage(whole):
    first = load_file(whole / "stages" / "01_one" / "trained.safetensors")
    last = weights(whole)
    assert same(
        {k: v for k, v in last.items() if k.startswith("left.")},
        {k: v for k, v in first.items() if "left." in k},
    )
    fresh = Binder({"cold": toy.Cold()}, 8, seed=0).encoders.state_dict()
    assert same({k: v for k, v in last.items() if k.startswith("cold.")}, fresh)
    assert not torch.equal(first["right.head.weight"], last["right.head.weight"])


@pytest.mark.slow
def test_head_only_training_leaves_the_trunk_and_its_batch_statistics_alone(tmp_path):
    folder = toy_run(tmp_path, "stages.0.train={right: head}")
    fresh = Binder({"right": toy.Right()}, 8, seed=0).encoders.state_dict()
    after = load_file(folder / "stages" / "01_one" / "trained.safetensors")
    moved = {key for key in fresh if not torch.equal(fresh[key], after[key])}
    assert moved == {"right.head.weight", "right.head.bias"}


def test_a_frozen_encoder_that_changes_stops_the_run(tmp_path):
    with pytest.raises(TrainingError, match="stage 'one': frozen weights of cold changed"):
        toy_run(tmp_path, "modalities.cold.drift=true")


def test_the_bundle_embeds_and_remembers_how_it_was_made(whole):
    binder = Binder.load(whole / "bundle")
    assert [stage["name"] for stage in binder.card.stages] == ["one", "two"]
    assert binder.card.recipe["width"] == 8
    assert binder.similarity(
        binder.embed("left", [toy.view(1000, "left")]), binder.embed("right", [toy.view(1000, "right")])
    ).shape == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("dies_after", [5, 19])
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(whole, tmp_path, dies_after):
    words = ("--set", "modalities.left.dropout=0.2", "--set", "modalities.right.noise=0.1")
    killed = run_apart(tmp_path, *words, "--die-after-step", str(dies_after))
    assert killed.code == -signal.SIGKILL, killed.said
    assert not (tmp_path / "run" / "bundle").exists()
    resumed = run_apart(tmp_path, *words, "--resume")
    assert resumed.code == 0, resumed.said
    assert same(weights(whole), weights(tmp_path / "run"))
    assert losses(whole) == losses(tmp_path / "run")
    assert ("one: finished before, unchanged; not run again" in resumed.said) == (dies_after >= 18)


@pytest.mark.slow
def test_a_changed_stage_is_run_again_and_those_before_it_are_not(tmp_path, logged):
    toy_run(tmp_path)
    toy_run(tmp_path, "stages.two.steps=3", resume=True)
    said = logged()
    assert "one: finished before, unchanged; not run again" in said
    assert "two: align right with cold, train right" in said.split("not run again")[1]
    assert [step for stage, step, _ in losses(tmp_path / "run") if stage == "two"] == [0, 1, 2]


@pytest.mark.slow
def test_a_run_that_ended_before_it_trained_anything_is_begun_anew(tmp_path):
    with pytest.raises(GeobindError) as caught:
        toy_run(tmp_path, "stages.one.batch_size=100000")
    assert not hasattr(caught.value, "__notes__")  # that speak of what is finished
    toy_run(tmp_path)


@pytest.mark.slow
def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    toy_run(tmp_path)
    with pytest.raises(
        RecipeError, match=r"holds a run already: continue it \(--resume\), or choose another"
    ):
        toy_run(tmp_path)


@pytest.mark.slow
def test_a_checkpoint_of_another_recipe_is_not_gone_on_with(whole, tmp_path):
    home = tmp_path / "run" / "stages" / "01_one"
    home.mkdir(parents=True)
    torch.save({"key": "other", "step": 5}, home / "state.ckpt")
    folder = toy_run(tmp_path, "modalities.left.dropout=0.2", "modalities.right.noise=0.1")
    assert same(weights(whole), weights(folder))


def test_a_loss_that_is_not_finite_names_the_step_the_rows_and_the_checkpoint(tmp_path):
    with pytest.raises(TrainingError) as caught:
        toy_run(tmp_path, "modalities.right.poison=3", "stages.0.epochs=1")
    message = str(caught.value)
    assert "stage 'one': the loss is nan at step" in message
    assert "row3" in message
    assert "last good checkpoint" in message
    assert caught.value.exit_code == 1
    for name in ("bundle", "stages/01_one/stage.json"):
        assert not (tmp_path / "run" / name).exists()


@pytest.mark.slow
def test_a_full_disk_ends_clearly_and_the_run_can_go_on(whole, tmp_path, monkeypatch):
    import errno
    import os

    replace, calls = os.replace, iter(range(10_000))

    def full(source, target):
        if Path(target).name == "state.ckpt" and next(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    options = ("modalities.left.dropout=0.2", "modalities.right.noise=0.1")
    with pytest.raises(
        StorageError, match=r"state\.ckpt: the disk is full; nothing finished is lost.*--resume"
    ):
        toy_run(tmp_path, *options)
    monkeypatch.setattr(os, "replace", replace)
    assert same(weights(whole), weights(toy_run(tmp_path, *options, resume=True)))


def test_a_wrong_width_is_found_before_training(tmp_path):
    with pytest.raises(PluginError, match=r"encoder of 'right' gives \(1, 9\), not \(batch, 8\)"):
        toy_run(tmp_path, "modalities.right.wrong_width=true")
    assert not (tmp_path / "run" / "stages").exists()


def test_a_head_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        toy.Right, "encoder", lambda self, width, *, pretrained=True: torch.nn.Linear(10, width)
    )
    with pytest.raises(RecipeError, match="encoder of 'right' has no head"):
        toy_run(tmp_path, "stages.0.train={right: head}")


def test_fewer_pairs_than_a_batch_are_told(tmp_path):
    with pytest.raises(
        DataError, match="stage 'one': the pairs of 'right': 8 rows cannot fill a batch of 16"
    ):
        toy_run(tmp_path, "modalities.right.count=8")


def test_a_fabric_that_this_machine_has_not_is_told(tmp_path):
    with pytest.raises(RecipeError, match="cannot run on this machine"):
        toy_run(tmp_path, "fabric.accelerator=abacus")


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", ["{name: siglip}", "{name: infonce, direction: anchor_to_other, positives: label}"]
)
def test_other_losses_train_too(tmp_path, loss):
    found = [
        value for stage, _, value in losses(toy_run(tmp_path, f"stages.0.loss={loss}")) if stage == "one"
    ]
    assert sum(found[-3:]) < sum(found[:3])


@pytest.mark.slow
def test_pairs_of_near_places_are_no_negatives(tmp_path):
    plain = losses(toy_run(tmp_path / "plain"))
    ignoring = losses(toy_run(tmp_path / "near", "stages.0.loss={name: infonce, ignore_within_m: 300000}"))
    assert ignoring[0][2] < plain[0][2]


@pytest.mark.slow
def test_bf16_in_one_stage_and_float32_in_the_next(tmp_path):
    folder = toy_run(tmp_path, "stages.0.precision=bf16-mixed")
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights(folder).values())


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(tmp_path):
    folder = toy_run(tmp_path)
    shutil.rmtree(folder / "bundle")
    (folder / "stages" / "01_one" / "stage.json").write_text("{")
    with pytest.raises(Exception, match=r"stage\.json: not readable as JSON.*remove it"):
        toy_run(tmp_path, resume=True)


def test_what_a_stage_did_is_written_down(whole):
    done = json.loads((whole / "stages" / "01_one" / "stage.json").read_text())
    assert (done["anchor"], done["align"], done["steps"], done["pairs"]) == ("left", "right", 18, 96)
    assert set(done["digests"]) == {"left", "right"}
