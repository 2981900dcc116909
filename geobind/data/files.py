"""Open the bytes of an untrusted file, or say what is wrong with it."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from geobind.errors import DataError

_LFS = b"version https://git-lfs"


def describe(raw: Any) -> str:
    """Name an input in a message: its path, its number of bytes, or its type."""
    if isinstance(raw, Path):
        return str(raw)
    if isinstance(raw, str):
        return raw if len(raw) <= 200 else raw[:200] + "..."
    if isinstance(raw, bytes | bytearray | memoryview):
        return f"the {len(raw)} bytes given"
    return f"a {type(raw).__name__}"


@contextmanager
def open_binary(raw: str | Path | bytes | bytearray | memoryview) -> Generator[BinaryIO]:
    """Open a path or bytes for reading.

    Raises:
        DataError: It is missing, a folder, unreadable, empty, a URL, or a Git LFS pointer.
    """
    name = describe(raw)
    if isinstance(raw, str) and "://" in raw[:10]:
        raise DataError(f"{name}: is an address; geobind reads files only, download it first")
    try:
        if isinstance(raw, str | Path) and not stat.S_ISREG(
            os.stat(raw).st_mode
        ):  # a pipe would block for ever
            raise DataError(
                f"{name}: is {'a folder' if os.path.isdir(raw) else 'something special'}, not a file"
            )
        file = open(raw, "rb") if isinstance(raw, str | Path) else io.BytesIO(raw)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(f"{name}: {_reason(error)}") from error
    with file:
        try:
            head = file.read(len(_LFS))
        except OSError as error:
            raise DataError(f"{name}: {_reason(error)}") from error
        if not head:
            raise DataError(f"{name}: is empty (0 bytes)")
        if head == _LFS:
            raise DataError(f"{name}: is a Git LFS pointer, not the file itself; run `git lfs pull`")
        file.seek(0)
        yield file


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
