"""geobind doctor as a whole: an installation that is good, and two that are not."""

import json
import os
import re
from importlib import metadata

import pytest
from click.testing import CliRunner

from geobind.cli import main
from geobind.doctor.probes import IMAGES, RASTERS, SOUNDS
from geobind.extras import is_installed

pytestmark = pytest.mark.slow


def call(*words):
    return CliRunner().invoke(main, ["doctor", *words])


@pytest.fixture(scope="module")
def healthy():
    """The report on the environment that runs the tests."""
    found = call("--json")
    values = json.loads(found.output)
    values["exit_code"] = found.exit_code
    values["by_part"] = {(one["section"], one["part"]): one for one in values["findings"]}
    return values


def test_a_whole_installation_has_no_fault(healthy):
    faults = [one for one in healthy["findings"] if one["state"] == "fault"]
    assert (healthy["exit_code"], healthy["ok"], healthy["faults"], faults) == (0, True, 0, [])


def test_versions_come_with_what_geobind_asks_for(healthy):
    facts = healthy["by_part"]["packages", "torch"]["facts"]
    assert facts["version"] == metadata.version("torch")
    assert facts["requirement"].startswith("torch>")
    assert facts["loads"]
    assert healthy["by_part"]["packages", "soundfile"]["facts"]["libsndfile"]


def test_every_package_that_geobind_declares_is_looked_at(healthy):
    # What real Earth is made of is data: `geobind check` looks for it.
    left_out = ('extra == "dev"', 'extra == "earth"')
    lines = [line for line in metadata.requires("geobind") if not any(extra in line for extra in left_out)]
    declared = {re.match(r"[\w.-]+", line)[0].lower() for line in lines}
    assert declared <= {part.lower() for section, part in healthy["by_part"] if section == "packages"}


def test_every_format_is_written_and_read_by_geobinds_own_readers(healthy):
    there = {"sounds": SOUNDS, "images": IMAGES} | ({"rasters": RASTERS} if is_installed("rasterio") else {})
    for part, formats in there.items():
        assert healthy["by_part"]["formats", part]["facts"]["formats"] == [*formats]


def test_the_processor_multiplies_in_bf16_and_memory_and_folders_have_room(healthy):
    processor = healthy["by_part"]["machine", "processor"]["facts"]
    assert processor["bf16"] is True and processor["cores"] >= 1
    assert healthy["by_part"]["machine", "memory"]["facts"]["free_bytes"] > 0
    for part in ("cache", "hub cache", "output", "temporary"):
        facts = healthy["by_part"]["folders", part]["facts"]
        assert facts["writable"] and facts["free_bytes"] > 0 and os.path.isabs(facts["folder"])


def test_installed_plugins_are_listed_by_what_they_provide(healthy):
    (facts,) = (one["facts"] for one in healthy["findings"] if one["part"].startswith("geobind 0"))
    assert {"audio", "satellite"} <= set(facts["modality"])
    assert "cvact" in facts["importer"] and "tensorboard" in facts["logger"]


def test_what_is_optional_and_dies_is_a_note_with_its_command(fake_package):
    fake_package("torchaudio", "raise OSError('libcudart.so.13: cannot open shared object file')")
    fake_package("peft", "import os, sys; print('terminate called', file=sys.stderr, flush=True); os.abort()")
    found = call()
    assert found.exit_code == 0, found.output
    lines = " ".join(found.output.split())
    assert "note torchaudio" in lines
    assert "does not load: OSError: libcudart.so.13: cannot open shared object file" in lines
    assert "-> pip uninstall -y torchaudio && pip install torchaudio torch==" in lines
    assert "note peft" in lines and "killed by signal 6 (SIGABRT): terminate called" in lines
    assert "-> pip install --force-reinstall 'peft<1,>=0.21'" in lines
    assert "ok tensorboard" in lines and "ok transformers" in lines, "others are still tried"
    last = found.output.splitlines()[-1]
    assert last.startswith("no faults, ") and last.endswith(" notes: geobind works here")
    long = [line for line in found.output.splitlines() if len(line) > 80 and "->" not in line]
    assert not long
    assert "\x1b" not in found.output


def test_what_is_required_and_broken_ends_with_exit_code_1(fake_package, publish, tmp_path, monkeypatch):
    fake_package("torch", "raise RuntimeError('libtorch is of another build')")
    publish("acme-sick", "raise ValueError('no licence key')")
    (tmp_path / "file").touch()
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "file" / "cache"))
    found = call("--json")
    assert found.exit_code == 1
    values = json.loads(found.output)
    by_part = {one["part"]: one for one in values["findings"]}
    assert not values["ok"] and values["faults"] == 2
    torch, cache, sick = by_part["torch"], by_part["cache"], by_part["acme-sick 1.0 [sick]"]
    assert torch["state"] == "fault" and "RuntimeError: libtorch is of another build" in torch["told"]
    assert torch["fix"].startswith("pip install --force-reinstall 'torch>=")
    assert cache["state"] == "fault" and str(tmp_path / "file" / "cache") in cache["told"]
    assert cache["fix"].startswith("export GEOBIND_CACHE=") and not cache["facts"]["writable"]
    assert (sick["state"], sick["told"]) == ("note", "ValueError: no licence key")
    assert sick["fix"] == "pip install --upgrade acme-sick, or pip uninstall acme-sick"
    assert by_part["timm"]["state"] == by_part["accelerators"]["state"] == "untried"
    assert by_part["soundfile"]["state"] == "ok", "what needs no torch is tried without it"
