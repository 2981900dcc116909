"""The depth of weights: what timm, open_clip and transformers build, and what anyone may."""

import pytest
import timm
import torch
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import nn

from geobind.errors import RecipeError
from geobind.recipe.stage_options import AdamW
from geobind.towers.tower import Tower
from geobind.training.blocks import compute_lr_scales, find_blocks, find_depths, iter_last_parameters
from geobind.training.trainable import build_parameter_groups


def where(encoder: nn.Module) -> dict[str, int]:
    return dict(find_depths("tile", encoder).layers)


@pytest.mark.parametrize(
    ("model", "blocks", "stem", "first"),
    [
        ("test_vit", 6, "pos_embed", "blocks.0."),
        ("test_resnet", 4, "bn1.weight", "layer1.0."),
        ("test_convnext", 9, "stem.0.weight", "stages.0.blocks.0."),
        ("test_efficientnet", 5, "conv_stem.weight", "blocks.0.0."),
    ],
)
def test_timm_models_tell_their_layers(model, blocks, stem, first):
    encoder = Tower(timm.create_model(model, num_classes=0), nn.Linear(4, 4))
    found = find_depths("tile", encoder)
    assert found.blocks == blocks
    assert found.layers[f"trunk.{stem}"] == 0
    assert {depth for name, depth in found.layers.items() if name.startswith(f"trunk.{first}")} == {1}
    assert found.layers["head.weight"] == blocks + 1
    assert set(found.layers) == {name for name, _ in encoder.named_parameters()}


def test_projections_of_clip_come_after_its_blocks_though_they_are_registered_before():
    size = {"image_size": 16, "patch_size": 8, "width": 8, "layers": 3, "heads": 2, "mlp_ratio": 2.0}
    seen = where(VisionTransformer(**size, output_dim=4))
    assert (seen["class_embedding"], seen["conv1.weight"], seen["ln_pre.weight"]) == (0, 0, 0)
    assert seen["transformer.resblocks.1.attn.in_proj_weight"] == 2
    assert (seen["ln_post.weight"], seen["proj"]) == (4, 4)
    read = where(TextTransformer(context_length=4, vocab_size=9, width=8, heads=2, layers=2, output_dim=4))
    assert (read["token_embedding.weight"], read["positional_embedding"]) == (0, 0)
    assert (read["ln_final.weight"], read["text_projection"]) == (3, 3)


def test_the_norm_of_htsats_input_is_in_its_stem_though_it_is_registered_last():
    transformers = pytest.importorskip("transformers")
    config = transformers.ClapAudioConfig(
        patch_embeds_hidden_size=8, hidden_size=32, depths=[1, 1, 2, 1], num_attention_heads=[1, 1, 2, 2],
        spec_size=64, num_mel_bins=16, projection_dim=8,
    )  # fmt: skip
    heard = where(transformers.ClapAudioModelWithProjection(config))
    start = "audio_model.audio_encoder"
    assert heard[f"{start}.batch_norm.weight"] == heard[f"{start}.patch_embed.proj.weight"] == 0
    assert heard[f"{start}.layers.2.blocks.1.layernorm_before.weight"] == 4
    assert heard[f"{start}.norm.weight"] == heard["audio_projection.linear1.weight"] == 6


def test_layers_one_by_one_where_nothing_repeats():
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    encoder = Tower(trunk, nn.Linear(4, 4))
    assert find_blocks(encoder) == []
    assert where(encoder) == {
        "trunk.0.weight": 1, "trunk.0.bias": 1, "trunk.1.weight": 1, "trunk.1.bias": 1,
        "trunk.3.weight": 2, "trunk.3.bias": 2, "head.weight": 3, "head.bias": 3,
    }  # fmt: skip


def test_an_encoder_without_layers_is_told():
    flat = nn.Module()
    flat.weight = nn.Parameter(torch.ones(3))
    with pytest.raises(RecipeError, match="'tile' has no blocks or layers"):
        list(iter_last_parameters("tile", flat, 1))


def test_each_layer_learns_by_decay_times_the_one_after_it():
    encoder = Tower(timm.create_model("test_vit", num_classes=0), nn.Linear(64, 4))
    shares = compute_lr_scales("tile", encoder, 0.5)
    assert shares[encoder.head.weight] == 1
    assert shares[encoder.trunk.blocks[5].mlp.fc1.weight] == 0.5
    assert shares[encoder.trunk.blocks[0].mlp.fc1.weight] == 0.5**6
    assert shares[encoder.trunk.cls_token] == 0.5**7
    groups = build_parameter_groups(encoder, AdamW(weight_decay=0.1), shares)
    assert {group["share"] for group in groups} == {0.5**n for n in range(8)}
    assert sum(len(group["params"]) for group in groups) == len(list(encoder.parameters()))
    assert all(parameter.ndim < 2 for g in groups if g["weight_decay"] == 0 for parameter in g["params"])
