"""One entry of the cache: rows that depend on the same facts, in any number of shards."""

# M rows, B rows asked for, F numbers of a row

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geobind.data.cache import cache_root
from geobind.errors import StorageError
from geobind.frozen.address import key_of
from geobind.frozen.shards import SUFFIX, Damaged, Shard, check_rows, open_shard, spread, write_shard
from geobind.utils import files
from geobind.utils.files import Lock

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

FACTS = "entry.json"
LOCK = "in_use.lock"
_SMALL = 16_384  # rows; shards of fewer are merged
_MANY = 8  # small shards that are worth merging
_MERGED = 65_536  # rows of a merged shard
_STALE = 3600.0  # seconds after which nobody is writing a file any more


def embeddings_folder() -> Path:
    """Return where all entries lie."""
    return cache_root() / "embeddings"


class Entry:
    """The rows kept under one hash of facts; while it is open, nothing prunes it.

    Any number of processes may read it and add to it at the same time: a shard appears whole under a name
    of its own, and a row that two of them made lies there twice, which harms nothing.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        self.folder = embeddings_folder() / key_of(facts)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.folder / LOCK)
            if not (self.folder / FACTS).exists():
                files.write_json(self.folder / FACTS, facts)
            os.utime(self.folder / FACTS)  # when it was last used, for pruning
            _sweep(self.folder)
        except OSError as error:
            raise files.refusal(self.folder, error) from error

    def close(self) -> None:
        """Let it be pruned again; rows that were opened stay readable."""
        self._lock.close()

    def rows(self) -> Rows:
        """Open all rows there are; a damaged shard is dropped with a warning."""
        return Rows(open_shards(self.folder))

    def add(self, content_M2: NDArray[np.uint64], value_MF: NDArray[np.float32]) -> Path:
        """Write rows as a new shard.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        return write_shard(self.folder, content_M2, value_MF)

    def merge(self) -> None:
        """Put small shards together, so that a batch is read from few files; rows kept twice are dropped.

        Where the disk is full they stay as they are, which is slower and nothing else.
        """
        with suppress(OSError, StorageError), Lock(self.folder / "merge.lock", alone=True) as alone:
            small = [shard for shard in open_shards(self.folder) if len(shard.scale_M) < _SMALL]
            if not alone or len(small) < _MANY:
                return
            whole = [shard for shard in small if _is_whole(shard)]
            group: list[Shard] = []
            for shard in whole:
                group.append(shard)
                if shard is whole[-1] or sum(len(part.scale_M) for part in group) >= _MERGED:
                    self._merge(group)
                    group = []

    def _merge(self, shards: list[Shard]) -> None:
        content_M2 = np.concatenate([shard.content_M2 for shard in shards])
        first_M = np.unique(content_M2, axis=0, return_index=True)[1]
        scaled = [shard.row_MF * spread(shard.scale_M, shard.row_MF) for shard in shards]
        self.add(content_M2[first_M], np.concatenate(scaled)[first_M])
        for shard in shards:
            shard.path.unlink(missing_ok=True)


class Rows:
    """Rows of an entry, found by content and read from memory maps."""

    def __init__(self, shards: list[Shard]) -> None:
        self._shards = shards
        self._start_S = np.cumsum([0, *(len(shard.scale_M) for shard in shards)])
        content_M2 = np.concatenate([np.zeros((0, 2), np.uint64), *(shard.content_M2 for shard in shards)])
        self._order_M = np.argsort(content_M2[:, 0], kind="stable")
        self._sorted_M2 = content_M2[self._order_M]

    def __len__(self) -> int:
        return len(self._order_M)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row; of none, where there are no rows."""
        return self._shards[0].row_MF.shape[1:] if self._shards else ()

    def find(self, content_B2: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the number of the row of each content (B,), or -1 where there is none."""
        found_B = np.full(len(content_B2), -1, dtype=np.int64)
        if not len(self):
            return found_B
        at_B = np.searchsorted(self._sorted_M2[:, 0], content_B2[:, 0])
        for step in (1, 0):  # two contents may share their first word; three do not
            near_B = np.minimum(at_B + step, len(self) - 1)
            same_B = (self._sorted_M2[near_B] == content_B2).all(axis=1)
            found_B[same_B] = self._order_M[near_B[same_B]]
        return found_B

    def read(self, row_B: NDArray[np.int64]) -> Tensor:
        """Return rows by their numbers, float32 (B, F)."""
        import torch

        if len(self._shards) == 1:
            return _read(self._shards[0], row_B)
        value_BF = torch.empty((len(row_B), *self.shape))
        shard_B = np.searchsorted(self._start_S, row_B, side="right") - 1
        for shard in np.unique(shard_B):
            here_B = np.flatnonzero(shard_B == shard)
            value_BF[torch.from_numpy(here_B)] = _read(
                self._shards[shard], row_B[here_B] - self._start_S[shard]
            )
        return value_BF


def open_shards(folder: Path) -> list[Shard]:
    """Open the shards of an entry; one that is damaged, or unlike the others, is dropped with a warning."""
    shards: list[Shard] = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            shard = open_shard(path)
            if shards and shard.row_MF.shape[1:] != shards[0].row_MF.shape[1:]:
                raise Damaged("its rows are not as long as those of the others")
            shards.append(shard)
        except FileNotFoundError:
            continue  # another process has merged it; a row that is not found is made again
        except (Damaged, OSError) as error:
            drop(path, str(error))
    return shards


def drop(path: Path, reason: str) -> None:
    """Remove a shard that cannot be used, and say so."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
    print(
        f"warning: embedding cache: dropped {path}: {reason}; its rows are made again when they are needed",
        file=sys.stderr,
        flush=True,
    )


def _sweep(folder: Path) -> None:
    """Remove what writes that were killed left behind, but not what may be in the middle of being written."""
    for left in folder.glob(".*.part"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()


def _read(shard: Shard, row_B: NDArray[np.int64]) -> Tensor:
    import torch

    half_BF = shard.row_MF[row_B]
    # torch turns half precision into float32 1.7 times as fast as numpy.
    return torch.from_numpy(half_BF).float().mul_(torch.from_numpy(spread(shard.scale_M[row_B], half_BF)))


def _is_whole(shard: Shard) -> bool:
    try:
        check_rows(shard)
    except Damaged as error:
        drop(shard.path, str(error))
        return False
    return True
