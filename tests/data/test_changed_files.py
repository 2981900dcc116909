"""That a manifest is converted again when it was replaced, whatever its time stamps say."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geobind.data import manifest
from geobind.data.cache import build_once, cache_root
from geobind.data.manifest import hash_manifest
from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.utils import files

SUFFIXES = ["csv", "jsonl", "tsv", "parquet"]


def write(path, words):
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"caption": words}), path, compression=None)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f'{{"caption": "{word}"}}\n' for word in words))
    else:
        path.write_text("\n".join(["caption", *words]) + "\n")


def captions(path):
    return list(open_table(DataOptions(manifest=path), path.parent, ["caption"]).samples("caption"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("how", ["renamed over it", "written into it"])
@pytest.mark.parametrize("time", [0, 10**18, "now"])
def test_a_manifest_replaced_under_its_size_and_mtime_is_read_anew(tmp_path, suffix, how, time):
    path = tmp_path / f"m.{suffix}"
    write(path, ["aa", "bb"])
    before = path.stat()
    if time != "now":
        os.utime(path, ns=(time, time))
        before = path.stat()
    assert captions(path) == ["aa", "bb"]
    first = hash_manifest(path)
    new = path if how == "written into it" else tmp_path / f"new.{suffix}"
    write(new, ["bb", "aa"])
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(path)
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert captions(path) == ["bb", "aa"]
    assert hash_manifest(path) != first


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_where_stamps_cannot_tell_the_content_does(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(manifest, "file_stamp", lambda state: (state.st_size, 0, 0, 0))
    monkeypatch.setattr(manifest, "is_settled", lambda state: False)
    path = tmp_path / f"m.{suffix}"
    for words in (["aa", "bb"], ["bb", "aa"]):
        write(path, words)
        assert captions(path) == words


def test_stamps_are_trusted_when_they_are_old_enough(tmp_path, monkeypatch):
    write(tmp_path / "m.csv", ["aa"])
    state = os.stat(tmp_path / "m.csv")
    assert not files.is_settled(state)
    later = state.st_ctime_ns + 3 * 10**9
    monkeypatch.setattr(files.time, "time_ns", lambda: later)
    assert files.is_settled(state)
    assert not files.is_settled(SimpleNamespace(st_mtime_ns=0, st_ctime_ns=0))  # a disk without times


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to become another user")
def test_a_cache_of_another_user_is_a_message(tmp_path):
    """In a process of user nobody, from whom the cache's folder is hidden."""
    home = tmp_path / "of another"
    (home / "tables").mkdir(parents=True)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from geobind.data.cache import build_once; from geobind.errors import DataError\n"
        "os.chmod(sys.argv[1], 0o700); os.setuid(65534)\n"
        "try: build_once(Path(sys.argv[1], 'tables', 'x'), lambda folder: None)\n"
        "except DataError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, home], capture_output=True, text=True, check=False)
    assert "cannot write the cache" in done.stdout, done.stderr
    assert "Permission denied" in done.stdout
    assert "GEOBIND_CACHE" in done.stdout


@pytest.mark.parametrize("call", ["is_dir", "iterdir", "stat"])
def test_a_manifest_that_may_not_be_read_is_a_message(tmp_path, monkeypatch, refused, call):
    (tmp_path / "packed").mkdir()
    write(tmp_path / "packed" / "m.parquet", ["a"])

    def denied(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(manifest.Path, call, denied)
    refused(lambda: manifest.hash_manifest(tmp_path / "packed"), "manifest ", "Permission denied")


def test_a_cache_that_cannot_be_looked_into_is_a_message(tmp_path, monkeypatch, refused):
    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(manifest.Path, "is_dir", denied)
    refused(lambda: build_once(tmp_path / "x", lambda folder: None), "Permission denied", "GEOBIND_CACHE")


def test_a_user_without_a_home_is_told_to_set_the_cache(monkeypatch, refused):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("GEOBIND_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(manifest.Path, "home", homeless)
    refused(cache_root, "home directory", "set GEOBIND_CACHE")
