"""Cache entries on disk: shards, size limit, pruning and verification."""

# M rows of a shard, F numbers of a row

from __future__ import annotations

import hashlib
import json
import logging
import math
import mmap
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from geobind.data.cache import cache_root
from geobind.embedding_cache.keys import cache_key
from geobind.errors import CheckpointError, DataError, StorageError
from geobind.utils import files
from geobind.utils.files import FileLock

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


SUFFIX = ".safetensors"
_MAX_HEADER = 100_000  # bytes
_TYPES = {"content": ("U64", np.uint64), "scale": ("F32", np.float32), "row": ("F16", np.float16)}


class Damaged(Exception):
    """A shard is unreadable; the message says why."""


class CacheShard(NamedTuple):
    """Rows of one memory-mapped file."""

    path: Path
    content_M2: NDArray[np.uint64]
    scale_M: NDArray[np.float32]  # divisor of each row
    row_MF: NDArray[np.float16]  # of any shape from the second axis on
    sum: str  # expected SHA-256 of the rows' bytes


def write_shard(folder: Path, content_M2: NDArray[np.uint64], value_MF: NDArray[np.float32]) -> Path:
    """Write rows as a new file, atomically.

    Each row is divided by a power of two that brings its largest number between a half and one, so that
    half precision keeps 11 bits of it whatever the scale of the features.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    scale_M = _compute_scales(value_MF.reshape(len(value_MF), -1))
    with np.errstate(over="ignore"):  # a row that holds an infinity
        row_MF = (value_MF / broadcast_scales(scale_M, value_MF)).astype(np.float16)
    tensors = {"content": content_M2, "scale": scale_M, "row": row_MF}
    sums = {"index": _checksum(content_M2, scale_M), "rows": _checksum(row_MF)}
    path = folder / f"{uuid.uuid4().hex}{SUFFIX}"
    files.write_atomic(path, save(tensors, metadata=sums))
    return path


def open_shard(path: Path) -> CacheShard:
    """Map a shard into memory; check its size, header and index, but not its rows.

    Raises:
        Damaged: It is cut short, or not a shard.
        FileNotFoundError: Another process has dropped or merged it.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER:
                raise Damaged("it has no header")
            header = json.loads(file.read(length))
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        sums = header["__metadata__"]
        content_M2, scale_M, row_MF = (_map_array(content, header, name, 8 + length, size) for name in _TYPES)
        end = 8 + length + max(header[name]["data_offsets"][1] for name in _TYPES)
        if not end == size or not len(content_M2) == len(scale_M) == len(row_MF):
            raise Damaged("it is cut short")
        if _checksum(content_M2, scale_M) != sums["index"]:
            raise Damaged("its index has changed since it was written")
        rows = str(sums["rows"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise Damaged(f"it has no header that can be read ({type(error).__name__})") from error
    if hasattr(mmap, "MADV_RANDOM"):
        # Batches are drawn at random, so reading ahead is no help.
        content.madvise(mmap.MADV_RANDOM)
    return CacheShard(path, content_M2, scale_M, row_MF, rows)


def check_rows(shard: CacheShard) -> None:
    """Check the checksum of all rows.

    Raises:
        Damaged: A bit has changed.
    """
    if _checksum(shard.row_MF) != shard.sum:
        raise Damaged("its rows have changed since they were written")


def broadcast_scales(scale_M: NDArray[np.float32], row_MF: NDArray[Any]) -> NDArray[np.float32]:
    """Return scales with trailing axes that broadcast over their rows."""
    return scale_M.reshape(-1, *[1] * (row_MF.ndim - 1))


def _map_array(content: mmap.mmap, header: dict[str, Any], name: str, base: int, size: int) -> NDArray[Any]:
    written, kind = _TYPES[name]
    begin, end = header[name]["data_offsets"]
    shape = tuple(header[name]["shape"])
    if header[name]["dtype"] != written or not 0 <= begin <= end or base + end > size:
        raise Damaged("it is cut short")
    count = math.prod(shape)
    if any(length < 0 for length in shape) or count * np.dtype(kind).itemsize != end - begin:
        raise Damaged("its header contradicts itself")
    return np.frombuffer(content, kind, count, base + begin).reshape(shape)


def _compute_scales(value_MF: NDArray[np.float32]) -> NDArray[np.float32]:
    largest_M = np.abs(value_MF).max(axis=1, initial=0.0)
    exponent_M = np.frexp(np.where(np.isfinite(largest_M), largest_M, 0))[1]
    return np.ldexp(np.float32(1), exponent_M.clip(-126, 127)).astype(np.float32)


def _checksum(*arrays: NDArray[np.generic]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


# M rows, B rows asked for, F numbers of a row


FACTS_FILE = "entry.json"
LOCK_FILE = "in_use.lock"
_SMALL = 16_384  # rows; shards of fewer are merged
_MANY = 8  # small shards that are worth merging
_MERGED = 65_536  # rows of a merged shard


def embeddings_folder() -> Path:
    """Return the folder of all entries."""
    return cache_root() / "embeddings"


class CacheEntry:
    """Cached rows under one key; while it is open, it is not pruned.

    Any number of processes may read and add rows at the same time: shards are written atomically under
    unique names, and a row that two processes computed is stored twice, which is harmless.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        self.folder = embeddings_folder() / cache_key(facts)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / LOCK_FILE, shared=True)
            if not (self.folder / FACTS_FILE).exists():
                files.write_json(self.folder / FACTS_FILE, facts)
            os.utime(self.folder / FACTS_FILE)  # time of last use, for pruning
            files.remove_partial_files(self.folder)
        except OSError as error:
            raise files.explain_write_error(self.folder, error) from error

    def close(self) -> None:
        """Release the entry for pruning; opened rows stay readable."""
        self._lock.close()

    def rows(self) -> ShardRows:
        """Open all rows; a damaged shard is dropped with a warning."""
        return ShardRows(open_shards(self.folder))

    def add(self, content_M2: NDArray[np.uint64], value_MF: NDArray[np.float32]) -> Path:
        """Write rows as a new shard.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        return write_shard(self.folder, content_M2, value_MF)

    def merge(self) -> None:
        """Merge small shards, so that a batch is read from few files, and drop duplicate rows.

        On a full disk they stay as they are, which is only slower.
        """
        with suppress(OSError, StorageError), FileLock(self.folder / "merge.lock", wait=False) as alone:
            small = [shard for shard in open_shards(self.folder) if len(shard.scale_M) < _SMALL]
            if not alone or len(small) < _MANY:
                return
            whole = [shard for shard in small if _is_whole(shard)]
            group: list[CacheShard] = []
            for shard in whole:
                group.append(shard)
                if shard is whole[-1] or sum(len(part.scale_M) for part in group) >= _MERGED:
                    self._merge(group)
                    group = []

    def _merge(self, shards: list[CacheShard]) -> None:
        content_M2 = np.concatenate([shard.content_M2 for shard in shards])
        first_M = np.unique(content_M2, axis=0, return_index=True)[1]
        scaled = [shard.row_MF * broadcast_scales(shard.scale_M, shard.row_MF) for shard in shards]
        self.add(content_M2[first_M], np.concatenate(scaled)[first_M])
        for shard in shards:
            shard.path.unlink(missing_ok=True)


class ShardRows:
    """Rows of an entry, found by content and read from memory maps."""

    def __init__(self, shards: list[CacheShard]) -> None:
        self._shards = shards
        self._start_S = np.cumsum([0, *(len(shard.scale_M) for shard in shards)])
        content_M2 = np.concatenate([np.zeros((0, 2), np.uint64), *(shard.content_M2 for shard in shards)])
        self._order_M = np.argsort(content_M2[:, 0], kind="stable")
        self._sorted_M2 = content_M2[self._order_M]

    def __len__(self) -> int:
        return len(self._order_M)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row; () without rows."""
        return self._shards[0].row_MF.shape[1:] if self._shards else ()

    def find(self, content_B2: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the row number of each content hash (B,), -1 for none."""
        found_B = np.full(len(content_B2), -1, dtype=np.int64)
        if not len(self):
            return found_B
        at_B = np.searchsorted(self._sorted_M2[:, 0], content_B2[:, 0])
        for step in (1, 0):  # two hashes may share their first word; three do not
            near_B = np.minimum(at_B + step, len(self) - 1)
            same_B = (self._sorted_M2[near_B] == content_B2).all(axis=1)
            found_B[same_B] = self._order_M[near_B[same_B]]
        return found_B

    def read(self, row_B: NDArray[np.int64]) -> Tensor:
        """Return rows by their numbers, float32 (B, F)."""
        import torch

        if len(self._shards) == 1:
            return _read_rows(self._shards[0], row_B)
        value_BF = torch.empty((len(row_B), *self.shape))
        shard_B = np.searchsorted(self._start_S, row_B, side="right") - 1
        for shard in np.unique(shard_B):
            here_B = np.flatnonzero(shard_B == shard)
            value_BF[torch.from_numpy(here_B)] = _read_rows(
                self._shards[shard], row_B[here_B] - self._start_S[shard]
            )
        return value_BF


def open_shards(folder: Path) -> list[CacheShard]:
    """Open the shards of an entry; drop damaged ones, and ones of another row shape, with a warning."""
    shards: list[CacheShard] = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            shard = open_shard(path)
            if shards and shard.row_MF.shape[1:] != shards[0].row_MF.shape[1:]:
                raise Damaged("its rows have another shape than those of the other shards")
            shards.append(shard)
        except FileNotFoundError:
            continue  # another process has merged it; missing rows are computed again
        except (Damaged, OSError) as error:
            drop_shard(path, str(error))
    return shards


def drop_shard(path: Path, reason: str) -> None:
    """Remove an unusable shard and log a warning."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
    _log.warning("embedding cache: dropped %s: %s; its rows are computed again when needed", path, reason)


def _read_rows(shard: CacheShard, row_B: NDArray[np.int64]) -> Tensor:
    import torch

    half_BF = shard.row_MF[row_B]
    # torch casts half precision to float32 1.7 times as fast as numpy.
    return (
        torch.from_numpy(half_BF)
        .float()
        .mul_(torch.from_numpy(broadcast_scales(shard.scale_M[row_B], half_BF)))
    )


def _is_whole(shard: CacheShard) -> bool:
    try:
        check_rows(shard)
    except Damaged as error:
        drop_shard(shard.path, str(error))
        return False
    return True


LIMIT_VARIABLE = "GEOBIND_CACHE_GB"
_DEFAULT_GB = 20.0


class EntryInfo(NamedTuple):
    """Facts, size and time of last use of an entry on disk."""

    key: str
    folder: Path
    facts: dict[str, Any]  # empty if unreadable
    bytes: int
    used: float  # seconds since 1970


class EntryCheck(NamedTuple):
    """Result of verifying an entry."""

    key: str
    rows: int  # undamaged rows
    damaged: tuple[tuple[str, str], ...]  # file and reason


def read_limit() -> float:
    """Return the size limit of the cache in bytes: `$GEOBIND_CACHE_GB` times 10^9, 20 by default.

    Raises:
        DataError: It is not a number from 0.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        gigabytes = float(text or _DEFAULT_GB)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise DataError(
            f"{LIMIT_VARIABLE}={text}: must be the size limit of the embedding cache in gigabytes, such as 20"
        )
    return gigabytes * 1e9


def find_entries() -> list[EntryInfo]:
    """Return the entries, the last used first."""
    folders = [path for path in embeddings_folder().glob("*") if path.is_dir()]
    return sorted(filter(None, map(_read_info, folders)), key=lambda entry: -entry.used)


def prune(limit: float) -> list[EntryInfo]:
    """Remove the entries used longest ago until the cache holds no more than `limit` bytes.

    Entries that a process has open stay.

    Returns:
        The removed entries.
    """
    entries = find_entries()
    total = sum(entry.bytes for entry in entries)
    removed: list[EntryInfo] = []
    for entry in reversed(entries):
        if total <= limit:
            break
        if _remove_entry(entry.folder):
            removed.append(entry)
            total -= entry.bytes
    return removed


def verify(*, repair: bool) -> Iterator[EntryCheck]:
    """Check every row of every entry against its checksum, and yield the result for each entry.

    Args:
        repair: Whether to remove damaged files; their rows are computed again when needed.
    """
    for entry in find_entries():
        damaged: list[tuple[str, str]] = []
        rows = 0
        if not entry.facts or cache_key(entry.facts) != entry.key:
            damaged.append((FACTS_FILE, "its facts do not match the entry's key"))
            if repair:
                _remove_entry(entry.folder)
        for path in sorted(entry.folder.glob(f"*{SUFFIX}")):
            try:
                shard = open_shard(path)
                check_rows(shard)
                rows += len(shard.scale_M)
            except FileNotFoundError:
                continue
            except (Damaged, OSError) as error:
                damaged.append((path.name, str(error)))
                if repair:
                    path.unlink(missing_ok=True)
        yield EntryCheck(entry.key, rows, tuple(damaged))


def count_rows(entry: EntryInfo) -> int:
    """Return the number of rows of an entry, without damaged shards."""
    count = 0
    for path in entry.folder.glob(f"*{SUFFIX}"):
        with suppress(Damaged, OSError):
            count += len(open_shard(path).scale_M)
    return count


def _read_info(folder: Path) -> EntryInfo | None:
    try:
        size = sum(file.stat().st_size for file in folder.iterdir())
        marks = [folder / name for name in (FACTS_FILE, LOCK_FILE) if (folder / name).exists()]
        used = (marks[0] if marks else folder).stat().st_mtime
    except OSError:  # another process is removing it
        return None
    try:
        facts = files.read_json(folder / FACTS_FILE)
    except CheckpointError:
        facts = {}
    return EntryInfo(folder.name, folder, facts, size, used)


def _remove_entry(folder: Path) -> bool:
    """Remove an entry unless a process has it open; return whether it was removed."""
    try:
        with FileLock(folder / LOCK_FILE, wait=False) as alone:
            if alone:
                shutil.rmtree(folder, ignore_errors=True)
            return bool(alone)
    except OSError:
        return False
