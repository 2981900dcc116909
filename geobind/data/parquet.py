"""Parquet and GeoParquet manifests, read by row group."""

from __future__ import annotations

import json
import os
import struct
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geobind.data.cells import CellError, convert_column
from geobind.data.readers.files import show_value
from geobind.errors import DataError
from geobind.utils.arrow import pc

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last where names of columns are not UTF-8
_BATCH = 1024  # rows of a large group read at a time; a packed image may have a megabyte
_BLOCK_BYTES, _BLOCK_ROWS = 32 * 1024**2, 65_536  # of row groups that are read together
_THREADS = 4
SPACE, EXPANSION = 256 * 1024**2, 100  # bytes that a file's rows may take, and so many times its own besides
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8}  # of a value, in bytes


def read_record_batches(path: Path, file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows in order: row groups that are small in parallel, others piece by piece.

    Threads took two thirds of the time on two cores. What is held in memory is a few blocks of 32 MB, once
    decoded. Columns that repeat values of a dictionary may come as such.

    Raises:
        DataError: The rows would take far more space than the file: a few kilobytes can repeat one value
            until memory and disk are full.
    """
    space = _Space(path, file.metadata, columns)
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    if space.repeated:
        file = pq.ParquetFile(path, metadata=file.metadata, read_dictionary=space.repeated)
    sizes = [max(group.total_byte_size, space.sizes[number]) for number, group in enumerate(groups)]
    is_large = any(
        size > _BLOCK_BYTES or group.num_rows > _BLOCK_ROWS for size, group in zip(sizes, groups, strict=True)
    )
    batches = (
        _read_pieces(file, columns, sizes)
        if is_large or space.repeated
        else _read_blocks(path, file, columns, sizes)
    )
    for batch in batches:
        yield from space.split(batch)


def _read_pieces(file: pq.ParquetFile, columns: list[str], sizes: list[int]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one group after the other: Arrow joins no dictionaries inside of lists."""
    for number, size in enumerate(sizes):
        row_bytes = size // max(1, file.metadata.row_group(number).num_rows)
        rows = max(1, min(_BATCH, _BLOCK_BYTES // max(1, row_bytes)))
        yield from file.iter_batches(rows, row_groups=[number], columns=columns)


def _read_blocks(
    path: Path, file: pq.ParquetFile, columns: list[str], sizes: list[int]
) -> Iterator[pa.RecordBatch]:
    blocks: list[list[int]] = [[]]
    size = 0
    for number, group_size in enumerate(sizes):
        if size + group_size > _BLOCK_BYTES:
            blocks, size = [*blocks, []], 0
        blocks[-1].append(number)
        size += group_size
    jobs = (partial(_read, path, file, block, columns) for block in blocks if block)
    for table in run_in_order(jobs, min(_THREADS, os.cpu_count() or 1)):
        yield from table.combine_chunks().to_batches()


def check_chunks(source: Path | pa.NativeFile, footer: pq.FileMetaData, columns: Iterable[str]) -> None:
    """Check what a footer states of columns, before `RowGroupMetaData.column` is asked for them.

    That ends the process where a footer contradicts itself. A reader that buffers ahead looks at the chunks
    of all row groups too, but raises; it then reads no more than these columns of the first one.

    Raises:
        OSError: The footer contradicts itself, or the first rows are damaged.
    """
    reader = pq.ParquetFile(source, metadata=footer, pre_buffer=True)
    next(reader.iter_batches(1, columns=[*columns]), None)


class _Space:
    """Limit on what the rows of a file take once they are decoded.

    The file's own figures decide first. They do not tell what a dictionary's values repeated take, so such
    columns are read as dictionaries and measured before they are decoded.

    Raises:
        DataError: They take more than `SPACE` and `EXPANSION` times the file.
        OSError: What the file says of a column contradicts itself.
    """

    def __init__(self, path: Path, metadata: pq.FileMetaData, columns: list[str]) -> None:
        self.path, self.taken = path, 0
        self.limit = SPACE + EXPANSION * path.stat().st_size
        self.sizes: list[int] = []  # decoded bytes of each row group, save what dictionaries repeat
        repeated: dict[str, int] = {}  # most bytes of a column, by the name of its values
        for number in range(metadata.num_row_groups):
            self._check(metadata.row_group(number).total_byte_size)
        check_chunks(path, metadata, columns)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            size = 8 * group.num_rows
            for index in range(len(metadata.schema)):
                leaf = metadata.schema.column(index)
                if leaf.path.split(".")[0] not in columns:
                    continue
                chunk = group.column(index)
                size += chunk.num_values * _WIDTHS.get(chunk.physical_type, 4)
                if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY":
                    size += chunk.num_values * leaf.length
                elif chunk.physical_type == "BYTE_ARRAY":
                    size += chunk.total_uncompressed_size
                    if any("DICTIONARY" in encoding for encoding in chunk.encodings):
                        worst = chunk.num_values * chunk.total_uncompressed_size
                        repeated[leaf.path] = repeated.get(leaf.path, 0) + worst
            self.sizes.append(size)
        self.repeated = [name for name, worst in repeated.items() if self.repeats(worst)]
        self._check(sum(self.sizes))

    def repeats(self, worst: int) -> bool:
        """Return whether a column may take so much that it is measured before it is decoded."""
        return worst > SPACE // 4

    def split(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yield a batch in parts that are small once decoded.

        Raises:
            DataError: All rows so far take too much.
        """
        size_N = np.full(batch.num_rows, 8, dtype=np.int64)
        for column in batch.columns:
            size_N += _measure_cells(column)
        self.taken += int(size_N.sum())
        self._check(self.taken)
        part_N = (np.cumsum(size_N) - size_N) // _BLOCK_BYTES
        edges = [*np.flatnonzero(np.diff(part_N, prepend=-1)).tolist(), batch.num_rows]
        for start, end in pairwise(edges):
            yield batch.slice(start, end - start)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise DataError(
                f"{self.path}: its rows would take over {self.limit // 1_000_000} MB, though the file has "
                f"{self.path.stat().st_size / 1000:,.1f} kB; does it repeat large values? Write each once, "
                "as a file of its own that rows name"
            )


def _measure_cells(array: pa.Array) -> NDArray[np.int64]:
    """Return how many bytes each cell takes once dictionaries are decoded."""
    count, kind = len(array), array.type
    if isinstance(array, pa.ExtensionArray):
        return _measure_cells(array.storage)
    if pa.types.is_dictionary(kind):
        values_V = _measure_cells(array.dictionary)
        index_N = pc.fill_null(array.indices, 0).to_numpy(zero_copy_only=False)
        return values_V[index_N] if len(values_V) else np.zeros(count, dtype=np.int64)
    if pa.types.is_struct(kind):
        return sum((_measure_cells(part) for part in array.flatten()), np.zeros(count, dtype=np.int64))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        ends = np.concatenate([[0], np.cumsum(_measure_cells(array.values))])
        offset_N = array.offsets.to_numpy()
        return np.where(
            array.is_valid().to_numpy(zero_copy_only=False), ends[offset_N[1:]] - ends[offset_N[:-1]], 0
        )
    if any(test(kind) for test in (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string)):
        return pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.full(count, array.nbytes // max(1, count), dtype=np.int64)


def run_in_order(jobs: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
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
def report_damage(path: Path) -> Generator[None]:
    """Raise read failures of a Parquet file as a DataError that names it.

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


_GEOMETRY = "geometry"
_NATIVE = "xy"  # fields of a native point, in GeoParquet's order: east, north
_DEGREES = ("OGC:CRS84", "OGC:CRS84H", "EPSG:4326", "EPSG:4979")  # the last with heights, which are dropped
_POINT = np.dtype([("order", "u1"), ("type", "<u4"), ("x", "<f8"), ("y", "<f8")])  # well-known binary


class ParquetManifest:
    """The rows of a Parquet file.

    Raises:
        DataError: It is not a Parquet file, or has a column twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = pq.ParquetFile(path)
        except DAMAGE as error:
            raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error
        names = self.file.schema_arrow.names
        self.columns: dict[str, None] = dict.fromkeys(names)
        if len(self.columns) != len(names):
            ((twice, _),) = Counter(names).most_common(1)
            raise DataError(f"{path}: column '{twice}' is there twice; rename one")
        self.geometry, self._crs_fault = _find_geometry(self.file.schema_arrow.metadata or {}, path)
        if self.geometry not in self.columns or {"lat", "lon"} & set(self.columns):
            self.geometry = None
        if self.geometry:
            self.columns |= {"lat": None, "lon": None}

    def batches(self, columns: Mapping[str, str], limit: int | None) -> Iterator[pa.Table]:
        """Check the rows and yield Arrow tables of `line` and the given columns, as `rows_to_arrow` does.

        Raises:
            DataError: A value is out of range, of a type that cannot be used, the file is damaged, or its
                rows would take far more space than the file.
        """
        read = {*columns.values()} & set(self.file.schema_arrow.names)
        if self.geometry and {"lat", "lon"} & {*columns.values()}:
            if self._crs_fault:
                raise DataError(f"{self.path}: {self._crs_fault}")
            read.add(self.geometry)
        first = 0
        try:
            for batch in read_record_batches(self.path, self.file, sorted(read)):
                batch = batch if limit is None else batch.slice(0, limit - first)
                if not batch.num_rows:
                    break
                yield self._checked(batch, columns, first)
                first += batch.num_rows
        except DAMAGE as error:
            raise DataError(f"{self.path}: damaged after row {first}: {error}") from error

    def _checked(self, batch: pa.RecordBatch, columns: Mapping[str, str], first: int) -> pa.Table:
        batch.validate(full=True)  # strings that are not UTF-8, and offsets that lead out of the memory
        source: dict[str, Any] = dict(zip(batch.schema.names, batch.columns, strict=True))
        if self.geometry in source:
            source |= self._points(source[self.geometry], first)
        arrays: dict[str, Any] = {"line": pa.array(np.arange(first, first + batch.num_rows, dtype=np.int64))}
        for field, column in columns.items():
            if column not in source:
                continue
            try:
                arrays[field] = convert_column(field, source[column])
            except CellError as error:
                raise DataError(
                    f"{self.path}: row {first + error.index}: column '{column}': {error}"
                ) from error
            except ValueError as error:
                raise DataError(
                    f"{self.path}: rows {first} to {first + batch.num_rows - 1}: column '{column}': {error}"
                ) from error
        return pa.table(arrays)

    def _points(self, geometry: pa.Array, first: int) -> dict[str, pa.Array]:
        if isinstance(geometry, pa.ExtensionArray):  # GeoArrow's types, where its package is there
            geometry = geometry.storage
        kind = geometry.type
        if pa.types.is_struct(kind) and all(kind.get_field_index(axis) >= 0 for axis in _NATIVE):
            return {name: pc.struct_field(geometry, axis) for name, axis in zip(_AXES, _NATIVE, strict=True)}
        xy_N2 = np.full((len(geometry), 2), np.nan)
        for row, value in enumerate(geometry.to_pylist()):
            if value is None:
                continue
            try:
                xy_N2[row] = _parse_point(value)
            except ValueError as error:
                raise DataError(
                    f"{self.path}: row {first + row}: {error}; write columns lat and lon, for example from "
                    "the centroid"
                ) from error
        return {name: pa.array(xy_N2[:, axis], from_pandas=True) for axis, name in enumerate(_AXES)}


_AXES = ("lon", "lat")


def _parse_point(value: Any) -> tuple[float, float]:
    """Parse a point in well-known binary, of ISO or extended (EWKB) kind; heights and measures are dropped.

    Returns:
        Degrees east and north, NaN of an empty point.

    Raises:
        ValueError: It is not a point, or not in degrees.
    """
    if not isinstance(value, bytes):
        raise ValueError("the geometry is not in well-known binary")
    if len(value) == _POINT.itemsize and value[:5] == b"\1\1\0\0\0":  # nearly all
        x, y = struct.unpack_from("<2d", value, 5)
        return x, y
    try:
        order = {0: ">", 1: "<"}[value[0]]
        (kind,) = struct.unpack_from(f"{order}I", value, 1)
        flags, iso = kind >> 29, (kind & 0x1FFFFFFF) // 1000  # Z, M, a reference system; 1: Z, 2: M, 3: both
        at = 5
        if (kind & 0x1FFFFFFF) % 1000 != 1 or iso > 3:
            raise ValueError("the geometry is not a point")
        if flags & 1:
            (system,) = struct.unpack_from(f"{order}I", value, at)
            at += 4
            if system not in (0, 4326, 4979):
                raise ValueError(f"the geometry is in EPSG:{system}, not in degrees")
        axes = 2 + max((iso + 1) // 2 if iso < 3 else 2, (flags >> 1).bit_count())
        coordinates = struct.unpack(f"{order}{axes}d", value[at:])
    except (KeyError, IndexError, struct.error):
        raise ValueError(
            f"the {len(value)} bytes of a geometry are no well-known binary of a point"
        ) from None
    return coordinates[0], coordinates[1]


def _find_geometry(metadata: Mapping[bytes, bytes], path: Path) -> tuple[str | None, str]:
    """Return the name of a GeoParquet file's geometry, and why its places cannot be used, if they cannot.

    Raises:
        DataError: The metadata are damaged.
    """
    try:
        geo = json.loads(metadata.get(b"geo", b"{}"))
        primary = geo.get("primary_column", _GEOMETRY)
        column = cast("dict[str, Any]", geo.get("columns", {}).get(primary, {}))
        if not column:
            return None, ""
        fault = _explain_crs(column["crs"]) if "crs" in column else ""  # without one it is in degrees
        return str(primary), fault
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: its GeoParquet metadata are damaged: {error}") from error


def _explain_crs(crs: Any) -> str:
    """Return why coordinates in a CRS are not known to be degrees of WGS 84; nothing if they are."""
    name = ""
    if isinstance(crs, dict):
        described = cast("dict[str, Any]", crs)
        identity = described.get("id")
        identity = cast("dict[str, Any]", identity) if isinstance(identity, dict) else {}
        if {"authority", "code"} <= identity.keys():
            name = f"{identity['authority']}:{identity['code']}"
        else:
            name = f"the CRS {show_value(described.get('name', 'without a name'))}, which has no code"
    elif isinstance(crs, str):
        name = crs.strip()
    if name.upper() in _DEGREES:
        return ""
    name = show_value(name).strip("'\"") if name else "an unknown CRS (`crs` is null)"
    return (
        f"its geometry is in {name}; write degrees, for example gdf.to_crs(4326).to_parquet(...), after "
        "gdf.set_crs(...) if it is unknown"
    )
