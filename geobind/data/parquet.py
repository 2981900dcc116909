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
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geobind.data.cells import CellError, convert_column
from geobind.data.readers.files import shorten
from geobind.errors import DataError
from geobind.utils.arrow import pc

T = TypeVar("T")
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last where names of columns are not UTF-8
_BATCH = 1024  # rows of a large group read at a time; a packed image may have a megabyte
_BLOCK_BYTES, _BLOCK_ROWS = 32 * 1024**2, 65_536  # of row groups that are read together
_THREADS = 4


def read_record_batches(path: Path, file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
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
    for table in run_in_order(jobs, min(_THREADS, os.cpu_count() or 1)):
        yield from table.combine_chunks().to_batches()


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
            name = f"the CRS {shorten(described.get('name', 'without a name'))}, which has no code"
    elif isinstance(crs, str):
        name = crs.strip()
    if name.upper() in _DEGREES:
        return ""
    name = shorten(name).strip("'\"") if name else "an unknown CRS (`crs` is null)"
    return (
        f"its geometry is in {name}; write degrees, for example gdf.to_crs(4326).to_parquet(...), after "
        "gdf.set_crs(...) if it is unknown"
    )
