"""Parquet and GeoParquet manifests, read by row group."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geobind.data.cells import (
    NUMBER,
    PLACE_COLUMNS,
    CellError,
    cells_to_arrow,
    numbers_to_arrow,
    times_to_arrow,
)
from geobind.errors import DataError
from geobind.utils.arrow import pc, wrap_in_lists

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


class ParquetManifest:
    """The rows of a Parquet file.

    Raises:
        DataError: It is not a Parquet file.
    """

    def __init__(self, path: Path) -> None:

        self.path = path
        try:
            self.file = pq.ParquetFile(path)
        except DAMAGE as error:
            raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error
        self.columns: dict[str, None] = dict.fromkeys(self.file.schema_arrow.names)
        geometry = _point_column(self.file.schema_arrow.metadata or {}, path)
        if geometry in self.columns and not {"lat", "lon"} & set(self.columns):
            self.columns |= {"lat": None, "lon": None}
            self.geometry: str | None = geometry
        else:
            self.geometry = None

    def batches(self, columns: Mapping[str, str], limit: int | None) -> Iterator[pa.Table]:
        """Check the rows and yield Arrow tables of `line` and the given columns, as `rows_to_arrow` does.

        Raises:
            DataError: A value is out of range, of a type that cannot be used, or the file is damaged.
        """
        read = {*columns.values()} & set(self.file.schema_arrow.names)
        if self.geometry:
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
        if self.geometry:
            source |= self._points(source[self.geometry], first)
        arrays: dict[str, Any] = {"line": pa.array(np.arange(first, first + batch.num_rows, dtype=np.int64))}
        for field, column in columns.items():
            if column not in source:
                continue
            try:
                arrays[field] = _convert(source[column], field)
            except CellError as error:
                raise DataError(
                    f"{self.path}: row {first + error.index}: column '{column}': {error}"
                ) from error
            except (pa.ArrowException, ValueError) as error:
                raise DataError(
                    f"{self.path}: rows {first} to {first + batch.num_rows - 1}: column '{column}': {error}"
                ) from error
            if field in ("lat", "lon"):
                _check_degrees(
                    arrays[field], 90.0 if field == "lat" else 180.0, f"{self.path}: ", column, first
                )
        return pa.table(arrays)

    def _points(self, geometry: pa.Array, first: int) -> dict[str, pa.Array]:

        if pa.types.is_struct(geometry.type):  # GeoParquet 1.1's native points
            return {"lon": geometry.field("x"), "lat": geometry.field("y")}
        # Well-known binary of a point: byte order (1: little), uint32 type (1: point), x, y.
        point = np.dtype([("order", "u1"), ("type", "<u4"), ("x", "<f8"), ("y", "<f8")])
        wkb = [value.as_py() for value in geometry]
        xy = np.full((len(wkb), 2), np.nan)
        for row, value in enumerate(wkb):
            if value is None:
                continue
            parsed = np.frombuffer(value, point, count=1)[0] if len(value) == point.itemsize else None
            if parsed is None or parsed["order"] != 1 or parsed["type"] != 1:
                raise DataError(
                    f"{self.path}: row {first + row}: the geometry is not a point; write columns lat and "
                    "lon, for example from the centroid"
                )
            xy[row] = parsed["x"], parsed["y"]
        return {name: pa.array(xy[:, axis], from_pandas=True) for axis, name in enumerate(("lon", "lat"))}


def _point_column(metadata: Mapping[bytes, bytes], path: Path) -> str | None:
    """Return the name of a GeoParquet file's geometry, once it is known to be in degrees."""
    try:
        geo = json.loads(metadata.get(b"geo", b"{}"))
        primary = geo.get("primary_column", _GEOMETRY)
        column = cast("dict[str, Any]", geo.get("columns", {}).get(primary, {}))
        identity = (column.get("crs") or {}).get("id", {})
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: its GeoParquet metadata are damaged: {error}") from error
    if not column:
        return None
    code = f"{identity.get('authority', 'OGC')}:{identity.get('code', 'CRS84')}"
    if code not in ("OGC:CRS84", "EPSG:4326"):
        raise DataError(
            f"{path}: its geometry is in {code}; write degrees, for example gdf.to_crs(4326).to_parquet(...)"
        )
    return primary


def _convert(array: pa.Array, field: str) -> pa.Array:
    """Convert the values of a column to those of a field of a table's Arrow file."""
    if field in PLACE_COLUMNS:
        return _place_values(array, field)
    return _numbers(array) if field.startswith(NUMBER) else _cells(array)


def _numbers(array: pa.Array) -> pa.Array:
    """Return 64-bit floats, null where a number is missing or NaN."""
    kind = array.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        numbers = pc.cast(array, pa.float64())
        if pc.all(pc.or_kleene(pc.is_finite(numbers), pc.is_nan(numbers))).as_py() is not False:
            return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    return numbers_to_arrow(array.to_pylist())


def _place_values(array: pa.Array, field: str) -> pa.Array:

    if field in ("lat", "lon"):
        return pc.cast(array, pa.float64())
    if field == "time":
        if pa.types.is_timestamp(array.type):
            # As integers, because casting to a type without zone would shift to local wall time.
            zoned = pc.cast(array, pa.timestamp("us", array.type.tz), safe=False)
            return pc.cast(zoned, pa.int64()).cast(pa.timestamp("us"))
        if pa.types.is_date(array.type):
            return pc.cast(array, pa.timestamp("us"))
        return times_to_arrow(array.to_pylist())
    words = pc.utf8_trim_whitespace(pc.cast(array, pa.string()))
    return pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)


def _check_degrees(array: pa.Array, limit: float, where: str, column: str, first: int) -> None:
    value_N: NDArray[np.float64] = array.to_numpy(zero_copy_only=False)
    wrong_N = (np.abs(value_N) > limit) | (
        np.isnan(value_N) & array.is_valid().to_numpy(zero_copy_only=False)
    )
    if wrong_N.any():
        row = int(np.argmax(wrong_N))
        raise DataError(
            f"{where}row {first + row}: column '{column}': {value_N[row]} is not degrees between "
            f"-{limit:.0f} and {limit:.0f}"
        )


def _cells(array: pa.Array) -> pa.Array:
    """Return strings and bytes as lists of them, so that one and several are stored alike."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_struct(array.type) and array.type.get_field_index("bytes") >= 0:
        array = pc.struct_field(array, "bytes")  # how Hugging Face datasets pack images and sounds
    if _is_window(array.type) or (_is_list(array.type) and _is_window(array.type.value_type)):
        return cells_to_arrow(array.to_pylist())
    if pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        array = pc.cast(array, pa.list_(array.type.value_type))
    if pa.types.is_list(array.type):
        if pc.list_flatten(array).null_count:
            raise ValueError("a list holds nulls; drop them")
        kind = _plain(array.type.value_type)
        array = pc.cast(array, pa.list_(kind)) if kind else array
        return pc.if_else(pc.equal(pc.list_value_length(array), 0), pa.scalar(None, array.type), array)
    kind = _plain(array.type)
    if kind is None:
        return array
    array = pc.cast(array, kind)
    empty = pc.equal(pc.binary_length(array), 0)
    if pc.any(empty).as_py():  # else a copy, of images perhaps, for nothing
        array = pc.if_else(empty, pa.scalar(None, kind), array)
    return wrap_in_lists(array)


def _is_window(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("raster") >= 0


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _plain(kind: pa.DataType) -> pa.DataType | None:

    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    return None
