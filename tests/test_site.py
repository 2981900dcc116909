"""The documentation as a site: pages made from the code, quoted messages, navigation."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
make_reference = importlib.import_module("make_reference")


@pytest.mark.parametrize("page", make_reference.PAGES)
def test_a_page_made_from_the_code_is_up_to_date(page):
    # In a process of its own: click keeps the help option that a command was first invoked with.
    script = f"import make_reference; print(make_reference.PAGES[{page!r}]().rstrip())"
    command = [sys.executable, "-c", script]
    made = subprocess.run(command, cwd=ROOT / "docs", capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == made, "run: python docs/make_reference.py"


def test_messages_that_the_faq_quotes_are_in_the_code():
    headings = re.findall(r"^### (.*)$", (ROOT / "docs/faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    quoted = [words for heading in headings for words in re.findall(r"`([^`]*)`", heading)]
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "geobind").rglob("*.py"))
    assert len(quoted) > 20
    assert [words for words in quoted if words not in code] == []


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        below = entry.values() if isinstance(entry, dict) else entry
        return [page for part in below for page in pages(part)]

    listed = pages(nav)
    assert len(listed) == len(set(listed))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(listed)
