"""The public face: what users, documents, examples and plugins import, and may rely on."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs"))
make_reference = importlib.import_module("make_reference")
PUBLIC = make_reference.PUBLIC
# Documents that show a module outside the face, and why.
SHOWN = {
    "docs/make_reference.py": {"geobind.cli"},  # every command
    "docs/images/binding.py": {"geobind.data.contact_sheet"},  # the spectrogram of contact sheets
    "docs/report.md": {"geobind.report", "geobind.licences"},  # the report's own functions
    "docs/evaluation.md": {"geobind.recipe.embedding_sum"},  # the language of sums
    "docs/watching.md": {"geobind.bundles"},  # the stability of bundles
}
READERS = [
    path
    for top in ("README.md", "docs", "examples")
    for path in ([ROOT / top] if (ROOT / top).is_file() else sorted((ROOT / top).rglob("*")))
    if path.suffix in {".md", ".py"}
]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported(name):
    module = importlib.import_module(name)
    for word in getattr(module, "__all__", ()):
        assert getattr(module, word) is not None


def test_documents_and_examples_import_from_the_public_face_alone():
    def private(path):
        text = path.read_text(encoding="utf-8")
        used = set(re.findall(r"^ *from (geobind(?:\.\w+)*) import", text, re.MULTILINE))
        return used - set(PUBLIC) - SHOWN.get(path.relative_to(ROOT).as_posix(), set())

    assert {path.name: found for path in READERS if (found := private(path))} == {}


def test_every_public_name_is_documented():
    def silent(name):
        module = importlib.import_module(name)
        values = {word: getattr(module, word) for word in make_reference.public_names(module)}
        return {
            word for word, value in values.items() if inspect.isroutine(value) and not inspect.getdoc(value)
        }

    assert {name: found for name in PUBLIC if (found := silent(name))} == {}
