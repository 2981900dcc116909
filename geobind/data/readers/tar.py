"""Observations in tar files: an index built once for each file, then one read for each observation.

The headers are read here and not by `tarfile`: an index is made three times as fast, and a hostile
header can neither turn the reader back to where it was nor make it read what is not there.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from geobind.data.cache import build_once, cache_root
from geobind.errors import DataError
from geobind.modality import Content
from geobind.utils.files import file_stamp
from geobind.utils.hashing import short_fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_MEMBER = 256 * 1024**2  # bytes
_MARK = "::"  # between the name of a tar file and that of its member
BLOCK = 512
_MAX_NAME = 1_000_000  # bytes of an extended header
_NOT_A_FILE, _TWICE, _CUT = -1, -2, -3  # sizes of members that cannot be read
_WHY = {
    _NOT_A_FILE: "is a link, a folder or a device, not a file",
    _TWICE: "is in the tar file twice; make it again",
    _CUT: "is cut short; the tar file is damaged",
}
_VERSION = 2


class TarMember(NamedTuple):
    """A file in a tar file, as a cell names it: `shards/0001.tar::00012.jpg`."""

    tar: str
    name: str


def parse_member(cell: str) -> TarMember | None:
    """Take the name of a tar file's member apart; None of any other name.

    Raises:
        DataError: The tar file is compressed, or the member's name leads out of it.
    """
    tar, mark, name = cell.partition(_MARK)
    kind = tar.lower()
    if not mark or not kind.endswith((".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")):
        return None
    if not kind.endswith(".tar"):
        raise DataError(f"{cell}: a compressed tar file can only be read from its beginning; uncompress it")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise DataError(f"{cell}: names no file in the tar file")
    return TarMember(tar, str(path))


def read_member(path: Path, name: str, label: str) -> Content:
    """Return the bytes of a member of a tar file; `label` names it in messages.

    Raises:
        DataError: The tar file cannot be read or has no such file.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            start, size = _find_member(file, path, name, label)
            file.seek(start)
            content = file.read(size)
    except OSError as error:
        raise DataError(f"{label}: {_reason(error)}") from error
    if len(content) != size:
        raise DataError(f"{label}: {_WHY[_CUT]}")
    return Content(content, label)


