"""Locks that the system lets go of when a process ends, however it ends."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # then nothing is locked: an entry in use may be pruned, and is made again
    fcntl = None


class Lock:
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
