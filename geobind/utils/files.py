"""Atomic writes, JSON, safetensors and sealed training state, and file locks."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from geobind.errors import CheckpointError, StorageError

if TYPE_CHECKING:
    from torch import Tensor


_SEAL = b"geobind sha256: "  # ends a training state, with the hash of what comes before


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises:
        StorageError: The disk is full or the folder cannot be written; what was there before is untouched.
    """
    with replace_atomic(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replace_atomic(path: Path) -> Generator[Path]:
    """Name a file to fill, which takes the place of `path` once the block has ended without an error.

    Raises:
        StorageError: The disk is full or the folder cannot be written; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise explain_write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def explain_write_error(path: Path, error: OSError) -> StorageError:
    """Say why a file cannot be written, and what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full" if full else error.strerror or str(error)
    return StorageError(
        f"cannot write {path}: {reason}; nothing finished is lost: mend that and try again "
        f"(a run goes on with --resume)"
    )


def remove_partial_files(folder: Path) -> None:
    """Remove what writes that were killed left behind."""
    for leftover in folder.rglob(".*.part"):
        leftover.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON."""
    write_atomic(path, (json.dumps(values, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read plain values, or an empty dict when the file is not there.

    Raises:
        CheckpointError: It is no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); remove it to start over") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object; remove it to start over")
    return values


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, copies of shared ones included."""
    from safetensors.torch import save

    write_atomic(
        path, save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})
    )


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write training state: plain values and tensors only, so that it loads without pickle's dangers."""
    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.write(_SEAL + hashlib.sha256(buffer.getbuffer()).digest())
    write_atomic(path, buffer.getbuffer())


def read_state(path: Path) -> dict[str, Any] | None:
    """Read training state, or None when there is none.

    Raises:
        CheckpointError: The file is damaged, to the bit, or holds anything but tensors and plain values.
    """
    if not path.exists():
        return None
    import torch

    try:
        _check_seal(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its parser meets
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not a checkpoint of this program ({reason}); remove it to start over"
        ) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_seal(path: Path) -> None:
    """See that a training state is what was written; torch itself does not look at its checksums."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - len(_SEAL) - hashlib.sha256().digest_size
        file.seek(max(size, 0))
        if not file.read(len(_SEAL)) == _SEAL:
            return  # of an earlier version, or cut short, which torch will notice
        stated, total, left = file.read(), hashlib.sha256(), size
        file.seek(0)
        while left and (part := file.read(min(left, 2**20))):
            total.update(part)
            left -= len(part)
    if total.digest() != stated:
        raise ValueError("a bit of it is not what was written")


try:
    import fcntl
except ImportError:  # then nothing is locked: an entry in use may be pruned, and is made again
    fcntl = None


class FileLock:
    """A shared lock on a file, or, if it is `alone`, one that no other process has at the same time.

    A shared one is waited for. One that is to be alone is not: it is false where another process has it.
    """

    def __init__(self, path: Path, *, alone: bool = False) -> None:
        self._file = None
        self.held = False
        while not self.held:
            self._file = path.open("a")
            self.held = self._acquired(alone)
            if alone and not self.held:
                self.close()
                return
            # Whoever pruned the folder while we waited has taken the file away with it.
            if not (path.exists() and path.stat().st_ino == os.fstat(self._file.fileno()).st_ino):
                self.close()
                path.parent.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Let it go."""
        if self._file is not None:
            self._file.close()
        self._file, self.held = None, False

    def __enter__(self) -> bool:
        return self.held

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.close()

    def _acquired(self, alone: bool) -> bool:
        if fcntl is None or self._file is None:
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except BlockingIOError:
            return False
        except OSError:  # some network file systems have no locks
            return True
        return True
