"""Fixtures of planning: the toy modalities, and a cache folder of their own."""

import pytest
import torch
import toy

from geobind import plugins


@pytest.fixture
def toys(monkeypatch, tmp_path):
    """The toy modalities as if installed, and an empty cache."""
    monkeypatch.setattr(plugins, "registry", toy.registry)
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
