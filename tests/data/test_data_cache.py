import multiprocessing
import os
import signal
import time

import pytest

from geobind.data.cache import build_once, cache_root
from geobind.utils.hashing import fingerprint, short_fingerprint


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("GEOBIND_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "geobind"


def test_a_folder_is_built_once(tmp_path):
    calls = []

    def build(folder):
        calls.append(1)
        (folder / "a").write_text("x")

    for _ in range(2):
        assert (build_once(tmp_path / "made", build) / "a").read_text() == "x"
    assert len(calls) == 1


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fails(folder):
        (folder / "half").write_text("x")
        raise ValueError

    with pytest.raises(ValueError):
        build_once(tmp_path / "made", fails)
    assert [path.name for path in tmp_path.iterdir()] == ["made.lock"]


def _slow(target):
    def build(folder):
        (folder / "half").write_text("x")
        time.sleep(0.3)
        (folder / str(os.getpid())).write_text("x")

    build_once(target, build)


def test_many_processes_share_one_build(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_slow, args=(tmp_path / "made",)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(list((tmp_path / "made").iterdir())) == 2


def _hang(target):
    build_once(target, lambda folder: ((folder / "half").write_text("x"), time.sleep(60)))


def test_a_killed_build_is_cleared_and_done_again(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=_hang, args=(tmp_path / "made",))
    worker.start()
    while not list(tmp_path.glob(".made.*/half")):
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    build_once(tmp_path / "made", lambda folder: (folder / "whole").write_text("x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "made.lock"]


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path, refused):
    (tmp_path / "file").write_text("")
    refused(lambda: build_once(tmp_path / "file" / "made", lambda folder: None), "GEOBIND_CACHE")


def test_fingerprints_differ_with_their_parts():
    assert fingerprint("a", 1) == fingerprint("a", 1) != fingerprint("a", 2)


def test_fingerprints_stay_what_they_are():
    """Folders of the cache and finished stages on disks bear them."""
    assert fingerprint("a", {"b": 1.5}) == "0c76b2ddae9bc9d33f25eb7b1f289ac37a02d31c2f0f1dee916c8aa4942fd41b"
    assert short_fingerprint("a", {"b": 1.5}) == fingerprint("a", {"b": 1.5})[:20]
