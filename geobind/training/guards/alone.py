"""One process at a time works in a run's folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from geobind.errors import StorageError
from geobind.utils import files, system

try:
    import fcntl
except ImportError:  # then nothing is locked
    fcntl = None

LOCK = "run.lock"


@contextmanager
def alone_in(folder: Path) -> Generator[None]:
    """Keep other processes out of a run's folder while the block runs.

    The system lets go of the lock when the process ends, however it ends; a file that a killed process has
    left behind is nobody's. Processes that load data inherit files but not this kind of lock.

    Raises:
        StorageError: Another process works there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(folder / LOCK)
    except OSError as error:
        raise files.refusal(folder / LOCK, error) from error
    try:
        with suppress(OSError):  # a full disk costs others the name of the process
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": system.now()}))
            file.flush()
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        with suppress(OSError):
            file.close()


def begun(folder: Path) -> bool:
    """Whether a run has left something in its folder that can be gone on with."""
    made = (folder / "metrics.csv", *(folder / "stages").rglob("*"))
    return any(path.is_file() for path in made)


@contextmanager
def gone_on_with(folder: Path | None) -> Generator[None]:
    """Say of whatever ends the block early that the run in `folder` can be gone on with."""
    try:
        yield
    except BaseException as error:
        if folder is not None and begun(folder) and "--resume" not in str(error):
            error.add_note(f"what is finished lies in {folder}; --resume goes on with it")
        raise


def _locked(path: Path) -> IO[str]:
    """Open the file that stands for the folder, with a lock on it."""
    while True:
        file = path.open("a+", encoding="utf-8")
        if fcntl is None:
            return file
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            who = _told(file.read())
            file.close()
            raise StorageError(
                f"{path.parent}: {who} is running there; wait for it, end it, or choose another "
                "folder (--out)"
            ) from None
        except OSError:  # some network file systems have no locks
            return file
        # Whoever had it before has removed the file: then this lock is on no file any more.
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()


def _told(text: str) -> str:
    try:
        facts = json.loads(text)
        return f"process {facts['pid']} on {facts['host']}, since {facts['since']},"
    except (ValueError, KeyError, TypeError):
        return "another process"
