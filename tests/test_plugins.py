"""Plugins are found, loaded one by one and checked; a faulty one is explained and harms no other."""

import json
import subprocess
import sys
from textwrap import dedent

import pytest

from geobind import plugins
from geobind.errors import PluginError

GOOD = """
    import geobind

    class Modality(geobind.Modality):
        name = "{name}"
        role = "frozen"
        def encoder(self, width, *, pretrained=True): ...
        def prepare(self, raw, *, training=False): ...

    @geobind.hookimpl
    def geobind_modalities():
        return [Modality]
"""


def collect():
    """The registry of the plugins that tests published, and of those alone."""
    acme = [entry for entry in plugins.find() if entry.dist.name.startswith("acme-")]
    return plugins.collect(acme)


# What is wrong, the module's source, what the registry says; {module} and {path} are the module's.
FAULTS = {
    "an import that fails": (
        "import flir_sdk",
        "ModuleNotFoundError: No module named 'flir_sdk'",
    ),
    "a syntax error": (
        "class Thermal(",
        "SyntaxError: '(' was never closed ({module}.py, line 1)",
    ),
    "a misspelt hook": (
        GOOD.format(name="thermal").replace("geobind_modalities", "geobind_modality"),
        "PluginValidationError: unknown hook 'geobind_modality' in plugin <module '{module}' from '{path}'>",
    ),
    "a hook that is not marked": (
        GOOD.format(name="thermal").replace("@geobind.hookimpl", ""),
        "it provides no modality: no function geobind_modalities marked @geobind.hookimpl",
    ),
    "a hook that raises": (
        GOOD.format(name="thermal").replace(
            "return [Modality]", "raise OSError('no licence for this camera')"
        ),
        "OSError: no licence for this camera",
    ),
    "a hook that returns a class, not a list": (
        GOOD.format(name="thermal").replace("[Modality]", "Modality"),
        "TypeError: 'ModelMetaclass' object is not iterable",
    ),
    "a class that is no modality": (
        GOOD.format(name="thermal").replace("[Modality]", "[dict]"),
        "<class 'dict'> is not a subclass of geobind.Modality",
    ),
    "an instance in place of its class": (
        GOOD.format(name="thermal").replace("[Modality]", "[Modality()]"),
        "Modality() is not a subclass of geobind.Modality",
    ),
    "a method that is missing": (
        GOOD.format(name="thermal").replace("def prepare", "def prepair"),
        "Modality does not implement prepare",
    ),
    "a name that recipes cannot use": (
        GOOD.format(name="Thermal IR"),
        "Modality.name must be lower-case letters, digits and underscores, not 'Thermal IR'",
    ),
    "no name": (
        GOOD.format(name="thermal").replace('name = "thermal"', ""),
        "Modality.name must be lower-case letters, digits and underscores, not None",
    ),
    "a name that is a column of every table": (
        GOOD.format(name="time"),
        "Modality.name cannot be 'time': every data table has a column of that name",
    ),
    "an option that recipes keep for themselves": (
        GOOD.format(name="thermal").replace('role = "frozen"', 'role = "frozen"\n        data: str = ""'),
        "Modality has an option 'data', which recipes keep for themselves; rename it",
    ),
    "an import that exits": (
        "raise SystemExit('no licence')",
        "SystemExit: no licence",
    ),
    "a role that does not exist": (
        GOOD.format(name="thermal").replace('"frozen"', '"teacher"'),
        "Modality.role must be 'frozen' or 'trainable', not 'teacher'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_plugin_is_explained_and_harms_no_other(fault, publish, tmp_path):
    source, reason = FAULTS[fault]
    module = publish("acme-broken", source)
    publish("acme-sound", GOOD.format(name="sonar"))
    found = collect()
    assert list(found.plugins) == ["sonar"]
    (broken,) = found.broken
    assert str(broken.source) == "acme-broken 1.0 [broken]"
    assert broken.reason == reason.replace("{module}", module).replace(
        "{path}", str(tmp_path / "site" / f"{module}.py")
    )


def test_the_message_of_a_missing_modality_names_what_is_there_and_what_is_broken(publish):
    publish("acme-broken", "import flir_sdk")
    publish("acme-sound", GOOD.format(name="sonar"))
    with pytest.raises(PluginError) as failure:
        collect().get("sonars")
    assert str(failure.value) == (
        "no modality named 'sonars'; did you mean 'sonar'?\n"
        "  installed: sonar\n"
        "  failed to load: acme-broken 1.0 [broken]: ModuleNotFoundError: No module named 'flir_sdk'"
    )


def test_two_plugins_of_one_name_are_both_refused_and_named(publish):
    publish("acme-ir", GOOD.format(name="thermal"))
    publish("acme-thermal", GOOD.format(name="thermal"))
    publish("acme-sound", GOOD.format(name="sonar"))
    found = collect()
    assert list(found.plugins) == ["sonar"]
    with pytest.raises(PluginError) as failure:
        found.get("thermal")
    assert str(failure.value) == (
        "two plugins provide 'thermal': acme-ir 1.0 [ir] and acme-thermal 1.0 [thermal]; uninstall one\n"
        "  installed: sonar"
    )


def test_two_plugins_may_share_the_name_of_their_entry_point(publish):
    publish("acme-ir", GOOD.format(name="thermal"), entry_point="camera")
    publish("acme-sound", GOOD.format(name="sonar"), entry_point="camera")
    assert [entry.dist.name for entry in plugins.find() if entry.name == "camera"] == [
        "acme-ir",
        "acme-sound",
    ]
    assert list(collect().plugins) == ["sonar", "thermal"]


def test_a_plugin_may_provide_a_sound_modality_beside_a_faulty_one(publish):
    publish("acme-both", GOOD.format(name="sonar").replace("[Modality]", "[Modality, dict]"))
    found = collect()
    assert list(found.plugins) == ["sonar"]
    assert [broken.reason for broken in found.broken] == [
        "<class 'dict'> is not a subclass of geobind.Modality"
    ]


def test_an_empty_machine_says_how_to_install_geobind():
    with pytest.raises(PluginError) as failure:
        plugins.collect([]).get("audio")
    assert str(failure.value) == (
        "no modality named 'audio'\n  installed: none (is geobind itself installed? pip install -e .)"
    )


def test_the_built_in_modalities_come_through_entry_points_and_none_is_broken():
    found = plugins.registry()
    mine = {name for name, plugin in found.plugins.items() if plugin.source.distribution == "geobind"}
    assert mine == {"audio", "ground_image", "satellite", "text"}
    assert [broken for broken in found.broken if broken.source.distribution == "geobind"] == []


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
    plugin = plugins.collect(plugins.find()).plugins["thermal"]
    assert str(plugin.source) == "geobind-thermal 0.1.0 [thermal]"
    assert plugin.modality.__module__ == "geobind_thermal"
    assert plugins.registry().get("thermal") is plugin.modality


def test_a_third_party_plugin_passes_its_own_tests(thermal):
    tests = thermal.parent / "source" / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(command, cwd=tests.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "16 passed, 1 skipped" in result.stdout  # long_raws: a raster is resized, whatever its size
