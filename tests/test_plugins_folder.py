"""Each folder of plugins/ is a distribution of its own, as a third party would publish it."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path for path in (ROOT / "plugins").iterdir() if path.is_dir())
PAGE = (ROOT / "docs" / "modalities.md").read_text(encoding="utf-8")


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request):
    return request.param


def test_a_plugin_is_called_after_the_entry_point_that_names_its_module(folder):
    name = re.fullmatch(r"geobind-modality-([a-z][a-z0-9-]*)", folder.name)[1].replace("-", "_")
    facts = project(folder)
    assert facts["name"] == folder.name
    assert facts["entry-points"] == {"geobind": {name: f"geobind_modality_{name}"}}
    assert (folder / f"geobind_modality_{name}.py").is_file()
    assert [path.name for path in (folder / "tests").glob("*.py")] == [f"test_geobind_modality_{name}.py"]


def test_a_plugin_states_its_licence_its_readme_and_that_it_needs_geobind(folder):
    facts = project(folder)
    assert facts["license"] == "Apache-2.0"
    assert facts["readme"] == "README.md"
    assert "geobind" in facts["dependencies"]


def test_the_readme_of_a_plugin_installs_it_and_holds_a_whole_recipe(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {folder.name}\n")
    assert f"./plugins/{folder.name}" in text
    recipes = [
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]
    assert recipes  # .ci/run gives each to `geobind check`
    for recipe in recipes:
        assert {"name", "modalities", "data", "stages"} <= recipe.keys()


def test_extras_of_a_plugin_are_those_that_its_page_and_messages_name(folder):
    named = {
        word
        for path in (folder / "README.md", *folder.glob("*.py"))
        for extras in re.findall(rf"{folder.name}\[([a-z,]+)\]", path.read_text(encoding="utf-8"))
        for word in extras.split(",")
    }
    assert named == {*project(folder).get("optional-dependencies", {})}


def test_the_page_of_modalities_lists_every_plugin_and_no_other():
    listed = re.findall(
        r"^\| \[(geobind-modality-[a-z0-9-]+)\]\(\.\./plugins/\1/README\.md\)", PAGE, re.MULTILINE
    )
    assert listed == [folder.name for folder in FOLDERS]


def test_no_code_of_geobind_imports_a_plugin():
    def imported(path):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield str(node.module)

    files = [path for top in ("geobind", "modalities") for path in (ROOT / top).rglob("*.py")]
    assert files
    assert [
        path.name for path in files if any(name.startswith("geobind_modality_") for name in imported(path))
    ] == []


def test_a_recipe_without_a_plugin_of_ours_is_told_how_to_install_it():
    from geobind.extras import MODALITIES, explain_absent_modality
    from geobind.plugins import Registry

    folders = {folder.name for folder in FOLDERS} - {"geobind-modality-pretrained"}  # it adds no modality
    assert {f"geobind-modality-{name}" for name in MODALITIES} == folders
    assert all(f"./plugins/{folder}" in explain_absent_modality(folder[17:]) for folder in folders)
    assert explain_absent_modality("anything") is None
    assert "pip install ./plugins/geobind-modality-imu" in Registry("modality", {}, ()).explain("imu")
