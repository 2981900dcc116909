"""Weights from packages: their names, the contract of modalities that use them, and what they know."""

import subprocess
import sys

import pytest
import timm
import torch
from geobind_modality_pretrained import EfficientNetLite0, MiniLM, name_as_timm

from geobind import pretrained
from geobind.extras import is_installed
from geobind.testing import ModalityContract
from geobind.towers import read_weights
from geobind_ground_image import GroundImage
from geobind_satellite import Satellite
from geobind_text import Text
from geobind_toyearth.learning import bind_to_facts

IMAGES = is_installed(EfficientNetLite0.needs)
TEXTS = is_installed(MiniLM.needs) and is_installed("transformers")
TIMM = {"model": "tf_efficientnet_lite0", "pretrained": "package:efficientnet_lite0"}
needs_images = pytest.mark.skipif(not IMAGES, reason=EfficientNetLite0.install)
needs_texts = pytest.mark.skipif(not TEXTS, reason=MiniLM.install)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


class TestSatellite(ModalityContract):
    modality = Satellite(timm=TIMM, size=32)
    raws = (torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 32, 32))


@needs_texts
class TestText(ModalityContract):
    modality = Text(transformer={"folder": "package:minilm"}) if TEXTS else None
    raws = ("a harbour with many boats", "dense forest", "the snowy peaks of the alps")
    bad_raws = ("", 3)


def test_the_plugin_offers_its_weights_through_the_hook():
    assert {"efficientnet_lite0", "minilm"} <= {*pretrained.registry().plugins}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.1._expand_conv.weight", "blocks.1.0.conv_pw.weight"),
        ("_blocks.8._bn2.running_var", "blocks.4.0.bn3.running_var"),
        ("_blocks.15._depthwise_conv.weight", "blocks.6.0.conv_dw.weight"),
        ("_fc.bias", "classifier.bias"),
    ],
)
def test_tensors_get_timms_names(key, name):
    assert name_as_timm(key) == name
    assert name in timm.create_model("tf_efficientnet_lite0").state_dict()


@pytest.mark.parametrize(
    "key", ["_blocks.16._bn1.weight", "_blocks.0._expand_conv.weight", "other", "_blocks"]
)
def test_a_tensor_of_another_model_is_refused(key):
    with pytest.raises((KeyError, ValueError, IndexError)):
        name_as_timm(key)


def test_importing_the_plugin_imports_no_torch():
    code = "import geobind_modality_pretrained, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@needs_images
def test_the_image_weights_are_all_of_timms_model_and_converted_once():
    path = EfficientNetLite0().path()
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert {key: value.shape for key, value in read_weights(path).items()} == {
        key: value.shape for key, value in own.items()
    }
    written = path.stat().st_mtime_ns
    assert EfficientNetLite0().path().stat().st_mtime_ns == written


@needs_images
def test_image_towers_start_from_the_weights_and_normalise_as_they_were_trained():
    stem = read_weights(EfficientNetLite0().path())["conv_stem.weight"]
    for modality in (Satellite(timm=TIMM), GroundImage(timm=TIMM, head="identity")):
        width = 1280
        state = modality.encoder(width).state_dict()
        assert any(value.shape == stem.shape and torch.equal(value, stem) for value in state.values())
        assert (modality.spec.mean, modality.spec.std) == ((0.5,) * 3, (0.5,) * 3)


@needs_texts
def test_the_text_weights_place_like_beside_like():
    text = Text(transformer={"folder": "package:minilm"})
    encoder = text.encoder(384).eval()
    words = ("the alps", "snowy mountain peaks", "boats in a harbour")
    with torch.no_grad():
        z = torch.nn.functional.normalize(encoder(torch.stack([text.prepare(one) for one in words])), dim=1)
    assert (z[0] @ z[1]).item() > (z[0] @ z[2]).item() + 0.2


@needs_texts
@pytest.mark.slow
def test_captions_of_toy_earth_are_found_by_what_is_there(tmp_path):
    minilm = {"transformer": {"folder": "package:minilm"}}
    learning = bind_to_facts("text", "captions", tmp_path, minilm, places=150, frozen=True, width=384)
    print(learning)
    assert learning.trained > 2 * learning.chance
    assert learning.untrained < 1.6 * learning.chance
