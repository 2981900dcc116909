"""Turn a manifest into one memory-mapped Arrow file, checked on the way."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from geobind.data.arrow import pc
from geobind.data.cache import build_once, cache_root, fingerprint
from geobind.data.parquet import ParquetRows
from geobind.data.rows import PLACE_COLUMNS, Rows, rows_to_arrow
from geobind.errors import DataError

CELL = "cell:"  # what the fields that hold a modality's cells begin with
_VERSION = 1  # of the Arrow file; older ones are made again
_TEXT_KINDS = (".csv", ".tsv", ".jsonl")
_PACKED_KINDS = (".parquet", ".geoparquet")


def arrow_of_manifest(
    path: Path, columns: Mapping[str, str], names: Collection[str], limit: int | None
) -> Path:
    """Return the Arrow file of a manifest, making it if this version of the manifest has none yet.

    Args:
        path: The manifest.
        columns: What the recipe says about columns: by modality or place column.
        names: The modalities wanted.
        limit: Rows wanted, from the top.

    Returns:
        A file with the fields `line`, those of the place columns that are there (`split` always), and
        `cell:COLUMN` for each column that a modality reads.

    Raises:
        DataError: The manifest is missing, of another kind, or has a mistake.
    """
    if not path.is_file():
        raise DataError(f"manifest {path}: no such file (its name in a recipe is relative to the recipe)")
    if path.suffix.lower() not in _TEXT_KINDS + _PACKED_KINDS:
        raise DataError(f"manifest {path}: must end in {', '.join(_TEXT_KINDS + _PACKED_KINDS)}")
    state = path.stat()
    wanted = {name: columns.get(name, name) for name in sorted({*names, *PLACE_COLUMNS})}
    explicit = sorted(wanted.keys() & columns.keys())
    made_from = (str(path.resolve()), state.st_mtime_ns, state.st_size, wanted, explicit, limit, _VERSION)
    folder = build_once(
        cache_root() / "tables" / fingerprint(*made_from),
        lambda temporary: _write(temporary / "rows.arrow", path, wanted, explicit, limit),
    )
    return folder / "rows.arrow"


def _write(
    target: Path, path: Path, wanted: Mapping[str, str], explicit: Collection[str], limit: int | None
) -> None:

    fields = {name if name in PLACE_COLUMNS else CELL + column: column for name, column in wanted.items()}
    packed = path.suffix.lower() in _PACKED_KINDS
    rows = ParquetRows(path) if packed else Rows(path)
    if isinstance(rows, ParquetRows):
        _check_columns(rows.columns, wanted, explicit, path)
        tables = rows.batches(fields, limit)
    else:
        gathered = list(rows_to_arrow(rows, fields, limit))
        if not gathered:
            raise DataError(f"{path}: has no rows")
        _check_columns(rows.columns, wanted, explicit, path)
        try:  # a chunk in which a column is empty does not know its type
            tables = iter([pa.concat_tables(gathered, promote_options="permissive")])
        except pa.ArrowException as error:
            raise DataError(f"{path}: a column holds both strings and numbers: {error}") from error
    _write_tables(target, tables, path)


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
    found: Collection[str], wanted: Mapping[str, str], explicit: Collection[str], path: Path
) -> None:
    listed = ", ".join(found) or "none"
    for name in explicit:
        if wanted[name] not in found:
            raise DataError(
                f"{path}: has no column '{wanted[name]}', wanted as '{name}'; its columns: {listed}"
            )
    modalities = {name: column for name, column in wanted.items() if name not in PLACE_COLUMNS}
    if not any(column in found for column in modalities.values()):
        raise DataError(
            f"{path}: has no column for {', '.join(modalities)}; its columns: {listed}; map them under "
            f"`data`: `columns: {{{next(iter(modalities), 'NAME')}: COLUMN}}`"
        )
