"""Importers of third parties, their options, and what every built-in one must say of itself."""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from published import IMPORTER

from geobind.errors import DataError
from geobind.importers import registry
from geobind.importers.registry import build_importer


def test_every_built_in_importer_has_a_section_with_licence_and_citation():
    text = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    sections = {part.split("`")[0]: part for part in text.split("\n## `")[1:]}
    for name, item in registry.registry().plugins.items():
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
    publish("acme-bells", IMPORTER.named("bells"))
    with pytest.raises(DataError) as failure:
        build_importer(IMPORTER.collect().get("bells"), [tmp_path], {name: "1"})
    assert str(failure.value) == OPTIONS[name]


def test_options_are_words_of_a_command_line(publish, tmp_path):
    publish("acme-bells", IMPORTER.named("bells"))
    cls = IMPORTER.collect().get("bells")
    made = build_importer(cls, [tmp_path], {"loud": "true", "many": "[1, 2]"})
    assert (made.loud, made.many, made.sources) == (True, (1, 2), (tmp_path,))
    with pytest.raises(DataError) as failure:
        build_importer(cls, [tmp_path], {"loud": "perhaps", "many": "[1"})
    assert str(failure.value).startswith("bells: loud: Input should be a valid boolean")
    assert "many: Input should be a valid tuple" in str(failure.value)


def test_a_third_party_importer_works_as_the_built_in_ones(publish, tmp_path):
    publish("acme-bells", IMPORTER.named("bells"))
    for name in ("uri", "glarus"):
        (tmp_path / "alps").mkdir(exist_ok=True)
        (tmp_path / "alps" / f"{name}.wav").write_bytes(b"RIFF")
    command = [sys.executable, "-m", "geobind", "import", "bells", "alps", "--out", "bells.parquet", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == 2
    assert told["data"] == {"manifest": "bells.parquet"}
