"""Archives opened: vectors by row, rows by place and time, each read from the row groups that hold them."""

# N rows, K rows asked for, G row groups, D width

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geobind.archive.table import (
    EMBEDDING,
    GEO,
    ArchiveMetadata,
    Box,
    TileGrid,
    build_schema,
    decode_bounds,
    read_boxes,
    read_metadata,
)
from geobind.data.parquet import DAMAGE, EXPANSION, SPACE, check_chunks, report_damage
from geobind.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from geobind.binder import Binder

_MAX_GROUP = 1024**3  # bytes of the embeddings of one row group
_CHUNKS = {"id", "lat", "lon", "time"}  # columns whose sizes or ranges are taken from the footer
_MAX_GEO = 1_000_000  # bytes of GeoParquet's metadata that are parsed
_MAX_ID = 10_000  # bytes of a row's name, on average over a row group


def model_digest(binder: Binder, modality: str) -> str:
    """Return the digest of all that an embedding of a modality depends on: weights, options and width.

    Two binders whose digests of a modality are equal embed it alike, whatever else they hold.

    Raises:
        PluginError: The binder has no such modality.
    """
    from geobind.bundles.bundle import portable_options
    from geobind.utils.hashing import fingerprint
    from geobind.utils.system import hash_module

    options = portable_options(binder.modality(modality))
    return fingerprint(modality, options, binder.width, hash_module(binder.encoders[modality]))


class _Range(NamedTuple):
    """The least and greatest value of a column in each row group; NaN or NaT where a group has none."""

    least_G: NDArray[Any]
    most_G: NDArray[Any]


