"""Fixtures of whole runs."""

import pytest
import torch
import toy

from geobind import plugins


@pytest.fixture
def toy_registry(monkeypatch):
    """The toy modalities as if installed, and one thread, so that sums are always in one order."""
    monkeypatch.setattr(plugins, "registry", toy.registry)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
