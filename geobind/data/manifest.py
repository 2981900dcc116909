"""Conversion of a manifest to one checked, memory-mapped Arrow file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import cast

import pyarrow as pa

from geobind.data.cache import build_once, cache_root
from geobind.data.cells import NUMBER, PLACE_COLUMNS
from geobind.data.delimited import DelimitedFile, rows_to_arrow
from geobind.data.options import ColumnChoice
from geobind.data.parquet import ParquetManifest
from geobind.data.readers.files import join_names
from geobind.errors import DataError
from geobind.utils.arrow import pc
from geobind.utils.files import file_stamp, is_hidden, is_settled
from geobind.utils.hashing import short_fingerprint

CELL = "cell:"  # what the fields that hold a modality's cells begin with
PLACE = "place"  # the column that a table has of itself: the place and time of each row
_VERSION = 4  # of the Arrow file; older ones are made again
_CHUNK = 65_536  # rows
_MAX_HASHED = 2**30  # bytes of a Parquet file that are hashed whole
_FOOTER = 2**22  # bytes at the end of a Parquet file, where offsets, sizes and statistics of all parts stand
_SHARD = re.compile(r"(.*?)[-_.]?(\d+)-of-(\d+)", re.DOTALL)  # train-00000-of-00002, without its ending
_TEXT_KINDS = (".csv", ".tsv", ".jsonl", ".json")
_PACKED_KINDS = (".parquet", ".geoparquet")
# Words in names of files that name a split, as hubs and programs write them.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


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
    shards = [(shard.name, *_stamp_file(shard)) for shard in list_manifest_files(path)]
    wanted = {name: columns.get(name, name) for name in sorted({*names, *PLACE_COLUMNS})}
    explicit = sorted(wanted.keys() & columns.keys())
    made_from = (str(path.resolve()), shards, wanted, explicit, limit, _VERSION)
    folder = build_once(
        cache_root() / "tables" / short_fingerprint(*made_from),
        lambda temporary: _write(temporary / "rows.arrow", path, wanted, explicit, limit),
    )
    return folder / "rows.arrow"


def hash_manifest(path: Path) -> str:
    """Hash a manifest's content, wherever it lies; of Parquet files of over a gigabyte the footer alone.

    Raises:
        DataError: It is missing, of another kind, or cannot be read.
    """
    shards = list_manifest_files(path)
    hashes = [_hash_file(shard, whole=False) for shard in shards]
    splits = name_splits(path, shards)
    return short_fingerprint(hashes, splits) if splits else short_fingerprint(hashes)


def _stamp_file(path: Path) -> tuple[int | str, ...]:
    """Return what changes when a file does; where its times cannot tell, that is its content."""
    state = _stat(path)
    return file_stamp(state) if is_settled(state) else (*file_stamp(state), _hash_file(path, whole=True)[0])


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"manifest {path}: {error.strerror or error}") from error


def _hash_file(path: Path, *, whole: bool) -> tuple[str, int]:
    """Hash a file, or of a large Parquet file the end alone, unless it is to be hashed whole."""
    state = _stat(path)
    part = not whole and path.suffix.lower() in _PACKED_KINDS and state.st_size > _MAX_HASHED
    hash_part = _hash_from if is_settled(state) else _hash_from.__wrapped__
    return hash_part(path, max(0, state.st_size - _FOOTER) if part else 0, file_stamp(state)), state.st_size


@lru_cache(maxsize=256)
def _hash_from(path: Path, start: int, _stamp: tuple[int, ...]) -> str:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"manifest {path}: {error.strerror or error}") from error


def list_manifest_files(path: Path) -> list[Path]:
    """Return the files of a manifest: itself, or the Parquet shards of a folder in the order of their names.

    Raises:
        DataError: There are none, they are of another kind, or a shard is missing.
    """
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
        inside = sorted(path.iterdir()) if is_folder else []
    except OSError as error:
        raise DataError(f"manifest {path}: {error.strerror or error}") from error
    if is_folder:
        shards = [
            shard
            for shard in inside
            if shard.suffix.lower() in _PACKED_KINDS and not is_hidden(shard.name) and shard.is_file()
        ]
        if not shards:
            raise DataError(f"manifest {path}: is a folder without Parquet files{_hint_at_files(path)}")
        _check_shards(path, shards)
        name_splits(path, shards)
        return shards
    if not is_file:
        raise DataError(f"manifest {path}: no such file (its name in a recipe is relative to the recipe)")
    if path.suffix.lower() not in _TEXT_KINDS + _PACKED_KINDS:
        raise DataError(f"manifest {path}: must end in {', '.join(_TEXT_KINDS + _PACKED_KINDS)}")
    return [path]


def _hint_at_files(folder: Path) -> str:
    """Name the tables beside or below the place where a folder's shards are missing."""
    inside = [entry for entry in sorted(folder.iterdir()) if not is_hidden(entry.name)]
    tables = [entry.name for entry in inside if entry.suffix.lower() in _TEXT_KINDS and entry.is_file()]
    if tables:
        return f"; name the table itself, such as {tables[0]}"
    below = [
        entry.name
        for entry in inside
        if entry.is_dir() and any(file.suffix.lower() in _PACKED_KINDS for file in entry.iterdir())
    ]
    return f"; its folder {' and '.join(below[:3])} has some: name it" if below else ""


