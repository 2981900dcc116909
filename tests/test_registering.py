"""Plugins of every kind are found, loaded one by one and checked; a faulty one harms no other."""

import pytest
from published import DATASET, IMPORTER, KINDS, MODALITY, only_fault

from geobind.errors import PluginError

# What is wrong, what the module's source says instead, what the registry says.
FAULTS = {
    "an import that fails": (
        "import geobind\n",
        "import flir_sdk\n",
        "ModuleNotFoundError: No module named 'flir_sdk'",
    ),
    "a syntax error": (
        "class Thing(",
        "class Thing)",
        "SyntaxError: unmatched ')' ({module}.py, line {line})",
    ),
    "an import that exits": (
        "import geobind\n",
        "raise SystemExit('no licence')\n",
        "SystemExit: no licence",
    ),
    "a misspelt hook": (
        "def {hook}",
        "def {hook}_",
        "no hook '{hook}_'; did you mean '{hook}'?",
    ),
    "a hook that raises": (
        "return [Thing]",
        "raise OSError('no licence for this camera')",
        "OSError: no licence for this camera",
    ),
    "a hook that returns a class, not a list": (
        "[Thing]",
        "Thing",
        "TypeError: '{metaclass}' object is not iterable",
    ),
    "a class of no such kind": ("[Thing]", "[dict]", "<class 'dict'> is not a subclass of {base}"),
    "a method that is missing": ("def {method}(", "def other(", "Thing does not implement {method}"),
    "a name that recipes cannot use": (
        '"thermal"',
        '"Thermal IR"',
        "Thing.name must be lower-case letters, digits and underscores, not 'Thermal IR'",
    ),
    "no name": (
        'name = "thermal"',
        "",
        "Thing.name must be lower-case letters, digits and underscores, not None",
    ),
}
COLUMNS = "Thing.columns must be a dict of geobind.importers.Column by name"
# The same of what only one kind must or must not be.
OWN_FAULTS = {
    "an instance in place of its class": (
        MODALITY,
        "[Thing]",
        "[Thing()]",
        "Thing() is not a subclass of geobind.Modality",
    ),
    "a name that is a column of every table": (
        MODALITY,
        '"thermal"',
        '"time"',
        "Thing.name cannot be 'time': every data table has a column of that name",
    ),
    "an option that recipes keep for themselves": (
        MODALITY,
        'role = "frozen"',
        'role = "frozen"; data: str = ""',
        "Thing has an option 'data', which recipes keep for themselves; rename it",
    ),
    "a role that does not exist": (
        MODALITY,
        '"frozen"',
        '"teacher"',
        "Thing.role must be 'frozen' or 'trainable', not 'teacher'",
    ),
    "no hook that is marked": (
        MODALITY,
        "@geobind.hookimpl",
        "",
        "it provides no modality: no function geobind_modalities marked @geobind.hookimpl",
    ),
    "no licence and no citation": (
        IMPORTER,
        '"CC BY 4.0"\n        citation = "Meier, Bells, 2024"',
        '" "',
        "Thing does not state its licence, citation",
    ),
    "a dataset without a title": (DATASET, "Bells of the Alps", " ", "Thing does not state its title"),
    "a dataset with the name of another key": (
        DATASET,
        '"thermal"',
        '"columns"',
        "Thing.name cannot be 'columns': `data` has a key of that name",
    ),
    "columns that are none": (IMPORTER, 'Column("file")', '"file"', COLUMNS),
    "a kind of column that does not exist": (IMPORTER, 'Column("file")', 'Column("video")', COLUMNS),
    "a column that every manifest has": (
        IMPORTER,
        '"audio": Column',
        '"time": Column',
        "Thing.columns has 'time', which every manifest may have; leave it out",
    ),
}
BUILT_IN = {
    "modality": {"audio", "ground_image", "satellite", "text", "vector"},
    "importer": {
        *(
            "soundingearth",
            "geosound",
            "sat2cap",
            "isatnat",
            "isoundnat",
            "taxabench",
            "cvact",
            "cvusa",
            "vigor",
        ),
        *("rsicd", "rsitmd", "ucm_captions", "sydney_captions", "eurosat", "torchgeo"),
        *("image_folder", "stac", "webdataset"),
    },
    "dataset": {"toyearth", "earth"},
    "logger": {"tensorboard", "wandb", "mlflow"},
    "pretrained weights": set(),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_plugin_is_explained_and_harms_no_other(kind, fault, publish):
    good, bad, reason = (
        word.replace("{hook}", kind.hook).replace("{method}", kind.method) for word in FAULTS[fault]
    )
    source = kind.named("thermal")
    assert source.count(good) == 1
    said = only_fault(publish, kind, source.replace(good, bad))
    line = source.split("class Thing")[0].count("\n") + 1
    known = {"{base}": kind.base, "{line}": str(line), "{metaclass}": type(kind.kind.base).__name__}
    for word, value in known.items():
        reason = reason.replace(word, value)
    assert said == reason


@pytest.mark.parametrize("fault", OWN_FAULTS)
def test_what_only_one_kind_must_be_is_explained_too(fault, publish):
    kind, good, bad, reason = OWN_FAULTS[fault]
    source = kind.named("thermal")
    assert source.count(good) == 1
    assert only_fault(publish, kind, source.replace(good, bad)) == reason


def test_the_message_of_what_is_missing_names_what_is_there_and_what_is_broken(kind, publish):
    publish("acme-broken", "import flir_sdk")
    publish("acme-sound", kind.named("sonar"))
    with pytest.raises(PluginError) as failure:
        kind.collect().get("sonars")
    assert str(failure.value) == (
        f"no {kind.word} named 'sonars'; did you mean 'sonar'?\n"
        "  installed: sonar\n"
        "  failed to load: acme-broken 1.0 [broken]: ModuleNotFoundError: No module named 'flir_sdk'"
    )


def test_two_plugins_of_one_name_are_both_refused_and_named(kind, publish):
    publish("acme-ir", kind.named("thermal"))
    publish("acme-thermal", kind.named("thermal"))
    publish("acme-sound", kind.named("sonar"))
    found = kind.collect()
    assert list(found.plugins) == ["sonar"]
    with pytest.raises(PluginError) as failure:
        found.get("thermal")
    assert str(failure.value) == (
        "two plugins provide 'thermal': acme-ir 1.0 [ir] and acme-thermal 1.0 [thermal]; uninstall one\n"
        "  installed: sonar"
    )


def test_two_plugins_may_share_the_name_of_their_entry_point(kind, publish):
    publish("acme-ir", kind.named("thermal"), entry_point="camera")
    publish("acme-sound", kind.named("sonar"), entry_point="camera")
    found = kind.collect().plugins
    assert {name: plugin.source.distribution for name, plugin in found.items()} == {
        "sonar": "acme-sound",
        "thermal": "acme-ir",
    }


def test_a_plugin_may_provide_something_sound_beside_something_faulty(kind, publish):
    publish("acme-both", kind.named("sonar").replace("[Thing]", "[Thing, dict]"))
    found = kind.collect()
    assert list(found.plugins) == ["sonar"]
    assert [broken.reason for broken in found.broken] == [f"<class 'dict'> is not a subclass of {kind.base}"]


def test_an_empty_machine_says_how_to_install_geobind(kind):
    with pytest.raises(PluginError) as failure:
        kind.kind.collect([]).get("audio")
    assert str(failure.value) == (
        f"no {kind.word} named 'audio'\n  installed: none (is geobind itself installed? pip install -e .)"
    )


@pytest.mark.parametrize("other", KINDS)
def test_a_plugin_of_one_kind_alone_is_no_broken_plugin_of_another(kind, other, publish):
    publish("acme-sound", KINDS[other].named("sonar"))
    assert (list(kind.collect().plugins), kind.collect().broken) == (["sonar"] * (kind.word == other), ())


def test_a_plugin_that_marks_no_hook_is_broken_as_a_plugin_of_modalities_alone(publish):
    publish("acme-thermal", MODALITY.source.replace("@geobind.hookimpl", ""))
    assert {word: len(kind.collect().broken) for word, kind in KINDS.items()} == {
        "modality": 1,
        "importer": 0,
        "dataset": 0,
        "logger": 0,
        "pretrained weights": 0,
    }


def test_what_is_built_in_comes_through_entry_points_and_none_of_it_is_broken(kind):
    found = kind.registry()
    mine = {name for name, plugin in found.plugins.items() if plugin.source.distribution == "geobind"}
    assert mine == BUILT_IN[kind.word]
    assert [broken for broken in found.broken if broken.source.distribution == "geobind"] == []
