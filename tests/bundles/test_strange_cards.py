"""Cards of strangers: loading reads the bundle alone, takes bounded memory, and says why it refuses."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from geobind.binder import Binder
from geobind.bundles.building import read_shapes
from geobind.errors import CheckpointError, GeobindError, PluginError
from geobind.plugins import registry
from geobind.utils.system import hash_tensors, peak_bytes, reset_peak

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
OPTIONS = {
    "satellite": {"timm": {"model": "test_resnet", "pretrained": False}, "size": 32},
    "ground_image": {"clip": {"model": TINY, "pretrained": False}},
    "text": {"clip": {"model": TINY, "pretrained": False}},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    plugins = registry().plugins
    modalities = {name: plugins[name].cls.model_validate(options) for name, options in OPTIONS.items()}
    return Binder(modalities, 16, seed=0).save(tmp_path_factory.mktemp("saved") / "bundle")


@pytest.fixture
def bundle(saved, tmp_path):
    """A bundle that a test may change; its weights are shared with the others until they are replaced."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in saved.iterdir():
        os.link(path, folder / path.name)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("touched the network"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("touched the network"))


def change(folder, path, value):
    """Replace what is at a dotted path of a card."""
    card = json.loads((folder / "binder.json").read_text())
    *above, last = path.split(".")
    place = card
    for key in above:
        place = place.setdefault(key, {})
    place[last] = value
    (folder / "binder.json").unlink()
    (folder / "binder.json").write_text(json.dumps(card))


def replace_weights(folder, tensors, *, digests=True):
    path = folder / "model.safetensors"
    path.unlink()
    save_file(tensors, path)
    if digests:
        for name in OPTIONS:
            own = {key.partition(".")[2]: t for key, t in tensors.items() if key.startswith(f"{name}.")}
            change(folder, f"digests.{name}", hash_tensors(own))


VISION, TEXT = "modalities.ground_image.clip.model.vision_cfg", "modalities.text.clip.model.text_cfg"
TIMM = "modalities.satellite.timm.options"
ABSURD = {
    "width": (-1, 0, 10**30, 10**8, "x", None, 1.5, [8], True),
    f"{TEXT}.layers": (2000, 0, -1, 10**30, "12", 1.5, [1], None),
    f"{TEXT}.width": (-1, 10**30, 10**8, 60_000, "x", None, {}),
    f"{TEXT}.heads": (0, -1, 3, 10**30, "x"),
    f"{TEXT}.vocab_size": (-1, 0, 10**30, 10**8, 10**6, "x", None),
    f"{TEXT}.context_length": (-1, 0, 2, 10**30, 10**8, 8000, "x", None),
    f"{TEXT}.tokenizer_kwargs": (5, "x", [1], {"clean": "x"}, {"clean": {}}),
    f"{TEXT}.mlp_ratio": (-1, 0, 10**30, float("nan"), float("inf"), "x"),
    f"{TEXT}.pool_type": (5, "x", "../x"),
    f"{TEXT}.unheard": (1, {"a": {"b": {"c": {"d": {"e": 1}}}}}),
    f"{VISION}.layers": (2000, -1, [1, 1, 1], [9, 9, 9, 10**9], 10**30),
    f"{VISION}.image_size": (-1, 0, 10**30, 60_000, "x", [32], [32, 32, 32]),
    f"{VISION}.patch_size": (0, -1, 10**30, "x", None),
    f"{VISION}.head_width": (0, 10**30, "x"),
    f"{VISION}.ls_init_value": (float("nan"), "x"),
    f"{VISION}.norm_kwargs": ({"eps": "x"}, {"unheard": 1}, 5),
    "modalities.text.clip.model.embed_dim": (-1, 0, 10**30, 10**8, "x", None),
    "modalities.text.clip.model.quick_gelu": ("x", 5),
    "modalities.text.clip.model": ("/etc/passwd", "x.json", {}, [], 5, "hf-hub:a/b", "local-dir:/tmp"),
    f"{TIMM}.norm_layer": (5, "x", "os.system", {}, []),
    f"{TIMM}.act_layer": ("x", 5, {"a": 1}),
    f"{TIMM}.features_only": (True,),
    f"{TIMM}.patch_size": (0,),
    f"{TIMM}.img_size": (0, -1, 10**9, "x", [32, 32]),
    f"{TIMM}.stem_chs": (-1, 10**30, 10**6, "x"),
    f"{TIMM}.layers": ([10**6, 1, 1, 1], [-1], 5, "x", [2000] * 4, [1] * 65),
    f"{TIMM}.channels": ([10**6] * 4, [0] * 4, "x"),
    f"{TIMM}.pretrained_cfg": ({"url": "http://x"},),
    f"{TIMM}.pretrained_cfg_overlay": ({"file": "/etc/passwd"},),
    f"{TIMM}.unheard": (1,),
    "modalities.satellite.timm.model": ("hf-hub:a/b", "/tmp", "x", 5, "", "vit_tiny_patch16_224"),
    "modalities.satellite.size": (10**9, -1, "x"),
    "modalities.satellite.channels": (10**9, 0),
    "modalities": ([], 5, {"text": 5}, {"text": []}, {"text": None}),
    "digests": ({}, [], {"text": "x"}, None),
    "over": ({"name": "..", "digests": {}}, {"name": "x/y", "digests": {}}, 5, {}),
}  # fmt: skip


