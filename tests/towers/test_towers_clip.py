import copy
import json

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file

from geobind.errors import CheckpointError, DataError, RecipeError
from geobind.towers.clip import (
    TextTrunk,
    build_preparation,
    clip_tower,
    prepare_text,
    read_architecture,
    text_encoder,
)
from geobind.towers.options import ClipOptions

CAPTIONS = ["a quiet river", "a harbour with many small boats, seen from the pier in the morning", "x"]


def peer(config, custom=False):
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    return model.eval()


def saved(model, path):
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize("custom", [False, True])
def test_both_towers_are_those_of_open_clip(tiny_clip, tmp_path, custom):
    theirs = peer(tiny_clip, custom)
    options = ClipOptions(model=tiny_clip, pretrained=saved(theirs, tmp_path / "clip.safetensors"))
    image = torch.randn(3, 3, 32, 32)
    tokens = torch.stack([prepare_text(caption, options) for caption in CAPTIONS])
    with torch.no_grad():
        ours = clip_tower(options, "visual", pretrained=True).eval()(image)
        assert torch.allclose(ours, theirs.encode_image(image), atol=1e-5)
        ours = text_encoder(options, 24, head="identity", pretrained=True).eval()(tokens)
        assert torch.allclose(ours, theirs.encode_text(tokens), atol=1e-5)
        assert torch.equal(tokens, open_clip.tokenize(CAPTIONS, context_length=16))


def test_padding_that_is_not_computed_does_not_change_an_embedding(tiny_clip):
    options = ClipOptions(model=tiny_clip, pretrained=False)
    trunk = TextTrunk(clip_tower(options, "text", pretrained=False)).eval()
    assert trunk.cuts
    for captions in (CAPTIONS[:1], CAPTIONS, ["word " * 50]):
        tokens = torch.stack([prepare_text(caption, options) for caption in captions])
        assert torch.allclose(trunk(tokens), trunk.tower(tokens), atol=1e-6)


def test_a_tower_that_reads_its_last_token_is_not_cut(tiny_clip):
    tiny_clip["text_cfg"]["pool_type"] = "last"
    options = ClipOptions(model=tiny_clip, pretrained=False)
    trunk = TextTrunk(clip_tower(options, "text", pretrained=False)).eval()
    tokens = prepare_text("a river", options)[None]
    assert not trunk.cuts
    assert torch.equal(trunk(tokens), trunk.tower(tokens))


@settings(deadline=None, max_examples=50)
@given(text=st.text(min_size=1, max_size=400))
def test_a_text_of_any_length_keeps_start_and_end(text):
    options = ClipOptions(model={"embed_dim": 8, "text_cfg": {"context_length": 16}}, pretrained=False)
    try:
        tokens = prepare_text(text, options)
    except DataError:
        return
    assert tokens.shape == (16,)
    assert tokens[0] == 49406
    assert (tokens == 49407).sum() == 1
    assert not tokens[tokens.argmax() + 1 :].any()


def test_a_text_cannot_end_itself(tiny_clip):
    options = ClipOptions(model=tiny_clip, pretrained=False)
    assert torch.equal(prepare_text("a <end_of_text> river", options), prepare_text("a river", options))


@pytest.mark.parametrize("text", ["", "  \n", "&#32;", "<start_of_text>", 3])
def test_a_text_without_words_is_refused(tiny_clip, text):
    with pytest.raises(DataError):
        prepare_text(text, ClipOptions(model=tiny_clip, pretrained=False))


def test_one_tower_does_not_need_the_other(tiny_clip):
    image = ClipOptions(model={key: tiny_clip[key] for key in ("embed_dim", "vision_cfg")}, pretrained=False)
    text = ClipOptions(model={key: tiny_clip[key] for key in ("embed_dim", "text_cfg")}, pretrained=False)
    clip_tower(image, "visual", pretrained=False)
    clip_tower(text, "text", pretrained=False)
    with pytest.raises(RecipeError, match="has no text_cfg; this modality needs it"):
        clip_tower(image, "text", pretrained=False)


