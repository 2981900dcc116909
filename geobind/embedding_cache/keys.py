"""Cache keys: everything that an embedding depends on, and content hashes of inputs."""

# M observations; a content hash is two 64-bit words

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import date
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from itertools import islice
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL.Image import Image

from geobind.data.readers.files import CellText, open_binary
from geobind.errors import DataError
from geobind.modality import Modality
from geobind.plugins import Source
from geobind.utils.files import file_stamp, is_settled
from geobind.utils.hashing import fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray


WORDS = 2
_BYTES = 8 * WORDS
_READ = 2**20
_GROUP = 256  # inputs whose files are hashed in parallel
_THREADS = 8
_TABLE = "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, state BLOB, content BLOB)"

MISSING = DataError("is missing")  # stands for an input that a row lacks


class Uncacheable(Exception):
    """A modality cannot be cached; the message is a reason that follows "is not cached: "."""


class FileHashes:
    """Hashes of files, kept on disk: a file is read again only if its size, times or inode have changed.

    Several processes may share the database at `path`. It only saves time: if it cannot be read or written,
    every file is hashed.
    """

    def __init__(self, path: Path) -> None:
        self._known: dict[str, bytes] = {}
        self._new: list[tuple[str, bytes, bytes]] = []
        self._path = path

    def prefetch(self, paths: Iterable[str]) -> None:
        """Hash files in parallel, so that single look-ups are quick."""
        requested = [
            (path, state) for path in dict.fromkeys(paths) if (state := _file_stamp(path)) is not None
        ]
        self._known = dict(self._recall(requested))
        missing = [(path, state) for path, state in requested if path not in self._known]
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
            before = os.fstat(file.fileno())
            try:
                total = hashlib.sha256()
                while part := file.read(_READ):
                    total.update(part)
            except OSError as error:
                raise DataError(f"{path}: {error.strerror or error}") from error
            digest = total.digest()[:_BYTES]
            changed = file_stamp(before) != file_stamp(os.fstat(file.fileno()))
        if not changed and is_settled(before):
            self._new.append((path, _pack_stamp(file_stamp(before)), digest))
        return digest

    def _hash(self, path: str, _: bytes) -> None:
        with suppress(DataError, Uncacheable):  # the look-up of the file itself raises it
            self._known[path] = self(path)

    def _recall(self, requested: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        if not self._path.exists():
            return
        with suppress(sqlite3.Error, OSError), closing(sqlite3.connect(self._path, timeout=30)) as base:
            for path, state in requested:
                row = base.execute("SELECT state, content FROM files WHERE path = ?", (path,)).fetchone()
                if row and row[0] == state and len(row[1]) == _BYTES:
                    yield path, row[1]

    def _remember(self) -> None:
        if not self._new:
            return
        with suppress(sqlite3.Error, OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=30)) as base, base:
                base.execute(_TABLE)
                base.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", self._new)
        self._new.clear()


def content_hashes(cells: Iterable[Any], files: FileHashes) -> Iterator[list[bytes | DataError]]:
    """Yield the content hashes of each cell's observations; a cell is an input or a list of equal ones.

    Args:
        cells: Raw inputs, lists of them, or the DataError raised by reading a cell.
        files: Hashes of files.

    Raises:
        Uncacheable: An input is of a kind that cannot be hashed.
    """
    remaining = iter(cells)
    while group := list(islice(remaining, _GROUP)):
        files.prefetch(path for cell in group for path in _iter_paths(cell))
        for cell in group:
            items: list[Any] = cell if isinstance(cell, list) else [cell]
            yield [content_hash(item, files) for item in items] or [MISSING]


def hash_view(content: bytes, view: int) -> bytes:
    """Return the content hash of one augmented view of an observation."""
    return hashlib.sha256(content + f"view {view}".encode()).digest()[:_BYTES]


def pack_hashes(contents: Iterable[bytes]) -> NDArray[np.uint64]:
    """Return content hashes as an array (M, 2)."""
    return np.frombuffer(b"".join(contents), dtype="<u8").reshape(-1, WORDS).astype(np.uint64)


