"""Text encoders of transformers from a folder: embedded as the library does, and carried by bundles."""

import base64
import json
import shutil
import zlib

import pytest
import torch
from pydantic import ValidationError

from geobind.binder import Binder
from geobind.errors import CheckpointError, DataError, RecipeError
from geobind.export import export_encoder
from geobind.modality import BUNDLED
from geobind.testing import ModalityContract
from geobind.towers import transformer
from geobind_text import Text

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = [
    "a",
    "river",
    "church",
    "with",
    "red",
    "roof",
    "quiet",
    "the",
    "sea",
    "##s",
    "##side",
    "b",
    "c",
    "d",
    "z",
]
TEXTS = ["a river", "a church with a red roof, the quiet seaside", "rivers"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
KINDS = {
    "bert": (transformers.BertConfig, {"max_position_embeddings": 40}),
    "roberta": (transformers.RobertaConfig, {"max_position_embeddings": 34, "pad_token_id": 1}),
    "mpnet": (transformers.MPNetConfig, {"max_position_embeddings": 34}),
    "electra": (transformers.ElectraConfig, {"max_position_embeddings": 32, "embedding_size": 16}),
}


def save_model(folder, kind="bert"):
    """Write a tiny random model with a tokenizer of its own, as save_pretrained does."""
    torch.manual_seed(0)
    vocabulary = {word: n for n, word in enumerate(["[PAD]", "<pad>", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
    )
    tokenizer.enable_padding(length=1000)  # what a file says of padding is not what is done
    make, more = KINDS[kind]
    model = transformers.AutoModel.from_config(make(vocab_size=len(vocabulary), **SMALL, **more)).eval()
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return model, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("model")
    save_model(where)
    return where


class TestTransformerText(ModalityContract):
    raws = ("a river", "a church with a red roof", "the quiet sea")
    bad_raws = ("", "   ", 3, "\u200b")
    long_raws = ("a b c d a b then other words", "a b c d a z then other words")

    @pytest.fixture(autouse=True, scope="class")
    def made(self, folder):
        type(self).modality = Text(transformer={"folder": str(folder), "length": 8})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_texts_embed_as_transformers_embeds_them(tmp_path, kind, pooling):
    model, tokenizer = save_model(tmp_path, kind)
    tokenizer.no_padding()
    modality = Text(transformer={"folder": str(tmp_path), "pooling": pooling, "length": 32})
    long = " ".join(WORDS[:9] * 20)
    with torch.no_grad():
        wanted = []
        for text in [*TEXTS, long]:
            tokenizer.enable_truncation(32)
            ids = torch.tensor([tokenizer.encode(text).ids])
            states = model(input_ids=ids).last_hidden_state[0]
            wanted.append(states.mean(0) if pooling == "mean" else states[0])
        batch = torch.stack([modality.prepare(text) for text in [*TEXTS, long]])
        assert torch.allclose(modality.encoder(32).eval()(batch), torch.stack(wanted), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "positions"), [("bert", 40), ("roberta", 32), ("mpnet", 32), ("electra", 32)]
)
def test_no_more_tokens_are_read_than_the_model_has_positions(tmp_path, kind, positions):
    save_model(tmp_path, kind)
    modality = Text(transformer={"folder": str(tmp_path), "length": 512})
    tokens = modality.prepare("a river " * 500)
    assert tokens.shape == (positions,)
    assert torch.isfinite(modality.encoder(32).eval()(tokens[None])).all()


def test_what_sentence_transformers_states_is_taken(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    options = Text(transformer={"folder": str(tmp_path)}).transformer
    assert (options.pooling, options.length) == ("cls", 20)
    assert Text(transformer={"folder": str(folder)}).transformer.pooling == "mean"
    assert Text(transformer={"folder": str(tmp_path), "pooling": "mean"}).transformer.pooling == "mean"


def test_a_bundle_loads_where_the_folder_is_not(folder, tmp_path):
    here = tmp_path / "model"
    shutil.copytree(folder, here)
    binder = Binder({"text": Text(transformer={"folder": str(here)}, head="linear")}, 16, seed=0)
    wanted = binder.embed("text", TEXTS)
    binder.save(tmp_path / "bundle")
    shutil.rmtree(here)
    again = Binder.load(tmp_path / "bundle")
    assert torch.equal(again.embed("text", TEXTS), wanted)
    assert str(tmp_path) not in (tmp_path / "bundle" / "binder.json").read_text()


def test_weights_saved_for_another_task_are_found_behind_its_name(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    wanted = Text(transformer={"folder": str(folder)}).encoder(32).state_dict()
    config = transformers.BertConfig.from_pretrained(folder)
    other = transformers.BertForMaskedLM(config)
    other.bert.load_state_dict(transformers.BertModel.from_pretrained(folder).state_dict(), strict=False)
    other.save_pretrained(tmp_path)
    got = Text(transformer={"folder": str(tmp_path)}).encoder(32).state_dict()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


def test_a_long_text_is_cut_before_it_is_tokenised(folder, monkeypatch):
    seen = []

    class Counting:
        def encode(self, text):
            seen.append(text)
            raise ValueError("counted")

    monkeypatch.setattr(transformer, "_tokenizer", lambda packed, length: Counting())
    modality = Text(transformer={"folder": str(folder), "length": 16})
    for text in ("x" * 900_000, "a " * 400_000):
        with pytest.raises(DataError, match="cannot be tokenised: counted"):
            modality.prepare(text)
    assert [len(text) for text in seen] == [250, 16 * 50]


def test_a_frozen_transformer_of_another_width_asks_for_a_head(folder):
    with pytest.raises(
        RecipeError, match="gives 32 numbers, the recipe's width is 16: set width: 32 or head"
    ):
        Text(transformer={"folder": str(folder)}).encoder(16)


def changed(folder, name, change):
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "config.json",
            lambda c: c.update(model_type="vit"),
            "its model_type is 'vit'; encoders",
        ),
        ("config.json", lambda c: c.pop("model_type"), "its model_type is None"),
        ("config.json", lambda c: c.update(auto_map={"AutoModel": "modeling.Mine"}), "code .* of its own"),
        ("config.json", lambda c: c.update(quantization_config={"bits": 4}), "code or kernels of its own"),
        ("config.json", lambda c: c.update(hidden_act="/etc/passwd"), "is not a plain word"),
        ("config.json", lambda c: c.update(num_hidden_layers=10**9), "a finite number up to"),
        (
            "tokenizer.json",
            lambda t: t.update(
                normalizer={
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"}]
                    * 9,
                }
            ),
            "makes texts up to 1000000000 times as long",
        ),
    ],
)
def test_a_folder_that_is_no_plain_text_encoder_is_refused(folder, tmp_path, name, change, message):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    changed(tmp_path, name, change)
    with pytest.raises(ValidationError, match=message):
        Text(transformer={"folder": str(tmp_path)})


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("{", "is not JSON"), ("[]", "must hold a mapping")]
)
def test_a_folder_without_its_files_is_refused_by_their_name(folder, tmp_path, name, content, message):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValidationError, match=f"{name}: {message}"):
        Text(transformer={"folder": str(tmp_path)})


