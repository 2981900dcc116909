"""Deterministic mode: what it allows, what it says, and that it leaves nothing behind."""

import os

import pytest
import torch
import toy
from torch import nn

from geobind.errors import TrainingError
from geobind.training.interruption import deterministic_algorithms
from geobind.training.run import run

pytestmark = pytest.mark.usefixtures("toy_registry")


def state():
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    return torch.are_deterministic_algorithms_enabled(), flags, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_it_is_on_inside_and_as_it_was_outside(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = state()
    with pytest.raises(ValueError), deterministic_algorithms(True):
        assert state() == (True, (True, False), ":4096:8")
        raise ValueError
    assert state() == before
    with deterministic_algorithms(False):
        assert state() == before


def test_a_workspace_that_was_chosen_is_kept(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic_algorithms(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="size of tensor"), deterministic_algorithms(True):
        torch.zeros(2) + torch.zeros(3)


def test_cublas_in_use_too_early_is_told():
    message = "Deterministic behavior was enabled, but CuBLAS ... set CUBLAS_WORKSPACE_CONFIG=:4096:8"
    with pytest.raises(TrainingError, match="start the program with CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        with deterministic_algorithms(True):
            raise RuntimeError(message)


class Scatters(nn.Module):
    """Does what has no deterministic implementation."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x_BF):
        return torch.zeros_like(x_BF[:, 0]).put_(torch.tensor([0]), x_BF[:1, 0])[:, None] + self.net(x_BF)


def test_an_operation_that_is_not_deterministic_ends_the_run_by_its_name(tmp_path, monkeypatch):
    made = toy.Left.encoder
    monkeypatch.setattr(toy.Left, "encoder", lambda *args, **more: Scatters(made(*args, **more)))
    monkeypatch.setattr("geobind.report.write_report", lambda *_, **__: None)
    options = ("fabric={accelerator: cpu, deterministic: true}", "stages.0.epochs=1")
    with pytest.raises(TrainingError) as caught:
        run(toy.recipe(tmp_path, *options), tmp_path / "run")
    assert "the operation put_ has no deterministic implementation on this device; use an encoder" in str(
        caught.value
    )
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_deterministic_run_on_a_cpu_gives_the_bits_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr("geobind.report.write_report", lambda *_, **__: None)
    bundles = []
    for said in ("false", "true"):
        (tmp_path / said).mkdir()
        fabric = f"fabric={{accelerator: cpu, deterministic: {said}}}"
        recipe = toy.recipe(tmp_path / said, fabric, "stages.0.epochs=1")
        bundles.append((run(recipe, tmp_path / said / "run").bundle / "model.safetensors").read_bytes())
    assert bundles[0] == bundles[1]
