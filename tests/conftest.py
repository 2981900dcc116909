"""Fixtures every test can use: no network, and a third-party plugin that is built and installed for real."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import settings

# Every run tries the same examples: what fails, fails for whoever looks at it next.
settings.register_profile("geobind", derandomize=True)
settings.load_profile("geobind")

# Both are read once, when torch and huggingface_hub are imported. More threads than cores, in tests that run
# side by side on tiny tensors, wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

THIRD_PARTY = Path(__file__).parent / "third_party"
collect_ignore = ["third_party"]  # plugins run their own tests, once installed
sys.path.append(str(THIRD_PARTY / "faulty"))


def build_site(name, folder):
    """Build and install a plugin of tests/third_party; return the folder with its module and dist-info."""
    source = shutil.copytree(THIRD_PARTY / name, folder / "source")
    # What pip does, which an environment made by uv does not have: call the build backend, unpack the wheel.
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, folder], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def install(site, module, monkeypatch):
    """Add a folder of installed packages to this process and those it starts, for one test."""
    from geobind import plugins
    from geobind.data import dataset

    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    for registry in (plugins.registry, dataset.registry):
        registry.cache_clear()
    yield site
    for registry in (plugins.registry, dataset.registry):
        registry.cache_clear()
    sys.modules.pop(module, None)


@pytest.fixture(scope="session")
def thermal_site(tmp_path_factory):
    """A folder of installed packages with geobind-thermal in it: its module and its dist-info."""
    return build_site("geobind_thermal", tmp_path_factory.mktemp("thermal"))


@pytest.fixture
def thermal(thermal_site, monkeypatch):
    """geobind-thermal, installed for one test, in this process and in those it starts."""
    yield from install(thermal_site, "geobind_thermal", monkeypatch)


@pytest.fixture(scope="session")
def lakes_site(tmp_path_factory):
    """A folder of installed packages with geobind-lakes in it: its module and its dist-info."""
    return build_site("geobind_lakes", tmp_path_factory.mktemp("lakes"))


@pytest.fixture
def lakes(lakes_site, monkeypatch):
    """geobind-lakes, installed for one test, in this process and in those it starts."""
    yield from install(lakes_site, "geobind_lakes", monkeypatch)


@pytest.fixture
def logged(capsys):
    """A function that returns what was logged, or printed on standard error, since its last call."""
    from geobind.utils.logs import log_to_stderr

    with log_to_stderr():
        yield lambda: capsys.readouterr().err


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """The address of a hub that nobody serves, on a closed port of this machine, with an empty cache."""
    import socket

    from huggingface_hub import constants

    from geobind import hub

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(hub, "_states", {})
        yield address


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """Put a package in the place of an installed one, for one test."""

    def fake_package(name, source):
        home = tmp_path / "fakes" / name
        home.mkdir(parents=True)
        (home / "__init__.py").write_text(dedent(source))
        monkeypatch.syspath_prepend(tmp_path / "fakes")

    return fake_package


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Install a distribution of one module, with real metadata, for one test and the processes it starts."""
    site = tmp_path / "site"
    modules = []

    def publish(distribution, source, entry_point=None):
        module = f"{distribution.replace('-', '_')}_{tmp_path.name}"  # fresh: Python imports a module once
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        name = entry_point or distribution.removeprefix("acme-")
        (info / "entry_points.txt").write_text(f"[geobind]\n{name} = {module}\n")
        modules.append(module)
        monkeypatch.syspath_prepend(site)
        monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
        return module

    yield publish
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture(scope="session")
def torchaudio_failure():
    """Why torchaudio does not load here; None where it does."""
    from geobind.towers.mel import hide_broken_torchaudio

    return hide_broken_torchaudio()


@pytest.fixture
def needs_torchaudio(torchaudio_failure):
    """Skip a test that compares with torchaudio where its library does not load."""
    if torchaudio_failure is not None:
        pytest.skip(f"torchaudio does not load: {type(torchaudio_failure).__name__}: {torchaudio_failure}")


@pytest.fixture
def break_torchaudio(torchaudio_failure, tmp_path, monkeypatch):
    """A function that makes `import torchaudio` run one line, in this process and in those it starts."""
    from geobind.towers import mel

    def forget():
        for cached in (mel.hide_broken_torchaudio, mel.check_torchaudio, mel.mel_spectrogram):
            cached.cache_clear()

    def break_torchaudio(line):
        site = tmp_path / "broken"
        (site / "torchaudio").mkdir(parents=True)
        (site / "torchaudio" / "__init__.py").write_text(line)
        monkeypatch.syspath_prepend(site)
        monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
        for name in ["torchaudio", *(name for name in sys.modules if name.startswith("torchaudio."))]:
            monkeypatch.setitem(sys.modules, name, None)  # so that whatever is there now comes back
            del sys.modules[name]
        forget()

    yield break_torchaudio
    forget()


@pytest.fixture(scope="session")
def real_data():
    """The folder of real files, where there is one."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GEOBIND_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("no folder of real data")
    return folder


@pytest.fixture(scope="module")
def browser():
    """Chromium with one page; only for tests that are skipped where there is none."""
    import chromium

    with chromium.Browser() as page:
        yield page
