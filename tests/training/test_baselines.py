"""Measurements beside a run's own encoders: untrained ones, pairs trained directly, questions in words."""

import json

import pytest
import small_world

from geobind.recipe import RecipeProblems, load_recipe
from geobind.report import write_report

QUESTION = "{prompts: [cold, warm], truth: lat, above: 0, through: words, modalities: [tile, sound]}"
ASKED = (
    "evaluate.untrained=true",
    "evaluate.direct=[words-tile]",
    f"evaluate.questions={{north: {QUESTION}}}",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    home = tmp_path_factory.mktemp("baselines")
    with small_world.patched(home / "cache"):
        small_world.write_world(home / "world")
        yield home


@pytest.fixture(scope="module")
def finished(world):
    return small_world.run(world, "run", *ASKED)


@pytest.mark.slow
def test_every_pair_has_the_figures_of_untrained_encoders_beside_its_own(finished):
    rows = json.loads((finished / "retrieval.json").read_text())["rows"]
    assert len(rows) == 12
    assert all(row["beside"]["untrained"].keys() == row["metrics"].keys() for row in rows)


@pytest.mark.slow
def test_a_pair_trained_directly_stands_beside_the_emergent_one_in_both_directions(finished):
    rows = json.loads((finished / "retrieval.json").read_text())["rows"]
    direct = {(row["query"], row["gallery"]): row for row in rows if "direct" in row["beside"]}
    assert direct.keys() == {("words", "tile"), ("tile", "words")}
    assert all(row["mark"] == "emergent" for row in direct.values())


@pytest.mark.slow
def test_a_direct_pair_has_the_steps_of_the_longest_stage_and_is_not_in_the_bundle(finished):
    (path,) = (finished / "direct").glob("*/stages/*/stage.json")
    stage = json.loads(path.read_text())
    main = [json.loads(path.read_text()) for path in finished.glob("stages/*/stage.json")]
    assert stage["steps"] == max(one["steps"] for one in main)
    assert stage["train"] == {"words": "full", "tile": "full"}
    card = json.loads((finished / "bundle" / "binder.json").read_text())
    assert "direct" not in [one["name"] for one in card["stages"]]


@pytest.mark.slow
def test_the_report_shows_baselines_and_questions(finished, world):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "share of direct" in page
    assert "Questions in words" in page
    assert "lat above 0" in page
    questions = json.loads((finished / "questions.json").read_text())["questions"]
    assert [answer["modality"] for answer in questions[0]["answers"]] == ["tile", "sound"]
    assert all(answer["untrained"] is not None for answer in questions[0]["answers"])
    assert "Questions in words" in write_report(finished).read_text(encoding="utf-8")  # from files alone


@pytest.mark.slow
def test_a_run_taken_up_again_does_not_train_a_direct_pair_twice(finished, world):
    from geobind.training.run import run

    path = next((finished / "direct").glob("*/stages/*/trained.safetensors"))
    before = path.stat().st_mtime_ns
    recipe = load_recipe(world / "small.yaml", ("max_broken=0.2", *ASKED))
    assert run(recipe, finished, resume=True).questions is not None
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("evaluate.direct=[words-smell]", "'words-smell' is no pair of modalities"),
        ("evaluate.direct=[photo-words]", "a stage compares photo and words already"),
        (f"evaluate.questions.north={QUESTION.replace('lat', 'height')}", "has no column 'height'"),
        (f"evaluate.questions.north={QUESTION.replace('sound', 'smell')}", "no modality 'smell'"),
        (f"evaluate.questions.north={QUESTION.replace('through: words', 'through: text')}", "'text'"),
        (f"evaluate.questions.north={QUESTION.replace('above: 0', 'above: 0, below: 1')}", "both"),
    ],
)
def test_what_cannot_be_measured_is_refused_where_the_recipe_says_it(world, changes, message):
    recipe = small_world.write_recipe(world / "other.yaml", "manifest: world/manifest.csv")
    with pytest.raises(RecipeProblems) as caught:
        load_recipe(recipe, (changes,))
    (problem,) = caught.value.problems
    assert message in problem.message
    assert problem.path.startswith("evaluate")
