"""First sight in Python: binders, recipes and tables in one line, and as HTML in notebooks."""

import re
from dataclasses import replace

import pytest
import torch
from toy import Left, Right, registry, view

from geobind import load_recipe, plugins
from geobind.binder import Binder
from geobind.bundles.bundle import build_card
from geobind.errors import DataError, PluginError, RecipeError
from geobind.evaluation import evaluate_pairs
from geobind.evaluation.retrieval_metrics import RetrievalSettings
from geobind.recipe import RecipeProblems


@pytest.fixture(autouse=True)
def toy_registry(monkeypatch):
    monkeypatch.setattr(plugins, "registry", registry)


@pytest.fixture
def table():
    torch.manual_seed(0)
    sides = {name: torch.nn.functional.normalize(torch.randn(12, 4), dim=1) for name in ("left", "right")}
    return evaluate_pairs(sides, [{"left", "right"}], settings=RetrievalSettings(recall_at=(1, 10)))


@pytest.fixture
def binder(table):
    made = Binder({"left": Left(), "right": Right()}, 8, seed=0)
    stage = {"name": "s", "anchor": "left", "align": "right", "train": ["right"]}
    made.card = build_card(made, name="pair", stages=[stage], metrics=table.to_dict())
    return made


def test_a_binder_is_one_line_with_width_modalities_marks_and_device(binder):
    assert repr(binder) == "Binder(pair, width 8; left, right; trained: left-right; cpu)"
    assert repr(Binder({}, 8)) == "Binder(width 8; no modalities; cpu)"


def test_in_a_notebook_a_binder_shows_the_retrieval_of_its_run(binder, table):
    page = binder._repr_html_()
    value = table.rows[0].metrics["R@10"].value
    assert f'<td title="trained, chance {10 / 12:.3g}"><b>{value:.3g}</b></td>' in page
    assert page.count("<tr>") == 3


def test_a_strangers_card_neither_breaks_the_page_nor_writes_into_it(binder):
    row = {
        "query": "<b>",
        "gallery": "right",
        "mark": "x",
        "metrics": {"R@10": {"value": 0.5, "chance": 0.1}},
    }
    for rows in ([1, None, {"query": 1}], "rows", [{**row, "metrics": 3}], [row]):
        binder.card = binder.card.model_copy(update={"metrics": {"rows": rows}, "name": "<script>"})
        page = binder._repr_html_()
        assert "<script>" not in page
        assert "&lt;script&gt;" in page
    binder.card = binder.card.model_copy(update={"stages": [{"anchor": 1}]})
    assert "trained" not in repr(binder)


def test_the_names_of_a_binder_are_its_own_and_few_of_torchs(binder):
    names = [name for name in dir(binder) if not name.startswith("_")]
    assert {"embed", "classify", "compose", "similarity", "modalities", "width", "to", "encoders"} <= set(
        names
    )
    assert len(names) <= 36
    assert not {"register_buffer", "xpu", "zero_grad"} & set(names)
    assert binder.zero_grad() is None  # still there


def test_a_table_of_retrieval_is_one_line_and_a_matrix(table):
    assert re.fullmatch(r"PairTable\(2 directions of 2 modalities; R@10 [\d.]+ to [\d.]+\)", repr(table))
    assert "<b>" in table._repr_html_()
    assert repr(replace(table, rows=())) == "PairTable(0 directions of 0 modalities)"


def test_a_folder_of_a_run_is_loaded_for_its_bundle(binder, tmp_path):
    binder.card = None
    binder.save(tmp_path / "run" / "bundle")
    assert torch.equal(
        Binder.load(tmp_path / "run").embed("left", view(0, "left")), binder.embed("left", view(0, "left"))
    )
    assert Binder.from_pretrained(tmp_path / "run").width == 8


def test_a_device_is_named_on_loading_and_one_that_is_not_there_is_refused(binder, tmp_path):
    binder.card = None
    folder = binder.save(tmp_path / "bundle")
    assert Binder.load(folder, device="cpu").device.type == "cpu"
    for wrong in ("gpu", "meta:x"):
        with pytest.raises(DataError, match=rf"no device '{wrong}' here .*; there is cpu"):
            Binder.load(folder, device=wrong)


def test_a_mistyped_modality_is_answered_with_the_one_that_may_be_meant(binder):
    with pytest.raises(PluginError, match="no modality 'rigth'; did you mean 'right'\\? it has left, right"):
        binder.embed("rigth", 1)


WRITTEN = {
    "name": "small",
    "width": 8,
    "anchor": "left",
    "modalities": {"left": {}, "right": {}},
    "stages": [{"name": "one", "align": "right", "train": ("right",), "batch_size": 4, "steps": 2}],
    "data": {"manifest": "rows.csv"},
}


def test_a_recipe_is_read_from_a_mapping_and_is_one_line():
    recipe = load_recipe(WRITTEN, ["width=16"], files=False)
    assert repr(recipe) == str(recipe) == "Recipe(small: width 16; left, right; stages one)"
    assert "<pre>name: small" in recipe._repr_html_()


def test_mistakes_of_a_mapping_are_listed_as_those_of_a_file():
    with pytest.raises(RecipeProblems, match="unknown key; did you mean 'width'"):
        load_recipe({**WRITTEN, "widht": 8}, files=False)
    with pytest.raises(RecipeError, match="holds what YAML does not"):
        load_recipe({**WRITTEN, "seed": torch.zeros(2)}, files=False)
