"""The table of an archive: its columns, geometry and metadata by GeoParquet 1.1, and how it is written."""

# N rows, D width; a footprint is four corners (N, 4, 2), degrees east and north, counterclockwise

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geobind.errors import DataError
from geobind.runtimes import Runtime
from geobind.utils.arrow import pc
from geobind.utils.files import replace_atomic
from geobind.utils.formatting import format_first_fault

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from numpy.typing import ArrayLike, NDArray

StoredType = Literal["float16", "float32"]
Box = tuple[float, float, float, float]  # west, south, east, north; west > east crosses the antimeridian
FORMAT = 1
KEY, GEO = b"geobind", b"geo"  # of the file's metadata
EMBEDDING = "embedding"
_GROUP_BYTES, _GROUP_ROWS = 16 * 1024**2, 8192  # of the embeddings in a row group
_MAX_METADATA = 1_000_000  # bytes of JSON that are parsed
_TIME = pa.timestamp("us", tz="UTC")
_BBOX = pa.struct([(side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")])
_Text = Annotated[str, Field(max_length=10_000)]


class TileGrid(BaseModel):
    """A grid of tiles over a raster, itself a raster with one pixel for each tile.

    The middle of pixel (row, column) is the middle of that tile, so values of tiles make a map.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    crs: _Text = Field(description="coordinate reference system as WKT or EPSG:CODE")
    transform: tuple[float, float, float, float, float, float] = Field(
        description="(column, row) of the grid's pixels to coordinates: x = a column + b row + c, y = d, e, f"
    )
    rows: int = Field(ge=1, le=2**31)
    columns: int = Field(ge=1, le=2**31)
    size_m: float = Field(gt=0, description="side of a tile in metres")
    stride_m: float = Field(gt=0, description="metres from one tile to the next, at the raster's middle")


class ArchiveMetadata(BaseModel):
    """Everything that an archive's file states beside its rows."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    format: int = FORMAT
    modality: str = Field(min_length=1, max_length=1000)
    width: int = Field(ge=1, le=65_536, description="length of an embedding")
    dtype: StoredType = "float16"
    computed: Literal["float32", "bfloat16", "int8"] = Field(
        default="float32", description="type of the arithmetic"
    )
    runtime: Runtime = Field(default="torch", description="what the encoder ran in")
    cosine: float | None = Field(default=None, description="least one to float32, of the first dozen rows")
    model: str = Field(min_length=1, max_length=200, description="digest of the encoder and its options")
    bundle: _Text = Field(default="", description="name of the bundle")
    source: _Text = Field(default="", description="name of the raster, table or folder")
    plan: str = Field(default="", max_length=200, description="digest of everything that decides the rows")
    grid: TileGrid | None = None
    naming: _Text = Field(default="", description="the published grid that names rows, such as majortom:10km")
    pixels: int | None = Field(default=None, ge=1, le=100_000, description="side of a tile in pixels")
    reading: dict[str, Any] = Field(default={}, description="how the raster is read: bands, stretch, ...")
    timed: bool = Field(default=False, description="whether rows have a time")
    placed: bool = Field(default=True, description="whether rows have a place")


def build_schema(metadata: ArchiveMetadata) -> pa.Schema:
    """Return the columns of an archive, without the file's metadata."""
    vector = pa.list_(pa.float16() if metadata.dtype == "float16" else pa.float32(), metadata.width)
    fields: list[tuple[str, pa.DataType]] = [("id", pa.string())]
    if metadata.placed:
        fields += [("lat", pa.float64()), ("lon", pa.float64())]
    fields += [("time", _TIME)] if metadata.timed else []
    fields += [("row", pa.int32()), ("col", pa.int32())] if metadata.grid else []
    fields += [("valid", pa.float32())] if metadata.reading else []
    fields += [("bbox", _BBOX), ("geometry", pa.binary())] if metadata.placed else []
    return pa.schema([*fields, (EMBEDDING, vector)])


def build_table(metadata: ArchiveMetadata, columns: Mapping[str, Any], vectors_ND: ArrayLike) -> pa.Table:
    """Build rows of an archive.

    Args:
        metadata: Decides the columns.
        columns: `id` and, where the archive has them, `lat`, `lon`, `time`, `row`, `col`, `valid` and
            `corners` (N, 4, 2), the footprints; without them a row's geometry is its point.
        vectors_ND: The embeddings.

    Raises:
        DataError: A vector is not finite, also not as float16.
    """
    arrays: dict[str, pa.Array] = {EMBEDDING: _to_lists(metadata, vectors_ND)}
    if metadata.placed:
        lat_N, lon_N = (np.asarray(columns[name], dtype=np.float64) for name in ("lat", "lon"))
        corners = columns.get("corners")
        arrays["geometry"], box_N4 = (
            encode_points(lat_N, lon_N) if corners is None else encode_footprints(corners)
        )
        missing_N = pa.array(np.isnan(box_N4.sum(axis=1)))
        sides = [pa.array(np.ascontiguousarray(side_N), from_pandas=True) for side_N in box_N4.T]
        arrays["bbox"] = pa.StructArray.from_arrays(sides, fields=list(_BBOX), mask=missing_N)
    schema = build_schema(metadata)
    for name in schema.names:
        if name not in arrays:
            arrays[name] = _to_arrow(columns[name], schema.field(name).type)
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def _to_arrow(values: Any, kind: pa.DataType) -> pa.Array:
    if kind == _TIME:
        values = np.asarray(values, dtype="datetime64[us]")
        return pa.array(values).cast(_TIME)
    if kind == pa.float64():
        return pa.array(np.asarray(values, dtype=np.float64), from_pandas=True)
    return pa.array(values, kind)


def _to_lists(metadata: ArchiveMetadata, vectors_ND: ArrayLike) -> pa.Array:
    with np.errstate(over="ignore"):
        stored_ND = np.ascontiguousarray(vectors_ND, dtype=metadata.dtype)
    if stored_ND.ndim != 2 or stored_ND.shape[1] != metadata.width:
        raise DataError(f"vectors of an archive must be (N, {metadata.width}), not {stored_ND.shape}")
    if len(wrong := np.flatnonzero(~np.isfinite(stored_ND).min(axis=1))):
        raise DataError(f"row {wrong[0]} of the embeddings is not finite as {metadata.dtype}")
    return pa.FixedSizeListArray.from_arrays(pa.array(stored_ND.reshape(-1)), metadata.width)


# Well-known binary, little endian: a polygon of one ring of five points, and a point.
_RING = np.dtype(
    [("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("count", "<u4"), ("xy", "<f8", (5, 2))]
)
_POINT = np.dtype([("order", "u1"), ("kind", "<u4"), ("xy", "<f8", 2)])


def encode_points(lat_N: NDArray[np.float64], lon_N: NDArray[np.float64]) -> tuple[pa.Array, NDArray[Any]]:
    """Return places as points in well-known binary, and their bounds (N, 4); null and NaN where unknown."""
    points_N = np.zeros(len(lat_N), _POINT)
    points_N["order"], points_N["kind"] = 1, 1
    points_N["xy"] = np.stack([lon_N, lat_N], axis=1)
    known_N = np.isfinite(lat_N) & np.isfinite(lon_N)
    box_N4 = np.where(known_N[:, None], np.tile(points_N["xy"], 2), np.nan)
    return _to_binary(points_N[known_N], known_N), box_N4


def encode_footprints(corners_N42: NDArray[np.float64]) -> tuple[pa.Array, NDArray[np.float64]]:
    """Return footprints as polygons in well-known binary, and the bounds (N, 4) of what is written.

    One that crosses the antimeridian becomes two polygons, one on each side, as RFC 7946 asks; its bounds
    then span all longitudes, so that a reader who knows nothing of the antimeridian misses no row.
    """
    polygons_N = np.zeros(len(corners_N42), _RING)
    polygons_N["order"], polygons_N["kind"], polygons_N["rings"], polygons_N["count"] = 1, 3, 1, 5
    polygons_N["xy"] = corners_N42[:, [0, 1, 2, 3, 0]]
    box_N4 = np.concatenate([corners_N42.min(axis=1), corners_N42.max(axis=1)], axis=1)
    known_N = np.isfinite(box_N4.sum(axis=1))
    cut = np.flatnonzero(known_N & (np.ptp(corners_N42[..., 0], axis=1) > 180))
    if not len(cut):
        return _to_binary(polygons_N[known_N], known_N), box_N4
    encoded = [row.tobytes() if known else None for row, known in zip(polygons_N, known_N, strict=True)]
    for row in cut.tolist():
        encoded[row] = _encode_both_sides(corners_N42[row])
        box_N4[row, [0, 2]] = -180, 180
    return pa.array(encoded, pa.binary()), box_N4


def _to_binary(items_K: NDArray[Any], present_N: NDArray[np.bool_]) -> pa.Array:
    """Return items of one size as a binary column, null where none is present."""
    offsets_N = np.concatenate([[0], np.cumsum(present_N)]) * items_K.dtype.itemsize
    if offsets_N[-1] >= 2**31:
        raise DataError("too many rows for one table; write them in parts")
    buffers = [None, pa.py_buffer(offsets_N.astype(np.int32)), pa.py_buffer(items_K.tobytes())]
    if not present_N.all():
        buffers[0] = pa.array(present_N).buffers()[1]
    return pa.Array.from_buffers(pa.binary(), len(present_N), buffers)


def _encode_both_sides(corners_42: NDArray[np.float64]) -> bytes:
    """Return a footprint over the antimeridian as a multipolygon in well-known binary."""
    around_42 = np.where(corners_42 < 0, [360.0, 0.0], 0.0) + corners_42
    rings = [_clip(around_42, 1), _clip(around_42, -1) - [360.0, 0.0]]
    rings = [np.concatenate([ring, ring[:1]]) for ring in rings if len(ring) > 2]
    parts = [
        np.array([1], "u1").tobytes()
        + np.array([3, 1, len(ring)], "<u4").tobytes()
        + ring.astype("<f8").tobytes()
        for ring in rings
    ]
    return b"".join([b"\1", np.array([6, len(parts)], "<u4").tobytes(), *parts])


def _clip(ring_42: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return the part of a convex ring west (side 1) or east (side -1) of longitude 180, counted to 360."""
    inside = side * (180 - ring_42[:, 0])
    kept: list[NDArray[np.float64]] = []
    for number, point in enumerate(ring_42):
        after = (number + 1) % len(ring_42)
        if inside[number] >= 0:
            kept.append(point)
        if inside[number] * inside[after] < 0:
            share = inside[number] / (inside[number] - inside[after])
            crossing = point + share * (ring_42[after] - point)
            kept.append(np.array([180.0, crossing[1]]))
    return np.array(kept).reshape(-1, 2)


def decode_bounds(geometry: pa.Array, box_N4: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return west, south, east, north (N, 4) of footprints; west > east where one crosses the antimeridian.

    Args:
        geometry: Points, polygons and multipolygons in well-known binary.
        box_N4: Their bounds as stored.

    Raises:
        DataError: A geometry that spans all longitudes is none that geobind writes.
    """
    bounds_N4 = box_N4.copy()
    for row in np.flatnonzero((box_N4[:, 0] == -180) & (box_N4[:, 2] == 180)).tolist():
        west, east = 180.0, -180.0
        for ring in _decode_rings(geometry[row].as_py()):
            if ring[:, 0].max() > 179.999999 and ring[:, 0].min() >= 0:
                west = min(west, ring[:, 0].min())
            else:
                east = max(east, ring[:, 0].max())
        bounds_N4[row, [0, 2]] = west, east
    return bounds_N4


def _decode_rings(content: Any) -> list[NDArray[np.float64]]:
    rings: list[NDArray[np.float64]] = []
    try:
        kind, count = np.frombuffer(content, "<u4", 2, 1).tolist()
        if kind != 6 or not 1 <= count <= 2:
            raise ValueError
        at = 9
        for _ in range(count):
            points = int(np.frombuffer(content, "<u4", 1, at + 9)[0])
            if not 3 < points < 20:
                raise ValueError
            rings.append(np.frombuffer(content, "<f8", 2 * points, at + 13).reshape(-1, 2))
            at += 13 + 16 * points
    except (ValueError, TypeError) as error:
        raise DataError("a geometry over the antimeridian is not as geobind writes them") from error
    return rings


_BITS = 20  # of a Hilbert curve: cells of 40 m at the equator


def order_by_place(lat_N: NDArray[np.float64], lon_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the order of rows along a Hilbert curve over the Earth; those without a place come last."""
    known_N = np.isfinite(lat_N) & np.isfinite(lon_N)
    side = 1 << _BITS
    x_N = np.clip((np.where(known_N, lon_N, 0) + 180) / 360 * side, 0, side - 1).astype(np.int64)
    y_N = np.clip((np.where(known_N, lat_N, 0) + 90) / 180 * side, 0, side - 1).astype(np.int64)
    key_N = np.where(known_N, _measure_along_curve(x_N, y_N, _BITS), np.iinfo(np.int64).max)
    return np.argsort(key_N, kind="stable")


def order_along_curve(x_N: NDArray[np.int64], y_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the order of cells of a grid along a Hilbert curve."""
    bits = max(1, int(max(x_N.max(), y_N.max())).bit_length())
    return np.argsort(_measure_along_curve(x_N, y_N, bits), kind="stable")


def _measure_along_curve(x_N: NDArray[np.int64], y_N: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Return how far along a Hilbert curve each cell of a square of 2 ** `bits` cells a side lies."""
    x_N, y_N, far_N = x_N.copy(), y_N.copy(), np.zeros(len(x_N), np.int64)
    for bit in range(bits - 1, -1, -1):
        right_N, up_N = (x_N >> bit) & 1, (y_N >> bit) & 1
        far_N += ((3 * right_N) ^ up_N) << (2 * bit)
        turned_N = (up_N == 0) & (right_N == 1)
        most = (1 << bit) - 1
        low_x_N, low_y_N = x_N & most, y_N & most
        low_x_N = np.where(turned_N, most - low_x_N, low_x_N)
        low_y_N = np.where(turned_N, most - low_y_N, low_y_N)
        swapped_N = up_N == 0
        x_N, y_N = np.where(swapped_N, low_y_N, low_x_N), np.where(swapped_N, low_x_N, low_y_N)
    return far_N


def count_group_rows(metadata: ArchiveMetadata) -> int:
    """Return how many rows a row group of an archive holds."""
    row_bytes = metadata.width * np.dtype(metadata.dtype).itemsize
    return max(256, min(_GROUP_ROWS, _GROUP_BYTES // row_bytes))


def read_metadata(raw: Mapping[bytes, bytes] | None, path: Path) -> ArchiveMetadata:
    """Read what a Parquet file states of itself; it may be a stranger's.

    Raises:
        DataError: It is no archive, or of another format.
    """
    content = (raw or {}).get(KEY)
    if content is None:
        raise DataError(f"{path}: is no archive of geobind; write one: geobind embed ... --out NAME.parquet")
    try:
        if len(content) > _MAX_METADATA:
            raise DataError(f"{path}: its metadata are larger than {_MAX_METADATA:,} bytes")
        metadata = ArchiveMetadata.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"{path}: damaged: metadata: {format_first_fault(error)}") from None
    if metadata.format != FORMAT:
        raise DataError(
            f"{path}: archive format {metadata.format}; this geobind reads format {FORMAT}: install the "
            "version it was made with"
        )
    return metadata


def _encode_geo(box: Box | None, kinds: Sequence[str]) -> bytes:
    covering = {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted(kinds),
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": covering},
    }
    if box is not None:
        column["bbox"] = list(box)
    values = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return json.dumps(values, sort_keys=True).encode()


class ArchiveWriter:
    """Writes an archive in row groups of one size, with memory for one of them.

    Args:
        path: The file; it appears when all is written.
        metadata: What the file states.
        box: West, south, east and north of all rows.
        kinds: GeoParquet's types of the geometries.
    """

    def __init__(
        self, path: Path, metadata: ArchiveMetadata, box: Box | None = None, kinds: Sequence[str] = ()
    ) -> None:
        self.rows = 0
        self._size = count_group_rows(metadata)
        self._waiting: list[pa.Table] = []
        self._replacing = replace_atomic(path)
        keys = {KEY: metadata.model_dump_json().encode()}
        keys |= {GEO: _encode_geo(box, kinds)} if metadata.placed else {}
        self._schema = build_schema(metadata).with_metadata(keys)

    def __enter__(self) -> Self:
        temporary = self._replacing.__enter__()
        counted = [name for name in _leaves(self._schema) if name not in ("geometry", "id")]
        self._writer = pq.ParquetWriter(
            temporary,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=counted,  # pyright: ignore[reportArgumentType]
            write_page_checksum=True,
            data_page_version="1.0",
        )
        return self

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self._waiting.append(table)
        while sum(map(len, self._waiting)) >= self._size:
            self._flush()

    def _flush(self) -> None:
        joined = pa.concat_tables(self._waiting)
        group, rest = joined.slice(0, self._size), joined.slice(self._size)
        self._writer.write_table(group.combine_chunks().cast(self._schema), row_group_size=self._size)
        self.rows += len(group)
        self._waiting = [rest] if len(rest) else []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._waiting:
                self._flush()
        finally:
            self._writer.close()
            self._replacing.__exit__(kind, error, trace)


def _leaves(schema: pa.Schema) -> Iterable[str]:
    """Yield the names of the leaf columns that statistics are kept of."""
    for field in schema:
        if field.name == "bbox":
            yield from (f"bbox.{side.name}" for side in _BBOX)
        elif field.name != EMBEDDING:
            yield field.name


def measure_box(box_N4: NDArray[np.float64]) -> Box | None:
    """Return the bounds of all rows that have a place; None if none has."""
    known_K4 = box_N4[np.isfinite(box_N4.sum(axis=1))]
    if not len(known_K4):
        return None
    west, south, *_ = known_K4.min(axis=0).tolist()
    *_, east, north = known_K4.max(axis=0).tolist()
    return west, south, east, north


def write_archive(
    path: str | Path,
    vectors: ArrayLike,
    lat: ArrayLike,
    lon: ArrayLike,
    *,
    modality: str,
    model: str,
    ids: Sequence[str] | None = None,
    time: ArrayLike | None = None,
    size_m: float | None = None,
    row: ArrayLike | None = None,
    column: ArrayLike | None = None,
    grid: TileGrid | None = None,
    dtype: StoredType = "float16",
    bundle: str = "",
    source: str = "",
) -> Path:
    """Write embeddings that are there already as an archive, ordered by place; return its path.

    Args:
        path: The file.
        vectors: The embeddings (N, D), finite.
        lat: Degrees north of each row (N,), NaN where unknown.
        lon: Degrees east.
        modality: What was embedded.
        model: Digest of the model, as `model_digest` gives it.
        ids: Name of each row; default: its number.
        time: When, in UTC.
        size_m: Side of each row's footprint; default: a row is a point.
        row: Row of each tile in `grid`.
        column: Column of each tile in `grid`.
        grid: The grid that the tiles are of.
        dtype: How embeddings are stored.
        bundle: Name of the bundle, for people.
        source: Name of what was embedded, for people.

    Raises:
        DataError: Columns differ in length, or a vector is not finite.
        StorageError: The file cannot be written.
    """
    vectors_ND = np.asarray(vectors)
    if vectors_ND.ndim != 2 or not vectors_ND.size:
        raise DataError(f"vectors of an archive must be (N, D), not {vectors_ND.shape}")
    lat_N, lon_N = (np.asarray(axis, dtype=np.float64) for axis in (lat, lon))
    metadata = ArchiveMetadata(
        modality=modality,
        width=vectors_ND.shape[1],
        dtype=dtype,
        model=model,
        bundle=bundle,
        source=source,
        grid=grid,
        timed=time is not None,
    )
    columns: dict[str, Any] = {
        "id": np.array([str(n) for n in range(len(vectors_ND))] if ids is None else ids, dtype=object),
        "lat": lat_N,
        "lon": lon_N,
    }
    columns |= {} if time is None else {"time": np.asarray(time, dtype="datetime64[us]")}
    columns |= {} if grid is None else {"row": np.asarray(row), "col": np.asarray(column)}
    columns |= {} if size_m is None else {"corners": square_corners(lat_N, lon_N, size_m)}
    wrong = {name: len(values) for name, values in columns.items() if len(values) != len(vectors_ND)}
    if wrong:
        name, count = next(iter(wrong.items()))
        raise DataError(f"'{name}' of an archive has {count} rows, the embeddings {len(vectors_ND)}")
    order_N = order_by_place(lat_N, lon_N)
    table = build_table(metadata, {n: v[order_N] for n, v in columns.items()}, vectors_ND[order_N])
    with ArchiveWriter(Path(path), metadata, *measure_tables([table])) as writer:
        writer.write(table)
    return Path(path)


def measure_tables(tables: Iterable[pa.Table]) -> tuple[Box | None, list[str]]:
    """Return the bounds of rows and GeoParquet's types of their geometries."""
    boxes: list[Box] = []
    kinds: set[str] = set()
    names = {1: "Point", 3: "Polygon", 6: "MultiPolygon"}
    for table in tables:
        if "bbox" not in table.column_names or not len(table):
            continue
        box = measure_box(read_boxes(table))
        boxes += [box] if box else []
        codes = {value[1] for value in table.column("geometry").to_pylist() if value}
        kinds |= {names[code] for code in codes}
    return measure_box(np.array(boxes).reshape(-1, 4)), sorted(kinds)


def read_boxes(table: pa.Table) -> NDArray[np.float64]:
    """Return the stored bounds of rows (N, 4), NaN where a row has no place."""
    column = table.column("bbox").combine_chunks()
    sides = [pc.struct_field(column, side.name) for side in _BBOX]  # null where the struct is
    return np.stack([side.to_numpy(zero_copy_only=False) for side in sides], axis=1).astype(np.float64)


def square_corners(
    lat_N: NDArray[np.float64], lon_N: NDArray[np.float64], size_m: float
) -> NDArray[np.float64]:
    """Return the corners of squares with north at the top, so many metres wide, around places."""
    from geobind.utils.geo import degrees_per_metre

    north_N, east_N = degrees_per_metre(lat_N)
    side_42 = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * size_m / 2
    lon_N4 = lon_N[:, None] + east_N[:, None] * side_42[:, 0]
    lat_N4 = np.clip(lat_N[:, None] + north_N[:, None] * side_42[:, 1], -90, 90)
    return np.stack([(lon_N4 + 180) % 360 - 180, lat_N4], axis=2)


def build_stac_item(metadata: ArchiveMetadata, path: Path) -> dict[str, Any]:
    """Build the STAC item of an archive that is written, with the fields of the embedding extension.

    STAC asks for a moment: where rows have no time it is that of writing.

    Source: STAC 1.1.0; embedding extension 0.0.1, prefix `emb:`.
    """
    from datetime import UTC, datetime

    footer = pq.read_metadata(path)
    geo = json.loads((footer.metadata or {}).get(GEO, b"{}"))
    box: list[float] | None = geo.get("columns", {}).get("geometry", {}).get("bbox")
    layout: dict[str, Any] = {"layout_type": "variable_grid"}
    if metadata.grid is not None and metadata.pixels is not None:
        stride = round(metadata.pixels * metadata.grid.stride_m / metadata.grid.size_m)
        layout = {"layout_type": "regular_grid", "chip_size": [metadata.pixels] * 2, "stride": [stride] * 2}
    elif metadata.naming.startswith("majortom"):
        layout = {"layout_type": "named_grid", "grid_id": metadata.naming}
    moment = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    properties: dict[str, Any] = {
        "datetime": moment,
        "created": moment,
        "emb:type": "chip",
        "emb:dimensions": metadata.width,
        "data_type": metadata.dtype,
        "emb:chip_layout": layout,
        "emb:runtime_parameters": {"modality": metadata.modality, **metadata.reading},
        "geobind:model": metadata.model,
        "geobind:plan": metadata.plan,
    }
    if metadata.dtype != "float32":
        properties["emb:quantization"] = {
            "method": "none",
            "original_dtype": "float32",
            "quantized_dtype": metadata.dtype,
        }
    if metadata.timed:
        first, last = _measure_span(footer)
        properties |= {"datetime": first} if first == last else {"datetime": None}
        properties |= {"start_datetime": first, "end_datetime": last}
    if metadata.grid is not None:
        properties["gsd"] = metadata.grid.size_m
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": ["https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"],
        "id": f"{path.stem}-{metadata.plan[:12]}",
        "geometry": None,
        "properties": properties,
        "links": [
            {"rel": "emb:source-data", "href": metadata.source, "title": metadata.source},
            {"rel": "emb:model", "href": metadata.bundle or metadata.model, "title": metadata.model[:12]},
        ],
        "assets": {
            "embeddings": {
                "href": f"./{path.name}",
                "type": "application/vnd.apache.parquet",
                "roles": ["data", "embeddings"],
                "table:row_count": footer.num_rows,
            }
        },
    }
    if box is not None:
        west, south, east, north = box
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        item |= {"bbox": box, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    return item


def _measure_span(footer: pq.FileMetaData) -> tuple[str | None, str | None]:
    """Return the first and last moment of an archive, by its statistics."""
    index = next(n for n in range(len(footer.schema)) if footer.schema.column(n).path == "time")
    stated = [footer.row_group(group).column(index).statistics for group in range(footer.num_row_groups)]
    moments: list[Any] = [(one.min, one.max) for one in stated if one is not None and one.has_min_max]
    if not moments:
        return None, None
    first, last = min(low for low, _ in moments), max(high for _, high in moments)
    return first.isoformat(), last.isoformat()
