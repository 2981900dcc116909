"""Facts of the files that install geobind: bounds, tested versions, documented commands."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIRED = [
    Requirement(line)
    for line in PROJECT["dependencies"] + [word for extra in EXTRAS.values() for word in extra]
]
# Files in which a user may meet a command that installs geobind.
FOLDERS = ("geobind", "modalities", "docs", "examples", "recipes", ".github")
SUFFIXES = {".py", ".md", ".yaml", ".yml"}
TEXTS = [path for name in FOLDERS for path in sorted((ROOT / name).rglob("*")) if path.suffix in SUFFIXES]


def pins(name):
    """The requirements of a file of pinned versions, by project."""
    found = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if re.match(r"[a-zA-Z0-9]", line):
            requirement = Requirement(line.removesuffix("\\").strip())
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def test_every_requirement_is_pinned_within_its_bounds():
    pinned = pins("constraints.txt")
    for required in REQUIRED:
        if required.name == "geobind":
            continue
        for pin in pinned[canonicalize_name(required.name)]:
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            assert required.specifier.contains(Version(specifier.version)), f"{pin} is outside {required}"


def test_constraints_name_no_extras_which_pip_refuses():
    assert not [pin for found in pins("constraints.txt").values() for pin in found if pin.extras]


def test_the_hash_locked_file_pins_the_same_versions():
    locked, pinned = pins("requirements.lock"), pins("constraints.txt")
    assert {name: sorted(map(str, found)) for name, found in locked.items()} == {
        name: sorted(map(str, found)) for name, found in pinned.items()
    }


def test_no_compiled_dependency_of_torch_has_an_upper_bound():
    for required in REQUIRED:
        if required.name in {"torch", "torchvision", "torchaudio"}:
            assert all(part.operator == ">=" for part in required.specifier), required


def test_both_commands_of_the_readme_install_the_tested_versions():
    commands = re.findall(
        r"^python3 -m venv .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(commands) == 2  # .ci/run reads these two out of the file and runs them
    assert commands[1] in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all("pip install -q -c constraints.txt " in command for command in commands)


def test_extras_are_quoted_for_shells_that_read_brackets():
    def unquoted(text):
        found = re.findall(r"pip install ([^`\n]*?\[[a-z,]+\])", text)
        return [words for words in found if not re.search(r"""["'][^"'\s]*\[[a-z,]+\]$""", words)]

    faults = {path.name: found for path in TEXTS if (found := unquoted(path.read_text(encoding="utf-8")))}
    assert faults == {}


def test_extras_named_in_messages_and_docs_exist():
    named = {
        word
        for path in TEXTS
        for group in re.findall(r"geobind\[([a-z,]+)\]", path.read_text(encoding="utf-8"))
        for word in group.split(",")
    }
    assert named
    assert named <= set(EXTRAS)
