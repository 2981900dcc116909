"""Safe access to files of unknown origin: allowed folders, opening, descriptions for messages."""

from __future__ import annotations

import io
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from geobind.data.readers.tar import parse_member, read_member, read_member_size
from geobind.errors import DataError
from geobind.modality import Content

_LFS = b"version https://git-lfs"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_MAX_NAME = 4096  # letters of a file name
_MAX_SHOWN = 300  # letters of a file name in a message
_MAX_LISTED = 100_000  # names of a folder that a missing one is compared with


class CellText(str):
    """A string that a table holds as text: readers of files refuse it, so that it never names a file."""


def describe(raw: Any) -> str:
    """Name an input in a message: its path, its number of bytes, or its type."""
    if isinstance(raw, Content) and raw.name:
        return raw.name
    if isinstance(raw, str | Path):
        name = str(raw)
        return name if len(name) <= _MAX_SHOWN else name[:200] + "..." + name[-40:]
    if isinstance(raw, bytes | bytearray | memoryview):
        return f"the {len(raw)} bytes given"
    return f"a {type(raw).__name__}"


def show_value(value: Any) -> str:
    """Show a value in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def join_names(names: Iterable[str]) -> str:
    """List names, such as those of columns, in a message."""
    text = ", ".join(names) or "none"
    return text if len(text) <= 500 else text[:497] + "..."


@contextmanager
def open_binary(raw: Any) -> Generator[BinaryIO]:
    """Open a path or bytes for reading.

    Raises:
        DataError: It is of another type, missing, a folder, unreadable, empty, a URL, or a Git LFS pointer.
    """
    if isinstance(raw, CellText):
        raise DataError(
            f"{show_value(str(raw))}: is text in the table, not the name of a file; if its column holds "
            "files, say so under `data`: `files: [COLUMN]`"
        )
    if isinstance(raw, str) and _ADDRESS.match(raw):
        raise DataError(f"{describe(raw)}: is an address; geobind reads files only, download it first")
    try:
        if isinstance(raw, str | Path):
            if not stat.S_ISREG(os.stat(raw).st_mode):  # a pipe would block for ever
                kind = "a folder" if os.path.isdir(raw) else "something special"
                raise DataError(f"{describe(raw)}: is {kind}, not a file")
            file = open(raw, "rb")
        elif isinstance(raw, bytes | bytearray | memoryview):
            file = io.BytesIO(raw)
        else:
            raise DataError(f"a file must be a path or bytes, not {describe(raw)}")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name, or half a surrogate pair
        raise DataError(
            f"{describe(raw)}: {_reason(error, raw if isinstance(raw, str | Path) else None)}"
        ) from error
    with file:
        try:
            head = file.read(len(_LFS))
        except OSError as error:
            raise DataError(f"{describe(raw)}: {_reason(error)}") from error
        if not head:
            raise DataError(f"{describe(raw)}: is empty (0 bytes)")
        if head == _LFS:
            raise DataError(f"{describe(raw)}: is a Git LFS pointer, not the file itself; run `git lfs pull`")
        file.seek(0)
        yield file


def _reason(error: OSError | ValueError, path: str | Path | None = None, base: Path | None = None) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file" + ("" if path is None else _suggest_spelling(Path(path), base))
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


# Ways in which systems spell one name; the first that makes two spellings equal is the one to tell.
_SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("slashes in place of backslashes", lambda name: name.replace("\\", "/")),
    ("another Unicode form", lambda name: unicodedata.normalize("NFC", name)),
    ("another case", str.casefold),
    ("no percent escapes", unquote),
)


def _suggest_spelling(path: Path, base: Path | None) -> str:
    """Return the end of a message that names the file meant, if it is there as another system spells it."""
    given = os.fspath(path)
    words = [word for word in given.replace("\\", "/").split("/") if word]
    if ".." in words:  # it would lead where the name itself does not
        return ""
    there = Path(path.anchor)
    for word in words:
        name = word if os.path.lexists(there / word) else _list_folded_names(there).get(_fold_name(word))
        if name is None:
            return ""
        there /= name
    if os.fspath(there) == given:  # a link that leads nowhere
        return "; it is a symbolic link whose target is missing"
    shown = os.fspath(there.relative_to(base) if base is not None and there.is_relative_to(base) else there)
    alike = (way for way, fold in _SPELLINGS if fold(given) == fold(os.fspath(there)))
    printable = shown.encode("utf-8", "backslashreplace").decode()
    return f"; there is '{printable}', with {next(alike, 'another spelling')}"


def _fold_name(name: str) -> str:
    return unicodedata.normalize("NFKC", unquote(name)).casefold().strip(" .")


def _list_folded_names(folder: Path) -> Mapping[str, str]:
    try:
        return _fold_names(folder, os.stat(folder).st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=16)
def _fold_names(folder: Path, _changed: int) -> Mapping[str, str]:
    """Map the names in a folder, folded, to themselves; kept, because many may be missing from one folder."""
    with os.scandir(folder) as entries:
        return {_fold_name(entry.name): entry.name for entry in islice(entries, _MAX_LISTED)}


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
        fault = _find_fault(name)
        if fault:
            raise DataError(f"file name {show_value(name)} cannot be used: {fault}")
        path = os.path.join(self.root, name)
        try:
            real = _real_path(os.path.join(os.getcwd(), path))
        except ValueError as error:
            raise DataError(f"file name {show_value(name)} cannot be used: {error}") from error
        if not any(
            real.startswith(fence) for fence in _list_allowed_folders(os.getcwd(), (self.root, *self.links))
        ):
            raise DataError(
                f"{describe(name)}: leads out of {self.root} (to {describe(real)}); move it there, name a "
                "higher folder as `data.root`, or, for a symbolic link, its target's folder in `data.links`"
            )
        return Path(path)

    def raw(self, name: str) -> Path | Content:
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
        path = self(name)
        try:
            state = os.stat(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{describe(name)}: {_reason(error, path, self.root)}") from error
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"{describe(name)}: is not a file")
        return state.st_size

    def fault(self, name: str) -> str | None:
        """Return why a file cannot be used, or None, without reading it."""
        try:
            return None if self.size(name) else f"{name}: is empty (0 bytes)"
        except DataError as error:
            return str(error)


def _find_fault(name: str) -> str | None:
    """Return why a name in a table cannot be that of a file, before the system is asked."""
    if "\0" in name:  # not every call to the system would notice
        return "embedded null byte"
    if len(name) > _MAX_NAME:
        return f"it has {len(name)} letters; at most {_MAX_NAME} are read"
    if _ADDRESS.match(name):
        return "it is an address; geobind reads files only, download it first"
    if name[:2] in ("\\\\", "//", "\\/", "/\\"):  # where Windows looks for another machine
        return "it leads to another machine"
    return None


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
