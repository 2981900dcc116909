"""The parts that a stage trains, as a recipe names them: read, or refused with the place."""

from pathlib import Path

import pytest

from geobind import plugins
from geobind.recipe import RecipeProblems, load_recipe
from geobind.recipe.describe import build_editor_schema, describe_stage
from geobind.recipe.stage_options import Full, Head, Last, Lora

RECIPE = """\
name: tiny
width: 16
modalities:
  satellite: {timm: {model: test_vit, pretrained: false}}
  ground_image: {role: trainable, timm: {model: test_vit, pretrained: false}}
data: {toyearth: {places: 40, held_out: 10}, columns: {satellite: tile, ground_image: photo}}
stages:
  - name: one
    align: ground_image
    train: TRAIN
    batch_size: 8
    epochs: 1
"""


def load(folder: Path, train: str):
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("TRAIN", train), encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize(
    ("written", "part", "said"),
    [
        ("[satellite]", Full(), "satellite"),
        ("{satellite: full}", Full(), "satellite"),
        ("{satellite: head}", Head(), "satellite (head)"),
        ("{satellite: lora}", Lora(rank=8, alpha=16), "satellite (lora of rank 8)"),
        ("{satellite: {part: lora, rank: 2, targets: [qkv]}}", Lora(rank=2, targets=("qkv",)),
         "satellite (lora of rank 2)"),
        ("{satellite: {part: last, blocks: 2}}", Last(blocks=2), "satellite (last 2 blocks)"),
        ("{satellite: {part: full, layer_decay: 0.75}}", Full(layer_decay=0.75),
         "satellite (layer decay 0.75)"),
    ],
)  # fmt: skip
def test_each_part_is_read_and_said(tmp_path, written, part, said):
    recipe = load(tmp_path, written)
    (stage,) = recipe.stages
    assert stage.trained == {"satellite": part}
    assert stage.parts == {"satellite": part.part}
    assert describe_stage(recipe, stage) == f"align ground_image with satellite, train {said}"


def test_what_means_the_same_has_the_same_fingerprint(tmp_path):
    def dumped(written: str):
        return load(tmp_path, written).stages[0].model_dump(mode="json")

    assert dumped("{satellite: lora}") == dumped("{satellite: {part: lora, rank: 8}}")
    assert dumped("{satellite: full}") == dumped("{satellite: {part: full, layer_decay: 1.0}}")
    assert dumped("{satellite: head}") == dumped("{satellite: {part: head}}")
    assert dumped("{satellite: lora}") != dumped("{satellite: {part: lora, rank: 4}}")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{satellite: hed}", ".satellite: Input should be 'full', 'head' or 'lora' (got 'hed')"),
        ("{satellite: last}", ".satellite: last of how many blocks? write {part: last, blocks: 2}"),
        ("{satellite: {rank: 4}}", ".satellite: names no part; write `part: lora`, or full, head, last"),
        ("{satellite: {part: lra}}", ".satellite.part: Input should be one of full, head, last, lora"),
        ("{satellite: {part: last}}", ".satellite.blocks: missing; it must be given"),
        ("{satellite: {part: lora, rnk: 4}}", ".satellite.rnk: unknown key; did you mean 'rank'?"),
        ("{satellite: {part: lora, rank: 0}}", ".satellite.rank: Input should be greater than or equal to 1"),
        ("{satellite: {part: full, layer_decay: 2}}", ".satellite.layer_decay: Input should be less than or"),
        ("{sattelite: lora}", "did you mean 'satellite'?"),
        ("satellite", "stages.0.train: Input should be a valid list (got 'satellite')"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_once_on_its_line(tmp_path, written, message):
    with pytest.raises(RecipeProblems) as caught:
        load(tmp_path, written)
    (problem,) = caught.value.problems
    assert message in str(problem)
    assert ":10:" in str(problem)


def test_editors_are_told_the_parts():
    stage = build_editor_schema(plugins.registry())["$defs"]
    assert {"Full", "Head", "Last", "Lora"} <= set(stage)
