"""Read the rows of a Parquet file in order, its row groups in parallel."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from geobind.errors import DataError

T = TypeVar("T")
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last where names of columns are not UTF-8
_BATCH = 1024  # rows of a large group read at a time; a packed image may have a megabyte
_BLOCK_BYTES, _BLOCK_ROWS = 32 * 1024**2, 65_536  # of row groups that are read together
_THREADS = 4


def record_batches(path: Path, file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows in order: row groups that are small in parallel, others piece by piece.

    Threads took two thirds of the time on two cores. What is held in memory is a few blocks of 32 MB.
    """
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    if any(group.total_byte_size > _BLOCK_BYTES or group.num_rows > _BLOCK_ROWS for group in groups):
        yield from file.iter_batches(_BATCH, columns=columns)
        return
    blocks: list[list[int]] = [[]]
    size = 0
    for number, group in enumerate(groups):
        if size + group.total_byte_size > _BLOCK_BYTES:
            blocks, size = [*blocks, []], 0
        blocks[-1].append(number)
        size += group.total_byte_size
    jobs = (partial(_read, path, file, block, columns) for block in blocks if block)
    for table in in_order(jobs, min(_THREADS, os.cpu_count() or 1)):
        yield from table.combine_chunks().to_batches()


def in_order(jobs: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """Run jobs in threads and yield their results in order; only so many wait to be taken."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[T]] = deque()
        for job in jobs:
            ahead.append(pool.submit(job))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@contextmanager
def undamaged(path: Path) -> Generator[None]:
    """Say that a Parquet file is damaged where reading it fails.

    Raises:
        DataError: It does.
    """
    try:
        yield
    except DAMAGE as error:
        raise DataError(f"{path}: damaged: {error}") from error


def _read(path: Path, file: pq.ParquetFile, numbers: list[int], columns: list[str]) -> pa.Table:
    own = pq.ParquetFile(path, metadata=file.metadata)  # a reader is for one thread alone
    return own.read_row_groups(numbers, columns=columns, use_threads=False)
