"""LoRA: what adapters compute, that what they adapt stays as it was, and what a stage leaves of them."""

import csv
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
import toy
from open_clip.transformer import VisionTransformer
from safetensors.torch import load_file
from torch import nn

from geobind import plugins
from geobind.binder import Binder
from geobind.errors import PluginError, RecipeError
from geobind.recipe.stage_options import Head, Last, Lora
from geobind.towers.tower import Tower
from geobind.training import metrics
from geobind.training.lora import (
    build_adapter_state,
    find_target_layers,
    insert_adapters,
    merge_adapters,
    remove_adapters,
)
from geobind.training.run import run
from geobind.training.trainable import check_part, hash_frozen, set_trainable
from geobind.utils.system import hash_module

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="adapters need peft")


@pytest.fixture(autouse=True)
def toy_registry(monkeypatch):
    monkeypatch.setattr(plugins, "registry", toy.registry)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def vit() -> nn.Module:
    torch.manual_seed(0)
    return Tower(timm.create_model("test_vit", num_classes=0, img_size=32), nn.Linear(64, 8)).eval()


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)
    return Tower(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(4, 8)).eval()


def clip() -> nn.Module:
    torch.manual_seed(0)
    trunk = VisionTransformer(
        image_size=32, patch_size=16, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=8
    )
    return Tower(trunk, nn.Identity()).eval()


ENCODERS = {"vit": vit, "convolutions": convolutions, "clip": clip}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def trained(encoder: nn.Module, part: Lora, steps: int = 3) -> torch.Tensor:
    """Put adapters in, train them, and return what the encoder then gives."""
    insert_adapters("tile", encoder, part, seed=0)
    set_trainable("tile", encoder, part)
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        encoder(IMAGES).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    encoder.eval()
    with torch.no_grad():
        return encoder(IMAGES)


@needs_peft
@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_merged_weights_give_what_the_adapters_gave_and_the_base_never_moved(make):
    encoder, part = make(), Lora(rank=3, alpha=6, head=False)
    before, plain = hash_module(encoder), encoder(IMAGES).detach()
    adapted = trained(encoder, part)
    assert (adapted - plain).abs().max() > 1e-2
    changes = remove_adapters(encoder)
    assert hash_module(encoder) == before  # fused attention as well, which peft's own layer would round
    merge_adapters(encoder, changes)
    torch.testing.assert_close(encoder(IMAGES).detach(), adapted, atol=1e-5, rtol=1e-5)


@needs_peft
@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_adapters_change_nothing_until_they_are_trained_and_are_the_same_for_a_seed(make):
    first, second = make(), make()
    plain = first(IMAGES)
    insert_adapters("tile", first, Lora(), seed=7)
    torch.manual_seed(99)
    insert_adapters("tile", second, Lora(), seed=7)
    torch.testing.assert_close(first(IMAGES), plain, atol=1e-6, rtol=1e-6)
    assert hash_module(first) == hash_module(second)


@needs_peft
def test_gradients_reach_the_adapters_and_the_head_alone():
    encoder = clip()
    encoder.head = nn.Linear(8, 8)
    insert_adapters("tile", encoder, Lora(), seed=0)
    set_trainable("tile", encoder, Lora())
    moving = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert moving and all("lora_" in name or name.startswith("head.") for name in moving)
    encoder(IMAGES).square().mean().backward()
    ups = [p.grad for name, p in encoder.named_parameters() if "lora_B" in name]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in ups)
    held = build_adapter_state(encoder).state_dict()
    assert sum(value.numel() for value in held.values()) < 0.7 * sum(p.numel() for p in encoder.parameters())


def test_auto_targets_are_the_linear_layers_of_blocks_the_fused_attention_or_the_convolutions():
    names = find_target_layers("tile", vit(), Lora())
    assert {name.rpartition(".")[2] for name in names} == {"qkv", "proj", "fc1", "fc2"}
    assert all(name.startswith("trunk.blocks.") for name in names)
    layers = ("attn", "mlp.c_fc", "mlp.c_proj")
    named = [f"trunk.transformer.resblocks.{block}.{layer}" for block in (0, 1) for layer in layers]
    assert find_target_layers("tile", clip(), Lora()) == named
    assert find_target_layers("tile", convolutions(), Lora()) == ["trunk.0", "trunk.3"]


@needs_peft
def test_named_targets_are_found_by_the_end_of_their_name_and_nothing_else_is_adapted():
    encoder = vit()
    insert_adapters("tile", encoder, Lora(targets=("attn.proj", "blocks.1.mlp.fc1")), seed=0)
    adapted = [name.removeprefix("trunk.blocks.") for name in remove_adapters(encoder)]
    assert adapted == ["0.attn.proj.weight", "1.attn.proj.weight", "1.mlp.fc1.weight", *adapted[3:]]
    assert all(name.endswith("attn.proj.weight") for name in adapted[3:])


