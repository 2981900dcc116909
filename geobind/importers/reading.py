"""Readers for importers: CSV, JSON, tar shards.

Read WebDataset shards: tar files whose members belong together when they share a name up to its first dot.

Nothing is extracted: a member's name is never a path on this machine, and its bytes stay in memory.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from geobind.data.readers.files import describe, join_names
from geobind.data.readers.tar import BLOCK, FOLDER, MAX_MEMBER, PLAIN, MemberHeader, scan_members
from geobind.errors import DataError
from geobind.utils.files import is_hidden

IMAGES = frozenset({".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_MAX_JSON = 1024**3  # bytes of what is read at once; larger ones are streamed
_MAX_VALUE = 64_000_000  # letters of one value that is streamed
_BLOCK = 1_000_000
_DECODER = json.JSONDecoder()


def read_csv(path: Path, needed: Collection[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file with a header, by column; columns without a name are left out.

    Args:
        path: The file, UTF-8.
        needed: Columns that must be there.

    Raises:
        DataError: It cannot be read, is not well-formed, or lacks a column.
    """
    from geobind.data.delimited import read_records

    header: list[str] | None = None
    for lines, rows in read_records(path, ",", strict=False):
        if header is None:
            header, lines, rows = rows[0], lines[1:], rows[1:]
            _check_columns(header, needed, path)
        for line, cells in zip(lines, rows, strict=True):
            if len(cells) != len(header):
                raise DataError(f"{path}:{line}: has not as many cells as the header")
            row = dict(zip(header, cells, strict=True))
            row.pop("", None)  # pandas writes its index without a name
            yield row
    if header is None:
        _check_columns([], needed, path)


def _check_columns(header: list[str], needed: Collection[str], path: Path) -> None:
    lacking = sorted(set(needed) - set(header))
    if lacking:
        raise DataError(
            f"{path}: has no column {', '.join(repr(name) for name in lacking)}; "
            f"its columns: {join_names(filter(None, header))}"
        )
    twice = sorted(name for name in set(needed) if header.count(name) > 1)
    if twice:
        raise DataError(f"{path}: column '{twice[0]}' is there twice")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: It cannot be read, is far too large, or is no JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise DataError(
                f"{path}: over {_MAX_JSON // 1024**3} GB of JSON; is this the dataset's own file?"
            )
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: must be a JSON object, not a {type(value).__name__}")
    return cast("dict[str, Any]", value)


@lru_cache(maxsize=20_000)  # of folders: datasets of species have one for each
def list_names(folder: Path | str) -> frozenset[str]:
    """List the names in a folder, looked up once: a million single look-ups take minutes."""
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


@lru_cache(maxsize=16)
def list_by_stem(folder: Path) -> dict[str, str]:
    """Map the files of a folder by their name up to the first dot or underscore."""
    return {name.split(".")[0].split("_")[0]: name for name in sorted(list_names(folder), reverse=True)}


def resolve_inside(folder: Path, name: str, where: str) -> Path:
    """Resolve a file name of a dataset inside its folder.

    Raises:
        DataError: The name leads out of it.
    """
    pure = PurePosixPath(name.strip().replace("\\", "/"))
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in name:
        raise DataError(f"{where}: {name!r} is no file name inside {folder}")
    return folder / pure


