"""Recipes: what is read, what is refused, and where the mistake is said to be."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.recipe import RecipeProblems, load_recipe, recipe_from, shipped
from geobind.recipe.reading import dump, parse

GOOD = """\
name: tiny
width: 16
modalities:
  satellite: {timm: {model: test_vit, pretrained: false}}
  ground_image: {timm: {model: test_vit, pretrained: false}}
  text: {clip: {model: {embed_dim: 16, text_cfg: {}, vision_cfg: {}}, pretrained: false}}
data: {toyearth: {places: 40, held_out: 10}, columns: {satellite: tile, ground_image: photo, text: captions}}
stages:
  - name: satellite_to_ground
    align: ground_image
    train: [satellite]
    batch_size: 8
    epochs: 1
"""


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str, **changes: str) -> Path:
        for old, new in changes.items():
            text = text.replace(old, new)
        path = tmp_path / "recipe.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def problems_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeProblems) as caught:
        load_recipe(path, overrides)
    return [str(problem).replace(f"{path}:", "") for problem in caught.value.problems]


def test_a_good_recipe_has_its_values_and_its_defaults(recipe_file):
    recipe = load_recipe(recipe_file(GOOD))
    assert (recipe.name, recipe.width, recipe.anchor, recipe.seed) == ("tiny", 16, "satellite", 0)
    (stage,) = recipe.stages
    assert stage.parts == {"satellite": "full"}
    assert stage.loss.name == "infonce"
    assert stage.loss.temperature.init == 0.07
    assert recipe.built["satellite"].timm.model == "test_vit"
    assert recipe.role("text") == "frozen"


def test_every_mistake_is_told_at_once_with_its_line_and_fix(recipe_file):
    path = recipe_file(
        """\
        name: bad
        anchor: satelite
        modalities:
          satellite: {foo: 3}
          text: {role: trainabl}
          adio: {}
        data: {toyearth: {held: 3}}
        stages:
          - name: one
            align: txt
            train: [satellite]
            batch_size: 32
            epocs: 3
          - name: one
            align: text
            train: [satellite]
            batch_size: many
            epochs: 3
        """
    )
    found = problems_of(path)
    expected = [
        "2:1: anchor: no modality 'satelite' under `modalities`; did you mean 'satellite'?",
        "4:15: modalities.satellite.foo: unknown key",
        "5:10: modalities.text.role: Input should be 'frozen' or 'trainable' (got 'trainabl')",
        "6:3: modalities.adio: no modality named 'adio'; did you mean 'audio'?",
        "7:19: data.toyearth.held: unknown key; did you mean 'held_out'?",
        "10:5: stages.0.align: no modality 'txt' under `modalities`; did you mean 'text'?",
        "13:5: stages.0.epocs: unknown key; did you mean 'epochs'?",
        "14:5: stages.1.name: stage 'one' is there already; rename one",
    ]
    for line in expected:
        assert any(problem.strip().startswith(line) for problem in found), (line, found)
    assert any("stages.1.batch_size: Input should be a valid integer" in problem for problem in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train: [satellite]": "train: [ground_image]"}, "'ground_image' is frozen by its plugin"),
        ({"train: [satellite]": "train: [text]"}, "'text' takes no part in this stage"),
        ({"train: [satellite]": "train: []"}, "nothing to train"),
        ({"align: ground_image": "align: satellite"}, "a modality is not aligned with itself"),
        ({"    epochs: 1\n": ""}, "give either `epochs` or `steps`"),
        ({"epochs: 1": "epochs: 1\n    steps: 3"}, "give either `epochs` or `steps`"),
        ({"batch_size: 8": "batch_size: 1"}, "greater than or equal to 2"),
        ({"width: 16": "width: 16\nfabric: {devices: 3}"}, "8 pairs do not divide among 3 devices"),
        ({"data: {": "nodata: {"}, "unknown key; did you mean 'data'?"),
        ({"toyearth: {places: 40, held_out: 10}": "manifest: absent.csv"}, "no such file: absent.csv"),
        ({"name: tiny": "name: ../../etc"}, "String should match pattern"),
        ({"width: 16": "evaluate: {data: {manifest: none.csv}}"}, "no such file: none.csv"),
        (
            {"epochs: 1": "epochs: 1\n    loss: {name: infonce, temperature: {init: 5}}"},
            "needs minimum <= init <= maximum",
        ),
        ({"epochs: 1": "epochs: 1\n    loss: {name: triplet}"}, "'infonce', 'siglip'"),
    ],
)
def test_what_cannot_be_is_refused(recipe_file, change, message):
    found = problems_of(recipe_file(GOOD, **change))
    assert any(message in problem for problem in found), found


def test_a_frozen_role_is_lifted_only_in_plain_sight(recipe_file):
    lifted = GOOD.replace("ground_image: {timm", "ground_image: {role: trainable, timm")
    recipe = load_recipe(recipe_file(lifted.replace("train: [satellite]", "train: [ground_image]")))
    assert recipe.role("ground_image") == "trainable"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a recipe is a YAML mapping"),
        ("- a\n- b\n", "a recipe is a YAML mapping"),
        ("name: [1, 2\n", "not valid YAML"),
        ("name: a\nname: b\n", "2:1: name: written twice; keep one"),
        ("name: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("a: &a [1]\nb: {<<: *a}\n", "merge keys"),
        ("a: &a {b: *a}\n", "nested more than 50 deep"),
        ("name: ${oc.env:HOME}\n", "may name another key only"),
        ("name: ${nothing}\n", "interpolation failed"),
    ],
)
def test_text_that_is_no_recipe_is_refused(recipe_file, text, message):
    assert any(message in problem for problem in problems_of(recipe_file(text)))


def test_a_bomb_of_aliases_is_refused_quickly(recipe_file):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert any("more than" in problem for problem in problems_of(recipe_file("\n".join(lines))))


def test_interpolation_names_another_key(recipe_file):
    recipe = load_recipe(recipe_file(GOOD, **{"batch_size: 8": "batch_size: ${width}"}))
    assert recipe.stages[0].batch_size == 16


def test_overrides_reach_lists_by_number_and_stages_by_name(recipe_file):
    path = recipe_file(GOOD)
    recipe = load_recipe(
        path, ["stages.0.batch_size=4", "stages.satellite_to_ground.optimizer.lr=1e-4", "seed=7"]
    )
    assert recipe.stages[0].batch_size == 4
    assert recipe.stages[0].optimizer.lr == 1e-4
    assert recipe.seed == 7
    assert recipe.written["stages"][0]["optimizer"]["lr"] == 1e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.0.batchsize=4",
            "--set stages.0.batchsize: stages.0.batchsize: unknown key; did you mean 'batch_size'?",
        ),
        ("stages.7.lr=1", "no item 7 in a list of 1"),
        ("stages.nope.lr=1", "no item 'nope' in a list of 1"),
        ("seed", "write it as --set stages.0.batch_size=64"),
        ("seed=${width}", "write the value"),
        ("seed=[1", "does not fit the recipe"),
    ],
)
def test_an_override_that_does_not_fit_is_named(recipe_file, override, message):
    assert any(message in problem for problem in problems_of(recipe_file(GOOD), override))


def test_a_missing_recipe_suggests_a_shipped_one():
    with pytest.raises(RecipeProblems, match="did you mean 'three_modal'"):
        load_recipe("three_moda")


def test_shipped_recipes_are_good():
    assert "three_modal" in shipped()
    for name in shipped():
        assert load_recipe(name).name == name


def test_a_recipe_survives_its_own_dump(recipe_file):
    recipe = load_recipe(recipe_file(GOOD))
    again = recipe_from(recipe.written, recipe.base, source="bundle")
    assert again == recipe
    assert again.written == recipe.written


def test_checking_a_recipe_takes_no_torch_and_under_a_second(recipe_file):
    code = (
        "import sys, time; start = time.process_time();"
        "from geobind.recipe import load_recipe; load_recipe(sys.argv[1]);"
        "assert 'torch' not in sys.modules; print(time.process_time() - start)"
    )
    run = subprocess.run([sys.executable, "-c", code, recipe_file(GOOD)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text("ab-: é\n#'\"", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_", min_size=1), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text("abc_", min_size=1), json_values, max_size=4))
def test_what_is_dumped_is_parsed_back(values):
    parsed, marks = parse(dump(values), "r")
    assert parsed == values
    assert all((key,) in marks for key in values)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_no_text_makes_the_parser_fail_otherwise_than_by_saying_so(text):
    try:
        parse(text, "r")
    except RecipeProblems as error:
        assert error.problems
    else:
        assert isinstance(yaml.safe_load(text), dict)