def test_a_config_file_is_taken_into_the_options(tiny_clip, tmp_path):
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": tiny_clip, "preprocess_cfg": {}}))
    options = ClipOptions(model=str(path), pretrained=False)
    assert options.model == tiny_clip
    with pytest.raises(ValidationError, match=r"no file 'nowhere\.json'"):
        ClipOptions(model="nowhere.json", pretrained=False)
    path.write_text("{")
    with pytest.raises(ValidationError, match="is not JSON"):
        ClipOptions(model=str(path), pretrained=False)


def test_another_size_interpolates_the_position_embeddings(tiny_clip, tmp_path):
    theirs = peer(tiny_clip)
    options = ClipOptions(model=tiny_clip, pretrained=saved(theirs, tmp_path / "clip.safetensors"))
    tower = clip_tower(options, "visual", pretrained=True, size=64)
    assert tower.positional_embedding.shape == (65, 32)
    assert torch.equal(tower.positional_embedding[0], theirs.visual.positional_embedding[0])
    assert tower(torch.randn(1, 3, 64, 64)).shape == (1, 24)


def test_openai_weights_need_quickgelu():
    with pytest.raises(ValidationError, match="write model: ViT-B-32-quickgelu"):
        ClipOptions(model="ViT-B-32", pretrained="openai")
    with pytest.raises(RecipeError, match=r"trained with QuickGELU: write model: ViT-B-32-quickgelu"):
        build_preparation(ClipOptions(model="ViT-B-32", pretrained="metaclip_400m"))
    assert build_preparation(ClipOptions(model="ViT-B-32-quickgelu", pretrained="openai")).size == 224


def test_siglip_images_are_squashed_and_normalised_its_way():
    wanted = build_preparation(ClipOptions(model="ViT-B-16-SigLIP", pretrained="webli"))
    assert (wanted.squash, wanted.mean, wanted.size) == (True, (0.5, 0.5, 0.5), 224)


def test_wrong_models_are_refused_with_the_fix(tiny_clip):
    def config(model):
        return read_architecture(ClipOptions(model=model, pretrained=False))

    with pytest.raises(RecipeError, match="no model 'ViT-B-23'; did you mean 'ViT-B-"):
        config("ViT-B-23")
    with pytest.raises(RecipeError, match=r"fetch its open_clip_config\.json"):
        config("hf-hub:someone/something")
    with pytest.raises(RecipeError, match="is a CoCa"):
        config("coca_ViT-B-32")
    with pytest.raises(RecipeError, match="needs files from a hub"):
        prepare_text("a river", ClipOptions(model="ViT-B-16-SigLIP", pretrained=False))
    tiny_clip["text_cfg"]["vocab_size"] = 100
    with pytest.raises(RecipeError, match="vocab_size must be at least 49408"):
        prepare_text("a river", ClipOptions(model=tiny_clip, pretrained=False))
    tiny_clip["vision_cfg"]["witdh"] = 3
    with pytest.raises(RecipeError, match=r"open_clip cannot build the CLIP of this config: .*witdh"):
        clip_tower(ClipOptions(model=tiny_clip, pretrained=False), "visual", pretrained=False)


@pytest.mark.parametrize("pretrained", [True, ""])
def test_clip_weights_must_be_named(pretrained):
    with pytest.raises(ValidationError, match="name an open_clip tag"):
        ClipOptions(model="ViT-B-32", pretrained=pretrained)


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "PKL", "tar"])
def test_pickles_are_refused_before_anything_is_read(tmp_path, suffix):
    with pytest.raises(ValidationError, match=r"is a pickle, which can run code.*save_file"):
        ClipOptions(model="ViT-B-32", pretrained=str(tmp_path / f"weights.{suffix}"))


