import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from pydantic import ValidationError
from tiny_towers import htsat_config

import geobind_audio
import geobind_ground_image
import geobind_satellite
import geobind_text
from geobind.errors import RecipeError
from geobind.testing import ModalityContract
from geobind_audio import Audio
from geobind_ground_image import GroundImage
from geobind_satellite import Satellite
from geobind_text import Text

MODULES = [geobind_satellite, geobind_ground_image, geobind_text, geobind_audio]
CLIP = {
    "model": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 2},
    },
    "pretrained": False,
}
RESNET = {"model": "test_resnet", "pretrained": False}
HTSAT = {"pretrained": False, "config": htsat_config(32)}


def image(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def sound(seed, seconds):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 48_000)).astype(np.float32), 48_000


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_file(name, content):
    Path(name).write_bytes(content)
    return Path(name)


def write_image(name):
    Image.fromarray(image(0, 40, 50, 3)).save(name)
    return Path(name)


def write_sound(name):
    soundfile.write(name, *sound(0, 1))
    return Path(name)


class TestSatellite(ModalityContract):
    modality = Satellite(clip=CLIP, augment={"randaugment": 3, "rotations": True})
    raws = (image(0, 40, 50, 3), image(1, 3, 64, 64), image(2, 30, 31))
    files = property(lambda self: [write_image("tile.png")])
    bad_raws = ("nowhere.tif", b"not an image", np.zeros((64, 64, 4), dtype=np.uint8), None)


class TestSatelliteWithoutClipsProjection(ModalityContract):
    modality = Satellite(clip={**CLIP, "projection": False}, head="linear", squash=True)
    raws = (image(0, 40, 50, 3), image(1, 3, 64, 64))


class TestSatelliteOfTwelveBands(ModalityContract):
    modality = Satellite(timm=RESNET, channels=12, size=48, mean=[1500], std=[900], augment={"jitter": 0.3})
    raws = tuple((image(seed, 12, 60, 60).astype(np.uint16) * 20) for seed in range(3))
    bad_raws = (np.full((12, 60, 60), np.nan), image(0, 60, 60, 3))


class TestGroundImage(ModalityContract):
    modality = GroundImage(clip=CLIP, augment={"random_resized_crop": [0.5, 1], "hflip": True, "jitter": 0.2})
    raws = (image(0, 40, 50, 3), image(1, 90, 64, 3))
    files = property(lambda self: [write_image("photo.jpg")])
    bad_raws = ("nowhere.jpg", b"")


class TestText(ModalityContract):
    modality = Text(clip=CLIP)
    raws = ("a river", "a church with a red roof", "Straße bei Nacht")
    files = property(lambda self: [write_file("words.txt", "Straße bei Nacht".encode())])
    bad_raws = ("", "   ", 3)
    long_raws = ("a b c d e f g h i j then other words", "a b c d e f g h i z then other words")


class TestAudioOfABackbone(ModalityContract):
    modality = Audio(
        timm=RESNET, seconds=2, hop_ms=20, augment={"mask_time": 0.2, "shift": True, "gain_db": 3}
    )
    raws = (sound(0, 1), sound(1, 2), sound(2, 5))
    files = property(lambda self: [write_sound("surf.flac")])
    bad_raws = ("nowhere.wav", b"RIFF", np.array([]))


class TestAudioOfHtsat(ModalityContract):
    modality = Audio(htsat=HTSAT)
    raws = (sound(0, 1), sound(1, 11))
    bad_raws = ("nowhere.wav", np.array([np.inf]))


class TestAudioOfCrops(ModalityContract):
    modality = Audio(timm=RESNET, seconds=2, hop_ms=20, crops=3, loudness=-23)
    one_layout = False
    raws = (sound(0, 1), sound(1, 2), sound(2, 5))
    bad_raws = ("nowhere.wav", np.array([]))


