"""Recipes that begin from a bundle: what is taken over, what stays as it is, and what is refused."""

import json
import shutil

import pytest
import torch
import toy

from geobind import plugins
from geobind.binder import Binder, build_binder
from geobind.bundles.stability import compare_bundles, find_faults
from geobind.errors import CheckpointError
from geobind.evaluation import measure_retrieval
from geobind.recipe import RecipeProblems, build_recipe, load_recipe
from geobind.report import open_held_out_rows
from geobind.studies.grid import Cell
from geobind.studies.runner import UNTRAINED, measure_untrained
from geobind.training.resume import stage_folders
from geobind.training.run import run

BASE = toy.WHEEL.replace("rim: {}}", "cold: {}}").replace("hub: {}", "hub: {noise: 0.1}")
BASE = BASE.replace("align: [spoke, rim], train: [hub, spoke, rim]", "align: spoke, train: [hub, spoke]")
ADDED = """\
name: added
base: base
workers: 0
fabric: {accelerator: cpu}
modalities: {rim: {}}
data: {manifest: wheel.jsonl}
stages:
  - {name: two, align: rim, train: [rim], batch_size: 16, steps: 12, optimizer: {name: adamw, lr: 0.01}}
evaluate: {split: test}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a table and the run of a base, whose anchor is not the default one."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "registry", toy.registry)
        toy.write_wheel(folder / "wheel.jsonl", lacks=lambda i: None)
        run(toy.recipe(folder, text=BASE), folder / "base")
    return folder


@pytest.fixture
def home(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "registry", toy.registry)
    shutil.copytree(finished / "base/bundle", tmp_path / "base/bundle")
    shutil.copy(finished / "wheel.jsonl", tmp_path)
    return tmp_path


def added(home, *overrides, text=ADDED):
    (home / "added.yaml").write_text(text)
    return load_recipe(home / "added.yaml", overrides)


def change_card(home, **facts):
    path = home / "base/bundle/binder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_modalities_width_and_anchor_come_from_the_bundle(home):
    recipe = added(home)
    assert (recipe.width, recipe.anchor, [*recipe.built]) == (8, "hub", ["hub", "spoke", "cold", "rim"])
    assert recipe.built["hub"].noise == 0.1
    assert [recipe.role(name) for name in recipe.built] == ["frozen"] * 3 + ["trainable"]
    assert added(home, "base=base/bundle").base_bundle == recipe.base_bundle


def test_a_run_adds_a_modality_and_leaves_those_of_the_bundle_to_the_bit(home):
    result = run(added(home), home / "run")
    old, new = Binder.load(home / "base/bundle"), Binder.load(result.bundle)
    assert {found.modality: found.verdict for found in compare_bundles(new, old)} == {
        "hub": "same", "spoke": "same", "cold": "same", "rim": "new"
    }  # fmt: skip
    assert torch.equal(new.embed("spoke", toy.view(3, "spoke")), old.embed("spoke", toy.view(3, "spoke")))
    assert find_faults(new) == []
    assert [stage.stage for stage in new.card.proof.stages] == ["one", "two"]
    assert new.card.proof.stages[1].identical == ["hub", "spoke", "cold"]
    assert [stage["name"] for stage in new.card.stages] == ["one", "two"]
    assert [facts["stage"] for facts in new.card.data if facts["used_for"] == "training"] == ["one", "two"]


def test_pairs_that_the_base_trained_stay_marked_as_trained(home):
    table = run(added(home), home / "run").table
    trained = {frozenset((row.query, row.gallery)) for row in table.rows if row.trained}
    assert trained == {frozenset(("hub", "spoke")), frozenset(("hub", "rim"))}
    again = run(
        added(home, "base=run", text=ADDED.replace("rim: {}", "rim: {role: trainable}")), home / "again"
    )
    assert {frozenset((row.query, row.gallery)) for row in again.table.rows if row.trained} == trained


def test_the_baseline_of_a_study_has_the_encoders_of_the_bundle(home):
    recipe = added(home)
    measured = measure_untrained(Cell(str(home / "added.yaml"), (), {}), home)
    expected = measure_retrieval(
        build_binder(recipe), open_held_out_rows(recipe), recipe.marks, recipe.evaluate
    )
    assert measured.to_dict() == expected.to_dict()
    assert json.loads((home / UNTRAINED).read_text())["table"] == expected.to_dict()


def test_a_stage_trains_a_modality_of_the_bundle_only_when_its_role_is_lifted(home):
    changed = {"train: [rim]": "train: [rim, hub]"}
    text = ADDED.replace(*next(iter(changed.items())))
    with pytest.raises(
        RecipeProblems, match=r"added\.yaml:8:\d+: stages\.0\.train: 'hub' comes from the base"
    ):
        added(home, text=text)
    recipe = added(home, text=text.replace("{rim: {}}", "{rim: {}, hub: {role: trainable}}"))
    assert recipe.built["hub"].noise == 0.1
    new, old = Binder.load(run(recipe, home / "run").bundle), Binder.load(home / "base/bundle")
    verdicts = {found.modality: found.verdict for found in compare_bundles(new, old)}
    assert (verdicts["hub"], verdicts["spoke"]) == ("changed", "same")


def test_a_stage_is_run_again_when_the_bundle_is_another(home, caplog):
    caplog.set_level("INFO")
    key = [key for _, key in stage_folders(added(home), home)]
    run(added(home), home / "run")
    run(added(home), home / "run", resume=True)
    assert "two: finished before, unchanged" in caplog.text
    binder = Binder.load(home / "base/bundle")
    binder.encoders["spoke"].head.bias.data += 1
    binder.save(home / "base/bundle")
    assert [key for _, key in stage_folders(added(home), home)] != key
    run(added(home), home / "run", resume=True)
    assert "run again: the base bundle: it was" in caplog.text


def test_a_recipe_that_ran_is_read_without_its_bundle_and_run_with_it(home):
    recipe = added(home)
    shutil.move(home / "base", home / "elsewhere")
    read = build_recipe(recipe.written, home, source="saved")
    assert ([*read.built], read.base_bundle) == ([*recipe.built], None)
    again = build_recipe({**recipe.written, "base": "elsewhere"}, home, source="saved", begin=True)
    assert again.base_bundle.digest == recipe.base_bundle.digest


def test_a_bundle_that_changes_after_the_check_is_not_begun_from(home):
    recipe = added(home)
    binder = Binder.load(home / "base/bundle")
    binder.encoders["spoke"].head.bias.data += 1
    binder.save(home / "base/bundle")
    with pytest.raises(CheckpointError, match="another bundle was written there meanwhile"):
        run(recipe, home / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"base: base": "base: bass"},
            r"added\.yaml:2:\d+: base: \S*bass: no such folder; `base` needs a binder",
        ),
        (
            {"base: base": "base: ."},
            r"added\.yaml:2:\d+: base: \S*: that folder has no binder\.json: name the",
        ),
        ({"base: base": "base: 3"}, r"added\.yaml:2:\d+: base: Input should be a valid string"),
        (
            {"base: base": "base: base\nwidth: 16"},
            r"added\.yaml:3:\d+: width: is 16, but embeddings of the base",
        ),
        (
            {"rim: {}": "rim: {}, spoke: {noise: 0.5}"},
            r"added\.yaml:5:\d+: modalities\.spoke: 'spoke' is a modality of the base bundle, whose options "
            r"stay as they are: take out noise",
        ),
        ({"rim: {}": "rim: {}, spoke: {hiss: 1}"}, r"added\.yaml:5:\d+: modalities\.spoke: .* take out hiss"),
    ],
)
def test_what_does_not_fit_the_bundle_is_refused_where_it_stands(home, change, message):
    text = ADDED
    for old, new in change.items():
        text = text.replace(old, new)
    with pytest.raises(RecipeProblems, match=message) as caught:
        added(home, text=text)
    if "base: 3" not in text:
        assert len(caught.value.problems) == 1


def test_an_unfinished_run_is_said_to_be_one(home):
    shutil.rmtree(home / "base/bundle")
    (home / "base/run.json").write_text("{}")
    with pytest.raises(RecipeProblems, match=r"base: .* has no binder\.json; the run there is not finished"):
        added(home)


def test_options_that_mean_the_same_are_no_change(home):
    assert added(home, text=ADDED.replace("rim: {}", "rim: {}, hub: {noise: 0.1}")).built["hub"].noise == 0.1


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"modalities": {"smell": {}}, "plugins": {"smell": {"distribution": "nose", "version": "2.1"}}},
            r"needs the modality 'smell': .*; install it: pip install nose==2\.1$",
        ),
        (
            {
                "modalities": {"smell": {}},
                "plugins": {"smell": {"distribution": "x; rm -rf /", "version": "1"}},
            },
            r"needs the modality 'smell'(?!.*rm -rf)",
        ),
        ({"modalities": {"hub": {"hiss": 1}}}, r"the plugin of 'hub' .*refuses modalities\.hub\.hiss: Extra"),
        ({"modalities": {}}, r"binder\.json: damaged: modalities: Dictionary should have at least 1 item"),
        ({"modalities": {"../hub": {}}}, r"damaged: modalities\.\.\./hub"),
        ({"width": "wide"}, r"binder\.json: damaged: width: Input should be a valid integer"),
        ({"format": 9}, r"bundle format 9; this geobind reads format 1"),
        ({"stages": [{"name": "one"}]}, r"its card is damaged: stages: KeyError: 'anchor'"),
    ],
)
def test_a_strangers_card_is_refused_in_one_line_at_the_base(home, facts, message):
    change_card(home, **facts)
    with pytest.raises(RecipeProblems, match=message) as caught:
        added(home)
    assert str(caught.value).startswith(f"{home / 'added.yaml'}:2:1: base: ")
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_the_cards_are_refused_before_training(home):
    binder = Binder.load(home / "base/bundle")
    card = (home / "base/bundle/binder.json").read_text()
    binder.encoders["spoke"].head.bias.data += 1
    binder.save(home / "base/bundle")
    (home / "base/bundle/binder.json").write_text(card)
    with pytest.raises(CheckpointError, match="'spoke': its weights are not those that the card names"):
        run(added(home), home / "run")
    assert not (home / "run/stages").exists()
