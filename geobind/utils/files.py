"""Atomic writes and what killed ones leave, JSON, safetensors and sealed training state, and file locks."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from geobind.errors import CheckpointError, DataError, StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


_MAX_JSON = 100_000_000  # bytes
_SEAL = b"geobind sha256: "  # ends a training state, with the hash of what comes before


_YOUNG = 2 * 10**9  # nanoseconds after a change in which a file can change again and keep its time stamps


def file_stamp(state: os.stat_result) -> tuple[int, int, int, int]:
    """Return what changes when a file does: its size, times and inode.

    Programs can set a file's mtime but not its ctime, which reveals one replaced under its old mtime.
    """
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def is_settled(state: os.stat_result) -> bool:
    """Return whether a file's stamp will tell of its next change: it was not changed just now.

    That is unknown where there are no such times (some network disks), and where they lie in the future.
    """
    return 0 < state.st_ctime_ns and time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > _YOUNG


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

    What killed writes have left in the folder is removed first.

    Raises:
        StorageError: The disk is full or the folder cannot be written; what was there before is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_partial_files(path.parent)
        with _held_part(path) as temporary:
            yield temporary
            _sync_file(temporary)
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise explain_write_error(path, error) from error


def replace_together(
    folder: Path, contents: Mapping[str, bytes], mark: str, absent: Sequence[str] = ()
) -> None:
    """Write several files of a folder so that they are old or new together.

    A reader that looks at `mark` first sees all of the old files, all of the new ones, or no `mark`, at
    whatever instant the process is killed.

    Args:
        folder: The folder, made if it is not there.
        contents: The files by name, the marking one among them.
        mark: The file whose presence says that the folder is whole.
        absent: Files that the old state may have and the new one has not.

    Raises:
        StorageError: The disk is full or the folder cannot be written; what was there before is untouched.
    """
    name = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
        with ExitStack() as stack:
            parts: dict[str, Path] = {}
            for name, content in contents.items():
                parts[name] = stack.enter_context(_held_part(folder / name))
                parts[name].write_bytes(content)
                _sync_file(parts[name])
            stack.enter_context(_locked_folder(folder))  # two that save at once take turns
            for name in (mark, *absent):
                (folder / name).unlink(missing_ok=True)
                _sync_folder(folder)
            for name in (*(parts.keys() - {mark}), mark):
                os.replace(parts[name], folder / name)
                _sync_folder(folder)
    except OSError as error:
        raise explain_write_error(folder / name, error) from error


@contextmanager
def create_folder(folder: Path) -> Generator[Path]:
    """Yield a temporary folder that becomes `folder` once the block has ended without an error.

    Raises:
        OSError: The disk is full, the folder cannot be written, or it is there already.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_partial_files(folder.parent)
    temporary = _part_of(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with _locked_folder(temporary):
            yield temporary
            os.rename(temporary, folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def explain_write_error(path: Path, error: OSError) -> StorageError:
    """Return the error that explains why a file cannot be written, and the fix."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full" if full else error.strerror or str(error)
    return StorageError(
        f"cannot write {path}: {reason}; nothing finished is lost: mend that and try again "
        f"(a run goes on with --resume)"
    )


_PART = re.compile(r"\..+\.(\d+)\.part")  # .NAME.PROCESS.part, a file or a folder
_UNLOCKED_SECONDS = 3600.0  # where nothing is locked, after so long nobody writes a partial file any more


def remove_partial_files(folder: Path, *, deep: bool = False) -> None:
    """Remove what killed writes have left in a folder: partial files and folders whose process is dead.

    Args:
        folder: The folder; nothing happens if it is not there.
        deep: Look below it as well.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            number = _PART.fullmatch(entry.name)
            if number and _is_abandoned(entry.path, int(number[1])):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with suppress(OSError):
                        os.unlink(entry.path)
            elif deep and entry.is_dir(follow_symlinks=False):
                remove_partial_files(Path(entry.path), deep=True)


def _part_of(path: Path) -> Path:
    """Return the temporary name of a file or folder that this process writes."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextmanager
def _held_part(path: Path) -> Generator[Path]:
    """Yield the temporary file of `path`, locked as being written; what the block leaves of it is removed."""
    temporary = _part_of(path)
    # Without locks it is not held open: an open file cannot be renamed on Windows.
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666) if fcntl else None
    try:
        if handle is not None:
            _lock_handle(handle, wait=False)
        yield temporary
    finally:
        if handle is not None:
            os.close(handle)
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def _locked_folder(folder: Path) -> Generator[None]:
    """Lock a folder against other processes that lock it, as far as the file system can."""
    if os.name == "nt":  # folders cannot be opened there
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock_handle(handle, wait=True)
        yield
    finally:
        os.close(handle)


def _lock_handle(handle: int, *, wait: bool, shared: bool = False, inherit: bool = True) -> bool | None:
    """Lock an open file until it is closed; return whether it is, None where there are no locks."""
    if fcntl is None:
        return None
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    acquire = fcntl.flock if inherit else fcntl.lockf  # the second is not inherited
    try:
        acquire(handle, mode if wait else mode | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # some network file systems have no locks
        return None
    return True


def _is_abandoned(path: str, process: int) -> bool:
    """Return whether the process that wrote a partial file or folder is dead.

    Its number alone does not tell: another machine may write on a shared disk, which its lock shows, and
    numbers are used again (in a container often the same one), which the times show.
    """
    try:
        changed = os.lstat(path).st_mtime
        if _is_alive(process, changed):
            return False
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        locked = _lock_handle(handle, wait=False)
    finally:
        os.close(handle)
    return time.time() - changed > _UNLOCKED_SECONDS if locked is None else locked


def _is_alive(process: int, since: float) -> bool:
    """Return whether a process is there that is older than `since`, seconds since 1970."""
    if os.name == "nt":  # there a signal would end it; the lock or the age decides
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    started = _start_time(process)
    return started is None or started <= since + 1


def _start_time(process: int) -> float | None:
    """Return when a process started, in seconds since 1970; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        ticks = int(fields.rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
        return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON."""
    write_atomic(path, (json.dumps(values, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read plain values, or an empty dict when the file is not there.

    Raises:
        CheckpointError: It is no JSON object, or larger than any that geobind writes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_JSON + 1)
        if len(content) > _MAX_JSON:
            raise CheckpointError(f"{path}: larger than {_MAX_JSON:,} bytes; not a file of this program")
        values = json.loads(content.decode("utf-8"), parse_int=_parse_int, parse_float=_parse_float)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); remove it to start over") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object; remove it to start over")
    return values


def _parse_int(digits: str) -> int:
    """Return a whole number; one of more than 64 bits overflows wherever it is used."""
    value = int(digits) if len(digits) < 25 else 2**64
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{digits[:30]} has more than 64 bits")
    return value


def _parse_float(digits: str) -> float:
    """Return a number; those that no measurement has overflow wherever they are used."""
    value = float(digits)
    if value and not 1e-100 < abs(value) < 1e100:
        raise ValueError(f"{digits[:30]} is out of range")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, copies of shared ones included."""
    write_atomic(path, encode_tensors(tensors))


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as safetensors, copies of shared ones included."""
    from safetensors.torch import save

    return save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})


def write_npy(path: Path, values: NDArray[Any]) -> None:
    """Write an array as a .npy file that holds no Python objects."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_atomic(path, buffer.getbuffer())


def read_limited(path: Path, most: int, what: str) -> bytes:
    """Read a file of at most so many bytes, by what is read and not by what the system says of it.

    Raises:
        OSError: It cannot be read, or is no plain file.
        DataError: It is larger.
    """
    if not path.is_file():  # a pipe would wait for ever
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"{path}: larger than {most} bytes; not {what}")
    return content


def read_hashed_tensors(path: Path, most: int, what: str, sha256: str, fix: str) -> dict[str, Tensor] | None:
    """Read the tensors of a part that a bundle's card describes; None where the file is not there.

    Args:
        path: A safetensors file.
        most: The bytes that it may have.
        what: What it holds, such as bank.
        sha256: Of the tensors, as `hash_tensors` makes it.
        fix: The end of messages.

    Raises:
        CheckpointError: It is damaged, too large, or holds other tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from geobind.utils.system import hash_tensors

    try:
        tensors = load(read_limited(path, most, f"a {what}"))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, DataError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read as a {what} ({error}){fix}") from None
    if hash_tensors(tensors) != sha256:
        raise CheckpointError(f"{path}: is not the {what} that the card describes (SHA-256 differs){fix}")
    return tensors


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


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


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
    as held.

    Args:
        path: The file, made if it is not there. It may be removed by whoever holds an exclusive lock.
        shared: Let other processes hold shared locks at the same time.
        wait: Wait for other processes to release theirs.
        inherit: Keep the lock while a forked process has the file open; otherwise it is this process's alone.
    """

    def __init__(self, path: Path, *, shared: bool = False, wait: bool = True, inherit: bool = True) -> None:
        self.file: IO[str] | None = None
        self.held = False
        while not self.held:
            self.file = path.open("a+", encoding="utf-8")
            locked = _lock_handle(self.file.fileno(), wait=wait, shared=shared, inherit=inherit)
            self.held = locked is not False
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


def _is_same_file(path: Path, file: IO[str]) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


# Folders and files that systems and programs leave beside data, and whose names begin with no dot.
_HIDDEN = frozenset(
    "__macosx|__pycache__|@eadir|#recycle|#snapshot|$recycle.bin|system volume information|lost+found|"
    "thumbs.db|desktop.ini|icon\r".split("|")
)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is none of a dataset's by its name: `.git`, `._a.png`, `__MACOSX`."""
    return name.startswith(".") or name.lower() in _HIDDEN
