"""What a raw input is, in sixteen bytes: the hash of its content, wherever it lies and whatever its name."""

# M observations; a content is two 64-bit words

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import date
from itertools import islice
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from geobind.data.readers.files import open_binary
from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORDS = 2
_BYTES = 8 * WORDS
_READ = 2**20
_GROUP = 256  # inputs whose files are hashed side by side
_THREADS = 8
_YOUNG = 2.0  # seconds; within them a file can change and keep its time stamps
_TABLE = "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, state BLOB, content BLOB)"

MISSING = DataError("is missing")  # what stands for an input that a row has not got


class Uncacheable(Exception):
    """A side cannot be cached; the message says why, in words that follow "is not cached: "."""


class FileHashes:
    """Hashes of files, kept on disk: a file is read again only when its size, times or inode have changed.

    Several processes may share the file at `path`. It saves time and nothing else: where it cannot be
    written or read, every file is hashed.
    """

    def __init__(self, path: Path) -> None:
        self._known: dict[str, bytes] = {}
        self._new: list[tuple[str, bytes, bytes]] = []
        self._path = path

    def prefetch(self, paths: Iterable[str]) -> None:
        """Hash files side by side, so that asking for them one by one is quick."""
        wanted = [(path, state) for path in dict.fromkeys(paths) if (state := _state(path)) is not None]
        self._known = dict(self._recall(wanted))
        missing = [(path, state) for path, state in wanted if path not in self._known]
        if len(missing) > 1:
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda item: self._hash(*item), missing))
        self._remember()

    def __call__(self, path: str) -> bytes:
        """Return the hash of a file's bytes.

        Raises:
            DataError: It cannot be read; the message is that of the readers.
            Uncacheable: It is a folder.
        """
        if path in self._known:
            return self._known[path]
        if os.path.isdir(path):
            raise Uncacheable(f"its inputs are folders ({path})")
        with open_binary(Path(path)) as file:
            state = _stamp(os.fstat(file.fileno()))
            try:
                total = hashlib.sha256()
                while part := file.read(_READ):
                    total.update(part)
            except OSError as error:
                raise DataError(f"{path}: {error.strerror or error}") from error
            digest = total.digest()[:_BYTES]
            changed = state != _stamp(os.fstat(file.fileno()))
        if not changed and time.time_ns() - max(state[1:3]) > _YOUNG * 1e9:
            self._new.append((path, _packed(state), digest))
        return digest

    def _hash(self, path: str, _: bytes) -> None:
        with suppress(DataError, Uncacheable):  # who asks for it by name will be told
            self._known[path] = self(path)

    def _recall(self, wanted: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        if not self._path.exists():
            return
        with suppress(sqlite3.Error, OSError), closing(sqlite3.connect(self._path, timeout=30)) as base:
            for path, state in wanted:
                found = base.execute("SELECT state, content FROM files WHERE path = ?", (path,)).fetchone()
                if found and found[0] == state and len(found[1]) == _BYTES:
                    yield path, found[1]

    def _remember(self) -> None:
        if not self._new:
            return
        with suppress(sqlite3.Error, OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=30)) as base, base:
                base.execute(_TABLE)
                base.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", self._new)
        self._new.clear()


def contents_of(cells: Iterable[Any], files: FileHashes) -> Iterator[list[bytes | DataError]]:
    """Yield the content of each observation of each cell; a cell is an input or a list of equally good ones.

    Args:
        cells: Raw inputs, lists of them, or the DataError that reading the cell raised.
        files: The hashes of files.

    Raises:
        Uncacheable: An input is of a kind whose content cannot be told.
    """
    remaining = iter(cells)
    while group := list(islice(remaining, _GROUP)):
        files.prefetch(path for cell in group for path in _paths(cell))
        for cell in group:
            items: list[Any] = cell if isinstance(cell, list) else [cell]
            yield [_content_or_error(item, files) for item in items] or [MISSING]


def view_of(content: bytes, view: int) -> bytes:
    """Return the content that stands for one augmented view of an observation."""
    return hashlib.sha256(content + f"view {view}".encode()).digest()[:_BYTES]


def as_words(contents: Iterable[bytes]) -> NDArray[np.uint64]:
    """Return contents as an array (M, 2)."""
    return np.frombuffer(b"".join(contents), dtype="<u8").reshape(-1, WORDS).astype(np.uint64)


def _content_or_error(raw: Any, files: FileHashes) -> bytes | DataError:
    if raw is None:
        return MISSING
    if isinstance(raw, DataError):
        return raw
    total = hashlib.sha256()
    try:
        for part in _parts(raw, files):
            total.update(part)
    except DataError as error:
        return error
    return total.digest()[:_BYTES]


def _parts(raw: Any, files: FileHashes) -> Iterator[Any]:
    """Yield the bytes of an input, each part with its kind and length, so that no two inputs run into one."""
    from torch import Tensor

    if isinstance(raw, Path):
        # The name is no content, but its end may tell a reader how to decode the file.
        yield from _parts(("file", raw.suffix.lower(), files(os.fspath(raw))), files)
    elif isinstance(raw, str):
        encoded = raw.encode("utf-8", "surrogatepass")
        yield b"str %d " % len(encoded)
        yield encoded
        if _is_file(raw):  # a plugin may take strings for paths
            yield files(raw)
    elif isinstance(raw, bytes | bytearray | memoryview):
        yield b"bytes %d " % len(raw)
        yield raw
    elif isinstance(raw, Tensor):
        yield from _parts(raw.detach().cpu().numpy(), files)
    elif isinstance(raw, np.ndarray) and not raw.dtype.hasobject:
        yield f"array {raw.dtype.str} {raw.shape} ".encode()
        yield np.ascontiguousarray(raw).reshape(-1).view(np.uint8).data
    elif raw is None or isinstance(raw, Number | np.generic | date):
        yield f"{type(raw).__name__} {raw!r} ".encode()
    elif isinstance(raw, Mapping):
        yield b"mapping %d " % len(raw)
        for key, value in raw.items():
            yield from _parts((key, value), files)
    elif isinstance(raw, tuple | list):
        yield b"sequence %d " % len(raw)
        for part in raw:
            yield from _parts(part, files)
    elif isinstance(raw, Image):
        yield from _parts(("image", raw.mode, raw.size, raw.getpalette(), raw.tobytes()), files)
    else:
        raise Uncacheable(f"its inputs are of a kind whose content cannot be told ({type(raw).__name__})")


def _paths(raw: Any) -> Iterator[str]:
    if isinstance(raw, Path):
        yield os.fspath(raw)
    elif isinstance(raw, tuple | list):
        for part in raw:
            yield from _paths(part)


def _is_file(text: str) -> bool:
    try:
        return os.path.isfile(text)
    except (OSError, ValueError):
        return False


def _stamp(state: os.stat_result) -> tuple[int, int, int, int]:
    # Programs can set mtime but not ctime: a file that was replaced and its time put back is seen.
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def _packed(stamp: tuple[int, ...]) -> bytes:
    return " ".join(map(str, stamp)).encode()


def _state(path: str) -> bytes | None:
    try:
        return _packed(_stamp(os.stat(path)))
    except (OSError, ValueError):
        return None
