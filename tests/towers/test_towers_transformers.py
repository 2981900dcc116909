"""Weights as transformers saves a CLIP, which is how Sat2Cap's were released."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from geobind.errors import CheckpointError, RecipeError
from geobind.modality import Modality
from geobind.towers.clip import clip_features, clip_tower, prepare_text, text_encoder
from geobind.towers.mel import hide_broken_torchaudio
from geobind.towers.options import ClipOptions
from geobind_ground_image import GroundImage
from geobind_satellite import Satellite

hide_broken_torchaudio()  # transformers would die of it
transformers = pytest.importorskip("transformers")
VISION = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 24,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "projection_dim": 24,
}


def vision(projected=True, **changes):
    cls = transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel
    return cls(transformers.CLIPVisionConfig(**{**VISION, **changes})).eval()


def whole_clip():
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24)
    return transformers.CLIPModel(config).eval()


def pixels(size=32):
    return torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)


def normalised(images, modality: Modality):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (modality.spec.mean, modality.spec.std))
    return (images / 255 - mean) / std


def satellite(tiny_clip, source, **options):
    clip = {"model": tiny_clip, "pretrained": str(source), **options.pop("clip", {})}
    return Satellite(clip=clip, **options)


def embedded(modality, images, width=24):
    with torch.no_grad():
        return modality.encoder(width).eval()(images)


def old_names(state):
    """A plain vision model's keys as transformers wrote them before version 5."""
    return {
        key if key.startswith("visual_") else f"vision_model.{key}": value for key, value in state.items()
    }


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_released_weights_embed_tiles_as_transformers_does(tiny_clip, tmp_path, file):
    theirs, images = vision(), pixels()
    if file.endswith(".bin"):
        torch.save(theirs.state_dict(), tmp_path / file)
        (tmp_path / "config.json").write_text(theirs.config.to_json_string())
    else:
        theirs.save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / file):
        modality = satellite(tiny_clip, source)
        with torch.no_grad():
            wanted = theirs(pixel_values=normalised(images, modality)).image_embeds
        assert torch.allclose(embedded(modality, images), wanted, atol=1e-5)


@pytest.mark.parametrize("naming", [dict, old_names])
@pytest.mark.parametrize("projected", [False, True])
def test_without_the_projection_the_pooled_features_go_to_a_head(tiny_clip, tmp_path, naming, projected):
    """A plain CLIPVisionModel, or one read as such: `rshf.sat2cap` is the latter."""
    theirs, images = vision(projected), pixels()
    state = theirs.state_dict() if projected else naming(theirs.state_dict())
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    modality = satellite(tiny_clip, tmp_path, clip={"projection": False}, head="linear")
    encoder = modality.encoder(24).eval()
    trunk = theirs.vision_model if projected else theirs
    with torch.no_grad():
        wanted = trunk(pixel_values=normalised(images, modality)).pooler_output
        assert torch.allclose(encoder.trunk(normalised(images, modality)), wanted, atol=1e-5)
        assert torch.allclose(encoder(images), encoder.head(wanted), atol=1e-5)
    assert encoder.head.in_features == 32 == clip_features(modality.clip)
    # A bundle is filled without the file: the same architecture comes out of the options alone.
    assert modality.encoder(24, pretrained=False).state_dict().keys() == encoder.state_dict().keys()


def test_a_missing_projection_is_told_with_both_ways_out(tiny_clip, tmp_path):
    vision(projected=False).save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"has no projection .* `projection: false` under `clip` and `head: linear`"
    ):
        satellite(tiny_clip, tmp_path).encoder(24)
    with pytest.raises(RecipeError, match="gives 32 numbers, the recipe's width is 24"):
        GroundImage(clip={"model": tiny_clip, "pretrained": str(tmp_path), "projection": False}).encoder(24)


def test_a_lightning_checkpoint_holds_its_towers_under_other_names(tiny_clip, tmp_path):
    """Sat2Cap's: a frozen CLIP for photographs beside the tower for tiles, and much that is no tower."""
    photos, tiles, images = vision(), vision(), pixels()
    state = {f"img_encoder.vision_model.{key}": value for key, value in photos.state_dict().items()}
    state |= {f"imo_encoder.vision_model.{key}": value for key, value in tiles.state_dict().items()}
    state |= {"queue": torch.randn(24, 40), "temp_layer.logit_scale": torch.zeros(())}
    path = tmp_path / "sat2cap.ckpt"
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": {"vit": "32"}}, path)
    for prefix, theirs in (("img_encoder", photos), ("imo_encoder", tiles), ("imo_encoder.", tiles)):
        modality = satellite(tiny_clip, path, clip={"prefix": prefix})
        with torch.no_grad():
            wanted = theirs(pixel_values=normalised(images, modality)).image_embeds
        assert torch.allclose(embedded(modality, images), wanted, atol=1e-5)
    with pytest.raises(CheckpointError) as caught:
        satellite(tiny_clip, path).encoder(24)
    assert str(caught.value) == (
        f"{path}: holds 2 such towers, img_encoder.vision_model, imo_encoder.vision_model: name the one that "
        "is meant, such as `prefix: imo_encoder.vision_model`, under `clip`"
    )
    named = satellite(tiny_clip, path, clip={"prefix": "imo_encoder.vision_model"})
    assert torch.equal(embedded(named, images), embedded(modality, images))
    with pytest.raises(
        CheckpointError,
        match=r"no visual tower of a CLIP in it behind 'overhead\.'; its keys begin with "
        r"'img_encoder\.vision_model', 'imo_encoder\.vision_model', 'queue', 'temp_layer\.logit_scale'; "
        r"what fits is open_clip's 'visual\.', or transformers' 'vision_model\.'",
    ):
        satellite(tiny_clip, path, clip={"prefix": "overhead"}).encoder(24)