class TestAudioOfFusedHtsat(ModalityContract):
    modality = Audio(htsat={**HTSAT, "fused": True})
    raws = (sound(0, 1), sound(1, 11), sound(2, 14))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_defaults_are_the_published_choice_and_survive_a_bundle(module):
    (cls,) = module.geobind_modalities()
    modality = cls()
    again = cls.model_validate(json.loads(modality.model_dump_json()))
    assert again == modality == pickle.loads(pickle.dumps(modality))
    chosen = modality.htsat if cls is Audio else modality.clip
    assert chosen.pretrained == ("laion/clap-htsat-unfused" if cls is Audio else "openai")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_option_is_described(module):
    (cls,) = module.geobind_modalities()
    schema = json.dumps(cls.model_json_schema())
    definitions = [cls.model_json_schema(), *cls.model_json_schema().get("$defs", {}).values()]
    assert schema
    for definition in definitions:
        for name, option in definition["properties"].items():
            assert option.get("description"), f"{definition['title']}.{name}"


@pytest.mark.parametrize("options", [{"timm": RESNET}, {"timm": RESNET, "channels": 12}, {"clip": CLIP}])
def test_options_survive_a_bundle_whichever_encoder_was_chosen(options):
    modality = Satellite(**options)
    assert Satellite(**json.loads(modality.model_dump_json())) == modality


def test_what_was_worked_out_is_no_option():
    modality = Satellite(clip=CLIP)
    before = modality.model_dump()
    assert modality.spec.size == 32
    assert modality.model_dump() == before
    assert pickle.loads(pickle.dumps(modality)).spec == modality.spec


def test_one_clip_serves_three_modalities(tmp_path):
    """The image towers of a photo and of a tile start equal; the text tower shares their space."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**CLIP["model"]).eval()
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "clip.safetensors"
    )
    clip = {**CLIP, "pretrained": str(tmp_path)}
    photo, tile = (cls(clip=clip).encoder(32).eval() for cls in (GroundImage, Satellite))
    raw = image(0, 40, 40, 3)
    batch = GroundImage(clip=clip).prepare(raw)[None]
    assert torch.equal(batch[0], Satellite(clip=clip).prepare(raw))
    assert torch.equal(photo(batch), tile(batch))
    tile.trunk.proj.data.zero_()
    assert photo.trunk.proj.any()
    tokens = Text(clip=clip).prepare("a river")[None]
    assert torch.allclose(Text(clip=clip).encoder(32).eval()(tokens), model.encode_text(tokens), atol=1e-5)


def test_augmentation_happens_only_in_training():
    strong = {"random_resized_crop": [0.2, 0.4], "jitter": 0.9}
    raw = image(0, 64, 64, 3)
    plain = GroundImage(clip=CLIP).prepare(raw)
    modality = GroundImage(clip=CLIP, augment=strong)
    assert torch.equal(modality.prepare(raw), plain)
    assert not torch.equal(modality.prepare(raw, training=True), plain)
    assert torch.equal(GroundImage(clip=CLIP).prepare(raw, training=True), plain)


def test_a_photo_is_not_turned_upside_down():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        GroundImage(clip=CLIP, augment={"rotations": True})


@pytest.mark.parametrize("cls", [Satellite, Audio])
def test_a_trainable_tower_gets_a_head_of_the_width_asked(cls):
    assert cls(timm=RESNET).encoder(48).head.out_features == 48


def test_a_frozen_tower_without_pretrained_weights_may_have_a_new_head():
    """The stand-in for CLIP's pretraining: random weights that a recipe lifts to trainable."""
    assert Text(clip=CLIP).encoder(16).head.out_features == 16
    with pytest.raises(RecipeError, match="gives 32 numbers, the recipe's width is 16"):
        Text(clip=CLIP, head="identity").encoder(16)


def test_importing_the_built_ins_imports_nothing_heavy():
    names = ", ".join(module.__name__ for module in MODULES)
    heavy = ("torch", "timm", "open_clip", "transformers", "torchaudio", "numpy")
    code = f"import sys, {names}; sys.exit(', '.join(set({heavy}) & set(sys.modules)) or None)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