def test_weights_that_are_pickles_or_anothers_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    modality = Text(transformer={"folder": str(tmp_path)})
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="its weights are no safetensors"):
        modality.encoder(32)
    (tmp_path / "pytorch_model.bin").unlink()
    other = transformers.BertModel(
        transformers.BertConfig(vocab_size=20, **{**SMALL, "num_hidden_layers": 1})
    )
    config = (tmp_path / "config.json").read_text()
    other.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"the weights are not this model's: missing .*layer\.1"):
        modality.encoder(32)


def test_a_card_cannot_name_a_folder_nor_a_tokenizer_that_fills_memory(folder):
    with pytest.raises(ValidationError, match="names a folder, which a bundle cannot"):
        Text.model_validate({"transformer": {"folder": str(folder)}}, context={BUNDLED: True})
    options = Text(transformer={"folder": str(folder)}).model_dump(mode="json")
    assert Text.model_validate(options, context={BUNDLED: True}).model_dump(mode="json") == options
    for tokenizer in (base64.b64encode(zlib.compress(b" " * (2**26 + 1))).decode(), "not packed", "AAAA"):
        options["transformer"]["tokenizer"] = tokenizer
        with pytest.raises(ValidationError, match=r"not the packed content of a tokenizer\.json"):
            Text.model_validate(options, context={BUNDLED: True})


def test_a_tokenizer_that_cannot_be_read_is_an_error_of_the_data(folder):
    options = Text(transformer={"folder": str(folder)}).model_dump(mode="json")
    options["transformer"]["tokenizer"] = base64.b64encode(zlib.compress(b'{"version": "1.0"}')).decode()
    with pytest.raises(DataError, match="the tokenizer of this text encoder cannot be read"):
        Text.model_validate(options).prepare("a river")


def test_one_encoder_is_chosen(folder):
    assert Text().transformer is None
    assert Text(transformer={"folder": str(folder)}).clip is None
    assert Text(transformer={"folder": str(folder)}).requires().keys() == {"transformers"}
    assert Text().requires() == {}
    with pytest.raises(ValidationError, match="give either clip or transformer"):
        Text(clip=Text().clip.model_dump(), transformer={"folder": str(folder)})


@pytest.mark.parametrize("kind", ["bert", pytest.param("roberta", marks=pytest.mark.slow)])
def test_a_transformer_is_exported_for_texts_of_any_length(tmp_path, kind):
    save_model(tmp_path, kind)
    binder = Binder({"text": Text(transformer={"folder": str(tmp_path), "length": 24})}, 32, seed=0)
    long = " ".join(WORDS[:9] * 20)
    result = export_encoder(binder, "text", tmp_path / "text.pt2", samples=[*TEXTS, long])
    assert result.largest_difference < 1e-6


def test_random_weights_of_the_same_architecture_are_a_baseline(folder):
    read, fresh = (
        Binder({"text": Text(transformer={"folder": str(folder), "pretrained": known})}, 32, seed=0)
        for known in (True, False)
    )
    shapes = [
        {name: tensor.shape for name, tensor in binder.encoders["text"].state_dict().items()}
        for binder in (read, fresh)
    ]
    assert shapes[0] == shapes[1]
    assert not torch.allclose(read.embed("text", TEXTS), fresh.embed("text", TEXTS))
    again = Binder({"text": Text(transformer={"folder": str(folder), "pretrained": False})}, 32, seed=0)
    assert torch.equal(fresh.embed("text", TEXTS), again.embed("text", TEXTS))
