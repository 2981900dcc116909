"""Files about the project agree with it."""

import os
import tomllib
from pathlib import Path

import pytest
import yaml

from geobind import __version__

ROOT = Path(__file__).parent.parent


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_names_this_version_and_licence():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == __version__
    licence = tomllib.loads(read("pyproject.toml"))["project"]["license"]
    assert " AND ".join(citation["license"]) == licence


def test_the_workflow_runs_what_proves_the_readme():
    steps = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["run"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("name", ["bug_report", "feature_request"])
def test_issues_ask_for_the_installation(name):
    text = read(f".github/ISSUE_TEMPLATE/{name}.md")
    assert "geobind doctor" in text
    assert yaml.safe_load(text.split("---")[1])["name"]


def test_links_of_the_pages_about_the_project_lead_somewhere():
    assert "## Deprecation" in read("CONTRIBUTING.md")
    for name in ("SECURITY.md", "CODE_OF_CONDUCT.md"):
        assert f"({name})" in read("CONTRIBUTING.md")
