"""Exported encoders embed as the binder does, for any batch, length and size, or say why they cannot."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_towers import htsat_config
from torch import nn

from geobind.binder import Binder
from geobind.cli import main
from geobind.errors import DataError, ExportError, PluginError
from geobind.export import export_encoder, exporting, graphs
from geobind.inference import collate
from geobind.modality import Modality
from geobind_audio import Audio
from geobind_satellite import Satellite
from geobind_text import Text
from geobind_vector import Vector

WIDTH = 32
CLIP = {
    "model": {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 40, "width": 32, "heads": 2, "layers": 1},
    },
    "pretrained": False,
}
# Pooling by catavgmax: its maxima had no ONNX function for long.
RESNET = {"model": "test_resnet", "pretrained": False, "options": {"global_pool": "catavgmax"}}
HTSAT = {"pretrained": False, "config": htsat_config(WIDTH)}
KINDS = {
    "clip": Satellite(clip=CLIP),
    "timm": Satellite(timm=RESNET, size=32, channels=4),
    "text": Text(clip=CLIP),
    "sound": Audio(timm=RESNET, seconds=1, hop_ms=20),
    "vector": Vector(size=6, missing=True),
}


def bind(modality, name="m"):
    return Binder({name: modality}, WIDTH, seed=0)


def run_onnx(file, **inputs):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (embedding,) = session.run(["embeddings"], inputs)
    return torch.from_numpy(embedding)


def run_torch(file, *inputs):
    with torch.no_grad():
        return torch.export.load(file).module()(*inputs)


@pytest.mark.parametrize(
    "kind", [pytest.param("clip", marks=pytest.mark.slow), "timm", "text", "sound", "vector"]
)
def test_each_built_in_tower_embeds_as_the_binder_once_it_is_a_torch_program(kind, tmp_path):
    binder = bind(KINDS[kind])
    result = export_encoder(binder, "m", tmp_path / "m.pt2")
    assert result.largest_difference < 1e-6
    assert min(result.batch_sizes) == 1 and len(result.batch_sizes) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_built_in_tower_embeds_as_the_binder_once_it_is_onnx(kind, tmp_path):
    pytest.importorskip("onnxscript")
    result = export_encoder(bind(KINDS[kind]), "m", tmp_path / "m.onnx")
    assert result.largest_difference < 2e-6
    names = json.loads(result.input_file.read_text())
    assert names["inputs"][0]["shape"][0] == "batch"
    assert names["output"]["shape"] == ["batch", WIDTH]


class Wrapped(Vector):
    """A vector in a dict of one tensor."""

    def encoder(self, width, *, pretrained=True):
        net = super().encoder(width)
        net.register_forward_pre_hook(lambda module, args: args[0]["row"])
        return net

    def prepare(self, raw, *, training=False):
        return {"row": super().prepare(raw)}


def test_an_encoder_of_a_dict_of_one_tensor_is_given_the_dict(tmp_path):
    result = export_encoder(bind(Wrapped(size=6)), "m", tmp_path / "m.pt2")
    assert result.largest_difference < 1e-6
    assert json.loads(result.input_file.read_text())["inputs"][0]["name"] == "row"


def test_a_file_takes_longer_texts_and_larger_batches_than_it_was_traced_with(tmp_path):
    binder = bind(KINDS["text"])
    file = export_encoder(binder, "m", tmp_path / "m.pt2", samples=["snow", "rain"]).file
    texts = [" ".join(["river", "town", "boat"][: n % 4] * n) + " sea" for n in range(11)]
    tokens = collate([KINDS["text"].prepare(text) for text in texts])
    assert torch.allclose(run_torch(file, tokens), binder.embed("m", texts), atol=1e-6)


def test_beside_the_file_lies_what_it_takes_and_what_was_compared(tmp_path):
    result = export_encoder(bind(KINDS["sound"]), "m", tmp_path / "deep" / "m.pt2")
    assert result.input_file == tmp_path / "deep" / "m.pt2.json"
    told = json.loads(result.input_file.read_text())
    assert told["inputs"] == [{"name": "inputs", "shape": ["batch", 1, 64, 50], "dtype": "float32"}]
    assert told["spec"]["rate"] == 16_000
    assert "10 log10" in told["prepare"]
    assert told["parity"]["largest_difference"] == result.largest_difference
    assert told["parity"]["made_up"]


def test_an_export_off_tolerance_writes_nothing_and_names_the_difference(tmp_path, monkeypatch):
    def run_wrong(content, kind):
        run = graphs.open_graph(content, kind)
        return lambda batch: run(batch) + 3e-3

    monkeypatch.setattr(exporting, "open_graph", run_wrong)
    with pytest.raises(
        ExportError, match=r"differ from the binder's by 0\.003, more than the tolerance of 1e-05"
    ):
        export_encoder(bind(KINDS["vector"]), "m", tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_embeddings_that_are_not_finite_are_off_any_tolerance(tmp_path, monkeypatch):
    def run_broken(content, kind):
        return lambda batch: torch.full((len(batch["inputs"]), WIDTH), float("nan"))

    monkeypatch.setattr(exporting, "open_graph", run_broken)
    with pytest.raises(ExportError, match="by nan"):
        export_encoder(bind(KINDS["vector"]), "m", tmp_path / "m.pt2")


def test_a_fused_htsat_says_why_it_is_not_exported(tmp_path):
    pytest.importorskip("transformers")
    binder = bind(Audio(htsat={**HTSAT, "fused": True}))
    with pytest.raises(ExportError, match="picks the longer recordings of a batch"):
        export_encoder(binder, "m", tmp_path / "m.pt2")


@pytest.mark.slow
def test_htsat_is_exported_with_its_front_end(tmp_path):
    pytest.importorskip("transformers")
    result = export_encoder(bind(Audio(htsat=HTSAT)), "m", tmp_path / "m.pt2", front_end=True)
    assert result.largest_difference < 1e-5


class Choosing(nn.Module):
    """Takes another way for bright inputs."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(6, width)

    def forward(self, x):
        return self.layer(x) if float(x.mean()) > 0 else -self.layer(x)


