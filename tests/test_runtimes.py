"""Encoders run by onnxruntime and OpenVINO embed as torch, or say how alike; else there is an error."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from geobind import runtimes
from geobind.archive import Archive, embed_table, join_archives
from geobind.binder import Binder
from geobind.cli import main
from geobind.errors import DataError, ExportError, PluginError
from geobind.export import export_encoder, graphs
from geobind.modality import Modality
from geobind_vector import Vector

ROWS = [[float(np.sin(row * column)) for column in range(1, 7)] for row in range(20)]
RUNTIMES = ["onnxruntime", "openvino"]


def need(*packages):
    for package in ("onnx", "onnxscript", *packages):
        pytest.importorskip(package)


@pytest.fixture
def binder():
    return Binder({"vector": Vector(size=6)}, 32, seed=0)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_embeds_as_torch_in_float32_in_batches_of_any_size(binder, runtime):
    need(runtime)
    expected_ND = binder.embed("vector", ROWS)
    for size in (1, 7, 64):
        embedding_ND = binder.embed("vector", ROWS, runtime=runtime, batch_size=size)
        assert torch.allclose(embedding_ND, expected_ND, atol=1e-6)
    choice = binder.precisions["vector"]
    assert (choice.dtype, choice.reason) == ("float32", f"by {runtime}")
    assert choice.cosine == pytest.approx(1, abs=1e-6) and choice.rows == 1  # of the first batch


@pytest.mark.parametrize(("runtime", "low"), [("onnxruntime", "int8"), ("openvino", "bfloat16")])
def test_a_lower_type_states_its_least_cosine_to_torch_on_a_dozen_rows(binder, runtime, low):
    need(runtime)
    try:
        embedding_ND = binder.embed("vector", ROWS, runtime=runtime, precision=low)
    except ExportError as error:
        pytest.skip(str(error))  # a processor without bfloat16
    exact_ND = binder.embed("vector", ROWS)
    assert binder.precisions == {}
    binder.embed("vector", ROWS, runtime=runtime, precision=low)
    choice = binder.precisions["vector"]
    assert (choice.dtype, choice.rows) == (low, 12)
    assert choice.cosine == pytest.approx(float((embedding_ND * exact_ND).sum(1)[:12].min()), abs=1e-6)
    assert not torch.allclose(embedding_ND, exact_ND, atol=1e-6)


def test_an_encoder_is_compiled_once_and_again_when_its_weights_change(binder, monkeypatch):
    need("onnxruntime")
    made = []
    compile_encoder = runtimes._compile
    monkeypatch.setattr(runtimes, "_compile", lambda *args: made.append(1) or compile_encoder(*args))
    binder.runtime = "onnxruntime"
    for _ in range(2):
        binder.embed("vector", ROWS)
    assert len(made) == 1
    with torch.no_grad():
        next(binder.encoders["vector"].parameters()).mul_(-1)
    assert torch.allclose(
        binder.embed("vector", ROWS), binder.embed("vector", ROWS, runtime="torch"), atol=1e-6
    )
    assert len(made) == 2


class Two(Modality):
    """Images whose type is as they came, as 8 bits or floats, and one that takes several tensors."""

    name = "two"
    role = "trainable"

    def encoder(self, width, *, pretrained=True):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, width)

            def forward(self, batch):
                return self.layer(batch["x"].float() + batch["y"].float())

        return Net()

    def prepare(self, raw, *, training=False):
        x = torch.as_tensor(raw)
        return {"x": x, "y": torch.ones(4)}


def test_batches_of_several_tensors_and_of_another_type_are_embedded_too():
    need("onnxruntime")
    binder = Binder({"two": Two()}, 8, seed=0)
    random = np.random.default_rng(0)
    bytes_, floats = random.integers(0, 9, (3, 4), dtype=np.uint8), random.normal(size=(3, 4)).astype("f4")
    for raws in ([*bytes_], [*floats]):
        embedding_ND = binder.embed("two", raws, runtime="onnxruntime")
        assert torch.allclose(embedding_ND, binder.embed("two", raws), atol=1e-6)


def test_inputs_of_ever_other_shapes_are_refused_as_each_is_compiled(binder, monkeypatch):
    compiled = runtimes.CompiledEncoders()
    monkeypatch.setattr(runtimes, "_compile", lambda encoder, tensors, *_: encoder)
    with torch.no_grad(), pytest.raises(ExportError, match="'m': its inputs have more than 8 shapes"):
        for length in range(1, 10):
            encoder = nn.AdaptiveAvgPool1d(4)
            compiled.take("m", encoder, torch.ones(3, length), "onnxruntime", "float32")


class Fickle(Vector):
    """A vector whose encoder takes another way for bright inputs."""

    name = "fickle"

    def encoder(self, width, *, pretrained=True):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(6, width)

            def forward(self, x):
                x = x[:, 0]
                return self.layer(x) if float(x.mean()) > 0 else -self.layer(x)

        return Net()


def test_an_encoder_that_cannot_be_traced_is_named(binder):
    need("onnxruntime")
    with pytest.raises(ExportError, match="'f' does not run in onnxruntime: the encoder cannot be traced"):
        Binder({"f": Fickle(size=6, missing=True)}, 8).embed("f", ROWS, runtime="onnxruntime")


def test_a_runtime_that_embeds_otherwise_is_refused_in_float32(binder, monkeypatch):
    need("onnxruntime")
    monkeypatch.setattr(runtimes, "_SAME", 2)
    with pytest.raises(ExportError, match="'vector' embeds otherwise in onnxruntime: its least cosine"):
        binder.embed("vector", ROWS, runtime="onnxruntime")


@pytest.mark.parametrize(
    ("runtime", "precision", "words"),
    [
        ("tensorrt", "float32", "runtime must be torch, onnxruntime, openvino, not 'tensorrt'"),
        (
            "torch",
            "int8",
            "precision int8 is of the runtime onnxruntime; torch computes in float32, bfloat16",
        ),
        (
            "onnxruntime",
            "bfloat16",
            "is of the runtime torch or openvino; onnxruntime computes in float32, int8",
        ),
        ("openvino", "auto", "precision auto is of the runtime torch"),
    ],
)
def test_a_runtime_or_a_precision_that_it_has_not_is_refused(binder, tmp_path, runtime, precision, words):
    with pytest.raises(DataError, match=words):
        binder.embed("vector", ROWS, runtime=runtime, precision=precision)
    with pytest.raises(DataError, match=words):
        Binder.load(tmp_path, runtime=runtime, precision=precision)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(binder, monkeypatch):
    monkeypatch.setattr(graphs, "is_installed", lambda module: module != "openvino")
    with pytest.raises(PluginError, match=r"needs openvino, which is not installed: .*geobind\[openvino\]"):
        binder.embed("vector", ROWS, runtime="openvino")


def test_a_batch_elsewhere_than_on_the_cpu_is_refused():
    compiled = runtimes.CompiledEncoders()
    batch = torch.empty(2, 10, device="meta")
    with pytest.raises(DataError, match="openvino computes on the CPU, not on meta: give the device cpu"):
        compiled.take("left", nn.Linear(10, 8), batch, "openvino", "float32")


def test_an_exported_file_runs_in_openvino_as_in_torch(binder, tmp_path):
    need("onnxruntime", "openvino")
    from openvino import Core

    file = export_encoder(binder, "vector", tmp_path / "v.onnx").file
    run = Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = torch.stack([binder.modality("vector").prepare(row) for row in ROWS])
    assert np.allclose(run({"inputs": inputs.numpy()})["embeddings"], binder.embed("vector", ROWS), atol=1e-6)


@pytest.fixture
def files(binder, tmp_path, monkeypatch):
    """Make a bundle and a table of its rows, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(
        "key,lat,lon,a,b,c,d,e,f\n"
        + "".join(f"{n},{n},{n},{','.join(map(str, row))}\n" for n, row in enumerate(ROWS))
    )
    return binder.save(tmp_path / "bundle")


