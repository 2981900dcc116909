"""Absurd numbers in recipes are refused where they stand, before anything is trained."""

import pytest

from geobind.recipe import RecipeProblems, load_recipe

RECIPE = """\
name: tiny
width: 16
modalities:
  satellite: {timm: {model: test_vit, pretrained: false}}
  ground_image: {timm: {model: test_vit, pretrained: false}}
  audio: {timm: {model: test_vit, pretrained: false}}
data: {toyearth: {places: 40, held_out: 10}, columns: {satellite: tile, ground_image: photo, audio: sound}}
stages:
  - {name: one, align: ground_image, train: [satellite], batch_size: 8, steps: 4}
evaluate: {split: test}
"""
TEMPERATURE = "stages.0.loss={name: infonce, temperature: {init: VALUE, minimum: VALUE, maximum: VALUE}}"
HUGE, TINY, NONE = ("1e300", "1e39"), ("1e-300", "0"), (".nan", ".inf", "-.inf", "-1")
INTS = ("0", "-1", "123456789012345678", ".inf", ".nan", "1.5")
CASES = {
    TEMPERATURE: (*HUGE, *TINY, *NONE),
    "stages.0.loss={name: siglip, bias: VALUE}": (*HUGE, ".nan", "-.inf"),
    "stages.0.loss={name: infonce, ignore_within_m: VALUE}": (*HUGE, *TINY, *NONE),
    "stages.0.loss={name: infonce, ignore_within_hours: VALUE}": (*HUGE, *TINY, *NONE),
    "stages.0.loss={name: infonce, hardness: VALUE}": (*HUGE, *NONE),
    "stages.0.loss={name: infonce, queue: VALUE}": INTS,
    "stages.0.optimizer.lr=VALUE": (*HUGE, *TINY, *NONE),
    "stages.0.optimizer.eps=VALUE": (*HUGE, *TINY, *NONE),
    "stages.0.optimizer.weight_decay=VALUE": (*HUGE, *NONE),
    "stages.0.optimizer.betas=[VALUE, 0.9]": ("1", *HUGE, *NONE),
    "stages.0.schedule={name: warm_restarts, period: VALUE}": INTS,
    "stages.0.schedule={name: cosine, warmup_steps: VALUE}": INTS[1:],
    "stages.0.steps=VALUE": INTS,
    "stages.0.batch_size=VALUE": INTS,
    "stages.0.accumulate=VALUE": INTS,
    "stages.0.clip_norm=VALUE": (*HUGE, *TINY, *NONE),
    "stages.0.checkpoint_seconds=VALUE": (*HUGE, *NONE),
    "stages.0.weights={ground_image: VALUE}": (*HUGE, "0", *NONE),
    "stages.0.ema=VALUE": ("0", "1", *HUGE, *NONE),
    "stages.0.watch={every: VALUE}": INTS,
    "stages.0.watch={every: 1, least: VALUE}": (*HUGE, *NONE),
    "stages.0.batches={near_km: [VALUE, 50]}": (*HUGE, *NONE),
    "stages.0.train={satellite: {part: lora, alpha: VALUE}}": (*HUGE, *TINY, *NONE),
    "stages.0.train={satellite: {part: full, layer_decay: VALUE}}": (*HUGE, *TINY, *NONE),
    "evaluate.limit=VALUE": INTS,
    "data.limit=VALUE": INTS,
    "seed=VALUE": INTS[1:],
    "width=VALUE": INTS,
    "workers=VALUE": INTS[1:],
    "max_broken=VALUE": (*HUGE, *NONE),
    "fabric.num_nodes=VALUE": INTS,
    "modalities.satellite.mean=[VALUE]": (*HUGE, ".nan", ".inf"),
    "modalities.satellite.size=VALUE": INTS,
    "modalities.satellite.augment={randaugment: VALUE}": INTS[1:],
    "modalities.audio.seconds=VALUE": (*HUGE, *TINY, *NONE),
    "modalities.audio.hop_ms=VALUE": (*HUGE, *TINY, *NONE),
    "modalities.audio.augment={gain_db: VALUE}": (*HUGE, *NONE),
    "modalities.audio.augment={noise_snr_db: [0, VALUE]}": (*HUGE, ".nan", ".inf"),
}


@pytest.mark.parametrize("override", CASES)
def test_an_absurd_number_is_refused_at_its_place(override, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    for value in CASES[override]:
        with pytest.raises(RecipeProblems) as caught:
            load_recipe(path, [override.replace("VALUE", value)])
        assert "--set" in str(caught.value), (override, value)


def test_std_of_a_channel_that_divides_to_infinity_is_refused(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.replace("pretrained: false}}", "pretrained: false}, mean: [0], std: [1e-300]}", 1))
    with pytest.raises(RecipeProblems, match="std must be above 0"):
        load_recipe(path, ["modalities.satellite.std=[1e-300]"])
