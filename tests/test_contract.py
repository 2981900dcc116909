"""Every modality on this machine keeps the contract, with encoders small enough to build in a moment."""

import numpy as np
import pytest

from geobind import plugins
from geobind.testing import ModalityContract
from geobind.testing.contract import TESTS

CLIP = {
    "model": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "pretrained": False,
}
TIMM = {"model": "test_vit", "pretrained": False}
HTSAT = {
    "pretrained": False,
    "config": {
        "patch_embeds_hidden_size": 8,
        "num_attention_heads": [1, 1, 1, 1],
        "depths": [1, 1, 1, 1],
        "hidden_size": 64,
        "projection_dim": 16,
    },
}
RATE = 8000


def image(bands, seed):
    return np.random.default_rng(seed).integers(0, 256, (bands, 40, 60), dtype=np.uint8)


def tone(hertz, seconds):
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32), RATE


def then(*tones):
    return np.concatenate([samples for samples, _ in tones]), RATE


IMAGES = {"raws": [image(3, 0), image(3, 1)], "bad_raws": ["no_such.png", b"GIF89a", np.zeros((2, 2, 2, 2))]}
WORDS = "a road by a river in a valley under a high hill with"  # 13, of the 14 that this context has room for
TEXTS = {
    "raws": ["a quiet harbour", "dense forest, seen from above"],
    "bad_raws": ["", b"\xff\xfe\xfa", 7],
    "long_raws": [f"{WORDS} {last} and some more" for last in ("snow", "grass", "trees")],
}
SOUNDS = {"raws": [tone(440, 1), tone(1760, 0.4)], "bad_raws": ["no_such.wav", b"RIFF", np.zeros(0)]}
# Of 3 s the middle 0.96 s are heard; these differ in their last 0.23 s.
LONG_SOUNDS = [then(tone(440, 1.75), tone(hertz, 0.25), tone(440, 1)) for hertz in (440, 1760)]

NUMBERS = {
    "raws": [np.array([1.0, 2, 3, 4]), [4, 3, 2, 1]],
    "bad_raws": ["no_such.npy", b"no array", [1, 2, 3], [1, 2, 3, np.inf], [np.nan] * 4, "warm"],
}

# For each modality, options that make it small, and the fields of its contract.
EXAMPLES = {
    "satellite": [
        ({"clip": CLIP}, IMAGES | {"width": 16}),
        (
            {"timm": TIMM, "size": 32, "channels": 4},
            {"raws": [image(4, 0), image(4, 1)], "bad_raws": [image(3, 0)]},
        ),
    ],
    "ground_image": [({"clip": CLIP}, IMAGES | {"width": 16}), ({"timm": TIMM, "size": 32}, IMAGES)],
    "text": [({"clip": CLIP}, TEXTS | {"width": 16})],
    "vector": [
        ({"size": 4, "hidden": [8]}, NUMBERS),
        ({"size": 4, "missing": True, "hidden": []}, NUMBERS | {"raws": [[1, 2, np.nan, 4], [1, 2, 3, 4]]}),
        ({"size": 4, "identity": True}, NUMBERS | {"width": 4}),
    ],
    "audio": [
        ({"timm": TIMM, "rate": RATE, "seconds": 0.96, "mels": 32}, SOUNDS | {"long_raws": LONG_SOUNDS}),
        ({"htsat": HTSAT}, SOUNDS | {"width": 16}),
    ],
}

INSTALLED = plugins.registry().plugins
CASES = [
    pytest.param(INSTALLED[name].cls(**options), fields, id=f"{name}-{next(iter(options))}")
    for name in INSTALLED
    for options, fields in EXAMPLES.get(name, [])
]


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize(("modality", "fields"), CASES)
def test_a_modality_keeps_its_promise(modality, fields, test):
    contract = type("Contract", (ModalityContract,), {"modality": modality, **fields})()
    getattr(contract, test)()


@pytest.mark.parametrize("name", INSTALLED)
def test_every_built_in_modality_has_an_example_here(name):
    if INSTALLED[name].source.distribution != "geobind" and name not in EXAMPLES:
        pytest.skip(f"{INSTALLED[name].source} brings its own tests")
    assert name in EXAMPLES