class Fickle(Modality):
    name = "fickle"
    role = "trainable"
    size: int = 6

    def encoder(self, width, *, pretrained=True):
        return Choosing(width)

    def prepare(self, raw, *, training=False):
        return torch.as_tensor(np.asarray(raw, dtype=np.float32))


def test_an_encoder_whose_steps_depend_on_values_is_refused_with_its_line_and_the_fix(tmp_path):
    with pytest.raises(ExportError, match=r"cannot be traced: .*test_exporting\.py:\d+.*is_exporting"):
        export_encoder(bind(Fickle()), "m", tmp_path / "m.pt2")


class Unknown(Fickle):
    name = "unknown"
    accepts = "a file of its own kind"
    size: float = 0.5

    def prepare(self, raw, *, training=False):
        if not isinstance(raw, str):
            raise DataError("not a file of its own kind")
        return torch.full((6,), float(len(raw)))

    def encoder(self, width, *, pretrained=True):
        return nn.Linear(6, width)


def test_inputs_that_cannot_be_made_up_are_asked_for(tmp_path):
    with pytest.raises(
        ExportError, match=r"give two or more real ones with --sample .* a file of its own kind"
    ):
        export_encoder(bind(Unknown()), "m", tmp_path / "m.pt2")
    result = export_encoder(bind(Unknown()), "m", tmp_path / "m.pt2", samples=["a"])
    assert not json.loads(result.input_file.read_text())["parity"]["made_up"]


