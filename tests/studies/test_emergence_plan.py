"""The runs of an emergence study: equal work, one mean loss, and the recipes it cannot study."""

import pytest
import torch
from torch import nn

from geobind.errors import RecipeError
from geobind.recipe import load_recipe
from geobind.studies.emergence import (
    ALL,
    AS_WRITTEN,
    AXIS,
    anchored_name,
    build_cells,
    compute_equal_steps,
    count_forward_flops,
    count_stage_flops,
    plan_emergence,
)
from geobind.studies.grid import check_cells

SIZES = [f"stages.{i}.batch_size=16" for i in range(3)]
SMALL = ("data.toyearth.places=48", "data.toyearth.held_out=16", *SIZES)
FROZEN = ["modalities.text.role=frozen", "modalities.ground_image.role=frozen"]
ONE = "{name: one, align: ground_image, train: [satellite], batch_size: 16, epochs: 1}"


def test_operations_are_two_for_each_weight_of_a_layer():
    assert count_forward_flops(nn.Linear(10, 7, bias=False), torch.zeros(3, 10)) == 2 * 3 * 10 * 7


def test_an_encoder_in_training_costs_three_forward_passes():
    assert count_stage_flops({"a": 10, "b": 100, "c": 5}, ["a", "b"], ["b"]) == 10 + 3 * 100


def test_joint_steps_take_the_work_of_the_stages():
    one = compute_equal_steps(
        load_recipe("three_modal", [*SMALL, *(f"stages.{i}.epochs=2" for i in range(3))])
    )
    two = compute_equal_steps(
        load_recipe("three_modal", [*SMALL, *(f"stages.{i}.epochs=4" for i in range(3))])
    )
    assert two == pytest.approx(2 * one, abs=1)
    assert 2 < one < 18  # 18 steps of two encoders, against steps of four in training


def test_each_way_to_bind_is_run_with_each_seed_and_every_recipe_is_sound():
    cells = build_cells(
        plan_emergence("three_modal", SMALL, anchors=["satellite", "text"], seeds=[0, 5], steps=7)
    )
    ways = [cell.settings[AXIS] for cell in cells]
    assert ways == [
        way for way in (AS_WRITTEN, anchored_name("satellite"), anchored_name("text"), ALL) for _ in (0, 5)
    ]
    recipes = dict(zip(ways, check_cells(cells), strict=True))
    (joint,) = recipes[anchored_name("text")].stages
    assert (joint.anchor, joint.steps, set(joint.parts)) == ("text", 7, set(recipes[ALL].modalities))
    assert len(recipes[AS_WRITTEN].stages) == 3


@pytest.mark.parametrize("way", [anchored_name("satellite"), ALL])
def test_the_loss_of_a_joint_stage_is_the_mean_over_its_pairs(way):
    cells = build_cells(plan_emergence("three_modal", SMALL, seeds=[0], steps=1))
    (recipe,) = check_cells([cell for cell in cells if cell.settings[AXIS] == way])
    weights = [pair.weight for pair in recipe.pairs_of(recipe.stages[0])]
    assert len(weights) == {anchored_name("satellite"): 3, ALL: 6}[way]
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["evaluate=null"], "evaluate"),
        (["stages.0.batch_size=auto"], "takes a number"),
        (
            ["modalities.text.role=frozen", "modalities.ground_image.role=frozen", f"stages=[{ONE}]"],
            "both frozen",
        ),
    ],
)
def test_a_recipe_that_cannot_be_studied_is_refused_with_the_reason(overrides, complaint):
    with pytest.raises(RecipeError, match=complaint):
        plan_emergence("three_modal", [*SMALL, *overrides], steps=1)


def test_an_unknown_anchor_is_refused_with_those_there_are():
    with pytest.raises(RecipeError, match="no modality 'sat'"):
        plan_emergence("three_modal", SMALL, anchors=["sat"], steps=1)
