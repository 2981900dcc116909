"""The example plugin as if it were installed, and the folder of real data where there is one."""

import os
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGIN = REPOSITORY / "examples" / "geobind-modality-yamnet"
DIST_INFO = "geobind_modality_yamnet-0.1.0.dist-info"

# At import time, because the classes under test are collected before any fixture runs.
sys.path[:0] = [str(PLUGIN), str(REPOSITORY / "examples" / "real_data")]


@pytest.fixture(scope="package", autouse=True)
def installed(tmp_path_factory):
    """Give the plugin the metadata that pip would write, read from its own pyproject.toml."""
    import tomllib

    from geobind import plugins

    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    entries = "\n".join(f"{name} = {module}" for name, module in project["entry-points"]["geobind"].items())
    site = tmp_path_factory.mktemp("site")
    (site / DIST_INFO).mkdir()
    (site / DIST_INFO / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (site / DIST_INFO / "entry_points.txt").write_text(f"[geobind]\n{entries}\n")
    sys.path.insert(0, str(site))
    plugins.registry.cache_clear()
    yield
    sys.path.remove(str(site))
    plugins.registry.cache_clear()


@pytest.fixture(scope="session")
def data():
    folder = Path(os.environ.get("GEOBIND_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "SOURCES.md").is_file():
        pytest.skip("the folder of real data is not here; name it in GEOBIND_TEST_DATA")
    return folder