class Archive:
    """Embeddings in a GeoParquet file: see `Archive.open`.

    Rows lie along a curve over the Earth, so that what lies together on the ground is read together.
    """

    def __init__(self, path: Path, file: pa.NativeFile, metadata: ArchiveMetadata) -> None:
        self.path, self.metadata, self._file = path, metadata, file
        self._footer = self._reader().metadata
        counts = [self._footer.row_group(number).num_rows for number in range(self._footer.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @classmethod
    def open(cls, path: str | Path, binder: Binder | None = None) -> Self:
        """Open an archive, which may be a stranger's; only its footer and first names and places are read.

        Args:
            path: The file.
            binder: What will be compared with its embeddings.

        Raises:
            DataError: It is missing, damaged, or no archive.
            CheckpointError: Another model embedded it than the binder has.
        """
        path = Path(path)
        if not path.is_file():
            parts = path.with_suffix(".parts")
            hint = f"; {parts} has parts of it: geobind archive merge {path}" if parts.is_dir() else ""
            raise DataError(f"{path}: no such file{hint}")
        try:
            file = pa.OSFile(str(path), "rb")  # reads by position, so threads may share it
            schema = pq.ParquetFile(file).schema_arrow
        except DAMAGE as error:
            raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error
        metadata = read_metadata(schema.metadata, path)
        _check_schema(path, schema, metadata)
        archive = cls(path, file, metadata)
        archive._check_size()
        if binder is not None:
            archive.check_model(binder)
        return archive

    def check_model(self, binder: Binder) -> None:
        """Check that a binder embeds the archive's modality as the archive was embedded.

        Raises:
            CheckpointError: It does not; similarities with its embeddings would mean nothing.
        """
        if self.modality not in binder.modalities:
            known = ", ".join(sorted(binder.modalities))
            raise CheckpointError(
                f"{self.path}: holds embeddings of '{self.modality}', which this bundle does not have; it "
                f"has {known}"
            )
        digest = model_digest(binder, self.modality)
        if digest != self.model:
            name = f" ({self.metadata.bundle})" if self.metadata.bundle else ""
            raise CheckpointError(
                f"{self.path}: embedded by another model{name}: its '{self.modality}' is {self.model[:12]}, "
                f"that of the bundle {digest[:12]}; use the bundle it was made with, or embed again"
            )

    @property
    def modality(self) -> str:
        """Name of the modality that was embedded."""
        return self.metadata.modality

    @property
    def width(self) -> int:
        """Length D of an embedding."""
        return self.metadata.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that embeddings are stored as."""
        return np.dtype(self.metadata.dtype)

    @property
    def model(self) -> str:
        """Digest of the model, as `model_digest` gives it."""
        return self.metadata.model

    @property
    def grid(self) -> TileGrid | None:
        """The grid of its tiles over a raster, if they are of one."""
        return self.metadata.grid

    @property
    def bounds(self) -> Box | None:
        """West, south, east and north of all rows, as the file states them; None if no row has a place."""
        try:
            return check_box(self._geometry_facts["bbox"])
        except (DataError, KeyError):
            return None

    @property
    def geometry_types(self) -> list[str]:
        """GeoParquet's types of the geometries, as the file states them."""
        stated = self._geometry_facts.get("geometry_types")
        known = ("Point", "Polygon", "MultiPolygon")
        return [kind for kind in known if kind in stated] if isinstance(stated, list) else []

    @cached_property
    def _geometry_facts(self) -> dict[str, Any]:
        raw = (self._footer.metadata or {}).get(GEO, b"")
        try:
            facts = json.loads(raw)["columns"]["geometry"] if len(raw) <= _MAX_GEO else {}
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"Archive({str(self.path)!r}: {len(self)} x {self.width} of '{self.modality}')"

    @cached_property
    def ids(self) -> NDArray[np.object_]:
        """The name of each row (N,)."""
        return self.read_ids()

    @cached_property
    def lat_N(self) -> NDArray[np.float64]:
        """Degrees north of each row's middle (N,), NaN where unknown."""
        return self._numbers("lat") if self.metadata.placed else np.full(len(self), np.nan)

    @cached_property
    def lon_N(self) -> NDArray[np.float64]:
        """Degrees east of each row's middle (N,), NaN where unknown."""
        return self._numbers("lon") if self.metadata.placed else np.full(len(self), np.nan)

    @cached_property
    def time_N(self) -> NDArray[np.datetime64] | None:
        """When, in UTC (N,), NaT where unknown; None if no row has it."""
        return self._numbers("time") if self.metadata.timed else None

    @cached_property
    def row_N(self) -> NDArray[np.int32] | None:
        """Row of each tile in `grid` (N,); None without a grid."""
        return self._cells("row")

    @cached_property
    def column_N(self) -> NDArray[np.int32] | None:
        """Column of each tile in `grid` (N,); None without a grid."""
        return self._cells("col")

    @cached_property
    def valid_N(self) -> NDArray[np.float32] | None:
        """Share of each tile's pixels that the raster has (N,); None where that was not recorded."""
        return self._numbers("valid") if self.metadata.reading else None

    def read_ids(self, rows: slice | ArrayLike | None = None) -> NDArray[np.object_]:
        """Read the names of rows (K,), by default of all."""
        parts = [table.column("id").to_numpy() for table in self._read(["id"], rows)]
        return self._in_order(parts, rows, np.empty(0, object))

    def read_vectors(self, rows: slice | ArrayLike | None = None, *, dtype: Any = np.float32) -> NDArray[Any]:
        """Read embeddings (K, D) in the order of `rows`, by default all.

        Only the row groups that hold these rows are read, one at a time.

        Args:
            rows: Numbers of rows, or a slice.
            dtype: Type of the result; None: as stored.

        Raises:
            DataError: The file is damaged, or has no such row.
        """
        kind = self.dtype if dtype is None else np.dtype(dtype)
        numbers_K = self._number_rows(rows)
        vectors_KD = np.empty((len(numbers_K), self.width), kind)
        for group, places_J in self._group_rows(numbers_K):
            held_JD = self._vectors_of_group(group)
            vectors_KD[places_J] = held_JD[numbers_K[places_J] - self._starts[group]]
        return vectors_KD

    def read_table(self, rows: slice | ArrayLike | None = None) -> pa.Table:
        """Read all columns of rows as an Arrow table, in the order of `rows`, by default all.

        Raises:
            DataError: The file is damaged, or has no such row.
        """
        schema = build_schema(self.metadata)
        parts = [*self._read(schema.names, rows)]
        if not parts:
            return schema.empty_table()
        order_K = np.concatenate([places_J for _, places_J in self._group_rows(self._number_rows(rows))])
        return pa.concat_tables(parts).take(pa.array(np.argsort(order_K))).combine_chunks()

    def iter_blocks(self, *, dtype: Any = np.float32) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield each row group's first row and its embeddings, with memory for one of them.

        Raises:
            DataError: The file is damaged.
        """
        for group, start in enumerate(self._starts[:-1].tolist()):
            yield start, self._vectors_of_group(group).astype(dtype or self.dtype, copy=False)

    def find_rows(
        self,
        bbox: Box | Sequence[float] | None = None,
        time: tuple[Any, Any] | None = None,
    ) -> NDArray[np.int64]:
        """Return the numbers of the rows whose middle lies in a box, and whose time in a span.

        Row groups that cannot hold any are skipped by their statistics.

        Args:
            bbox: West, south, east, north in degrees; west > east crosses the antimeridian.
            time: First and last moment (ISO 8601, datetime or numpy), None where it is open.

        Raises:
            DataError: The box is not one, or the archive has no places or times.
        """
        if bbox is None and time is None:
            return np.arange(len(self), dtype=np.int64)
        inside_G = np.ones(len(self._starts) - 1, bool)
        wanted = check_box(bbox) if bbox is not None else None
        span = check_span(time) if time is not None else None
        if wanted is not None:
            if not self.metadata.placed:
                raise DataError(f"{self.path}: its rows have no places, so a box finds none")
            west, south, east, north = wanted
            lat, lon = self._range("lat"), self._range("lon")
            inside_G &= (lat.least_G <= north) & (lat.most_G >= south)
            after_G, before_G = lon.most_G >= west, lon.least_G <= east
            inside_G &= after_G & before_G if west <= east else after_G | before_G
        if span is not None:
            if not self.metadata.timed:
                raise DataError(f"{self.path}: its rows have no times")
            moments = self._range("time")
            inside_G &= (moments.least_G <= span[1]) & (moments.most_G >= span[0])
        names = (["lat", "lon"] if wanted else []) + (["time"] if span else [])
        found: list[NDArray[np.int64]] = []
        for group in np.flatnonzero(inside_G).tolist():
            start, end = self._starts[group : group + 2].tolist()
            chosen_N = np.ones(end - start, bool)
            table = self._read_group(group, names)
            if wanted:
                chosen_N &= within_box(_to_numpy(table, "lat"), _to_numpy(table, "lon"), wanted)
            if span:
                time_N = _to_numpy(table, "time")
                chosen_N &= (time_N >= span[0]) & (time_N <= span[1])
            found.append(start + np.flatnonzero(chosen_N))
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def footprint(self, rows: slice | ArrayLike | None = None) -> NDArray[np.float64]:
        """Read the bounds of rows: west, south, east, north (K, 4) in degrees, NaN where unknown.

        West > east where a tile crosses the antimeridian. Rows without a size have their point.

        Raises:
            DataError: The file is damaged, or has no such row.
        """
        if not self.metadata.placed:
            return np.full((len(self._number_rows(rows)), 4), np.nan)
        parts = [
            decode_bounds(table.column("geometry").combine_chunks(), read_boxes(table))
            for table in self._read(["geometry", "bbox"], rows)
        ]
        return self._in_order(parts, rows, np.empty((0, 4)))

    def check(self) -> int:
        """Read the whole archive and return its number of rows.

        Raises:
            DataError: A part of the file is damaged, an embedding is not finite or not of unit length, a
                name is there twice, or a place is out of range.
        """
        digests: list[NDArray[np.uint64]] = []
        names = build_schema(self.metadata).names
        for group, start in enumerate(self._starts[:-1].tolist()):
            table = self._read_group(group, names)  # all columns: each page has a checksum
            length_N = np.linalg.norm(self._to_vectors(table, group).astype(np.float32), axis=1)
            self._report(start, ~np.isfinite(length_N), "its embedding is not finite")
            self._report(start, np.abs(length_N - 1) > 0.01, "its embedding is not of unit length")
            identity = table.column("id")
            self._report(start, identity.is_null().to_numpy(), "it has no name")
            digests.append(_hash_names(identity.to_numpy()))
            if self.metadata.placed:
                lat_N, lon_N = _to_numpy(table, "lat"), _to_numpy(table, "lon")
                self._report(
                    start, (np.abs(lat_N) > 90) | (np.abs(lon_N) > 180), "its place is none on Earth"
                )
                decode_bounds(table.column("geometry").combine_chunks(), read_boxes(table))
        if (row := _find_repeated_row(digests)) is not None:
            raise DataError(f"{self.path}: row {row}: '{self.read_ids([row])[0]}' names another row too")
        return len(self)

    def _report(self, start: int, wrong_N: NDArray[np.bool_], reason: str) -> None:
        if len(rows := np.flatnonzero(wrong_N)):
            raise DataError(f"{self.path}: row {start + rows[0]}: {reason}; embed it again")

    def _check_size(self) -> None:
        """Check that the footer is sound, and rows take no more memory than a file of this size can hold.

        Raises:
            DataError: It is not, or they would.
        """
        if (np.diff(self._starts) < 0).any() or self._footer.num_rows != self._starts[-1]:
            raise DataError(f"{self.path}: damaged: its footer contradicts itself")
        itemsize = self.width * self.dtype.itemsize
        size = self.path.stat().st_size
        most = SPACE + EXPANSION * size
        if len(self) * (itemsize + 64) > most:
            raise DataError(f"{self.path}: claims {len(self):,} rows, more than its {size:,} bytes can hold")
        groups = [self._footer.row_group(number) for number in range(self._footer.num_row_groups)]
        for number, group in enumerate(groups):
            if group.num_rows * itemsize > _MAX_GROUP or group.total_byte_size > most:
                raise DataError(f"{self.path}: row group {number} is larger than any that geobind writes")
        with report_damage(self.path):
            check_chunks(self._file, self._footer, _CHUNKS & self._leaves.keys())
        for number, group in enumerate(groups):
            names = group.column(self._leaves["id"])
            if names.total_uncompressed_size > _MAX_ID * max(1, group.num_rows):
                raise DataError(f"{self.path}: row group {number} is larger than any that geobind writes")

    def _reader(self) -> pq.ParquetFile:
        """Return a reader of its own: one reader is for one thread alone."""
        footer = getattr(self, "_footer", None)
        with report_damage(self.path):
            return pq.ParquetFile(self._file, metadata=footer, page_checksum_verification=True)

    def _read_group(self, group: int, names: Sequence[str]) -> pa.Table:
        with report_damage(self.path):
            table = self._reader().read_row_group(group, columns=[*names], use_threads=False)
            table.validate(full="id" in names)
        if len(table) != self._starts[group + 1] - self._starts[group]:
            raise DataError(f"{self.path}: damaged: row group {group} lacks rows")
        return table

    def _vectors_of_group(self, group: int) -> NDArray[Any]:
        return self._to_vectors(self._read_group(group, [EMBEDDING]), group)

    def _to_vectors(self, table: pa.Table, group: int) -> NDArray[Any]:
        column = table.column(EMBEDDING).combine_chunks()
        if column.null_count or column.values.null_count:
            raise DataError(f"{self.path}: a row of row group {group} has no embedding; embed it again")
        return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)

    def _number_rows(self, rows: slice | ArrayLike | None) -> NDArray[np.int64]:
        if rows is None or isinstance(rows, slice):
            return np.arange(len(self), dtype=np.int64)[rows or slice(None)]
        given = np.asarray(rows)
        if given.dtype == bool:
            if given.shape != (len(self),):
                raise DataError(f"{self.path}: a mask must have {len(self)} rows, not {given.shape}")
            return np.flatnonzero(given)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise DataError(f"{self.path}: rows must be a list of numbers, not {given.dtype} {given.shape}")
        numbers_K = given.astype(np.int64)
        if len(numbers_K) and not (numbers_K.min() >= 0 and numbers_K.max() < len(self)):
            raise DataError(f"{self.path}: has rows 0 to {len(self) - 1}, not {numbers_K.max()}")
        return numbers_K

    def _group_rows(self, numbers_K: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield each row group that holds some of these rows, and which of them."""
        if not len(numbers_K):
            return
        group_K = np.searchsorted(self._starts, numbers_K, side="right") - 1
        order_K = np.argsort(group_K, kind="stable")
        groups, firsts = np.unique(group_K[order_K], return_index=True)
        yield from zip(groups.tolist(), np.split(order_K, firsts[1:]), strict=True)

    def _read(self, names: Sequence[str], rows: slice | ArrayLike | None) -> Iterator[pa.Table]:
        """Yield these columns of these rows, in the order of row groups."""
        numbers_K = self._number_rows(rows)
        for group, places_J in self._group_rows(numbers_K):
            table = self._read_group(group, names)
            yield table.take(pa.array(numbers_K[places_J] - self._starts[group]))

    def _in_order(
        self, parts: list[NDArray[Any]], rows: slice | ArrayLike | None, empty: NDArray[Any]
    ) -> NDArray[Any]:
        """Join what `_read` gave of row groups in the order that was asked for."""
        if not parts:
            return empty
        joined = np.concatenate(parts)
        ordered = np.empty_like(joined)
        order_K = np.concatenate([places_J for _, places_J in self._group_rows(self._number_rows(rows))])
        ordered[order_K] = joined
        return ordered

    def _numbers(self, name: str) -> NDArray[Any]:
        parts = [_to_numpy(self._read_group(group, [name]), name) for group in range(len(self._starts) - 1)]
        return np.concatenate(parts) if parts else np.empty(0)

    def _cells(self, name: str) -> NDArray[Any] | None:
        return self._numbers(name).astype(np.int32) if self.grid else None

    def _range(self, name: str) -> _Range:
        """Return what row groups state of a column; one that states nothing may hold anything."""
        kind = np.dtype("datetime64[us]") if name == "time" else np.dtype(np.float64)
        lowest, highest = (
            (np.datetime64(-(2**62), "us"), np.datetime64(2**62, "us"))
            if name == "time"
            else (-np.inf, np.inf)
        )
        least: list[Any] = []
        most: list[Any] = []
        for number in range(self._footer.num_row_groups):
            group = self._footer.row_group(number)
            index = self._leaves[name]
            statistics = group.column(index).statistics
            low, high = lowest, highest
            if statistics is not None and statistics.has_min_max:
                try:
                    low, high = statistics.min, statistics.max
                except OverflowError as error:  # a moment of no year that Python knows
                    raise DataError(
                        f"{self.path}: damaged: '{name}' of row group {number}: {error}"
                    ) from error
                if name == "time":
                    low, high = to_moment(low), to_moment(high)
            least.append(low)
            most.append(high)
        return _Range(np.array(least, kind), np.array(most, kind))

    @cached_property
    def _leaves(self) -> dict[str, int]:
        schema = self._footer.schema
        return {schema.column(index).path: index for index in range(len(schema))}


def _hash_names(names_N: NDArray[np.object_]) -> NDArray[np.uint64]:
    """Return 64 bits of a hash of each name; two of ten million coincide once in 300,000 archives."""
    digests = [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in names_N]
    return np.frombuffer(b"".join(digests), np.uint64)


def _find_repeated_row(digests: Sequence[NDArray[np.uint64]]) -> int | None:
    """Return the second row of a name that is there twice; None where there is none."""
    digest_N = np.concatenate(digests) if digests else np.empty(0, np.uint64)
    order_N = np.argsort(digest_N, kind="stable")
    again = np.flatnonzero(np.diff(digest_N[order_N]) == 0)
    return int(order_N[again + 1].min()) if len(again) else None


def find_repeated(names_N: NDArray[np.object_]) -> str | None:
    """Return a name that is there twice; None where there is none."""
    row = _find_repeated_row([_hash_names(names_N)])
    return None if row is None else str(names_N[row])


def _check_schema(path: Path, schema: pa.Schema, metadata: ArchiveMetadata) -> None:
    """Raise where a file has not the columns that its metadata promise."""
    for field in build_schema(metadata):
        index = schema.get_field_index(field.name)
        if index < 0:
            raise DataError(f"{path}: damaged: has no column '{field.name}', or has it twice")
        found = schema.field(index).type
        if field.name == EMBEDDING:  # the name of its items is the writer's affair
            fits = pa.types.is_fixed_size_list(found) and (found.list_size, found.value_type) == (
                metadata.width,
                field.type.value_type,
            )
        else:
            fits = found == field.type
        if not fits:
            raise DataError(f"{path}: damaged: column '{field.name}' is {found}, not {field.type}")


def _to_numpy(table: pa.Table, name: str) -> NDArray[Any]:
    values = table.column(name)
    if pa.types.is_timestamp(values.type):
        return values.cast(pa.timestamp("us")).to_numpy()
    return values.to_numpy()


def check_box(bbox: Sequence[float]) -> Box:
    """Return a box of degrees: west, south, east, north.

    Raises:
        DataError: It is none; the message says so where latitudes seem to come first.
    """
    try:
        west, south, east, north = map(float, bbox)
    except (TypeError, ValueError):
        raise DataError(f"a box is four numbers: west,south,east,north; not {bbox!r}") from None
    if not (np.abs([west, east]) <= 180).all() or not (np.abs([south, north]) <= 90).all() or south > north:
        swapped = -90 <= west <= east <= 90 and (abs(south) > 90 or abs(north) > 90)
        hint = "; these begin with a latitude" if swapped else ""
        raise DataError(
            f"the box {west:g},{south:g},{east:g},{north:g} is none: give west,south,east,north, longitudes "
            f"within 180 and latitudes within 90 degrees, south first{hint}"
        )
    return west, south, east, north


def within_box(lat_N: NDArray[np.float64], lon_N: NDArray[np.float64], box: Box) -> NDArray[np.bool_]:
    """Return which places lie in a box, edges included; its west > east crosses the antimeridian."""
    west, south, east, north = box
    after_N, before_N = lon_N >= west, lon_N <= east
    across_N = after_N & before_N if west <= east else after_N | before_N
    return across_N & (lat_N >= south) & (lat_N <= north)


def check_span(time: tuple[Any, Any]) -> tuple[np.datetime64, np.datetime64]:
    """Return the first and last moment of a span in UTC; None on either side is open.

    Raises:
        DataError: One is no moment, or the last comes first.
    """
    try:
        first, last = time
        moments = (
            np.datetime64(-(2**62), "us") if first is None else to_moment(first),
            np.datetime64(2**62, "us") if last is None else to_moment(last),
        )
    except (TypeError, ValueError):
        raise DataError(
            f"a span of time is two moments, such as 2024-07-01 and 2024-08-01; not {time!r}"
        ) from None
    if not moments[0] <= moments[1]:
        raise DataError(f"the span of time {time[0]} to {time[1]} ends before it begins")
    return moments


def to_moment(value: Any) -> np.datetime64:
    """Return a moment (ISO 8601, datetime or numpy) in UTC, to the microsecond.

    Raises:
        ValueError: It is none.
    """
    from datetime import UTC, datetime

    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(value, "us")
