"""Packing of a table and its observations into a few Parquet files, to move or to stream."""

# N rows

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geobind.data.cells import PLACE_COLUMNS
from geobind.data.columns import ArrowColumn, PlaceColumn, TableColumn, VectorColumn
from geobind.data.rasters.column import RasterColumn
from geobind.data.readers.files import open_binary
from geobind.errors import DataError
from geobind.utils.arrow import map_arrow_table
from geobind.utils.hashing import short_fingerprint
from geobind.utils.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.data.table import Table

_GROUP_ROWS = 100  # rows of a group, what a reader decodes at a time
_MADE_FROM = b"geobind.packed"
_WINDOW_BYTES = 100_000  # taken for a window of a raster, whose size is known only once it is read
_VERSION = 2
_WORDS = {name: pa.string() for name in ("key", "split", "label", "group", "licence")}
_KINDS = {**_WORDS, "lat": pa.float64(), "lon": pa.float64(), "time": pa.timestamp("us", "UTC")}


@dataclass(frozen=True)
class PackResult:
    """Counts and faults of a packing."""

    shards: int
    rows: int
    size: int  # bytes
    kept: int  # shards that were there already
    faults: tuple[str, ...]  # observations that cannot be had, and are missing there


def pack_table(table: Table, folder: Path, *, shard_bytes: int = 200_000_000) -> PackResult:
    """Write a table as Parquet shards that open as a manifest; an interrupted packing is resumed.

    Columns keep the names of the modalities. Files become their bytes, windows of rasters PNG (or NumPy's
    .npy where their values are not 8-bit with 1, 3 or 4 bands), texts and numbers stay, several columns of
    numbers become one of vectors. Text is compressed
    with zstd; what is encoded already would not shrink.

    Args:
        table: What to pack.
        folder: Where the shards `NAME-00000-of-00012.parquet` go.
        shard_bytes: Size to aim at for a shard.

    Raises:
        DataError: A file cannot be read, or the folder holds the shards of another table.
    """
    from geobind.utils.files import write_atomic

    table.check_files(2**31)
    fields = _build_fields(table)
    sizes_N = _estimate_sizes(table)
    edges = _find_shard_edges(sizes_N, shard_bytes)
    stamp = short_fingerprint(
        _VERSION, str(table.path), table.rows_N.tolist(), table.view, edges, sizes_N.tolist(), str(fields)
    ).encode()
    schema = pa.schema(list(fields.values()), {_MADE_FROM: stamp})
    _check_folder(folder, stamp, len(edges) - 1)
    faults: list[str] = []
    kept = size = 0
    shards = range(len(edges) - 1)
    for shard in track(shards, "packing", len(shards)):
        path = folder / f"{_stem(table)}-{shard:05d}-of-{len(shards):05d}.parquet"
        if path.exists():
            kept += 1
        else:
            write_atomic(path, _encode_shard(table, range(edges[shard], edges[shard + 1]), schema, faults))
        size += path.stat().st_size
    return PackResult(len(shards), len(table), size, kept, tuple(faults))


def _stem(table: Table) -> str:
    stem = Path(table.name).stem
    return f"{stem}-{table.view}" if table.view else stem


def _build_fields(table: Table) -> dict[str, pa.Field]:
    """Return the columns of a shard, the same in all of them."""
    there = map_arrow_table(table.path).column_names
    fields = {name: pa.field(name, _KINDS[name]) for name in PLACE_COLUMNS if name in there or name == "key"}
    for name, column in table.columns.items():
        if name in fields:
            raise DataError(f"{table.name}: '{name}' is a column of places and cannot name a modality too")
        if isinstance(column, PlaceColumn):  # made of lat, lon and time, which every shard has
            continue
        fields[name] = pa.field(name, _arrow_type(column))
    return fields


def _arrow_type(column: TableColumn) -> pa.DataType:
    if isinstance(column, VectorColumn):
        return pa.list_(pa.float32())
    if not isinstance(column, ArrowColumn):
        return pa.list_(pa.binary()) if _holds_several(column) else pa.binary()
    kind = map_arrow_table(column.path).column(column.field).type
    if column.files is None and not (pa.types.is_list(kind) and pa.types.is_string(kind.value_type)):
        return kind
    item = pa.string() if column.files is None else pa.binary()
    return pa.list_(item) if _holds_several(column) else item


def _holds_several(column: TableColumn) -> bool:
    from geobind.utils.arrow import pc

    field = getattr(column, "field", None)
    if field is None:
        return False
    lengths = pc.list_value_length(map_arrow_table(cast(ArrowColumn, column).path).column(field))
    return bool((pc.max(lengths).as_py() or 0) > 1)


