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
from typing import IO, TYPE_CHECKING, Any, Self

from geobind.errors import CheckpointError, StorageError

if TYPE_CHECKING:
    from torch import Tensor


_SEAL = b"geobind sha256: "  # ends a training state, with the hash of what comes before


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: a reader sees the old content or the new, never a part.

    Raises:
        StorageError: The disk is full or the folder cannot be written; what was there before is untouched.
    """
    with replace_atomic(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replace_atomic(path: Path) -> Generator[Path]:
    """Yield a temporary file that replaces `path` once the block has ended without an error.

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
    """Return the error that explains why a file cannot be written, and the fix."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full" if full else error.strerror or str(error)
    return StorageError(
        f"cannot write {path}: {reason}; nothing finished is lost: mend that and try again "
        f"(a run goes on with --resume)"
    )


def remove_partial_files(folder: Path) -> None:
    """Remove partial files left by killed writes."""
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
    """Check the hash of a training state; torch itself does not look at checksums."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - len(_SEAL) - hashlib.sha256().digest_size
        file.seek(max(size, 0))
        if not file.read(len(_SEAL)) == _SEAL:
            return  # of an earlier version, or cut short, which torch will notice
        expected, total, remaining = file.read(), hashlib.sha256(), size
        file.seek(0)
        while remaining and (part := file.read(min(remaining, 2**20))):
            total.update(part)
            remaining -= len(part)
    if total.digest() != expected:
        raise ValueError("a bit of it is not what was written")


try:
    import fcntl
except ImportError:  # then nothing is locked: an entry in use may be pruned, and is made again
    fcntl = None


class FileLock:
    """A lock on a file, which the system releases when the process ends, however it ends.

    Shared locks and exclusive ones that wait block until they are held; an exclusive lock that does not wait
    is falsy if another process holds it. Where the system or the file system has no locks, every lock counts
    as held, and `is_enforced` is false.

    Args:
        path: The file, made if it is not there. It may be removed by whoever holds an exclusive lock.
        shared: Let other processes hold shared locks at the same time.
        wait: Wait for other processes to release theirs.
        inherit: Keep the lock while a forked process has the file open; otherwise it is this process's alone.
    """

    def __init__(self, path: Path, *, shared: bool = False, wait: bool = True, inherit: bool = True) -> None:
        self.file: IO[str] | None = None
        self.held = self.is_enforced = False
        while not self.held:
            self.file = path.open("a+", encoding="utf-8")
            self.held = self._acquire(shared, wait, inherit)
            if not self.held:
                self.close()
                return
            if not _is_same_file(path, self.file):  # its last holder has removed it: this locks no file
                self.close()
                path.parent.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Release the lock."""
        if self.file is not None:
            self.file.close()
        self.file, self.held = None, False

    def __bool__(self) -> bool:
        return self.held

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.close()

    def _acquire(self, shared: bool, wait: bool, inherit: bool) -> bool:
        if fcntl is None or self.file is None:
            return True
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        acquire = fcntl.flock if inherit else fcntl.lockf  # the second is not inherited
        try:
            acquire(self.file, mode if wait else mode | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # some network file systems have no locks
            return True
        self.is_enforced = True
        return True


def _is_same_file(path: Path, file: IO[str]) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False
