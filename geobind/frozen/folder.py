"""The cache as a whole: what lies in it, what is damaged, and what has to go when it grows too large."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from geobind.errors import CheckpointError, DataError
from geobind.frozen.address import key_of
from geobind.frozen.entry import FACTS, LOCK, embeddings_folder
from geobind.frozen.shards import SUFFIX, Damaged, check_rows, open_shard
from geobind.utils import files
from geobind.utils.files import Lock

LIMIT = "GEOBIND_CACHE_GB"
_DEFAULT_GB = 20.0


class Held(NamedTuple):
    """An entry as it lies on disk."""

    key: str
    folder: Path
    facts: dict[str, Any]  # empty where they cannot be read
    bytes: int
    used: float  # seconds since 1970


class Checked(NamedTuple):
    """What verifying an entry came to."""

    key: str
    rows: int  # that are as they were written
    damaged: tuple[tuple[str, str], ...]  # file, what is wrong with it


def limit_bytes() -> float:
    """Return how large the cache may grow: `$GEOBIND_CACHE_GB` times 10^9, 20 by default.

    Raises:
        DataError: It is not a number from 0.
    """
    said = os.environ.get(LIMIT, "")
    try:
        gigabytes = float(said or _DEFAULT_GB)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise DataError(f"{LIMIT}={said}: say how many gigabytes the embedding cache may hold, such as 20")
    return gigabytes * 1e9


def entries() -> list[Held]:
    """List the entries, the last used first."""
    folders = [path for path in embeddings_folder().glob("*") if path.is_dir()]
    return sorted(filter(None, map(_held, folders)), key=lambda held: -held.used)


def prune(limit: float) -> list[Held]:
    """Remove the entries that were used longest ago until the cache holds no more than `limit` bytes.

    Entries that a process has open stay.

    Returns:
        What was removed.
    """
    there = entries()
    total = sum(held.bytes for held in there)
    gone: list[Held] = []
    for held in reversed(there):
        if total <= limit:
            break
        if _removed(held.folder):
            gone.append(held)
            total -= held.bytes
    return gone


def verify(*, repair: bool) -> Iterator[Checked]:
    """Read every row of every entry and compare with what was written.

    Args:
        repair: Remove what is damaged; its rows are made again when they are needed.
    """
    for held in entries():
        damaged: list[tuple[str, str]] = []
        rows = 0
        if not held.facts or key_of(held.facts) != held.key:
            damaged.append((FACTS, "its facts are not those that the entry is named after"))
            if repair:
                _removed(held.folder)
        for path in sorted(held.folder.glob(f"*{SUFFIX}")):
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
        yield Checked(held.key, rows, tuple(damaged))


def rows_of(held: Held) -> int:
    """Count the rows of an entry, damaged shards left out."""
    count = 0
    for path in held.folder.glob(f"*{SUFFIX}"):
        with suppress(Damaged, OSError):
            count += len(open_shard(path).scale_M)
    return count


def _held(folder: Path) -> Held | None:
    try:
        size = sum(file.stat().st_size for file in folder.iterdir())
        marks = [folder / name for name in (FACTS, LOCK) if (folder / name).exists()]
        used = (marks[0] if marks else folder).stat().st_mtime
    except OSError:  # another process is removing it
        return None
    try:
        facts = files.read_json(folder / FACTS)
    except CheckpointError:
        facts = {}
    return Held(folder.name, folder, facts, size, used)


def _removed(folder: Path) -> bool:
    """Remove an entry that no process has open."""
    try:
        with Lock(folder / LOCK, alone=True) as alone:
            if alone:
                shutil.rmtree(folder, ignore_errors=True)
            return alone
    except OSError:
        return False