@needs_peft
def test_a_target_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(RecipeError, match=r"'tile' has no layer 'query'.*it has proj, qkv, fc1, fc2$"):
        check_part("tile", vit(), Lora(targets=("qkv", "query")))
    with pytest.raises(RecipeError, match="no layers that LoRA can adapt"):
        check_part("tile", Tower(nn.Flatten(), nn.Linear(4, 4)), Lora())


@needs_peft
def test_dropout_of_fused_attention_is_refused():
    with pytest.raises(RecipeError, match=r"attn is fused attention.*dropout: 0"):
        check_part("tile", clip(), Lora(dropout=0.1))
    check_part("tile", clip(), Lora(dropout=0.1, targets=("c_fc",)))


def test_layers_that_change_their_weight_before_they_use_it_are_no_targets():
    layers = {"plain": nn.Conv2d(4, 4, 1), "grouped": nn.Conv2d(4, 4, 1, groups=2)}
    layers["dilated"] = nn.Conv2d(4, 4, 3, dilation=2)
    layers["normed"] = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    assert find_target_layers("tile", nn.Sequential(nn.ModuleDict(layers)), Lora()) == ["0.plain"]


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PluginError, match=r"pip install 'geobind\[adapters\]'"):
        check_part("tile", vit(), Lora())


def test_the_last_blocks_train_with_all_that_follows_them_and_the_rest_stays():
    encoder = vit()
    part = Last(blocks=2)
    set_trainable("tile", encoder, part)
    before = hash_frozen({"tile": encoder}, {"tile": part})
    moving = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[2] for name in moving if "blocks" in name} == {"4", "5"}
    assert all(p.requires_grad for p in (*encoder.head.parameters(), *encoder.trunk.norm.parameters()))
    assert encoder.trunk.blocks[5].training and not encoder.trunk.blocks[3].training
    encoder.trunk.blocks[5].mlp.fc1.weight.data.add_(1)
    assert hash_frozen({"tile": encoder}, {"tile": part}) == before
    encoder.trunk.blocks[3].mlp.fc1.weight.data.add_(1)
    assert hash_frozen({"tile": encoder}, {"tile": part}) != before


def test_what_an_encoder_has_not_is_told():
    with pytest.raises(RecipeError, match="has 6 blocks, not 7"):
        check_part("tile", vit(), Last(blocks=7))
    with pytest.raises(RecipeError, match="has no head with parameters"):
        check_part("tile", clip(), Head())


LEFT, RIGHT = "{part: lora, rank: 2, dropout: 0.1}", "{part: last, blocks: 1, layer_decay: 0.5}"
LORA = f"stages.0.train={{left: {LEFT}, right: {RIGHT}}}"


def toy_run(folder: Path, *overrides: str, resume: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    short = ("stages.0.steps=4", "stages.0.epochs=null", "stages.1.train={right: lora}", LORA, *overrides)
    return run(toy.recipe(folder, *short), folder / "run", resume=resume).folder


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
@needs_peft
def test_a_stage_leaves_plain_weights_and_a_small_adapter_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    whole = toy_run(tmp_path / "whole")
    fresh = Binder({"left": toy.Left()}, 8, seed=0).encoders.state_dict()
    after = load_file(whole / "bundle" / "model.safetensors")
    assert {key for key in fresh if not torch.equal(fresh[key], after[key])} == {
        "left.trunk.0.weight",
        "left.head.weight",
        "left.head.bias",
    }
    small = load_file(whole / "stages" / "01_one" / "adapter.safetensors")
    weight = fresh["left.trunk.0.weight"] + (
        small["left.trunk.0.weight.lora_B"] @ small["left.trunk.0.weight.lora_A"]
    )
    torch.testing.assert_close(weight, after["left.trunk.0.weight"], atol=1e-7, rtol=0)
    assert torch.equal(small["left.head.weight"], after["left.head.weight"])
    assert json.loads((whole / "stages" / "01_one" / "stage.json").read_text())["train"]["left"] == "lora"

    class Killed(Exception):
        pass

    taken, add = iter(range(100)), metrics.Recorder.add

    def add_then_die(self, step, broken):
        add(self, step, broken)
        if next(taken) == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(metrics.Recorder, "add", add_then_die)
        toy_run(tmp_path / "killed")
    resumed = toy_run(tmp_path / "killed", resume=True)
    again = load_file(resumed / "bundle" / "model.safetensors")
    assert all(torch.equal(after[key], again[key]) for key in after)
    assert losses(whole) == losses(resumed)


@pytest.mark.slow
def test_deeper_layers_learn_faster_under_layer_decay(tmp_path):
    overrides = ("stages.0.train={left: {part: full, layer_decay: 0.001}}", "modalities.left.norm=false")
    after = load_file(toy_run(tmp_path, *overrides) / "bundle" / "model.safetensors")
    fresh = Binder({"left": toy.Left(norm=False)}, 8, seed=0).encoders.state_dict()
    moved = {key: (after[key] - fresh[key]).abs().max().item() for key in fresh}
    assert moved["left.head.weight"] > 300 * moved["left.trunk.0.weight"] > 0
