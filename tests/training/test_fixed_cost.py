"""The fixed cost of a step: nothing is done twice, or more often than anybody sees."""

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy

from geobind.data.sampler import MixedDataset, WeightedSource
from geobind.data.seeds import seed_torch
from geobind.data.sources import PluginPairs
from geobind.towers.tower import channels_last, normalise_once
from geobind.training import metrics, optimizer
from geobind.training import stage as jobs
from geobind.training.losses import InfoNCE
from geobind.training.losses.tiling import TiledGradients
from geobind.training.run import run

CPU = "fabric.accelerator=cpu"
BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"


def test_torch_draws_what_it_would_after_its_own_manual_seed():
    torch.manual_seed(2**63 - 5)
    wanted = torch.rand(7)
    seed_torch(torch.device("cpu"), 2**63 - 5)
    assert torch.equal(torch.rand(7), wanted)


@pytest.mark.parametrize(("pairs", "products"), [(16, 1), (512, 1), (513, 2), (2049, 2 * 5 * 3)])
def test_the_similarities_of_a_batch_of_up_to_2048_are_computed_once(monkeypatch, pairs, products):
    made, product = [], TiledGradients.multiply
    monkeypatch.setattr(TiledGradients, "multiply", lambda *given: made.append(1) or product(*given))
    sides = torch.nn.functional.normalize(torch.randn(2, pairs, 8), dim=2).requires_grad_()
    InfoNCE()(*sides).backward()
    assert len(made) == products


@pytest.mark.parametrize("there", [True, False])
def test_gpus_are_counted_without_nvml_where_there_is_none(tmp_path, monkeypatch, there):
    def load(name, *_):
        if not there:
            raise OSError(name)

    monkeypatch.setattr("geobind.plugins.registry", toy.registry)
    monkeypatch.setattr("geobind.report.write_report", lambda *_, **__: None)
    monkeypatch.setenv(BY_NVML, "1")
    monkeypatch.setattr(optimizer, "ctypes", SimpleNamespace(CDLL=load))
    run(toy.recipe(tmp_path, CPU, text=toy.RECIPE.split("  - {name: two")[0]), tmp_path / "run")
    assert (BY_NVML in os.environ) == there and ctypes.CDLL is not load


def test_the_rows_of_a_stage_are_planned_once(tmp_path, monkeypatch):
    monkeypatch.setattr("geobind.plugins.registry", toy.registry)
    planned, build = [], jobs.build_batch_sampler
    monkeypatch.setattr(jobs, "build_batch_sampler", lambda *given: planned.append(1) or build(*given))
    recipe = toy.recipe(tmp_path)
    rows = MixedDataset(
        (WeightedSource("right", PluginPairs(toy.Right().pairs("train", "left"), "left", "right")),)
    )
    job = jobs.StageRun(recipe, recipe.stages[0], None, rows, tmp_path, None, "key")
    assert [job.steps, job.steps, job.sampler.steps_per_epoch] == [18, 18, 6] and len(planned) == 1


def steps(count):
    for number in range(count):
        one = torch.tensor(1.0)
        yield metrics.StepRecord(number, one, one, 0.1, {"a-b": one}, {"a-b": one}, ("x",))


def test_a_bar_is_drawn_at_most_ten_times_a_second_and_at_the_end(monkeypatch):
    drawn, now = [], [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    bar = SimpleNamespace(update=lambda _, completed, status: drawn.append(completed))
    log = metrics.Recorder("one", 100, 4, metrics.MetricsFile(Path(os.devnull)), every=1)
    log._bar, log._task = bar, 0
    monkeypatch.setattr(metrics.MetricsFile, "add", lambda *_: None)
    for step in steps(100):
        now[0] += 0.024
        log.add(step, 0)
    assert drawn[-1] == 100 and drawn[:2] == [5, 10] and len(drawn) == 20


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_one_multiplication_and_addition_normalises_and_lays_channels_last(channels, dtype):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, channels, 8, 6, generator=generator)
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    mean, std = (
        torch.linspace(0.4, 0.5, channels)[:, None, None],
        torch.linspace(0.2, 0.3, channels)[:, None, None],
    )
    found = normalise_once(image, mean, std)
    exact = (image.double() / (255 if dtype == torch.uint8 else 1) - mean) / std
    assert found.dtype == torch.float32
    assert found.stride() == channels_last(exact).stride()
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("device", "scaled", "sharded", "fused"),
    [
        ("cpu", False, False, True),
        ("cpu", True, False, None),
        ("cuda", False, False, True),
        ("cuda", True, False, None),
        ("cuda", False, True, None),
        ("mps", False, False, None),
    ],
)
def test_adamw_is_fused_where_its_kernel_takes_the_gradients(device, scaled, sharded, fused):
    assert optimizer.choose_fused(device, scaled=scaled, sharded=sharded) is fused
