"""Binders inside other libraries embed as `Binder.embed`."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from geobind.binder import Binder
from geobind.errors import DataError, PluginError
from geobind.export import MtebEncoder, as_open_clip, as_sentence_transformer
from geobind_audio import Audio
from geobind_satellite import Satellite
from geobind_text import Text

RESNET = {"model": "test_resnet", "pretrained": False}
CLIP = {
    "model": {
        "embed_dim": 32,
        "vision_cfg": {},
        "text_cfg": {"context_length": 24, "width": 32, "heads": 2, "layers": 1},
    },
    "pretrained": False,
}
TEXTS = ["a river", "a grey harbour with boats in the rain", "snow"]


@pytest.fixture(scope="module")
def binder():
    kinds = {
        "satellite": Satellite(timm=RESNET, size=32),
        "text": Text(clip=CLIP),
        "audio": Audio(timm=RESNET, seconds=1),
    }
    return Binder(kinds, 32, seed=0)


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]


def test_open_clip_finds_its_methods_and_the_same_embeddings(binder, images):
    from open_clip import build_zero_shot_classifier

    model, preprocess, tokenize = as_open_clip(binder, image="satellite", text="text")
    with torch.no_grad():
        seen = model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
        read = model.encode_text(tokenize(TEXTS), normalize=True)
        weights = build_zero_shot_classifier(model, tokenize, TEXTS, ["{}", "a photo of {}"])
        assert model(torch.stack([preprocess(images[0])]), tokenize("snow"))[2] == pytest.approx(100)
    assert torch.equal(seen, binder.embed("satellite", images))
    assert torch.equal(read, binder.embed("text", TEXTS))
    assert weights.shape == (32, 3)


def test_sentence_transformers_encodes_the_same(binder, images):
    pytest.importorskip("sentence_transformers")
    assert np.array_equal(as_sentence_transformer(binder, "text").encode(TEXTS), binder.embed("text", TEXTS))
    model = as_sentence_transformer(binder, "satellite")
    assert np.array_equal(model.encode(images), binder.embed("satellite", images))
    assert model.similarity(model.encode(images), model.encode(images)).shape == (3, 3)


def test_a_module_of_sentence_transformers_prepares_prompts_and_decoded_sounds(binder):
    from geobind.export.wrappers import _EncoderModule

    module = _EncoderModule(binder, "text").eval()
    with torch.no_grad():
        made = module(module.preprocess(["river"], prompt="a "))["sentence_embedding"]
    assert torch.equal(made, binder.embed("text", ["a river"]))
    sound = np.random.default_rng(0).normal(0, 0.1, 9000).astype(np.float32)
    module = _EncoderModule(binder, "audio").eval()
    with torch.no_grad():
        made = module(module.preprocess([{"array": sound, "sampling_rate": 8000}]))["sentence_embedding"]
    assert torch.equal(made, binder.embed("audio", (sound, 8000)))
    assert module.modalities == ["audio"]


def test_without_sentence_transformers_the_way_to_get_it_is_named(binder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(PluginError, match="pip install sentence-transformers"):
        as_sentence_transformer(binder, "text")


def test_mteb_gets_the_same_embeddings_in_its_batches(binder, images):
    encoder = MtebEncoder(binder, text="text", image="satellite")
    made = encoder.encode([{"text": TEXTS[:2]}, {"text": TEXTS[2:]}], task_metadata=None, hf_split="test")
    assert np.allclose(made, binder.embed("text", TEXTS), atol=1e-6)  # other batches round otherwise
    both = encoder.encode([{"text": TEXTS, "image": images}])
    assert np.allclose(both, binder.compose({"text": TEXTS, "satellite": images}), atol=1e-6)
    assert torch.allclose(encoder.similarity(made, made).diagonal(), encoder.similarity_pairwise(made, made))


def test_mteb_is_told_of_inputs_and_kinds_that_it_cannot_have(binder):
    with pytest.raises(DataError, match="inputs of video; this encoder takes text"):
        MtebEncoder(binder, text="text").encode([{"video": [1]}])
    with pytest.raises(PluginError, match="MTEB has no inputs called 'words'; it has text, image, audio"):
        MtebEncoder(binder, words="text")
    with pytest.raises(PluginError, match="no modality 'txt'"):
        MtebEncoder(binder, text="txt")


def test_mteb_knows_the_encoder_for_one_of_its_own(binder):
    mteb = pytest.importorskip("mteb")
    encoder = MtebEncoder(binder, text="text")
    assert isinstance(encoder, mteb.EncoderProtocol)
    assert encoder.mteb_model_meta.embed_dim == 32