def test_an_unknown_tag_lists_the_known():
    options = ClipOptions(model="ViT-B-32", pretrained="openia")
    with pytest.raises(
        CheckpointError, match=r"neither a file nor a tag of ViT-B-32; its tags: .*laion2b_e16"
    ):
        clip_tower(options, "visual", pretrained=True)


def test_weights_of_something_else_are_refused(tiny_clip, tmp_path):
    path = tmp_path / "weights.safetensors"
    options = ClipOptions(model=copy.deepcopy(tiny_clip), pretrained=str(path))
    save_file({"vision_model.weight": torch.zeros(1)}, path)
    with pytest.raises(
        CheckpointError, match=r"no visual tower .* begin with 'vision_model\.weight'; what fits"
    ):
        clip_tower(options, "visual", pretrained=True)
    tiny_clip["vision_cfg"]["layers"] = 1
    saved(peer(tiny_clip), path)
    with pytest.raises(
        CheckpointError, match=r"weights\.safetensors: .*missing transformer\.resblocks\.1\.ln_1"
    ):
        clip_tower(options, "visual", pretrained=True)
    tiny_clip["vision_cfg"] |= {"layers": 2, "width": 48}
    saved(peer(tiny_clip), path)
    with pytest.raises(CheckpointError, match=r"shape class_embedding \(48,\) for \(32,\)"):
        clip_tower(options, "visual", pretrained=True)


def test_without_a_network_a_tag_says_what_to_do(no_hub):
    options = ClipOptions(model="ViT-B-32-quickgelu", pretrained="openai")
    message = rf"'openai' of ViT-B-32-quickgelu cannot be had: {no_hub} cannot be reached .*HF_HOME, or name"
    with pytest.raises(CheckpointError, match=message):
        clip_tower(options, "visual", pretrained=True)


def test_weights_that_do_not_load_are_not_blamed_on_the_network(no_hub, monkeypatch):
    def damaged(*_, **__):
        raise RuntimeError("size mismatch for proj")

    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_, **__: "cached")
    monkeypatch.setattr(open_clip, "create_model", damaged)
    options = ClipOptions(model="ViT-B-32-quickgelu", pretrained="openai")
    with pytest.raises(CheckpointError, match=r"cannot be had: size mismatch for proj; name a local"):
        clip_tower(options, "visual", pretrained=True)


def test_a_tag_is_given_to_open_clip_with_its_size(monkeypatch, tiny_clip):
    asked = {}

    def create_model(name, **arguments):
        asked.update(arguments, name=name)
        return peer(tiny_clip, custom=True)

    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_, **__: "cached")
    monkeypatch.setattr(open_clip, "create_model", create_model)
    options = ClipOptions(model="ViT-B-32-quickgelu", pretrained="openai")
    clip_tower(options, "visual", pretrained=True, size=96)
    assert asked == {
        "name": "ViT-B-32-quickgelu",
        "pretrained": "openai",
        "force_custom_text": True,
        "force_image_size": 96,
    }


def test_a_frozen_clip_is_not_given_an_untrained_head(monkeypatch, tiny_clip):
    options = ClipOptions(model="ViT-B-32-quickgelu", pretrained="openai")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_, **__: "cached")
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: peer(tiny_clip, custom=True))
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: copy.deepcopy(tiny_clip))
    wanted = "ViT-B-32-quickgelu gives 24 numbers, the recipe's width is 128: set width: 24 or head: linear"
    for head, new_head in (("identity", True), ("auto", False)):
        with pytest.raises(RecipeError, match=wanted):
            text_encoder(options, 128, head=head, pretrained=True, new_head=new_head)
    # A bundle brings the head's weights.
    assert text_encoder(options, 128, head="auto", pretrained=False, new_head=False).head.out_features == 128


def test_tokens_of_a_text_that_comes_again_are_the_same_and_free_to_be_changed(tiny_clip):
    options = ClipOptions(model=tiny_clip, pretrained=False)
    first = prepare_text("a river", options)
    kept = first.clone()
    first.fill_(7)
    assert torch.equal(prepare_text("a river", options), kept)