def _check_shards(path: Path, shards: list[Path]) -> None:
    """Check that all shards are there of each table, which is what stands before their numbers.

    Raises:
        DataError: Some are missing, or there twice.
    """
    numbers: dict[tuple[str, str], list[int]] = {}
    for shard in shards:
        if counted := _SHARD.fullmatch(shard.stem):
            numbers.setdefault((counted[1], counted[3]), []).append(int(counted[2]))
    for (stem, count), found in numbers.items():
        if len(found) != int(count) or len(set(found)) != len(found):
            of = f" of '{stem}'" if stem else ""
            raise DataError(
                f"manifest {path}: has {len(found)} of {int(count)} shards{of}; download or pack the others, "
                "or name one file"
            )


def name_splits(path: Path, shards: Sequence[Path]) -> list[str]:
    """Return the split that the name of each shard in a folder states, as `test-00000-of-00001.parquet` does.

    Returns:
        A word for each shard; none if no name states one, or the manifest is a file.

    Raises:
        DataError: Some names state one and others do not.
    """
    if not path.is_dir():
        return []
    splits = [_name_split(shard.stem) for shard in shards]
    if not any(splits):
        return []
    if not all(splits):
        named, other = splits.index(next(filter(None, splits))), splits.index(None)
        raise DataError(
            f"manifest {path}: {shards[named].name} is split '{splits[named]}' by its name, but "
            f"{shards[other].name} is none: name one file, or move the others to a folder of their own"
        )
    return cast("list[str]", splits)


def _name_split(stem: str) -> str | None:
    """Return the split that a file's name ends with, before the number of a shard."""
    counted = _SHARD.fullmatch(stem)
    words = re.split(r"[-_. ]+", (counted[1] if counted else stem).lower())
    while len(words) > 1 and words[-1].isdigit():
        words.pop()
    return _SPLITS.get(words[-1])


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
        tables = _batches(shards, fields, limit, name_splits(path, [shard.path for shard in shards]))
    else:
        rows = DelimitedFile(path)
        gathered = list(rows_to_arrow(rows, fields, limit))
        if not gathered:
            raise DataError(f"{path}: has no rows")
        _check_columns(rows.columns, wanted, explicit, path)
        try:  # a chunk in which a column is empty does not know its type
            table = pa.concat_tables(gathered, promote_options="permissive")
            tables = ((path, part) for part in _in_large_chunks(table))
        except pa.ArrowException as error:
            raise DataError(f"{path}: a column holds both strings and numbers: {error}") from error
    _write_tables(target, tables, path)


def _in_large_chunks(table: pa.Table) -> Iterator[pa.Table]:
    """Yield a table in parts of one chunk each, few enough that a row is quickly found."""
    for start in range(0, len(table), _CHUNK):
        yield table.slice(start, _CHUNK).combine_chunks()


