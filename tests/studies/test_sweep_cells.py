"""Cells of a sweep: axes from text, grids, sweep files, and the mistakes in them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.errors import RecipeError
from geobind.recipe.parsing import RecipeProblems
from geobind.studies.grid import MAX_CELLS, Cell, build_grid, check_cells, make_axis, parse_axis
from geobind.studies.sweep_file import load_sweeps

VALUES = st.one_of(
    st.integers(-1000, 1000),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), max_size=2),
    st.text("xyz, []{}", min_size=1).map(lambda text: {"t": text}),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(VALUES, min_size=1, max_size=4, unique_by=json.dumps))
def test_an_axis_parts_its_values_at_outer_commas_only(values):
    words = [json.dumps(value) for value in values]
    axis = parse_axis("stages.0.x=" + ",".join(words))
    assert axis.name == "stages.0.x"
    assert list(axis.values.values()) == [(f"stages.0.x={word}",) for word in words]


@pytest.mark.parametrize("text", ["lr", "=1,2", "lr=", "lr=1,,2"])
def test_an_axis_of_another_form_is_refused_with_an_example(text):
    with pytest.raises(RecipeError, match="write it as --sweep stages"):
        parse_axis(text)


def test_a_value_named_twice_is_refused():
    with pytest.raises(RecipeError, match="1e-4 is named twice"):
        parse_axis("lr=1e-4,3e-4,1e-4")


def test_a_grid_is_every_combination_the_last_axis_changing_fastest():
    cells = build_grid("r", [parse_axis("a=1,2"), parse_axis("b=x,y")], ("c=0",))
    assert [cell.overrides for cell in cells] == [
        ("c=0", "a=1", "b=x"),
        ("c=0", "a=1", "b=y"),
        ("c=0", "a=2", "b=x"),
        ("c=0", "a=2", "b=y"),
    ]
    assert cells[3].title == "a = 2, b = y"


def test_an_axis_swept_twice_and_a_grid_too_large_are_refused():
    with pytest.raises(RecipeError, match="'a' is swept twice"):
        build_grid("r", [parse_axis("a=1,2"), parse_axis("a=3")])
    wide = make_axis("w", {str(n): {"w": n} for n in range(MAX_CELLS + 1)})
    with pytest.raises(RecipeError, match="sweep fewer values at once"):
        build_grid("r", [wide])


def test_folders_are_readable_and_differ_when_overrides_do():
    long = "x" * 200
    cells = [Cell("r", (f"a={value}",), {"stages.0.a": value}) for value in (long + "1", long + "2", "../up")]
    names = [cell.name for cell in cells]
    assert len(set(names)) == 3
    assert all("/" not in name and not name.startswith(".") and len(name) < 80 for name in names)
    assert Cell("r", ("stages.0.optimizer.lr=1e-3",), {"stages.0.optimizer.lr": "1e-3"}).name.startswith(
        "lr=1e-3-"
    )


def test_mistakes_of_all_cells_are_reported_together_and_each_once():
    cells = build_grid("three_modal", [parse_axis("stages.0.batch_size=1,-3"), parse_axis("seed=0,1")])
    with pytest.raises(RecipeProblems) as caught:
        check_cells(cells)
    assert len(caught.value.problems) == len({str(problem) for problem in caught.value.problems})
    assert "stages.0.batch_size" in str(caught.value)


def test_shipped_ablations_are_sound():
    sweeps = {sweep.name: sweep for sweep in load_sweeps("ablations")}
    assert set(sweeps) == {"augmentation", "batch_size", "encoder_size", "epochs", "head", "temperature"}
    for sweep in sweeps.values():
        assert sweep.about
        check_cells(sweep.cells[:: len(sweep.cells) // 2])


def test_a_sweep_file_names_variants_of_several_changes_and_its_seeds(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "recipe: three_modal\nset: {width: 64}\n"
        "vary:\n  stages.0.epochs: [1, 2]\n  tower: {thin: {width: 32, seed: 5}, wide: {width: 128}}\n"
        "seeds: [3]\n"
    )
    (sweep,) = load_sweeps(str(file))
    assert [dict(cell.settings) for cell in sweep.cells][:2] == [
        {"stages.0.epochs": "1", "tower": "thin", "seed": "3"},
        {"stages.0.epochs": "1", "tower": "wide", "seed": "3"},
    ]
    assert sweep.cells[0].overrides == ("width=64", "stages.0.epochs=1", "width=32", "seed=5", "seed=3")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("recipe: three_modal\nvary: {}\n", "vary"),
        ("recipe: three_modal\nvary: {seed: []}\n", "has no values"),
        ("recipe: three_modal\nvary: {seed: [1]}\nsweeps: 1\n", "mine.yaml:3:1"),
        ("recipe: nowhere\nvary: {width: [8]}\n", "no such recipe"),
        ("- a\n", "mapping"),
    ],
)
def test_a_faulty_sweep_file_is_refused_with_the_place(tmp_path, text, complaint):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=complaint):
        load_sweeps(str(file))


def test_an_unknown_sweep_is_refused_with_those_there_are():
    with pytest.raises(RecipeError, match="ablations/temperature"):
        load_sweeps("ablation/temperatur")


def test_a_name_cannot_lead_out_of_the_shipped_recipes():
    with pytest.raises(RecipeError, match="no such sweep file"):
        load_sweeps("../geobind/nothing")