@pytest.mark.parametrize("path", ABSURD)
def test_an_absurd_card_is_refused_with_its_file_in_bounded_memory(bundle, path):
    reset_peak()
    before = peak_bytes()
    original = (bundle / "binder.json").read_text()
    for value in ABSURD[path]:
        change(bundle, path, value)
        with pytest.raises((CheckpointError, PluginError)) as caught:
            Binder.load(bundle)
        said = str(caught.value)
        assert str(bundle) in said and len(said) < 2000, (value, said)
        assert any(file in said for file in ("binder.json", "model.safetensors", "adapter.safetensors")), said
        (bundle / "binder.json").write_text(original)
    assert peak_bytes() - before < 300e6
    Binder.load(bundle)  # only the card was at fault


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{VISION}.timm_model_name", "hf-hub:evil/x"),
        (f"{VISION}.timm_model_name", "local-dir:."),
        (f"{VISION}.timm_model_name", "evil/x"),
        (f"{TEXT}.hf_model_name", "evil/x"),
        (f"{TEXT}.hf_model_name", "gpt2"),
        (f"{TEXT}.hf_tokenizer_name", "evil/x"),
        (f"{TEXT}.hf_tokenizer_name", "gpt2"),
        ("modalities.text.clip.model", "xlm-roberta-base-ViT-B-32"),
        ("modalities.text.clip.model", "ViT-B-16-SigLIP"),
        ("modalities.text.clip.model.text_cfg.tokenizer_mode", "http://x"),
        ("modalities.audio", {"htsat": {"pretrained": False, "config": {"attn_implementation": "a/b"}}}),
        ("modalities.audio", {"htsat": {"pretrained": False, "config": {"_name_or_path": "a/b"}}}),
        ("modalities.audio", {"htsat": {"pretrained": False, "config": {"quantization_config": {}}}}),
        ("over", {"name": "evil/x", "digests": {}}),
    ],
)
def test_no_word_of_a_card_reaches_the_hub_or_another_folder(bundle, path, value, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet", "num_features": 8}')
    opened = []
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda p, *a, **k: opened.append(p) or read_text(p, *a, **k))
    change(bundle, path, value)
    with pytest.raises(CheckpointError):
        Binder.load(bundle)
    assert tmp_path / "config.json" not in opened