COLUMNS = ("a", "b", "c", "d", "e", "f")


def test_an_archive_keeps_what_it_was_computed_in_and_by(files):
    need("onnxruntime")
    binder = Binder.load(files, runtime="onnxruntime", precision="int8")
    made = embed_table(binder, "vector", "rows.csv", "low.parquet", dtype="float32", vector=COLUMNS)
    stated = Archive.open("low.parquet", binder).metadata
    assert (stated.computed, stated.runtime) == ("int8", "onnxruntime")
    assert 0.9 < stated.cosine < 1
    assert np.allclose(
        made.read_vectors(), binder.embed("vector", ROWS, batch_size=64)[made.ids.astype(int)], atol=1e-6
    )
    exact = Binder.load(files)
    with pytest.raises(DataError, match="made of other inputs or options"):
        embed_table(exact, "vector", "rows.csv", "low.parquet", dtype="float32", vector=COLUMNS)
    embed_table(
        Binder.load(files, runtime="onnxruntime"), "vector", "rows.csv", "run.parquet", vector=COLUMNS
    )
    embed_table(exact, "vector", "rows.csv", "torch.parquet", vector=COLUMNS)
    with pytest.raises(DataError, match=r"run.parquet is in onnxruntime, torch.parquet in torch"):
        join_archives(["run.parquet", "torch.parquet"], "all.parquet")


def test_the_command_prints_and_states_the_least_cosine(files):
    need("onnxruntime")
    words = ["embed", str(files), "vector", "--data", "rows.csv", "--column", "vector=" + ",".join(COLUMNS)]
    words += ["--out", "low.parquet", "--runtime", "onnxruntime", "--precision", "int8", "--json"]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["precision"]["vector"]
    assert told["dtype"] == "int8" and told["rows"] == 12 and 0.9 < told["cosine"] < 1
    assert "vector: int8 (by onnxruntime); least cosine to float32 of 12 rows 0.99" in done.stderr
    assert Archive.open("low.parquet").metadata.cosine == told["cosine"]


def test_the_command_refuses_a_precision_of_another_runtime_before_it_reads_the_bundle(files):
    done = CliRunner().invoke(
        main, ["embed", str(files), "vector", "x", "--out", "x.npy", "--precision", "int8"]
    )
    assert done.exit_code == 2
    assert "precision int8 is of the runtime onnxruntime" in done.output
