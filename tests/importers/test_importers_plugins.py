"""Importers come through the hook, from anybody; a faulty one is explained and harms no other."""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from geobind import plugins
from geobind.errors import DataError, PluginError
from geobind.importers import registry
from geobind.importers.registry import make

GOOD = """
    from typing import ClassVar

    import geobind
    from geobind.importers import Column, Importer

    class Bells(Importer):
        name: ClassVar[str] = "{name}"
        title: ClassVar[str] = "Bells of the Alps"
        home: ClassVar[str] = "https://example.org/bells"
        licence: ClassVar[str] = "CC BY 4.0"
        citation: ClassVar[str] = "Meier, Bells, 2024"
        layout: ClassVar[str] = "*.wav"
        columns: ClassVar[dict] = {{"audio": Column("file")}}
        loud: bool = False
        many: tuple[int, ...] = ()

        def rows(self):
            yield from ({{"key": f.stem, "audio": f}} for f in sorted(self.folder().glob("*.wav")))

    @geobind.hookimpl
    def geobind_importers():
        return [Bells]
"""


def collect():
    """The registry of the plugins that tests published, and of those alone."""
    return registry.collect(entry for entry in plugins.find() if entry.dist.name.startswith("acme-"))


FAULTS = {
    "an import that fails": ("import ffmpeg9", "ModuleNotFoundError: No module named 'ffmpeg9'"),
    "a hook that is misspelt": (
        GOOD.format(name="bells").replace("def geobind_importers", "def geobind_importer"),
        "PluginValidationError: unknown hook 'geobind_importer' in plugin <module '{module}' from '{path}'>",
    ),
    "a class that is no importer": (
        GOOD.format(name="bells").replace("[Bells]", "[dict]"),
        "<class 'dict'> is not a subclass of geobind.importers.Importer",
    ),
    "a hook that returns a class, not a list": (
        GOOD.format(name="bells").replace("[Bells]", "Bells"),
        "TypeError: 'ModelMetaclass' object is not iterable",
    ),
    "a name that is no word": (
        GOOD.format(name="Bells!"),
        "Bells.name must be lower-case letters, digits and underscores, not 'Bells!'",
    ),
    "no licence and no home": (
        GOOD.format(name="bells").replace("CC BY 4.0", " ").replace("https://example.org/bells", ""),
        "Bells does not say its home, licence",
    ),
    "columns that are none": (
        GOOD.format(name="bells").replace('Column("file")', '"file"'),
        "Bells.columns must be a dict of geobind.importers.Column by name",
    ),
    "a kind that does not exist": (
        GOOD.format(name="bells").replace('Column("file")', 'Column("video")'),
        "Bells.columns must be a dict of geobind.importers.Column by name",
    ),
    "a column that every manifest has": (
        GOOD.format(name="bells").replace('"audio": Column', '"time": Column'),
        "Bells.columns has 'time', which every manifest may have; leave it out",
    ),
    "no rows": (
        GOOD.format(name="bells").replace("def rows", "def row"),
        "Bells does not implement rows",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_importer_is_explained_and_harms_no_other(fault, publish, tmp_path):
    source, reason = FAULTS[fault]
    module = publish("acme-broken", source)
    publish("acme-sound", GOOD.format(name="gongs"))
    found = collect()
    assert list(found.importers) == ["gongs"]
    (broken,) = found.broken
    path = str(tmp_path / "site" / f"{module}.py")
    assert broken.reason == reason.replace("{module}", module).replace("{path}", path)


def test_the_message_of_a_missing_importer_names_what_is_there_and_what_is_broken(publish):
    publish("acme-broken", "import ffmpeg9")
    publish("acme-sound", GOOD.format(name="gongs"))
    with pytest.raises(PluginError) as failure:
        collect().get("gong")
    assert str(failure.value) == (
        "no importer named 'gong'; did you mean 'gongs'?\n"
        "  installed: gongs\n"
        "  failed to load: acme-broken 1.0 [broken]: ModuleNotFoundError: No module named 'ffmpeg9'"
    )


def test_two_importers_of_one_name_are_both_refused(publish):
    publish("acme-one", GOOD.format(name="bells"))
    publish("acme-two", GOOD.format(name="bells"))
    with pytest.raises(PluginError, match=r"two plugins provide 'bells': acme-one 1\.0 .* uninstall one"):
        collect().get("bells")


def test_a_plugin_of_importers_alone_is_no_broken_modality(publish):
    publish("acme-sound", GOOD.format(name="gongs"))
    acme = [entry for entry in plugins.find() if entry.dist.name.startswith("acme-")]
    assert plugins.collect(acme) == plugins.Registry({}, ())


def test_the_built_in_importers_come_through_the_hook_and_say_all_they_must():
    found = registry.registry()
    mine = {name for name, item in found.importers.items() if item.source.distribution == "geobind"}
    assert mine >= {
        "sat2cap",
        "soundingearth",
        "geosound",
        "isatnat",
        "isoundnat",
        "taxabench",
        "image_folder",
    }
    assert [broken for broken in found.broken if broken.source.distribution == "geobind"] == []


def test_every_built_in_importer_has_a_section_with_licence_and_citation():
    text = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    sections = {part.split("`")[0]: part for part in text.split("\n## `")[1:]}
    for name, item in registry.registry().importers.items():
        if item.source.distribution == "geobind" and name != "image_folder":
            assert name in sections, f"docs/datasets.md has no section on {name}"
            for word in ("**Licence**", "**Citation**", f"geobind import {name} "):
                assert word in sections[name], f"docs/datasets.md says no {word} of {name}"


def test_finding_importers_imports_neither_torch_nor_arrow():
    code = """
        import sys
        from geobind import plugins
        plugins.registry()
        heavy = ("torch", "pyarrow", "pandas", "rasterio", "PIL", "numpy")
        print([name for name in heavy if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


OPTIONS = {
    "loudness": "bells has no option 'loudness'; did you mean 'loud'?",
    "sources": "bells has no option 'sources'; it has loud, many",
    "xyz": "bells has no option 'xyz'; it has loud, many",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_does_not_exist_is_told(name, publish, tmp_path):
    publish("acme-bells", GOOD.format(name="bells"))
    with pytest.raises(DataError) as failure:
        make(collect().get("bells"), [tmp_path], {name: "1"})
    assert str(failure.value) == OPTIONS[name]


def test_options_are_words_of_a_command_line(publish, tmp_path):
    publish("acme-bells", GOOD.format(name="bells"))
    cls = collect().get("bells")
    made = make(cls, [tmp_path], {"loud": "true", "many": "[1, 2]"})
    assert (made.loud, made.many, made.sources) == (True, (1, 2), (tmp_path,))
    with pytest.raises(DataError) as failure:
        make(cls, [tmp_path], {"loud": "perhaps", "many": "[1"})
    assert str(failure.value).startswith("bells: loud: Input should be a valid boolean")
    assert "many: Input should be a valid tuple" in str(failure.value)


def test_a_third_party_importer_works_as_the_built_in_ones(publish, tmp_path):
    publish("acme-bells", GOOD.format(name="bells"))
    for name in ("uri", "glarus"):
        (tmp_path / "alps").mkdir(exist_ok=True)
        (tmp_path / "alps" / f"{name}.wav").write_bytes(b"RIFF")
    command = [sys.executable, "-m", "geobind", "import", "bells", "alps", "--out", "bells.parquet", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == 2
    assert told["data"] == {"manifest": "bells.parquet"}