def content_hash(raw: Any, files: FileHashes) -> bytes | DataError:
    """Return the hash of one raw input, or the error that says why it has none."""
    if raw is None:
        return MISSING
    if isinstance(raw, DataError):
        return raw
    total = hashlib.sha256()
    try:
        for part in _iter_bytes(raw, files):
            total.update(part)
    except DataError as error:
        return error
    return total.digest()[:_BYTES]


def _iter_bytes(raw: Any, files: FileHashes) -> Iterator[Any]:
    """Yield the bytes of an input; each part has its kind and length, so that no two inputs coincide."""
    from torch import Tensor

    from geobind.utils.arrays import as_array

    if isinstance(raw, Path):
        # The name is not content, but a reader may decode the file by its suffix.
        yield from _iter_bytes(("file", raw.suffix.lower(), files(os.fspath(raw))), files)
    elif isinstance(raw, str):
        encoded = raw.encode("utf-8", "surrogatepass")
        yield b"str %d " % len(encoded)
        yield encoded
        if not isinstance(raw, CellText) and _is_file(raw):  # a plugin may treat strings as paths
            yield files(raw)
    elif isinstance(raw, bytes | bytearray | memoryview):
        yield b"bytes %d " % len(raw)
        yield raw
    elif isinstance(raw, Tensor):
        yield from _iter_bytes(as_array(raw, "the tensor"), files)
    elif isinstance(raw, np.ndarray) and not raw.dtype.hasobject:
        yield f"array {raw.dtype.str} {raw.shape} ".encode()
        yield np.ascontiguousarray(raw).reshape(-1).view(np.uint8).data
    elif raw is None or isinstance(raw, Number | np.generic | date):
        yield f"{type(raw).__name__} {raw!r} ".encode()
    elif isinstance(raw, Mapping):
        yield b"mapping %d " % len(raw)
        for key, value in raw.items():
            yield from _iter_bytes((key, value), files)
    elif isinstance(raw, tuple | list):
        yield b"sequence %d " % len(raw)
        for part in raw:
            yield from _iter_bytes(part, files)
    elif isinstance(raw, Image):
        yield from _iter_bytes(("image", raw.mode, raw.size, raw.getpalette(), raw.tobytes()), files)
    else:
        raise Uncacheable(f"its inputs are of a kind that cannot be hashed ({type(raw).__name__})")


def _iter_paths(raw: Any) -> Iterator[str]:
    if isinstance(raw, Path):
        yield os.fspath(raw)
    elif isinstance(raw, tuple | list):
        for part in raw:
            yield from _iter_paths(part)


def _is_file(text: str) -> bool:
    try:
        return os.path.isfile(text)
    except (OSError, ValueError):
        return False


def _pack_stamp(stamp: tuple[int, ...]) -> bytes:
    return " ".join(map(str, stamp)).encode()


def _file_stamp(path: str) -> bytes | None:
    try:
        return _pack_stamp(file_stamp(os.stat(path)))
    except (OSError, ValueError):
        return None


FORMAT = 1  # format of the files; a change invalidates all entries
CachedPart = Literal["whole", "trunk"]
_FOR_WORK = re.compile(r"extra *== *.(dev|tests?|docs|lint)\b")  # extras that no embedding depends on
_NO_MATTER = {"torchaudio"}  # geobind's spectrograms are the same without it or with another version
_OURS = ("geobind.data", "geobind.towers")  # code that turns inputs into numbers, beside the plugin itself


def cache_key_facts(
    modality: Modality,
    source: Source,
    *,
    weights: str,
    part: CachedPart,
    width: int,
    precision: str,
    augmented: bool,
    files: Callable[[str], bytes],
) -> dict[str, Any]:
    """Return everything that the embedding of an input depends on, as plain values.

    These are all options, those of augmentation included, since the core cannot know which of them matter;
    the content of files that options name, and the names, sizes and times of those of Zarr folders; the
    source code of the plugin and of geobind's own readers and towers, which may change without a new version
    during development; and the versions of all libraries that they declare, except torchaudio, without which
    geobind's spectrograms are the same.

    Args:
        modality: The modality with its options.
        source: The distribution of its plugin.
        weights: Hash of the encoder's weights; of its trunk's if `part` is "trunk".
        part: The rows to keep: embeddings, or the input features of the encoder's `head`.
        width: Width of the shared space.
        precision: Precision of the encoder.
        augmented: Whether inputs are prepared as for training.
        files: Returns the hash of a file.

    Raises:
        Uncacheable: The source code of the plugin is not available, or a Zarr folder has too many files.
    """
    options = modality.model_dump(mode="json")
    return {
        "format": FORMAT,
        "modality": modality.name,
        "plugin": str(source),
        "options": options,
        "files": {
            text: (_hash_store(text) if os.path.isdir(text) else files(text)).hex()
            for text in sorted(_named_files(options))
        },
        "weights": weights,
        "part": part,
        "width": width,
        "precision": precision,
        "augmented": augmented,
        "code": _hash_source(type(modality)),
        "versions": _library_versions(source.distribution),
    }