@pytest.mark.parametrize(
    "pretrained", ["evil/x", "/etc/passwd", "openai", "laion2b_s34b_b79k", "x.safetensors"]
)
def test_where_weights_once_came_from_is_not_looked_at(bundle, pretrained):
    change(bundle, "modalities.text.clip.pretrained", pretrained)
    assert Binder.load(bundle).embed("text", ["a lake"]).shape == (1, 16)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "/etc",
        "a/..",
        "../a",
        "./a",
        "a/b/c",
        "a\\b",
        "C:x",
        "a\0b",
        "x" * 300,
        "hub:a/b",
        "a/",
    ],
)
def test_a_base_is_the_name_of_a_folder_or_an_id_of_a_hub(bundle, name):
    change(bundle, "over", {"name": name, "digests": {}})
    with pytest.raises(CheckpointError, match=r"binder\.json: damaged: over\.name: "):
        Binder.load(bundle)


def test_a_base_on_a_hub_is_fetched_only_where_a_person_names_it(bundle, tmp_path):
    whole = Binder.load(bundle)
    small = whole.save(tmp_path / "small", over=bundle)
    change(small, "over.name", "someone/base")
    with pytest.raises(
        CheckpointError, match=r"a card cannot make geobind fetch; name it .*base='someone/base'"
    ):
        Binder.load(small)
    (bundle.rename(tmp_path / "base"))  # beside it, by the name alone
    assert Binder.load(small).width == 16


def nan(tensors, key):
    tensors[key].reshape(-1)[3] = float("nan")


def infinite(tensors, key):
    tensors[key].reshape(-1)[3] = -float("inf")


def whole_numbers(tensors, key):
    tensors[key] = tensors[key].int()


def bytes_of(tensors, key):
    tensors[key] = tensors[key].view(torch.uint8)


def complex_numbers(tensors, key):
    tensors[key] = tensors[key].to(torch.complex64)


def doubles(tensors, key):
    tensors[key] = tensors[key].double()


def turned(tensors, key):
    tensors[key] = tensors[key].T.contiguous()


def flat(tensors, key):
    tensors[key] = tensors[key].reshape(-1)


def emptied(tensors, key):
    tensors[key] = tensors[key][:0]


def gone(tensors, key):
    del tensors[key]


def doubled(tensors, key):
    tensors[f"{key}2"] = tensors[key].clone()


def strange(tensors, key):
    tensors[f"other.{key}"] = tensors[key].clone()