def _estimate_sizes(table: Table) -> NDArray[np.int64]:
    """Return about how many bytes each row will take."""
    size_N = np.full(len(table), 200, dtype=np.int64)
    number = {int(row): index for index, row in enumerate(table.rows_N)}
    for name, column in table.columns.items():
        if isinstance(column, ArrowColumn) and column.files is not None:
            for row, file in column.file_names(table.rows_N, 2**31):
                size_N[number[row]] += column.files.size(file)
        elif isinstance(column, VectorColumn | PlaceColumn):
            size_N += 4 * len(column.parts) if isinstance(column, VectorColumn) else 0
        elif isinstance(column, ArrowColumn):
            cells = map_arrow_table(column.path).column(column.field)
            size_N += cells.nbytes // max(1, len(cells))
        else:
            size_N[table.rows_with([name])] += _WINDOW_BYTES
    return size_N


def _find_shard_edges(size_N: NDArray[np.int64], shard_bytes: int) -> list[int]:
    """Return where shards begin, and the end: each holds as many rows as come nearest to the size."""
    shard_N = (np.cumsum(size_N) - size_N // 2) // max(1, shard_bytes)
    starts = np.flatnonzero(np.diff(shard_N, prepend=-1))
    return [*map(int, starts), len(size_N)]


def _check_folder(folder: Path, stamp: bytes, count: int) -> None:
    for shard in sorted(folder.glob("*.parquet")) if folder.is_dir() else ():
        try:
            found = (pq.read_schema(shard).metadata or {}).get(_MADE_FROM)
        except (pa.ArrowException, OSError):
            found = None
        if found != stamp:
            raise DataError(
                f"{folder}: holds {shard.name}, which is not of this packing of this table ({count} shards); "
                "choose another folder, or remove it"
            )


def _encode_shard(table: Table, rows: range, schema: pa.Schema, faults: list[str]) -> bytes:
    target = io.BytesIO()
    plain = [field.name for field in schema if not _is_bytes(field.type)]
    with pq.ParquetWriter(
        target,
        schema,
        compression=cast(Any, {_leaf(field): "zstd" if field.name in plain else "NONE" for field in schema}),
        use_dictionary=cast(Any, [_leaf(schema.field(name)) for name in plain]),
        write_statistics=cast(Any, [_leaf(schema.field(name)) for name in plain]),
    ) as writer:
        for start in range(rows.start, rows.stop, _GROUP_ROWS):
            group = range(start, min(start + _GROUP_ROWS, rows.stop))
            arrays = [_pack_cells(table, group, field, faults) for field in schema]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=len(group))
    return target.getvalue()


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or (pa.types.is_list(kind) and pa.types.is_binary(kind.value_type))


def _leaf(field: pa.Field) -> str:
    """Return the name under which Parquet keeps a column's values."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name


def _pack_cells(table: Table, rows: range, field: pa.Field, faults: list[str]) -> pa.Array:
    if field.name == "key":
        return pa.array([table.keys[row] for row in rows], field.type)
    if field.name not in table.columns:
        taken = (
            map_arrow_table(table.path)
            .column(field.name)
            .take(pa.array(table.rows_N[rows.start : rows.stop]))
        )
        return (
            pa.concat_arrays(taken.chunks).cast(field.type) if taken.num_chunks else pa.nulls(0, field.type)
        )
    column = table.columns[field.name]
    values: list[Any] = []
    for row in rows:
        try:
            values.append(_pack_cell(column[int(table.rows_N[row])], field.type))
        except DataError as error:
            if not isinstance(column, RasterColumn):
                raise DataError(f"{table.keys[row]}: {field.name}: {error}") from error
            faults.append(f"{table.keys[row]}: {field.name}: {error}")
            values.append(None)
    return pa.array(values, field.type)


def _pack_cell(cell: Any, kind: pa.DataType) -> Any:
    if cell is None:
        return None
    if not _is_bytes(kind):
        several = pa.types.is_list(kind) and not isinstance(cell, list | np.ndarray)
        return [cell] if several else cell
    items = [_encode(item) for item in (cast("list[Any]", cell) if isinstance(cell, list) else [cell])]
    return items if pa.types.is_list(kind) else items[0]


def _encode(item: Any) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, Path):
        with open_binary(item) as file:
            return file.read()
    target = io.BytesIO()
    if isinstance(item, np.ndarray):
        return _encode_array(item, target)
    array, rate = item
    import soundfile

    soundfile.write(target, array, rate, format="FLAC")
    return target.getvalue()


def _encode_array(array: NDArray[Any], target: io.BytesIO) -> bytes:
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (1, 3, 4):
        from PIL import Image

        Image.fromarray(array[..., 0] if array.shape[2] == 1 else np.ascontiguousarray(array)).save(
            target, "PNG"
        )
    else:
        np.save(target, array, allow_pickle=False)
    return target.getvalue()
