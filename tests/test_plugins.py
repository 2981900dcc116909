"""Modalities of third parties, installed for real, and what finding them costs."""

import json
import subprocess
import sys
from textwrap import dedent

import pytest

from geobind import plugins


def test_finding_and_loading_every_plugin_does_not_import_torch(thermal):
    code = """
        import json, sys
        from geobind import plugins
        print(json.dumps([sorted(plugins.registry().plugins), "torch" in sys.modules]))
    """
    output = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, check=True).stdout
    names, torch_is_imported = json.loads(output)
    assert not torch_is_imported
    assert {"audio", "ground_image", "satellite", "text", "thermal"} <= set(names)


def test_a_third_party_plugin_is_found_as_installed(thermal):
    plugin = plugins.MODALITY.collect(plugins.list_entry_points()).plugins["thermal"]
    assert str(plugin.source) == "geobind-thermal 0.1.0 [thermal]"
    assert plugin.cls.__module__ == "geobind_thermal"
    assert plugins.registry().get("thermal") is plugin.cls


@pytest.mark.slow
def test_a_third_party_plugin_passes_its_own_tests(thermal):
    tests = thermal.parent / "source" / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(command, cwd=tests.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "18 passed, 1 skipped" in result.stdout  # long_raws: a raster is resized, whatever its size