def test_a_whole_clip_of_transformers_gives_both_towers(tiny_clip, tmp_path):
    theirs, images = whole_clip(), pixels()
    theirs.save_pretrained(tmp_path)
    modality = satellite(tiny_clip, tmp_path)
    options = modality.clip
    tokens = torch.stack([prepare_text(text, options) for text in ("a river", "a busy harbour at dawn")])
    with torch.no_grad():
        wanted = theirs.get_image_features(pixel_values=normalised(images, modality))
        got = embedded(modality, images)
        assert torch.allclose(got, getattr(wanted, "pooler_output", wanted), atol=1e-5)
        # CLIP's end mark is the largest id, which is how open_clip finds it in any batch.
        mask = torch.arange(16) <= tokens.argmax(1, keepdim=True)
        wanted = theirs.get_text_features(input_ids=tokens, attention_mask=mask.long())
        got = text_encoder(options, 24, head="identity", pretrained=True).eval()(tokens)
        assert torch.allclose(got, getattr(wanted, "pooler_output", wanted), atol=1e-5)


def test_another_tile_size_interpolates_the_position_embeddings(tiny_clip, tmp_path):
    vision().save_pretrained(tmp_path)
    encoder = satellite(tiny_clip, tmp_path, size=64).encoder(24)
    theirs = load_file(tmp_path / "model.safetensors")["vision_model.embeddings.position_embedding.weight"]
    assert encoder.trunk.positional_embedding.shape == (65, 32)
    assert torch.equal(encoder.trunk.positional_embedding[0], theirs[0])
    assert encoder(pixels(64)).shape == (3, 24)


def test_what_weights_cannot_show_is_read_from_the_config_beside_them(tiny_clip, tmp_path):
    """Activation and heads leave no trace: the wrong ones would load, and mean nothing."""
    vision(hidden_act="gelu").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json: .* trained with gelu: write quick_gelu: false"):
        satellite(tiny_clip, tmp_path).encoder(24)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**told, "hidden_act": "quick_gelu"}))
    satellite(tiny_clip, tmp_path).encoder(24)
    named = ClipOptions(model="ViT-B-32", pretrained=str(tmp_path))
    with pytest.raises(CheckpointError, match="trained with quick_gelu: write model: ViT-B-32-quickgelu"):
        clip_tower(named, "visual", pretrained=True)
    vision(num_attention_heads=4).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has 4 attention heads, the model asked for has 2"):
        satellite(tiny_clip, tmp_path).encoder(24)
    (tmp_path / "config.json").write_text("[]")  # not transformers' own: it says nothing
    satellite(tiny_clip, tmp_path).encoder(24)


def test_weights_of_another_size_name_what_does_not_fit(tiny_clip, tmp_path):
    vision(num_hidden_layers=3, hidden_size=64, num_attention_heads=2).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        CheckpointError,
        match=r"the weights are not this model's: unexpected transformer\.resblocks\.2\..*; "
        r"shape .*\(64,\) for \(32,\)",
    ):
        satellite(tiny_clip, tmp_path).encoder(24)


def test_half_a_layer_is_reported_missing(tiny_clip, tmp_path):
    state = vision().state_dict()
    del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing transformer\.resblocks\.1\.attn\.in_proj_weight"):
        satellite(tiny_clip, tmp_path).encoder(24)


def test_only_a_vision_transformer_can_lose_its_projection():
    options = ClipOptions(model="RN50", pretrained=False, projection=False)
    with pytest.raises(RecipeError, match=r"clip\.projection: false needs the image tower of a vision"):
        clip_tower(options, "visual", pretrained=False)


def test_a_text_tower_keeps_its_projection(tiny_clip):
    options = ClipOptions(model=tiny_clip, pretrained=False, projection=False)
    with pytest.raises(RecipeError, match="which the CLIP of this config has not here"):
        text_encoder(options, 24, head="auto", pretrained=False)


def test_an_oblong_photo_is_squashed_or_cropped_as_the_recipe_says(tiny_clip):
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, :32] = 255
    clip = {"model": tiny_clip, "pretrained": False}
    assert GroundImage(clip=clip).prepare(wide).max() == 0
    assert GroundImage(clip=clip, squash=False).prepare(wide).max() == 0
    assert GroundImage(clip=clip, squash=True).prepare(wide)[:, :, :9].min() == 255
