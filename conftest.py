"""Runs the Python blocks of README.md and docs/, each document from top to bottom in a folder of its own."""

import os
import subprocess
import sys

import pytest
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

# Threads of the two test processes that spin while they wait would take the cores from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Files whose tests run in one process: documents, and tests that start processes once and look at them often.
TOGETHER = (".md", "_ranks.py", "_runs.py", "test_accelerator.py")

# Three stages of a moment each: what the README's first command makes, small.
QUICK = ["data.toyearth.places=48", "data.toyearth.held_out=16"]
QUICK += [f"stages.{i}.{change}" for i in range(3) for change in ("batch_size=16", "epochs=1")]


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with `runs/three_modal`, as `geobind run three_modal` leaves it."""
    folder = tmp_path_factory.mktemp("reader")
    sets = [word for change in QUICK for word in ("--set", change)]
    subprocess.run([sys.executable, "-m", "geobind", "run", "three_modal", *sets], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def reader(request, tmp_path_factory):
    """The working folder of somebody who follows a document."""
    needs_run = "runs/three_modal" in request.node.path.read_text(encoding="utf-8")
    folder = request.getfixturevalue("runs") if needs_run else tmp_path_factory.mktemp("reader")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    yield folder
    patch.undo()


def pytest_collection_modifyitems(items):
    """Mark the blocks of documents that need a trained run as slow."""
    texts = {
        path: path.read_text(encoding="utf-8")
        for path in {item.path for item in items}
        if path.suffix == ".md"
    }
    for item in items:
        if "runs/three_modal" in texts.get(item.path, ""):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep together what builds on each other, or shares what takes long: blocks of a document, launches."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return path if path.endswith(TOGETHER) else nodeid

    return ByFile(config, log)


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser(language="python", evaluator=PythonEvaluator())],
    patterns=["README.md", "docs/*.md"],
    # tests/ run these two themselves, with a plugin installed and with their console blocks.
    excludes=["docs/tutorial.md", "docs/data.md"],
    fixtures=["reader"],
).pytest()
