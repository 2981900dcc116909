"""Files are whole or not there."""

import errno
import os

import pytest
import torch

from geobind.errors import CheckpointError, StorageError
from geobind.utils import files


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    target = tmp_path / "state.ckpt"
    files.write_atomic(target, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StorageError, match=r"state\.ckpt: the disk is full; nothing finished is lost"
    ) as caught:
        files.write_atomic(target, b"new")
    assert caught.value.exit_code == 1
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["state.ckpt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match="taken"):
        files.write_atomic(tmp_path / "taken" / "x", b"")


def test_state_comes_back_as_it_was(tmp_path):
    state = {"step": 3, "t": torch.arange(4.0), "nested": {"list": [1, 2.5, "x"]}}
    files.write_state(tmp_path / "s", state)
    back = files.read_state(tmp_path / "s")
    assert back["step"] == 3
    assert back["nested"] == state["nested"]
    assert torch.equal(back["t"], state["t"])
    assert files.read_state(tmp_path / "absent") is None


def test_a_pickled_program_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "run_by_pickle"),))

    torch.save({"step": Evil()}, tmp_path / "evil")
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        files.read_state(tmp_path / "evil")
    assert not (tmp_path / "run_by_pickle").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "stage.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"stage\.json.*remove it to start over"):
        files.read_json(tmp_path / "stage.json")


def test_tensors_that_share_memory_are_both_written(tmp_path):
    from geobind.towers.weights import read_weights

    shared = torch.arange(3.0)
    files.write_tensors(tmp_path / "w.safetensors", {"a": shared, "b": shared[:2]})
    back = read_weights(tmp_path / "w.safetensors")
    assert torch.equal(back["a"], shared)
    assert torch.equal(back["b"], shared[:2])
