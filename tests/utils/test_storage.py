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


def dead_process():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_what_killed_writes_have_left_goes_with_the_next_write_in_the_folder(tmp_path):
    gone = dead_process()
    for name in (f".table.parquet.{gone}.part", f".other.csv.{gone}.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / f".folder.{gone}.part").mkdir()
    (tmp_path / f".folder.{gone}.part" / "a").write_text("half")
    files.write_atomic(tmp_path / "x.csv", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_what_a_live_process_writes_and_what_only_looks_like_a_partial_file_stays(tmp_path):
    names = {f".a.csv.{os.getpid()}.part", f".a.csv.{os.getppid()}.part", ".a.part", "a.1.part", ".a.x.part"}
    for name in names:
        (tmp_path / name).write_text("half")
    files.remove_partial_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_number_that_another_process_has_now_does_not_keep_a_partial_file(tmp_path):
    """In a container a program often has the same number each time."""
    part = tmp_path / f".a.csv.{os.getpid()}.part"
    part.write_text("half")
    os.utime(part, (0, 0))  # before this process began
    files.remove_partial_files(tmp_path)
    assert not part.exists()


def test_a_partial_file_that_another_machine_writes_stays(tmp_path):
    """Its process is none of this machine; only its lock shows that it lives."""
    part = tmp_path / f".a.csv.{dead_process()}.part"
    with part.open("w") as file:
        files.fcntl.flock(file, files.fcntl.LOCK_EX)
        files.remove_partial_files(tmp_path)
        assert part.exists()
    files.remove_partial_files(tmp_path)
    assert not part.exists()


def test_where_nothing_is_locked_a_partial_file_stays_for_an_hour(tmp_path, monkeypatch):
    part = tmp_path / f".a.csv.{dead_process()}.part"
    part.write_text("half")
    monkeypatch.setattr(files, "fcntl", None)
    files.remove_partial_files(tmp_path)
    assert part.exists()
    os.utime(part, (0, 0))
    files.remove_partial_files(tmp_path)
    assert not part.exists()


def test_a_link_of_a_partial_name_costs_the_link_alone(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("a")
    (tmp_path / f".x.{dead_process()}.part").symlink_to(tmp_path / "kept")
    files.remove_partial_files(tmp_path)
    assert (tmp_path / "kept" / "a").exists()


def test_files_that_are_replaced_together_are_old_new_or_marked_as_incomplete_whenever_it_ends(tmp_path):
    def write(folder, text):
        contents = dict.fromkeys(("a", "b", "mark"), text.encode())
        files.replace_together(folder, contents, "mark", absent=("c",))

    class Killed(BaseException):
        pass

    calls = ("replace", "unlink", "fsync", "open")
    ended = 0
    for name in calls:
        for number in range(100):
            folder = tmp_path / f"{name}{number}"
            write(folder, "old")
            (folder / "c").write_text("old")
            call, left = getattr(os, name), iter(range(number))

            def dying(*args, call=call, left=left, **named):
                if next(left, None) is None:
                    raise Killed
                return call(*args, **named)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, name, dying)
                try:
                    write(folder, "new")
                    whole = True
                except Killed:
                    whole = False
            ended += not whole
            read = {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".part"}
            if whole:
                assert read == dict.fromkeys(("a", "b", "mark"), "new")
                break
            assert "mark" not in read or read in (
                dict.fromkeys(("a", "b", "mark", "c"), "old"),
                dict.fromkeys(("a", "b", "mark"), "new"),
            )
    assert ended > 10
