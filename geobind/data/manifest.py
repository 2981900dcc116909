"""Conversion of a manifest to one checked, memory-mapped Arrow file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from geobind.data.cache import build_once, cache_root
from geobind.data.cells import NUMBER, PLACE_COLUMNS
from geobind.data.delimited import DelimitedFile, rows_to_arrow
from geobind.data.options import ColumnChoice
from geobind.data.parquet import ParquetManifest
from geobind.data.readers.files import join_names
from geobind.errors import DataError
from geobind.utils.arrow import pc
from geobind.utils.hashing import short_fingerprint

CELL = "cell:"  # what the fields that hold a modality's cells begin with
PLACE = "place"  # the column that a table has of itself: the place and time of each row
_VERSION = 3  # of the Arrow file; older ones are made again
_CHUNK = 65_536  # rows
_FOOTER = 2**22  # bytes at the end of a Parquet file, where offsets, sizes and statistics of all parts stand
_SHARD = re.compile(r"-of-(\d+)\.parquet$")
_TEXT_KINDS = (".csv", ".tsv", ".jsonl")
_PACKED_KINDS = (".parquet", ".geoparquet")


def convert_manifest(
    path: Path, columns: Mapping[str, ColumnChoice], names: Collection[str], limit: int | None
) -> Path:
    """Return the Arrow file of a manifest, making it if this version of the manifest has none yet.

    Args:
        path: The manifest.
        columns: What the recipe says about columns: by modality or place column.
        names: The modalities wanted.
        limit: Rows wanted, from the top.

    Returns:
        A file with the fields `line`, those of the place columns that are there (`split` always), and
        `cell:COLUMN` for each column that a modality reads, `number:COLUMN` for each part of a vector.

    Raises:
        DataError: The manifest is missing, of another kind, or has a mistake.
    """
    shards = [
        (shard.name, shard.stat().st_mtime_ns, shard.stat().st_size) for shard in list_manifest_files(path)
    ]
    wanted = {name: columns.get(name, name) for name in sorted({*names, *PLACE_COLUMNS})}
    explicit = sorted(wanted.keys() & columns.keys())
    made_from = (str(path.resolve()), shards, wanted, explicit, limit, _VERSION)
    folder = build_once(
        cache_root() / "tables" / short_fingerprint(*made_from),
        lambda temporary: _write(temporary / "rows.arrow", path, wanted, explicit, limit),
    )
    return folder / "rows.arrow"


def hash_manifest(path: Path) -> str:
    """Hash a manifest's content, wherever it lies; of Parquet only the footer, which covers the rest.

    Raises:
        DataError: It is missing, of another kind, or cannot be read.
    """
    found = [(shard, shard.stat()) for shard in list_manifest_files(path)]
    return short_fingerprint([_hash_file(shard, state.st_size, state.st_mtime_ns) for shard, state in found])


@lru_cache(maxsize=256)
def _hash_file(path: Path, size: int, changed: int) -> tuple[str, int]:
    """Hash a file that had this size and was changed then."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() in _PACKED_KINDS:
                file.seek(max(0, size - _FOOTER))
            return hashlib.file_digest(file, "sha256").hexdigest(), size
    except OSError as error:
        raise DataError(f"manifest {path}: {error.strerror or error}") from error


def list_manifest_files(path: Path) -> list[Path]:
    """Return the files of a manifest: itself, or the Parquet shards of a folder in the order of their names.

    Raises:
        DataError: There are none, they are of another kind, or a shard of a packed folder is missing.
    """
    if path.is_dir():
        shards = sorted(shard for shard in path.iterdir() if shard.suffix.lower() in _PACKED_KINDS)
        if not shards:
            raise DataError(f"manifest {path}: is a folder without Parquet files")
        counted = _SHARD.search(shards[-1].name)
        if counted and len(shards) != int(counted[1]):
            raise DataError(f"manifest {path}: has {len(shards)} of {int(counted[1])} shards; pack it again")
        return shards
    if not path.is_file():
        raise DataError(f"manifest {path}: no such file (its name in a recipe is relative to the recipe)")
    if path.suffix.lower() not in _TEXT_KINDS + _PACKED_KINDS:
        raise DataError(f"manifest {path}: must end in {', '.join(_TEXT_KINDS + _PACKED_KINDS)}")
    return [path]


def list_manifest_columns(path: Path) -> list[str]:
    """Return the names of a manifest's columns, as far as its first rows tell.

    Raises:
        DataError: It cannot be read.
    """
    first = list_manifest_files(path)[0]
    if first.suffix.lower() in _PACKED_KINDS:
        return list(ParquetManifest(first).columns)
    rows = DelimitedFile(first)
    next(iter(rows), None)
    return list(rows.columns)


