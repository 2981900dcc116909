"""Precision, compiling and activation checkpointing in one process."""

from itertools import pairwise
from pathlib import Path

import deep
import pytest
import torch
from deep import figures
from safetensors.torch import load_file
from torch.nn import functional as F

from geobind import plugins
from geobind.binder import Binder
from geobind.errors import RecipeError, TrainingError
from geobind.training import encoder_transforms, launch, optimizer
from geobind.training.checkpoint import Checkpoint
from geobind.training.encoder_transforms import disable_checkpointing, enable_checkpointing
from geobind.training.stage import StageRun
from geobind.training.trainable import prepare_encoders
from geobind.utils.system import hash_module

pytestmark = pytest.mark.slow

SHORT = ("stages.0.steps=4", "stages.1.steps=2")


@pytest.fixture(scope="module", autouse=True)
def plain(tmp_path_factory):
    """A run without any of the options, while the modalities with blocks are as if installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "registry", deep.registry)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield deep_run(tmp_path_factory.mktemp("plain"), *SHORT)
        torch.set_num_threads(threads)


def deep_run(folder: Path, *overrides: str, **more) -> Path:
    from geobind.training.run import run

    return run(deep.recipe(folder, *overrides), folder / "run", **more).folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "bundle" / "model.safetensors")


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_what_is_frozen_is_bit_equal_after_a_stage_in_another_type(tmp_path, precision):
    folder = deep_run(tmp_path, *SHORT, f"stages.0.precision={precision}", f"stages.1.precision={precision}")
    fresh = Binder({"cold": deep.toy.Cold(), "far": deep.Far()}, 8, seed=0).encoders.state_dict()
    last = weights(folder)
    assert all(torch.equal(last[key], value) for key, value in fresh.items() if key.startswith("cold."))
    first = load_file(folder / "stages" / "01_one" / "trained.safetensors")
    moved = {key for key in first if key.startswith("far.") and not torch.equal(first[key], last[key])}
    assert moved and all(key.startswith(("far.blocks.2.", "far.head.")) for key in moved)
    assert all(value.dtype == torch.float32 for value in last.values() if value.is_floating_point())
    assert not torch.equal(first["near.head.weight"], fresh["far.head.weight"])


def test_a_temperature_moves_in_bfloat16_too(tmp_path):
    # A step of 0.003 is less than what bfloat16 tells apart at log(1/0.07).
    import csv

    with (deep_run(tmp_path, *SHORT, "stages.0.precision=bf16-true") / "metrics.csv").open() as file:
        told = [float(row["temperature"]) for row in csv.DictReader(file) if row["stage"] == "one"]
    assert len(set(told)) == len(told)


def test_a_stage_in_double_precision_gives_the_losses_of_single(plain, tmp_path):
    double = figures(deep_run(tmp_path, *SHORT, "fabric.precision=64-true"))
    assert [row[2] for row in double] == pytest.approx([row[2] for row in figures(plain)], rel=1e-5)


def test_a_frozen_encoder_that_changes_stops_a_stage_in_another_type(tmp_path):
    options = ("stages.0.anchor=cold", "stages.0.train=[far]", "stages.0.precision=bf16-true")
    with pytest.raises(TrainingError, match="stage 'one': frozen weights of cold changed"):
        deep_run(tmp_path, *SHORT, *options, "modalities.cold.drift=true")


def test_lora_in_bfloat16_is_merged_into_the_weights_as_they_were(tmp_path):
    pytest.importorskip("peft")
    train = "stages.0.train={far: {part: lora, rank: 2, head: false}}"
    folder = deep_run(
        tmp_path,
        *SHORT,
        train,
        "stages.1.train=[near]",
        "stages.1.anchor=near",
        "stages.0.precision=bf16-true",
    )
    fresh = Binder({"near": deep.Near(), "far": deep.Far()}, 8, seed=0).encoders.state_dict()
    after = load_file(folder / "stages" / "01_one" / "trained.safetensors")
    moved = {key for key in after if not torch.equal(after[key], fresh[key])}
    assert moved == {f"far.blocks.{i}.{layer}.weight" for i in range(3) for layer in ("up", "down")}


@pytest.mark.parametrize(
    ("backend", "options"), [("aot_eager", ()), ("eager", ("fabric.checkpoint_activations=true",))]
)
def test_compiled_encoders_give_the_losses_and_names_of_plain_ones(
    plain, tmp_path, monkeypatch, backend, options
):
    monkeypatch.setattr(
        encoder_transforms, "_BACKEND", backend
    )  # inductor's C++ compiler takes too long for a test
    compiled = deep_run(tmp_path, *SHORT, "fabric.compile=true", *options)
    assert [row[2] for row in figures(compiled)] == pytest.approx(
        [row[2] for row in figures(plain)], rel=1e-5
    )
    a, b = weights(plain), weights(compiled)
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[key], b[key], atol=1e-5, rtol=0) for key in a)
    state = compiled / "stages" / "01_one" / "trained.safetensors"
    assert not any("_orig_mod" in key for key in load_file(state))


def test_a_stage_that_fails_leaves_plain_encoders_without_its_adapters_and_type(tmp_path):
    pytest.importorskip("peft")
    train = "stages.0.train={far: {part: lora, rank: 2, head: false}}"
    recipe = deep.recipe(tmp_path, train, "stages.0.precision=bf16-true")
    binder = Binder({"near": deep.Near(), "far": deep.Far()}, 8, seed=0)
    before = {name: hash_module(encoder) for name, encoder in binder.encoders.items()}
    job = StageRun(recipe, recipe.stages[0], binder, None, tmp_path, None, "key")
    fabric = launch.make_fabric(recipe.fabric, "bf16-true")
    with pytest.raises(RuntimeError, match="full"), prepare_encoders(fabric, job):
        for encoder in binder.encoders.values():
            enable_checkpointing(encoder)
            encoder_transforms.compile_encoder(encoder, "default", by_block=False)
        raise RuntimeError("memory is full")
    assert {name: hash_module(encoder) for name, encoder in binder.encoders.items()} == before
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in binder.encoders.parameters())
    assert not any(module.training or module._compiled_call_impl for module in binder.encoders.modules())
    assert {type(block) for block in binder.encoders["far"].blocks} == {deep.Block}


def test_an_encoder_that_cannot_be_compiled_is_told(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(encoder_transforms, "_BACKEND", broken)
    with pytest.raises(
        TrainingError,
        match=r"stage 'one': torch\.compile cannot compile.*: no compiler here.*set its `compile: false`",
    ):
        deep_run(tmp_path, *SHORT, "fabric.compile=true")


def test_what_is_compiled_is_gone_on_with_as_any(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_transforms, "_BACKEND", "eager")
    deep.run_one(str(tmp_path), [*SHORT, "fabric.compile=default"], halt=2)
    deep.run_one(str(tmp_path), SHORT, resume=True)
    whole, after = weights(plain), weights(tmp_path / "run")
    assert all(torch.allclose(whole[key], after[key], atol=1e-6, rtol=0) for key in whole)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_blocks_that_are_computed_again_give_the_same_gradients_and_statistics(batch_norm):
    torch.manual_seed(0)
    plain, again = deep.Deep(8, 0.3, batch_norm), deep.Deep(8, 0.3, batch_norm)
    again.load_state_dict(plain.state_dict())
    assert enable_checkpointing(again) == 3
    assert again.state_dict().keys() == plain.state_dict().keys()
    x_BF = torch.randn(6, 10)
    for encoder in (plain, again):
        torch.manual_seed(1)
        F.normalize(encoder(x_BF)).square().cumsum(1).sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    assert hash_module(plain) == hash_module(again)  # batch statistics counted the batch once
    disable_checkpointing(again)
    assert type(again.blocks[0]) is deep.Block


def test_blocks_that_are_computed_again_keep_less():
    def kept(encoder: torch.nn.Module) -> int:
        sizes = []

        def note(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            encoder(torch.randn(64, 10))
        return sum(sizes)

    plain, again = deep.Deep(8, 0.1, False), deep.Deep(8, 0.1, False)
    enable_checkpointing(again)
    assert kept(again) < kept(plain) / 2


def test_activation_checkpointing_changes_nothing_in_a_run(tmp_path, monkeypatch):
    options = (*SHORT, "modalities.far.dropout=0.2", "modalities.near.batch_norm=true")
    plain = weights(deep_run(tmp_path / "plain", *options))
    enabled, options = [], (*options, "fabric.checkpoint_activations=true")
    enable = lambda encoder: enabled.append(encoder) or enable_checkpointing(encoder)  # noqa: E731
    monkeypatch.setattr(optimizer, "enable_checkpointing", enable)
    again = weights(deep_run(tmp_path / "again", *options, "stages.1.checkpoint_activations=false"))
    assert len(enabled) == 2  # both encoders of the first stage
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[key], again[key]) for key in plain)


def test_the_scale_of_half_precision_gradients_is_gone_on_with(tmp_path, monkeypatch):
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    def half(options, precision):  # on a CPU Fabric takes bfloat16 instead
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
        return Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", "cpu", scaler))

    monkeypatch.setattr(launch, "make_fabric", half)
    deep_run(tmp_path / "whole", *SHORT)
    deep.run_one(str(tmp_path / "halted"), SHORT, halt=3)
    state = torch.load(tmp_path / "halted" / "run" / "stages" / "01_one" / "state.ckpt", weights_only=True)
    assert state["precision"]["scale"] == 2.0**13  # grown once in three steps
    deep.run_one(str(tmp_path / "halted"), SHORT, resume=True)
    assert figures(tmp_path / "halted" / "run") == figures(tmp_path / "whole" / "run")
    whole = weights(tmp_path / "whole" / "run")
    assert all(torch.equal(whole[key], value) for key, value in weights(tmp_path / "halted" / "run").items())


def test_the_clock_is_looked_at_the_less_often_the_more_time_is_left(monkeypatch, tmp_path):
    from types import SimpleNamespace

    from geobind.training import checkpoint as module

    now, asked = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "broadcast_object", lambda _, told: (asked.append(now[0]), told)[1])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    fabric = SimpleNamespace(is_global_zero=True, world_size=2)
    checkpoint = Checkpoint(fabric, tmp_path / "state.ckpt", "key", {}, optimizer, seconds=100)
    saved = []
    for step in range(50_000):
        now[0] += 0.01 if step < 25_000 else 0.1  # steps become slower
        if checkpoint.due(step):
            saved.append(now[0])
            checkpoint._saved = checkpoint._looked = now[0]
            checkpoint._look_at = checkpoint._last_look = step + 1
    assert len(asked) < 30 * len(saved)  # of 50,000 steps
    gaps = [b - a for a, b in pairwise(saved)]
    assert all(100 <= gap < 110 for gap in gaps[:1])
    assert max(gaps) < 600  # of steps ten times as long all at once
    assert all(100 <= gap < 110 for gap in gaps[-3:])


def test_processes_and_nodes_are_those_of_the_launcher_unless_the_recipe_says_them(monkeypatch):
    from geobind.recipe.schema import FabricOptions

    for name in ("SLURM_PROCID", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert launch._launcher_counts(FabricOptions()) == {}
    for name, value in (("SLURM_PROCID", "3"), ("SLURM_NTASKS_PER_NODE", "4"), ("SLURM_NNODES", "2")):
        monkeypatch.setenv(name, value)
    assert launch._launcher_counts(FabricOptions()) == {"devices": 4, "num_nodes": 2}
    assert launch._launcher_counts(FabricOptions(devices=2, num_nodes=1)) == {}
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert launch._launcher_counts(FabricOptions()) == {}


def test_a_batch_or_a_stage_that_processes_cannot_share_is_told_before_training(monkeypatch, tmp_path):
    from types import SimpleNamespace

    class Rows(list):
        having = None

    recipe = deep.recipe(tmp_path)
    with pytest.raises(RecipeError, match=r"a batch of 16 cannot be shared by 3 processes.*such as 15"):
        launch.check_batch_division(SimpleNamespace(world_size=3), recipe, [None, None])
    wheel = deep.toy.wheel(tmp_path)
    lacking = Rows(range(90))
    lacking.having = lambda names: 30
    monkeypatch.setattr(launch, "is_sharded", lambda fabric: True)
    launch.check_batch_division(SimpleNamespace(world_size=2), wheel, [lacking])
    chunked = deep.toy.wheel(tmp_path, "stages.0.chunk=4")
    with pytest.raises(RecipeError, match=r"stage 'one': some rows lack a modality.*`chunk`.*strategy: ddp"):
        launch.check_batch_division(SimpleNamespace(world_size=2), chunked, [lacking])


@pytest.mark.parametrize("word", ["fsdp", "deepspeed"])
def test_a_strategy_that_is_not_there_is_told(word):
    from pydantic import ValidationError

    from geobind.recipe.schema import FabricOptions

    with pytest.raises(ValidationError, match="'auto', 'ddp' or 'fsdp2'"):
        FabricOptions(strategy=word)