def _batches(
    shards: list[ParquetManifest], fields: Mapping[str, str], limit: int | None, splits: list[str]
) -> Iterator[tuple[Path, pa.Table]]:
    """Yield the checked rows of Parquet files one after the other, numbered through, each with its file.

    Args:
        shards: The files.
        fields: Column by field wanted.
        limit: Stop after so many rows.
        splits: The split that each file's name states; the rows' own column counts if there is one.
    """
    before = 0
    for number, shard in enumerate(shards):
        for table in shard.batches(fields, None if limit is None else limit - before):
            lines = pa.array(table["line"].to_numpy() + before)
            table = table.set_column(table.column_names.index("line"), "line", lines)
            if splits and "split" not in table.column_names:
                table = table.append_column("split", pa.repeat(pa.scalar(splits[number]), table.num_rows))
            yield shard.path, table
        before += shard.file.metadata.num_rows
        if limit is not None and before >= limit:
            return


def list_absent(column: ColumnChoice, found: Collection[str]) -> list[str]:
    """List the columns of a choice that a manifest lacks; `place` is never one, since tables make it."""
    parts = (column,) if isinstance(column, str) else column
    return [part for part in parts if part not in found and column != PLACE]


class _RowsWriter:
    """Writer of tables with the same columns to one Arrow file.

    A column that is empty at first has no type: the file is written again once it has one.
    """

    def __init__(self, target: Path) -> None:
        self.target, self.rows = target, 0
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._schema: pa.Schema | None = None

    def write(self, table: pa.Table, path: Path) -> None:
        """Add rows of a file.

        Raises:
            DataError: Their columns are of other types than those of the rows before.
        """
        if self._schema is None:
            self._open(table.schema)
        schema = cast(pa.Schema, self._schema)
        if table.schema != schema:
            joined = _join_schemas(schema, table.schema, path)
            if joined != schema:
                self._write_again(joined)
            table = _fill_types(table, joined)
        cast(pa.ipc.RecordBatchFileWriter, self._writer).write_table(table)
        self.rows += table.num_rows

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, schema: pa.Schema) -> None:
        self._writer, self._schema = pa.ipc.new_file(str(self.target), schema), schema

    def _write_again(self, schema: pa.Schema) -> None:
        self.close()
        before = self.target.with_suffix(".before")
        self.target.rename(before)
        self._open(schema)
        with pa.memory_map(str(before)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                batch = pa.Table.from_batches([reader.get_batch(number)])
                cast(pa.ipc.RecordBatchFileWriter, self._writer).write_table(_fill_types(batch, schema))
        before.unlink()


def _join_schemas(schema: pa.Schema, other: pa.Schema, path: Path) -> pa.Schema:
    """Return the columns of two tables, with the type of the one that has one.

    Raises:
        DataError: They have other columns, or of other types; `path` is the other's file.
    """
    if set(schema.names) != set(other.names):
        odd = min(set(schema.names) ^ set(other.names)).removeprefix(CELL)
        raise DataError(f"{path}: column '{odd}' is in some files of the folder and not in others")
    fields: list[pa.Field] = []
    for field in schema:
        kinds = [kind for kind in (field.type, other.field(field.name).type) if not pa.types.is_null(kind)]
        if len(kinds) == 2 and kinds[0] != kinds[1]:
            raise DataError(
                f"{path}: column '{field.name.removeprefix(CELL)}' holds values of other types ({kinds[1]}) "
                f"than rows before ({kinds[0]})"
            )
        fields.append(field.with_type(kinds[0]) if kinds else field)
    return pa.schema(fields)


def _fill_types(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of a schema, of which empty ones get their type."""
    columns = [
        pa.nulls(len(table), field.type) if pa.types.is_null(table[field.name].type) else table[field.name]
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _write_tables(target: Path, tables: Iterator[tuple[Path, pa.Table]], path: Path) -> None:
    writer = _RowsWriter(target)
    try:
        for file, table in tables:
            writer.write(_with_splits(table, path), file)
    finally:
        writer.close()
    if not writer.rows:
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
