"""The blocks of a recipe about the time after the last stage."""

import pytest
import toy

from geobind.recipe.parsing import RecipeProblems


def load(tmp_path, monkeypatch, block):
    from geobind import plugins
    from geobind.recipe import load_recipe

    monkeypatch.setattr(plugins, "registry", toy.registry)
    (tmp_path / "rows.csv").write_text("left,group\na,b\n")
    path = tmp_path / "toy.yaml"
    path.write_text(toy.RECIPE + block, encoding="utf-8")
    return load_recipe(path)


DATA = "data: {manifest: rows.csv}"


def test_what_is_asked_for_is_read(tmp_path, monkeypatch):
    block = f"evaluate: {{{DATA}, calibrate: val, clusters: group, sums: [left+right:cold]}}\n"
    recipe = load(tmp_path, monkeypatch, block + "card: {licence: MIT, weights: {left: CC0}}\n")
    assert (recipe.evaluate.calibrate, recipe.evaluate.clusters) == ("val", "group")
    assert recipe.card.weights == {"left": "CC0"}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (f"evaluate: {{{DATA}, calibrate: test}}", "`calibrate` and `split` are both 'test'"),
        (
            f"evaluate: {{{DATA}, sums: [left+right]}}",
            r"evaluate\.sums\.0: sum 'left\+right': write ONE\+TWO:GALLERY",
        ),
        (
            f"evaluate: {{{DATA}, sums: [left+smell:cold]}}",
            "no modality 'smell'; there are left, right, cold",
        ),
        (f"evaluate: {{{DATA}, clusters: tile}}", "evaluate.clusters"),
        ("evaluate: {calibrate: val}", "has no rows: give `data`"),
        ("card: {weights: {smell: MIT}}", "card.weights.smell: no modality 'smell'"),
        ("card: {license: MIT}", "unknown key; did you mean 'licence'"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path, monkeypatch, block, message):
    with pytest.raises(RecipeProblems, match=message):
        load(tmp_path, monkeypatch, block + "\n")


def test_rows_trained_on_calibrate_nothing(tmp_path, monkeypatch):
    with pytest.raises(RecipeProblems, match="stage 'one' trains on split 'train': name rows that none does"):
        load(tmp_path, monkeypatch, f"{DATA}\nevaluate: {{calibrate: train}}\n")