def _write(
    target: Path,
    path: Path,
    wanted: Mapping[str, ColumnChoice],
    explicit: Collection[str],
    limit: int | None,
) -> None:

    fields: dict[str, str] = {}
    for name, column in wanted.items():
        if not isinstance(column, str):
            fields |= {NUMBER + part: part for part in column}
        else:
            fields[name if name in PLACE_COLUMNS else CELL + column] = column
    if path.is_dir() or path.suffix.lower() in _PACKED_KINDS:
        shards = [ParquetManifest(shard) for shard in list_manifest_files(path)]
        for shard in shards:
            _check_columns(shard.columns, wanted, explicit, shard.path)
        tables = _batches(shards, fields, limit)
    else:
        rows = DelimitedFile(path)
        gathered = list(rows_to_arrow(rows, fields, limit))
        if not gathered:
            raise DataError(f"{path}: has no rows")
        _check_columns(rows.columns, wanted, explicit, path)
        try:  # a chunk in which a column is empty does not know its type
            tables = _in_large_chunks(pa.concat_tables(gathered, promote_options="permissive"))
        except pa.ArrowException as error:
            raise DataError(f"{path}: a column holds both strings and numbers: {error}") from error
    _write_tables(target, tables, path)


def _in_large_chunks(table: pa.Table) -> Iterator[pa.Table]:
    """Yield a table in parts of one chunk each, few enough that a row is quickly found."""
    for start in range(0, len(table), _CHUNK):
        yield table.slice(start, _CHUNK).combine_chunks()


def _batches(
    shards: list[ParquetManifest], fields: Mapping[str, str], limit: int | None
) -> Iterator[pa.Table]:
    """Yield the checked rows of Parquet files one after the other, numbered through."""
    before, schema = 0, None
    for shard in shards:
        for table in shard.batches(fields, None if limit is None else limit - before):
            lines = pa.array(table["line"].to_numpy() + before)
            table = table.set_column(table.column_names.index("line"), "line", lines)
            schema = schema or table.schema
            if table.schema != schema:
                raise DataError(
                    f"{shard.path}: its columns are of other types than those of {shards[0].path}"
                )
            yield table
        before += shard.file.metadata.num_rows
        if limit is not None and before >= limit:
            return


def list_absent(column: ColumnChoice, found: Collection[str]) -> list[str]:
    """List the columns of a choice that a manifest lacks; `place` is never one, since tables make it."""
    parts = (column,) if isinstance(column, str) else column
    return [part for part in parts if part not in found and column != PLACE]


def _write_tables(target: Path, tables: Iterator[pa.Table], path: Path) -> None:

    count = 0
    writer: pa.ipc.RecordBatchFileWriter | None = None
    try:
        for table in tables:
            table = _with_splits(table, path)
            writer = writer or pa.ipc.new_file(str(target), table.schema)
            writer.write_table(table)
            count += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    if not count:
        raise DataError(f"{path}: has no rows")


def _with_splits(table: pa.Table, path: Path) -> pa.Table:

    if ("lat" in table.column_names) != ("lon" in table.column_names):
        there = "lat" if "lat" in table.column_names else "lon"
        raise DataError(f"{path}: has column '{there}' but not the other of lat and lon; a place needs both")
    if "lat" in table.column_names:
        half = pc.xor(pc.is_null(table["lat"]), pc.is_null(table["lon"]))
        if pc.any(half).as_py():
            line = table["line"][pc.index(half, True).as_py()].as_py()
            raise DataError(f"{path}:{line}: has one of lat and lon; give both or neither")
    if "split" not in table.column_names:
        table = table.append_column("split", pa.repeat(pa.scalar("train"), table.num_rows))
    return table


def _check_columns(
    found: Collection[str], wanted: Mapping[str, ColumnChoice], explicit: Collection[str], path: Path
) -> None:
    there = join_names(found)
    for name in explicit:
        for column in list_absent(wanted[name], found):
            raise DataError(f"{path}: has no column '{column}', wanted as '{name}'; its columns: {there}")
    modalities = {name: column for name, column in wanted.items() if name not in PLACE_COLUMNS}
    if modalities and all(list_absent(column, found) for column in modalities.values()):
        raise DataError(
            f"{path}: has no column for {', '.join(modalities)}; its columns: {there}; map them under "
            f"`data`: `columns: {{{next(iter(modalities), 'NAME')}: COLUMN}}`"
        )
