"""Safe access to files of unknown origin: allowed folders, opening, descriptions for messages."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from geobind.data.readers.tar import NamedBytes, parse_member, read_member, read_member_size
from geobind.errors import DataError

_LFS = b"version https://git-lfs"


def describe(raw: Any) -> str:
    """Name an input in a message: its path, its number of bytes, or its type."""
    if isinstance(raw, Path):
        return str(raw)
    if isinstance(raw, NamedBytes) and raw.name:
        return raw.name
    if isinstance(raw, str):
        return raw if len(raw) <= 200 else raw[:200] + "..."
    if isinstance(raw, bytes | bytearray | memoryview):
        return f"the {len(raw)} bytes given"
    return f"a {type(raw).__name__}"


def shorten(value: Any) -> str:
    """Show a value in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def join_names(names: Iterable[str]) -> str:
    """List names, such as those of columns, in a message."""
    text = ", ".join(names) or "none"
    return text if len(text) <= 500 else text[:497] + "..."


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


@dataclass(frozen=True)
class FileResolver:
    """Allowed folders of a column's files: names are relative to the first, link targets within any."""

    root: Path
    links: tuple[Path, ...] = ()

    def __call__(self, name: str) -> Path:
        """Return the path of a file.

        Raises:
            DataError: The name leads out of the folders, by itself or through a link.
        """
        path = os.path.join(self.root, name)
        try:
            if "\0" in name:  # not every call below would notice
                raise ValueError("embedded null byte")
            real = _real_path(os.path.join(os.getcwd(), path))
        except ValueError as error:
            raise DataError(f"file name {name!r} cannot be used: {error}") from error
        if not any(
            real.startswith(fence) for fence in _list_allowed_folders(os.getcwd(), (self.root, *self.links))
        ):
            raise DataError(
                f"{name}: leads out of {self.root} (to {real}); move it there, name a higher folder as "
                "`data.root`, or, for a symbolic link, its target's folder in `data.links`"
            )
        return Path(path)

    def raw(self, name: str) -> Path | NamedBytes:
        """Return what a modality reads: the path of a file, or the bytes of a tar file's member.

        Raises:
            DataError: The name leads out of the folders, or there is no such member.
        """
        member = parse_member(name)
        return self(name) if member is None else read_member(self(member.tar), member.name, name)

    def size(self, name: str) -> int:
        """Return the number of bytes of a file, or of a tar file's member.

        Raises:
            DataError: The name leads out of the folders, or there is no such file or member.
        """
        member = parse_member(name)
        if member is not None:
            return read_member_size(self(member.tar), member.name, name)
        try:
            state = os.stat(self(name))
        except OSError as error:
            raise DataError(f"{name}: {_reason(error)}") from error
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"{name}: is not a file")
        return state.st_size

    def fault(self, name: str) -> str | None:
        """Return why a file cannot be used, or None, without reading it."""
        try:
            return None if self.size(name) else f"{name}: is empty (0 bytes)"
        except DataError as error:
            return str(error)


@lru_cache(maxsize=64)
def _list_allowed_folders(here: str, folders: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(os.path.join(os.path.realpath(os.path.join(here, folder)), "") for folder in folders)


_real_folder = lru_cache(maxsize=4096)(
    os.path.realpath
)  # following every folder of a path costs more than a stat


def _real_path(path: str) -> str:
    folder, name = os.path.split(path)
    if name in ("", ".", "..") or os.path.islink(path):
        return os.path.realpath(path)
    return os.path.join(_real_folder(folder), name)
