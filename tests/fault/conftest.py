"""Runs of a moment for tests of what ends them early."""

import multiprocessing
import os

import pytest

if not hasattr(os, "fork"):
    pytest.skip("processes are forked", allow_module_level=True)

import fault_world
import torch

import geobind.report  # noqa: F401 - imported once, before processes are forked
from geobind import plugins
from geobind.embedding_cache import build
from geobind.report import page
from geobind.training import cache

CHANGED = [(plugins, "registry"), (build, "_SECONDS"), (cache, "_BATCH")]
CHANGED += [(page, name) for name in ("draw_png", "draw_svg", "render_template")]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Runs of a moment, in this process and in those that are forked from it."""
    patch = pytest.MonkeyPatch()
    for owner, name in CHANGED:
        patch.setattr(owner, name, getattr(owner, name))  # put back what `quick` changes
    threads = torch.get_num_threads()
    fault_world.quick()
    yield
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture
def children():
    """The processes that load data, of this test alone."""
    before = set(multiprocessing.active_children())
    return lambda: set(multiprocessing.active_children()) - before


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a table, and a cache beside it, for runs in this process."""
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    fault_world.prepare(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The results of an undisturbed run, for the overrides of a recipe."""
    found = {}

    def outcome(*overrides):
        if overrides not in found:
            folder = tmp_path_factory.mktemp("whole")
            fault_world.prepare(folder)
            ended = fault_world.live(folder, *overrides, resume=False)
            assert ended.code == 0, ended.said
            found[overrides] = fault_world.outcome(folder / "run")
        return found[overrides]

    return outcome