def cache_key(facts: dict[str, Any]) -> str:
    """Return the key of the cache entry with these facts."""
    return fingerprint(facts)[:32]


def _named_files(value: Any) -> set[str]:
    """Return the files and Zarr folders that options name."""
    if isinstance(value, Mapping):
        return {file for part in value.values() for file in _named_files(part)}
    if isinstance(value, list | tuple):
        return {file for part in value for file in _named_files(part)}
    return {value} if isinstance(value, str) and (os.path.isfile(value) or _is_store(value)) else set()


_STORE = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")  # one of them lies in the folder of a Zarr store
_MAX_STORE = 1_000_000  # files of a store that are looked at


def _is_store(path: str) -> bool:
    return os.path.isdir(path) and any(os.path.isfile(os.path.join(path, name)) for name in _STORE)


def _hash_store(path: str) -> bytes:
    """Return a hash of a Zarr folder: names, sizes and times of its files, which need not be read.

    Raises:
        Uncacheable: It has too many files.
    """
    total, count = hashlib.sha256(), 0
    for home, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = os.path.join(home, name)
            count += 1
            if count > _MAX_STORE:
                raise Uncacheable(f"its options name {path}, which has over {_MAX_STORE:,} files")
            total.update(f"{os.path.relpath(file, path)}\0".encode() + (_file_stamp(file) or b"") + b"\0")
    return total.digest()[:_BYTES]


@lru_cache(maxsize=64)
def _hash_source(cls: type[Modality]) -> str:
    """Hash the source files of a modality, its readers and its encoders."""
    total = hashlib.sha256(f"{cls.__module__}.{cls.__qualname__}".encode())
    code_files = {file for name in _OURS for file in _source_files(name)}
    for parent in cls.__mro__:
        if issubclass(parent, Modality) and parent is not Modality:
            files = _source_files(parent.__module__)
            code_files.update(files)
            if not files:
                total.update(_class_source(parent).encode())
    for file in sorted(code_files):
        total.update(file.read_bytes())
    return total.hexdigest()


def _class_source(cls: type[Modality]) -> str:
    """Return the source code of a class without a file, as in a notebook."""
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        raise Uncacheable(f"the source code of {cls.__qualname__} is not available") from None


def _source_files(name: str) -> list[Path]:
    """Return the source files of a module; for a module in a package, those of the whole package."""
    if name in _OURS:
        spec = find_spec(name)
        folders = list((spec and spec.submodule_search_locations) or ())
    else:
        top = sys.modules.get(name.partition(".")[0])
        folders = list(getattr(top, "__path__", ()))
        if not folders:
            file = getattr(sys.modules.get(name), "__file__", None)
            return [Path(file)] if file and Path(file).is_file() else []
    return [file for folder in folders for file in Path(folder).rglob("*.py")]


@lru_cache(maxsize=64)
def _library_versions(distribution: str) -> dict[str, str]:
    """Return the versions of a distribution, of geobind, and of the requirements that both declare."""
    relevant = {"geobind", distribution}
    for name in tuple(relevant):
        try:
            declared = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            continue
        needed = [line for line in declared if not _FOR_WORK.search(line)]
        names = {match[0] for line in needed if (match := re.match(r"[A-Za-z0-9._-]+", line))}
        relevant |= names - _NO_MATTER if name == "geobind" else names
    versions = {"python": sys.version.split()[0]}
    for name in sorted(relevant):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
