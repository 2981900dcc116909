"""The cache folder: derived data built once, safe to delete, safe for concurrent processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from geobind.errors import DataError
from geobind.utils.files import FileLock, create_folder


def cache_root() -> Path:
    """Return `$GEOBIND_CACHE`, or the platform's cache folder for this user.

    Raises:
        DataError: This user has no home folder.
    """
    chosen = os.environ.get("GEOBIND_CACHE")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geobind"
    except RuntimeError as error:
        raise DataError(f"{error}: set GEOBIND_CACHE to a folder that can be written") from error


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, filling it first if it does not exist.

    It is filled under another name and renamed, so that it is there whole or not at all, even after the
    process is killed; processes that want the same folder wait for the first one.

    Args:
        folder: What is wanted.
        build: Writes the content into the empty folder it is given.

    Raises:
        DataError: The cache cannot be written.
    """
    try:
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if folder.is_dir():
                return folder
            try:
                with create_folder(folder) as temporary:
                    build(temporary)
            except OSError:
                if not folder.is_dir():  # otherwise another process was first, and what it made is the same
                    raise
    except OSError as error:
        raise DataError(
            f"cannot write the cache {folder}: {error.strerror or error}; free some space there, or set "
            "GEOBIND_CACHE to a folder that can be written"
        ) from error
    return folder