FAULTS = [
    nan,
    infinite,
    whole_numbers,
    bytes_of,
    complex_numbers,
    doubles,
    turned,
    flat,
    emptied,
    gone,
    doubled,
    strange,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_are_not_finite_retyped_or_of_another_shape_are_refused_whatever_the_card_says(
    bundle, fault
):
    tensors = load_file(bundle / "model.safetensors")
    fault(
        tensors,
        "text.trunk.tower.text_projection"
        if fault is not turned
        else "text.trunk.tower.positional_embedding",
    )
    replace_weights(bundle, tensors)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*(not finite|not this model's)"):
        Binder.load(bundle)


def test_a_narrower_type_whose_every_number_the_encoder_holds_is_no_fault(bundle):
    tensors = {
        k: v.half() if v.dtype == torch.float32 else v
        for k, v in load_file(bundle / "model.safetensors").items()
    }
    replace_weights(bundle, tensors)
    assert Binder.load(bundle).embed("text", ["a lake"]).dtype == torch.float32


def test_a_flipped_bit_is_noticed_when_a_bundle_is_loaded(bundle):
    content = bytearray((bundle / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (bundle / "model.safetensors").unlink()
    (bundle / "model.safetensors").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: '\w+': its weights are not those that the card"
    ):
        Binder.load(bundle)


@pytest.mark.parametrize("card", [{"digests": {}}, {"digests": {}, "proof": None}, {}])
def test_verify_fails_on_changed_weights_whatever_was_removed_from_the_card(bundle, card):
    from click.testing import CliRunner

    from geobind.cli import main

    assert CliRunner().invoke(main, ["verify", str(bundle)]).exit_code == 0
    tensors = load_file(bundle / "model.safetensors")
    tensors["text.trunk.tower.text_projection"][0, 0] += 1
    replace_weights(bundle, tensors, digests=False)
    for key, value in card.items():
        change(bundle, key, value)
    told = CliRunner().invoke(main, ["verify", str(bundle)])
    assert told.exit_code == 1
    assert "changed: 'text': " in told.output
    shown = json.loads(CliRunner().invoke(main, ["verify", "--json", str(bundle)]).output)
    assert shown["faults"]


def test_weights_that_are_not_finite_are_not_saved(bundle, tmp_path):
    binder = Binder.load(bundle)
    with torch.no_grad():
        next(binder.encoders["text"].parameters()).view(-1)[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"not saved: the weights text\..* are not finite"):
        binder.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_header_that_is_too_long_and_files_that_are_none_are_refused_before_they_are_read(bundle, tmp_path):
    weights = bundle / "model.safetensors"
    weights.unlink()
    with weights.open("wb") as file:
        file.write((10**8).to_bytes(8, "little") + b"{")
        file.truncate(2 * 10**8)
    with pytest.raises(CheckpointError, match="its header has 100000000 bytes"):
        Binder.load(bundle)
    for make in (
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.mkdir(),
    ):
        for name in ("model.safetensors", "binder.json"):
            folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            for path in bundle.iterdir():
                os.link(path, folder / path.name)
            (folder / name).unlink()
            make(folder / name)
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                Binder.load(folder)


def test_factors_are_compared_with_their_weight_before_they_are_multiplied():
    from geobind.bundles.delta import add_factors

    reset_peak()
    before = peak_bytes()
    for up, down in ((10**6, 10**6), (8, 10**7), (10**7, 8), (8, 7)):
        with pytest.raises(RuntimeError, match="factors of the shapes"):
            add_factors(torch.zeros(8, 8), torch.zeros(1, down), torch.zeros(up, 1))
    assert peak_bytes() - before < 300e6


def test_facts_of_a_stranger_that_no_model_card_can_be_written_of_are_named(bundle):
    from geobind.bundles.bundle import save_card

    change(bundle, "stages", [{"name": 5}])
    binder = Binder.load(bundle)
    with pytest.raises(CheckpointError, match=r"bundle/binder\.json: no model card"):
        save_card(binder, bundle)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)
PATHS = [path for path in ABSURD if path.count(".") > 1] + [
    "stages",
    "metrics",
    "data",
    "plugins",
    "proof",
    "calibration",
]


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(path=st.sampled_from(PATHS), value=JUNK)
def test_whatever_a_card_says_it_loads_or_ends_with_an_error_of_geobind(bundle, path, value):
    original = (bundle / "binder.json").read_text()
    try:
        change(bundle, path, value)
        Binder.load(bundle)
    except GeobindError:
        pass
    finally:
        (bundle / "binder.json").unlink(missing_ok=True)
        (bundle / "binder.json").write_text(original)


def test_facts_of_a_stranger_that_a_command_uses_are_named_where_they_are_none(bundle):
    from geobind.cli.options import data_options_from_cli

    for stages in ([{}], [{"anchor": "text"}], [{"losses": [5]}], [{"losses": 5}]):
        change(bundle, "stages", stages)
        with pytest.raises(CheckpointError, match=r"binder\.json: stages: not as geobind writes them"):
            _ = Binder.load(bundle).steps
    change(bundle, "recipe", {"data": {"toyearth": {"places": "many"}}})
    with pytest.raises(CheckpointError, match=r"binder\.json: recipe\.data\."):
        data_options_from_cli(Binder.load(bundle).card, "toyearth", {}, None)


def test_a_shape_that_torch_cannot_hold_is_refused_in_one_line(bundle):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}).encode()
    (bundle / "model.safetensors").unlink()
    (bundle / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors") as caught:
        read_shapes(bundle / "model.safetensors")
    assert "\n" not in str(caught.value)