@pytest.mark.parametrize(
    ("name", "to", "words"),
    [
        ("m.bin", None, r"m\.bin: end its name in \.onnx and \.pt2"),
        ("m.onnx", "pt2", r"ends in \.onnx, and pt2 is asked for; name it m\.pt2"),
        ("m", "tflite", "no format 'tflite'; there are"),
    ],
)
def test_a_format_that_is_not_written_is_refused_before_any_work(name, to, words, tmp_path):
    with pytest.raises(DataError, match=words):
        export_encoder(bind(KINDS["vector"]), "m", tmp_path / name, to=to)


def test_a_tolerance_of_nothing_and_no_samples_are_refused(tmp_path):
    for wrong in ({"tolerance": 0.0}, {"tolerance": float("nan")}, {"samples": []}):
        with pytest.raises(DataError):
            export_encoder(bind(KINDS["vector"]), "m", tmp_path / "m.pt2", **wrong)


def test_an_unknown_modality_and_a_missing_package_are_named(tmp_path, monkeypatch):
    with pytest.raises(PluginError, match="no modality 'n'"):
        export_encoder(bind(KINDS["vector"]), "n", tmp_path / "m.pt2")
    monkeypatch.setattr(graphs, "is_installed", lambda module: False)
    with pytest.raises(PluginError, match=r"needs onnx.*geobind\[export\]"):
        export_encoder(bind(KINDS["vector"]), "m", tmp_path / "m.onnx")


def test_weights_too_large_for_onnx_are_refused_before_they_are_translated(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "_ONNX_BYTES", 10)
    with pytest.raises(ExportError, match="which holds 2 GiB; use pt2"):
        export_encoder(bind(KINDS["vector"]), "m", tmp_path / "m.onnx")


def test_onnx_files_name_their_axes_and_their_origin(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    binder = Binder.load(bind(KINDS["vector"], "vector").save(tmp_path / "bundle"))
    result = export_encoder(binder, "vector", tmp_path / "v.onnx")
    model = onnx.load(result.file)
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        2,
        6,
    ]
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["modality"] == "vector"
    assert facts["weights"] == binder.card.digests["vector"]


def test_the_command_writes_the_file_and_exits_with_2_off_tolerance(tmp_path):
    bundle = bind(KINDS["vector"], "vector").save(tmp_path / "bundle")
    out = tmp_path / "v.pt2"
    words = ["export", str(bundle), "vector", "--out", str(out)]
    done = CliRunner().invoke(main, [*words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["file"] == str(out)
    assert out.is_file()
    out.unlink()
    refused = CliRunner().invoke(main, [*words, "--tolerance", "1e-12"])
    assert refused.exit_code == 2
    assert "more than the tolerance of 1e-12" in refused.output
    assert not out.exists()


def test_int8_says_how_alike_its_embeddings_are_on_the_given_inputs(tmp_path):
    pytest.importorskip("onnxruntime")
    binder = bind(KINDS["text"])
    texts = ["deep snow", "a harbour with boats in the rain", "rain"]
    result = export_encoder(binder, "m", tmp_path / "m.onnx", samples=texts, int8=True)
    tokens_BL = torch.stack([binder.modality("m").prepare(text) for text in texts]).numpy()
    cosine_B = (run_onnx(result.file, inputs=tokens_BL) * binder.embed("m", texts)).sum(1)
    assert 0.9 < result.least_cosine <= float(cosine_B.min()) + 1e-6 and result.largest_difference > 1e-5
    described = json.loads(result.input_file.read_text())
    assert described["precision"] == "int8 in matrix products"
    assert described["parity"]["least_cosine"] == result.least_cosine


def test_int8_needs_real_inputs_and_onnx(tmp_path):
    with pytest.raises(DataError, match="int8 changes embeddings: give samples"):
        export_encoder(bind(KINDS["vector"]), "m", tmp_path / "m.onnx", int8=True)
    with pytest.raises(DataError, match="int8 is for onnxruntime"):
        export_encoder(bind(KINDS["vector"]), "m", tmp_path / "m.pt2", samples=[[1.0] * 6], int8=True)
