"""Read datasets that a hub distributes as Parquet: shards named by split, images and sounds as bytes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from geobind.errors import DataError
from geobind.importers.contract import Column

_NAME = re.compile(r"(train|val|validation|test)-(\d+)-of-(\d+)\.parquet$")
_ROWS = 64  # at a time; a row may have several megabytes


class Shard(NamedTuple):
    """One Parquet file of a split."""

    path: Path
    split: str


def packed_columns(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns of a dataset whose files are bytes."""
    return {
        name: column._replace(kind="bytes") if column.kind == "file" else column
        for name, column in columns.items()
    }


def shards_of(folder: Path) -> list[Shard]:
    """The shards under a folder, in order, `validation` called val; none if it holds none.

    Raises:
        DataError: Some of a split are missing.
    """
    found = {path: match for path in sorted(folder.rglob("*.parquet")) if (match := _NAME.search(path.name))}
    splits: dict[str, list[re.Match[str]]] = {}
    for match in found.values():
        splits.setdefault(match[1], []).append(match)
    for split, matches in splits.items():
        if len(matches) != int(matches[0][3]):
            raise DataError(
                f"{folder}: has {len(matches)} of the {int(matches[0][3])} shards of split '{split}'; "
                "download the others, or name the files there are one by one"
            )
    return [Shard(path, "val" if match[1] == "validation" else match[1]) for path, match in found.items()]


def rows_of(shard: Shard, needed: Collection[str], wanted: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard; of an image or sound its bytes.

    Args:
        shard: The file.
        needed: Columns that must be there.
        wanted: Further columns to read where there are.

    Raises:
        DataError: It is damaged or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(shard.path) as file:
            there = file.schema_arrow.names
            lacking = sorted(set(needed) - set(there))
            if lacking:
                raise DataError(
                    f"{shard.path}: has no column '{lacking[0]}'; its columns: {', '.join(there)}"
                )
            read = [name for name in there if name in needed or name in wanted]
            for batch in file.iter_batches(_ROWS, columns=read):
                for row in batch.to_pylist():
                    yield {name: _content(cell) for name, cell in row.items()}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shard.path}: not a Parquet file that can be read: {error}") from error


def _content(cell: Any) -> Any:
    return cell.get("bytes") if isinstance(cell, dict) else cell
