"""The examination of an installation, part by part."""

import subprocess
import sys
from pathlib import Path

import pytest

from geobind.doctor import examination
from geobind.doctor.examination import (
    OPTIONAL,
    ProbeOutcome,
    accelerator_findings,
    folder_finding,
    package_finding,
    run_probes,
)

ABORTS = """
    import os, sys
    print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
    os.abort()
"""


def test_a_part_that_kills_its_process_is_named_and_the_next_ones_are_tried(fake_package):
    fake_package("scipy", ABORTS)
    found = run_probes(["scipy", "rich"], patience=100)
    assert found["scipy"].error == (
        "the process that loads it is killed by signal 6 (SIGABRT): "
        "terminate called after throwing an instance of 'std::bad_alloc'"
    )
    assert not found["rich"].error


def test_a_part_that_exits_is_named(fake_package):
    fake_package("scipy", "import os; os._exit(3)")
    assert run_probes(["scipy"], patience=100)["scipy"].error.endswith("ends with exit code 3")


def test_a_part_that_hangs_is_given_up(fake_package):
    fake_package("scipy", "import threading; threading.Event().wait()")
    assert run_probes(["scipy"], patience=1)["scipy"].error == "did not end within 1 s"


def test_a_part_that_prints_does_not_disturb_the_report(fake_package):
    fake_package("scipy", "import sys; print('geobind'); sys.stdout.close()")
    fake_package("scipy/io", "def loadmat(): pass")
    assert run_probes(["scipy", "rich"], patience=100) == {
        "scipy": ProbeOutcome({}),
        "rich": ProbeOutcome({}),
    }


def test_the_examination_itself_needs_none_of_what_it_looks_at():
    code = """
import sys
from geobind.doctor import examination
from geobind.cli import doctor as command
found = {"torch", "numpy", "pydantic", "pluggy", "pyarrow", "packaging", "rich"} & {*sys.modules}
assert not found, found
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("version", "state", "told"),
    [
        ((3, 10, 4), "fault", "3.10.4 is too old: geobind needs 3.11 or newer"),
        ((3, 11, 0), "ok", "3.11.0"),
        ((3, 13, 9), "ok", "3.13.9"),
        ((3, 14, 0), "note", "3.14.0; the newest that geobind is tested on is 3.13"),
        ((3, 15, 0), "note", "3.15.0 is newer than any that geobind knows"),
    ],
)
def test_python_is_compared_with_the_versions_that_were_tested(version, state, told):
    found = examination.python_finding(version)
    assert (found.state, found.told) == (state, told)
    assert bool(found.fix) == (state != "ok")


@pytest.mark.parametrize(
    ("version", "state"), [("21.2.4", "note"), ("22.3", "ok"), ("26.1.dev0", "ok"), (None, "absent")]
)
def test_a_pip_that_is_too_old_is_noted(version, state):
    found = examination.pip_finding(version)
    assert found.state == state
    assert bool(found.fix) == (state != "ok")


def test_a_package_of_a_version_that_geobind_does_not_ask_for_is_noted():
    found = package_finding("numpy", "1.24.0", "numpy>=1.26", {"numpy": ProbeOutcome({})})
    assert (found.state, found.told) == ("note", "1.24.0; geobind asks for numpy>=1.26")
    assert found.fix == "pip install 'numpy>=1.26'"


def test_a_missing_package_is_a_fault_only_where_geobind_needs_it():
    absent = ProbeOutcome({}, "ModuleNotFoundError: No module named it")
    found = package_finding("numpy", None, "numpy>=1.26", {"numpy": absent})
    assert (found.state, found.fix) == ("fault", "pip install 'numpy>=1.26'")
    found = package_finding("rasterio", None, "rasterio>=1.4", {"rasterio": absent})
    assert (found.state, found.fix) == ("absent", "pip install 'geobind[geo]'")
    assert found.told == "not installed; for windows of GeoTIFFs"


def test_each_optional_package_is_installed_by_its_extra():
    absent = ProbeOutcome({}, "ModuleNotFoundError: No module named it")
    fixes = {name: package_finding(name, None, name, {name: absent}).fix for name in OPTIONAL}
    assert fixes.pop("torchaudio") == "pip install torchaudio"  # comes with geobind
    assert {name: fix for name, fix in fixes.items() if "geobind[" not in fix} == {}


GPU = {"device": "cuda:0", "name": "H200", "free_bytes": 140e9, "bytes": 150e9, "bf16": None}


@pytest.mark.parametrize(
    ("facts", "state", "told", "fix"),
    [
        ({"devices": [GPU]}, "ok", "H200, 140.0 GB of 150.0 GB free, bf16 works", ""),
        (
            {"devices": [{**GPU, "bf16": "no kernel image"}]},
            "note",
            "H200, 140.0 GB of 150.0 GB free; bf16 does not work (no kernel image)",
            "set `fabric: {precision: 32-true}`",
        ),
        ({"built": "13.0"}, "ok", "none; training runs on the processor", ""),
        (
            {"driver": "12.4"},
            "note",
            "torch is built without CUDA, but there is an NVIDIA driver for CUDA 12.4",
            "install a torch built for CUDA: https://pytorch.org/",
        ),
        (
            {"built": "13.0", "driver": "12.4", "said": ["too old"]},
            "note",
            "torch, built for CUDA 13.0, finds no GPU; the NVIDIA driver is for CUDA 12.4 (too old)",
            "update the NVIDIA driver, or install a torch built for CUDA 12.4: https://pytorch.org/",
        ),
        (
            {"built": "12.8", "driver": "13.0"},
            "note",
            "torch, built for CUDA 12.8, finds no GPU; the NVIDIA driver is for CUDA 13.0",
            "nvidia-smi: if it lists a GPU, see that CUDA_VISIBLE_DEVICES does not hide it",
        ),
    ],
)
def test_an_accelerator_is_shown_or_why_there_is_none(facts, state, told, fix):
    (found,) = accelerator_findings({"devices": [], "built": None, "driver": None, "said": [], **facts})
    assert (found.state, found.told) == (state, told)
    assert found.fix.startswith(fix) and bool(found.fix) == bool(fix)


def test_a_folder_that_is_not_there_yet_is_tried_where_it_would_be_made(tmp_path):
    found = folder_finding("cache", tmp_path / "not" / "yet", "fault", "choose another")
    assert (found.state, found.facts["writable"]) == ("ok", True)
    assert not list(tmp_path.iterdir())


def test_the_form_for_a_bug_asks_for_the_report():
    form = Path(__file__).parents[2] / ".github" / "ISSUE_TEMPLATE" / "bug_report.md"
    assert "geobind doctor" in form.read_text(encoding="utf-8")