def read_member_size(path: Path, name: str, label: str) -> int:
    """Return the number of bytes of a member of a tar file.

    Raises:
        DataError: The tar file cannot be read or has no such file.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return _find_member(file, path, name, label)[1]
    except OSError as error:
        raise DataError(f"{label}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return "no such tar file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)


def _find_member(file: io.FileIO, path: Path, name: str, label: str) -> tuple[int, int]:
    index = _current_index(file, path, name, label)
    name_N, start_N, size_N, _ = index
    at = _look_up(index, name)
    if at is None:
        spelt = next((other for other in _spellings(name) if _look_up(index, other) is not None), None)
        there = f"; there is '{spelt}'" if spelt else ""
        raise DataError(f"{label}: the tar file has no such member among its {len(name_N)}{there}")
    start, size = int(start_N[at]), int(size_N[at])
    if size < 0:
        raise DataError(f"{label}: {_WHY[size]}")
    if size > MAX_MEMBER:
        raise DataError(f"{label}: has {size / 1e6:.0f} MB; at most {MAX_MEMBER / 1e6:.0f} are read")
    return start, size


def _look_up(index: NDArray[np.int64], name: str) -> int | None:
    wanted = _hash_name(name.encode("utf-8", "surrogateescape"))
    at = int(index[0].searchsorted(wanted))
    return at if at < index.shape[1] and index[0, at] == wanted else None


def _spellings(name: str) -> Iterator[str]:
    """Yield a name as other systems spell it."""
    slashed = name.replace("\\", "/")
    folder, mark, end = slashed.rpartition(".")
    for changed in (
        slashed,
        slashed.lower(),
        slashed.upper(),
        folder + mark + end.upper(),
        folder.upper() + mark + end,
    ):
        for form in ("NFC", "NFD"):
            yield unicodedata.normalize(form, changed)


def _current_index(file: io.FileIO, path: Path, name: str, label: str) -> NDArray[np.int64]:
    """Return the index of a tar file as it is now, which a header of it proves.

    A file can be replaced by another of one size and time. So the header of the member looked for must be the
    one that was indexed, or, where there is no such member, the first header and the last.
    """
    stamp = file_stamp(os.fstat(file.fileno()))
    for attempt in range(3):
        if attempt:  # another process may have made it anew
            _open_index.cache_clear()
        index = _open_index(str(path), stamp, anew=attempt == 2)
        at = _look_up(index, name)
        ends = (int(index[1].argmin()), int(index[1].argmax())) if index.shape[1] else ()
        if all(_is_unchanged(file, index, one) for one in (ends if at is None else (at,))):
            return index
    raise DataError(f"{label}: the tar file was changed while it was read")


def _is_unchanged(file: io.FileIO, index: NDArray[np.int64], at: int) -> bool:
    file.seek(int(index[1, at]) - BLOCK)
    return _hash_name(file.read(BLOCK)) == int(index[3, at])


@lru_cache(maxsize=1024)
def _open_index(path: str, stamp: tuple[int, ...], *, anew: bool = False) -> NDArray[np.int64]:
    """Map the index of a tar file into memory, so that all processes share it; it is made once."""
    import numpy as np

    folder = cache_root() / "tars" / short_fingerprint(os.path.realpath(path), stamp, _VERSION)
    if anew:
        shutil.rmtree(folder, ignore_errors=True)
    build_once(folder, lambda temporary: np.save(temporary / "index.npy", build_index(Path(path))))
    # A plain array, because each look into a memory map makes another one.
    return np.asarray(np.load(folder / "index.npy", mmap_mode="r", allow_pickle=False))


def build_index(path: Path) -> NDArray[np.int64]:
    """List the members of a tar file: the hashes of names, sorted, then starts, sizes, hashes of headers.

    Raises:
        DataError: It is not a tar file, is compressed, or a header of it is damaged.
    """
    import numpy as np

    with open(path, "rb", buffering=0) as file:  # a buffer would be filled anew for every header
        length = os.fstat(file.fileno()).st_size
        entries = (
            (_hash_name(name), start, _readable_size(kind, size, length - start), _hash_name(block))
            for name, kind, start, size, block in scan_members(file, path, length)
        )
        # hash of a name, where its bytes begin, how many, hash of its header
        entry_N4 = np.fromiter(entries, dtype=np.dtype((np.int64, 4)))
    name_N, start_N, size_N, block_N = entry_N4[np.argsort(entry_N4[:, 0], kind="stable")].T
    twice_N = name_N[1:] == name_N[:-1]
    size_N[1:][twice_N] = _TWICE
    size_N[:-1][twice_N] = _TWICE
    return np.stack([name_N, start_N, size_N, block_N])


def _readable_size(kind: bytes, size: int, left: int) -> int:
    return _NOT_A_FILE if kind not in PLAIN else size if size <= left else _CUT


def _hash_name(name: bytes) -> int:
    # 64 bits: two of a million names share one with a chance of 1 in 40 million, and are then refused.
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


PLAIN = (b"0", b"\0", b"7")  # kinds of members that are files
FOLDER = b"5"


class MemberHeader(NamedTuple):
    """A member of a tar file: its name, kind, where its bytes begin, how many it claims, and its header."""

    name: bytes
    kind: bytes
    start: int
    size: int
    block: bytes

    @property
    def end(self) -> int:
        """Return where the next member begins."""
        return self.start + -(-self.size // BLOCK) * BLOCK


def scan_members(file: BinaryIO | io.FileIO, path: Path, length: int) -> Iterator[MemberHeader]:
    """Yield the members of a tar file in order; only headers are read, each once.

    Args:
        file: The file, which may be one that unpacks another.
        path: What messages call it.
        length: Bytes of the file, or the most that are unpacked.

    Raises:
        DataError: It is not a tar file, a header is damaged, or a compressed file ends too early.
    """
    at, long_name, long_size = 0, None, None
    while at + BLOCK <= length:
        file.seek(at)
        block = file.read(BLOCK)
        if not any(block):
            if len(block) < BLOCK and at and file.seek(0, os.SEEK_END) < at:
                raise DataError(f"{path}: is cut short: it ends before byte {at}")
            break
        if len(block) < BLOCK:
            raise DataError(f"{path}: is cut short in the header at byte {at}")
        kind, size = block[156:157], _read_size(block, at, path)
        at += BLOCK
        if kind in b"LKxg":  # what is said of the next member, or of all of them
            if size > _MAX_NAME:
                raise DataError(f"{path}: the header at byte {at - BLOCK} is damaged: a name of {size} bytes")
            payload = file.read(size)
            if kind == b"L":
                long_name = payload.rstrip(b"\0")
            elif kind == b"x":
                long_name, long_size = _parse_pax(payload, at, path)
        else:
            size = size if long_size is None else long_size
            yield MemberHeader(_normalize_name(long_name or _parse_name(block)), kind, at, size, block)
            long_name = long_size = None
            if kind in b"123456":  # links, folders and devices have no bytes, whatever their header says
                size = 0
        at += -(-size // BLOCK) * BLOCK
    if at == 0 and length < BLOCK:
        raise DataError(f"{path}: not a tar file: it has {length} bytes")


def _read_size(block: bytes, at: int, path: Path) -> int:
    """Return the size that a header tells, once its checksum is known to be right."""
    try:
        stated = int(block[148:156].strip(b" \0") or b"0", 8)
        if stated != sum(block) - sum(block[148:156]) + 8 * 32:
            raise ValueError("its checksum is wrong")
        if block[156:157] == b"S":
            raise ValueError("it is of a sparse file, which is not read; make the tar file again")
        return _parse_number(block[124:136])
    except ValueError as error:
        what = "its header at byte" if at else "not an uncompressed tar file: the header at byte"
        raise DataError(f"{path}: {what} {at} is damaged: {error}") from error


def _parse_number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: a number too large for octal digits
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _parse_name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _normalize_name(name: bytes) -> bytes:
    while name.startswith(b"./"):
        name = name[2:]
    return name


def _parse_pax(payload: bytes, at: int, path: Path) -> tuple[bytes | None, int | None]:
    """Return the name and size of a pax header, whose records are `LENGTH KEY=VALUE` and a line end."""
    found: dict[bytes, bytes] = {}
    try:
        while payload:
            count = int(payload[: payload.index(b" ")])
            record = payload[:count]
            if not 5 <= count <= len(payload) or record[-1:] != b"\n":
                raise ValueError("a record is cut short")
            key, _, value = record[record.index(b" ") + 1 : -1].partition(b"=")
            found[key] = value
            payload = payload[count:].lstrip(b"\0")
        if any(key.startswith(b"GNU.sparse") for key in found):
            raise ValueError("it is of a sparse file, which is not read; make the tar file again")
        size = int(found[b"size"]) if b"size" in found else None
        if size is not None and size < 0:
            raise ValueError(f"a size of {size}")
    except ValueError as error:
        raise DataError(f"{path}: its header at byte {at - BLOCK} is damaged: {error}") from error
    return found.get(b"path"), size
