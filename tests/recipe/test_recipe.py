"""Recipes: what is read, what is refused, and where the mistake is said to be."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.recipe import RecipeProblems, build_recipe, list_shipped, load_recipe
from geobind.recipe.parsing import dump_yaml, parse_yaml

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


@pytest.mark.parametrize("value", ["3", "true", "{a: b}"])
def test_a_value_that_fits_none_of_several_types_is_a_mistake_with_its_line(recipe_file, value):
    path = recipe_file(GOOD, **{"satellite: tile": f"satellite: {value}"})
    assert any(one.partition(": ")[2].startswith("data.columns.satellite: ") for one in problems_of(path))


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
        (
            {"epochs: 1": "epochs: 1\n    loss: {name: infonse}"},
            "14:12: stages.0.loss.name: Input should be one of infonce, siglip (got 'infonse'); "
            "did you mean 'infonce'?",
        ),
        ({"epochs: 1": "epochs: 1\n    loss: {}"}, "stages.0.loss.name: missing; it must be given"),
        ({"epochs: 1": "epochs: 1\n    loss: siglip"}, "stages.0.loss: must be a block of keys"),
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
        (
            {"epochs: 1": "epochs: 1\n    loss: {name: triplet}"},
            "one of infonce, siglip (got 'triplet')",
        ),
    ],
)
def test_what_cannot_be_is_refused(recipe_file, change, message):
    found = problems_of(recipe_file(GOOD, **change))
    assert any(message in problem for problem in found), found


MANY = GOOD.replace("ground_image: {timm", "ground_image: {role: trainable, timm").replace(
    "align: ground_image", "align: [ground_image, text]"
)


def test_a_stage_of_several_modalities_has_its_pairs_weights_and_tables(recipe_file):
    sets = ["stages.0.pairs=all", "stages.0.weights={text: 0.5, ground_image-text: 2}"]
    sets += ["stages.0.train=[satellite, ground_image]", "modalities.text.data={toyearth: {seed: 3}}"]
    recipe = load_recipe(recipe_file(MANY), sets)
    (stage,) = recipe.stages
    assert stage.aligned == ("ground_image", "text")
    assert recipe.names_of(stage) == ("satellite", "ground_image", "text")
    assert {pair.name: pair.weight for pair in recipe.pairs_of(stage)} == {
        "satellite-ground_image": 1.0,
        "satellite-text": 0.5,
        "ground_image-text": 2.0,
    }
    assert recipe.tables_of(stage) == (recipe.data, recipe.modalities["text"].data)
    assert build_recipe(recipe.written, recipe.base, source="bundle") == recipe


TWO = "[{toyearth: {seed: 1}, weight: 1}, {toyearth: {seed: 2}}]"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("align: []", "10:5: stages.0.align: nothing to align: name a modality"),
        ("align: [text, 3]", "10:19: stages.0.align.1: Input should be a valid string (got 3)"),
        ("align: [text, txt]", "10:19: stages.0.align.1: no modality 'txt' under `modalities`; did you mean"),
        ("align: [text, satellite]", "10:19: stages.0.align.1: 'satellite' is this stage's anchor"),
        ("align: [text, text]", "10:19: stages.0.align.1: 'text' is there already; keep one"),
        (
            "weights: {txt: 2}",
            "14:15: stages.0.weights.txt: no pair 'txt' in this stage; did you mean 'text'?",
        ),
        ("weights: {text: 0}", "14:15: stages.0.weights.text: Input should be greater than 0 (got 0)"),
        ("weights: {text: .inf}", "14:15: stages.0.weights.text: Input should be a finite number"),
        (
            "weights: {text: 1, text-satellite: 2}",
            "14:24: stages.0.weights.text-satellite: is the pair that 'te",
        ),
        (
            "weights: {ground_image-text: 1}",
            "is not compared: this stage compares with 'satellite' alone, unless",
        ),
        ("pairs: some", "14:5: stages.0.pairs: Input should be 'anchor' or 'all' (got 'some')"),
        (
            "train: [ground_image]",
            "11:5: stages.0.train: nothing to train in 'satellite-text': train one of the",
        ),
        ("data: []", "14:5: stages.0.data: no table to draw from: name one"),
        ("data: 3", "14:5: stages.0.data: must be a block of keys (got 3)"),
        (f"data: {TWO}", "14:46: stages.0.data.1: has no `weight`, but another table has; give one to all"),
        (
            f"data: {TWO.replace('weight: 1', 'weight: 0')}",
            "14:34: stages.0.data.0.weight: Input should be gre",
        ),
        (
            f"data: {TWO.replace('weight', 'wieght')}",
            "stages.0.data.0.wieght: unknown key; did you mean 'weight'?",
        ),
        ("data: [{manifest: no.csv}]", "14:13: stages.0.data.0.manifest: no such file: no.csv"),
        ("mix: rows", "14:5: stages.0.mix: there is one table, so that nothing is mixed"),
    ],
)
def test_what_several_modalities_and_tables_cannot_be_is_refused_where_it_stands(recipe_file, line, message):
    key = line.partition(":")[0]
    old = next(
        (there for there in MANY.splitlines() if there.strip().startswith(f"{key}:") and there[0] == " "),
        None,
    )
    text = MANY.replace(old, f"    {line}") if old else f"{MANY}    {line}\n"
    found = problems_of(recipe_file(text))
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
        ("stages.satelite_to_ground.lr=1", "in a list of 1; did you mean 'satellite_to_ground'?"),
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


# Recipes whose modalities lie under plugins/, where they are installed and run.
WITH_PLUGINS = {"real_earth", "real_earth_pretrained"}


def test_shipped_recipes_are_good():
    assert "three_modal" in list_shipped()
    for name in {*list_shipped()} - WITH_PLUGINS:
        assert load_recipe(name, files=False).name == name


def test_a_shipped_recipe_that_needs_plugins_says_how_to_install_them():
    for name in WITH_PLUGINS:
        assert "#   pip install" in list_shipped()[name].read_text(encoding="utf-8")


def test_the_recipes_on_the_page_about_them_are_good(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = [text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if text.startswith("name:")]
    assert len(blocks) >= 2
    for text in blocks:
        for manifest in re.findall(r"manifest: ([\w.]+)", text):
            (tmp_path / manifest).touch()
        (tmp_path / "page.yaml").write_text(text, encoding="utf-8")
        recipe = load_recipe(tmp_path / "page.yaml")
        assert all(recipe.pairs_of(stage) for stage in recipe.stages)


def test_a_recipe_survives_its_own_dump(recipe_file):
    recipe = load_recipe(recipe_file(GOOD))
    again = build_recipe(recipe.written, recipe.base, source="bundle")
    assert again == recipe
    assert again.written == recipe.written


def test_checking_a_recipe_takes_no_torch(recipe_file):
    code = (
        "import sys; from geobind.recipe import load_recipe; load_recipe(sys.argv[1]);"
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code, recipe_file(GOOD)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


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
    parsed, marks = parse_yaml(dump_yaml(values), "r")
    assert parsed == values
    assert all((key,) in marks for key in values)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_no_text_makes_the_parser_fail_otherwise_than_by_saying_so(text):
    try:
        parse_yaml(text, "r")
    except RecipeProblems as error:
        assert error.problems
    else:
        assert isinstance(yaml.safe_load(text), dict)


def test_a_shipped_recipe_finds_its_data_in_the_current_folder_and_an_own_one_beside_itself(
    tmp_path, monkeypatch, recipe_file
):
    own = GOOD.replace("data: {toyearth: {places: 40, held_out: 10},", "data: {manifest: rows.csv,")
    path = recipe_file(own)
    with pytest.raises(
        RecipeProblems, match=rf"no such file: rows\.csv \(relative to the recipe's folder, {path.parent}"
    ):
        load_recipe(path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr("geobind.recipe.shipped.list_shipped", lambda: {"tiny": path})
    with pytest.raises(RecipeProblems, match=r"no such file: rows\.csv \(relative to the current folder\)"):
        load_recipe("tiny")
    (tmp_path / "elsewhere" / "rows.csv").touch()
    assert load_recipe("tiny").base.resolve() == tmp_path / "elsewhere"