def find_first(folder: Path, names: Collection[str]) -> Path | None:
    """Find the first named file or folder that exists; an empty name is the folder itself."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def stream_json(path: Path, member: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of one array of a JSON object, holding one at a time: such files can have gigabytes.

    Args:
        path: The file, `{"info": {...}, "images": [{...}, ...], ...}`, UTF-8.
        member: The array's name.

    Raises:
        DataError: It cannot be read, is not of this form, or has no such array.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from _Scanner(file, path).objects_of(member)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start + 1})") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


class _Scanner:
    """Reads JSON values one after the other out of a file."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._text, self._at = "", 0

    def objects_of(self, member: str) -> Iterator[dict[str, Any]]:
        found = False
        self._take("{")
        while self._next() != "}":
            name = self._value()
            self._take(":")
            if self._next() != "[":
                self._value()
            else:
                yield from (item for item in self._items() if name == member and isinstance(item, dict))
                found = found or name == member
            if self._next() != ",":
                break
            self._take(",")
        self._take("}")
        if not found:
            raise DataError(f"{self._path}: has no list '{member}'")

    def _items(self) -> Iterator[Any]:
        self._take("[")
        while self._next() != "]":
            yield self._value()
            if self._next() != ",":
                break
            self._take(",")
        self._take("]")

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                goes_on = end == len(self._text) or self._text[end] in ".eE"  # as a number may
                if not goes_on or not self._more():
                    self._at = end
                    return value
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._more():
                    raise DataError(f"{self._path}: not JSON: {error}") from error

    def _next(self) -> str:
        """Return the next character that is no space, or nothing at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def _take(self, wanted: str) -> None:
        found = self._next()
        if found != wanted:
            raise DataError(f"{self._path}: not JSON: '{found or 'its end'}' where '{wanted}' belongs")
        self._at += 1

    def _more(self) -> bool:
        if len(self._text) - self._at > _MAX_VALUE:
            raise DataError(f"{self._path}: a value of over {_MAX_VALUE // 1_000_000} MB")
        block = self._file.read(_BLOCK)
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)


def parse_time(text: str, *formats: str) -> datetime | None:
    """Parse a time in ISO 8601 or one of the `strptime` formats; None if it is none."""
    text = text.strip()
    for read in (datetime.fromisoformat, *(partial(_strptime, form) for form in formats)):
        try:
            return read(text)
        except ValueError:
            continue
    return None


def _strptime(form: str, text: str) -> datetime:
    return datetime.strptime(text, form)


_MAX_UNPACKED, _MAX_RATIO = 1024**3, 100  # bytes of a compressed shard, or as many times its own
SUFFIXES = (".tar", ".tar.gz", ".tgz")


class ShardSample(NamedTuple):
    """The members of a shard that share a name."""

    key: str
    members: dict[str, bytes]  # by what follows the first dot, lower-case: `overhead.jpg`


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder at any depth, sorted by name, without hidden files and folders.

    Raises:
        DataError: A folder in it cannot be read.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror or error}") from error

    for here, folders, names in os.walk(folder, onerror=fail) if folder.is_dir() else ():
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (Path(here, name) for name in sorted(names) if not is_hidden(name))


def find_shards(sources: tuple[Path, ...]) -> list[Path]:
    """Find the shards given and those in the folders given, at any depth, sorted by name."""
    found: list[Path] = []
    for source in sources:
        inside = sorted(path for path in walk_files(source) if path.name.endswith(SUFFIXES))
        found += inside if source.is_dir() else [source]
    return found


def read_shard(path: Path, wanted: frozenset[str], max_member: int = MAX_MEMBER) -> Iterator[ShardSample]:
    """Yield the samples of a shard in order.

    Args:
        path: The shard, a tar file, perhaps compressed with gzip.
        wanted: What follows the first dot in the names of the members to read; of others there is a name,
            with no bytes.
        max_member: Most bytes that a wanted member may have.

    Raises:
        DataError: The file is damaged, cut short or unpacks to far too much; it holds a link, a device, a
            name that leads out of the archive, a member twice, or one that is too large; or the members of a
            sample do not follow one another.
    """
    key, members, ended = "", dict[str, bytes](), set[bytes]()
    try:
        with _open_shard(path) as (file, length, packed):
            end = 0
            for header in scan_members(file, path, length):
                if header.kind == FOLDER:
                    end = header.start
                    continue
                end = header.end
                its_key, extension = _split_name(header, path)
                if not extension:  # hidden, such as what macOS puts beside each file
                    _check_size(header, path, length, packed, max_member=length)
                    continue
                if its_key != key:
                    if members:
                        yield ShardSample(key, members)
                    ended.add(_hash_key(key))
                    if _hash_key(its_key) in ended:
                        raise DataError(
                            f"{path}: members of '{its_key}' do not follow one another, but a sample is what "
                            "does; write the shard in the order of names: tar --sort=name -cf NEW.tar FOLDER"
                        )
                    key, members = its_key, {}
                if extension in members:
                    raise DataError(f"{path}: '{key}' has '{extension}' twice")
                is_wanted = extension in wanted
                _check_size(header, path, length, packed, max_member=max_member if is_wanted else length)
                members[extension] = _read_content(file, header, path) if is_wanted else b""
            if not packed and end < length < end + BLOCK:
                raise DataError(f"{path}: is cut short in the header at byte {end}")
    except (EOFError, OSError, ValueError, zlib.error) as error:
        after = f" after '{key}'" if key else ""
        raise DataError(f"{path}: not a tar file that can be read{after}: {error}") from error
    if members:
        yield ShardSample(key, members)


@contextmanager
def _open_shard(path: Path) -> Generator[tuple[BinaryIO, int, bool]]:
    """Open a shard; yield its bytes, how many there are or may be, and whether they are unpacked."""
    size = path.stat().st_size
    if path.name.endswith(SUFFIXES[1:]):
        with gzip.open(path) as file:
            yield cast(BinaryIO, file), max(_MAX_UNPACKED, _MAX_RATIO * size), True
    else:
        with open(path, "rb", buffering=0) as file:
            yield cast(BinaryIO, file), size, False


def _check_size(header: MemberHeader, path: Path, length: int, packed: bool, *, max_member: int) -> None:
    """Check the size that a header claims, before anything of it is read or skipped."""
    if header.start + header.size > length:
        reason = f"unpacks to over {length} bytes" if packed else "is cut short"
        raise DataError(f"{path}: {_show(header.name)}: {reason} (its header claims {header.size})")
    if header.size > max_member:
        raise DataError(
            f"{path}: {_show(header.name)}: {header.size} bytes, more than the {max_member} allowed"
        )


def _split_name(header: MemberHeader, path: Path) -> tuple[str, str]:
    """Split a member's name into key and extension, which is empty if the name begins with a dot."""
    if header.kind not in PLAIN:
        raise DataError(f"{path}: {_show(header.name)}: is a link or a device; shards hold plain files")
    name = PurePosixPath(header.name.decode("utf-8", "surrogateescape"))
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise DataError(f"{path}: {_show(header.name)}: leads out of the archive")
    stem, _, extension = name.name.partition(".")
    return (str(name.with_name(stem)), extension.lower()) if stem else (name.name, "")


def _read_content(file: BinaryIO, header: MemberHeader, path: Path) -> bytes:
    file.seek(header.start)
    content = file.read(header.size)
    if len(content) != header.size:
        raise DataError(f"{path}: {_show(header.name)}: is cut short ({len(content)} of {header.size} bytes)")
    return content


def _hash_key(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _show(name: bytes) -> str:
    return describe(name.decode("utf-8", "backslashreplace"))
