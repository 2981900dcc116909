"""`geobind serve`: it serves, and says what is missing before anything is loaded."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
import served
from click.testing import CliRunner

from geobind import extras
from geobind.cli import main


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a bundle of what comes with geobind, and an archive made with it."""
    from geobind.binder import build_binder
    from geobind.recipe import load_recipe

    home = tmp_path_factory.mktemp("home")
    binder = build_binder(load_recipe("three_modal"))
    binder.save(home / "bundle")
    return served.write_world(home, binder)


def fail(*words):
    done = CliRunner().invoke(main, ["serve", *map(str, words)])
    assert done.exit_code == 2, done.output
    return done.output


@pytest.mark.slow
def test_it_serves_until_it_is_interrupted(home):
    words = ["scene.parquet", "--bundle", "bundle", "--raster", "scene.tif", "--port", "0"]
    banks = ["--bank", "sounds", "--as", "audio", "--bank", "words.txt", "--as", "text"]
    command = [sys.executable, "-m", "geobind", "serve", *words, *banks, "--allow-host", "maps.example"]
    process = subprocess.Popen(
        command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    with contextlib.closing(process.stdout):
        line = process.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+/) shows 88 of satellite", line)
        assert found, line + process.stderr.read()
        with urllib.request.urlopen(found[1] + "api/about") as answer:
            assert b'"banks":["audio","text"]' in answer.read()
        for name, status in (("maps.example", 200), ("other.example", 400)):
            request = urllib.request.Request(found[1], headers={"Host": name})
            try:
                assert urllib.request.urlopen(request).status == status
            except urllib.error.HTTPError as error:
                assert error.code == status
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) in (0, 130)
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_port_in_use_is_named_before_anything_is_loaded(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        output = fail(home / "scene.parquet", "--bundle", home / "bundle", "--port", port)
    assert f"port {port}" in output and "another --port" in output


def test_every_bank_has_its_modality(home):
    output = fail(home / "scene.parquet", "--bundle", home / "bundle", "--bank", home / "sounds")
    assert "one --as for each --bank" in output


def test_a_missing_package_is_named_with_its_command(home, monkeypatch):
    monkeypatch.setattr(extras, "is_installed", lambda module: module != "uvicorn")
    assert "pip install 'geobind[serve]'" in fail(home / "scene.parquet", "--bundle", home / "bundle")
