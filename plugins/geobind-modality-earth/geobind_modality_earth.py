"""Precomputed Earth embeddings as a modality: looked up by place and year in GeoTIFF, GeoParquet or Zarr."""

# N points of a product, S numbers of an embedding, Y rows and X columns of a grid

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from datetime import UTC
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

import geobind
from geobind.errors import DataError
from geobind.extras import INSTALL
from geobind.modality import Role, Widget
from geobind.utils.files import file_stamp

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

SOURCE_VARIABLE = "GEOBIND_EARTH_SOURCE"
Quantisation = Literal["none", "alphaearth", "linear"]
Year = Annotated[int, Field(ge=1900, le=2200)]
_INSTALL_ZARR = "pip install 'geobind-modality-earth[zarr]'"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|/vsi")  # or a virtual file of GDAL
_MAX_SOURCES = 4096
_MAX_CHUNK_BYTES = 1024**3  # of a Zarr array: one is decoded whole
_MAX_COORDINATES = 10_000_000  # of an axis of a Zarr array
_CHUNK = 1_000_000  # points compared at a time
_MARGIN = 0.01  # degrees by which the extent of a raster, once turned to degrees, may be off
_FORMAT = 1  # of the index of points in the cache


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else value


class Earth(geobind.Modality):
    """The embedding that an Earth embedding product has of a place."""

    name: ClassVar[str] = "earth"
    role: ClassVar[Role] = "frozen"
    accepts: ClassVar[str] = "a Place, the text '48.1, 11.6', or the embedding itself as numbers"
    widget: ClassVar[Widget] = "place"

    size: int = Field(ge=1, le=65_536, description="numbers of an embedding: 64 for AlphaEarth")
    source: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        default=(),
        max_length=_MAX_SOURCES,
        description="the product: GeoTIFFs, GeoParquet files (.parquet) or Zarr stores (a folder .zarr)",
    )
    quantisation: Quantisation = Field(
        default="none", description="how stored integers become numbers: not, by AlphaEarth's rule, linearly"
    )
    scale: float | None = Field(default=None, ge=-1e6, le=1e6, description="linear: of a stored 1")
    offset: float = Field(default=0.0, ge=-1e6, le=1e6, description="linear: number of a stored 0")
    year: Year | tuple[Year, ...] | None = Field(
        default=None,
        description="year of the product, or of each source; without one, times are not looked at",
    )
    within_years: int = Field(
        default=0, ge=0, le=300, description="how far the nearest product year may lie from a place's time"
    )
    column: str | None = Field(default=None, description="GeoParquet: column of the embeddings")
    lat_column: str = Field(default="lat", description="GeoParquet: latitude, unless the geometry is a point")
    lon_column: str = Field(default="lon", description="GeoParquet: longitude")
    max_km: float = Field(
        default=1.0, gt=0, le=1000, description="GeoParquet: greatest distance of the nearest point"
    )
    variable: str | None = Field(default=None, description="Zarr: array (band, y, x) beside `lat` and `lon`")

    @field_validator("source", mode="before")
    @classmethod
    def _take_source_from_the_user(cls, value: Any, info: ValidationInfo) -> Any:
        """Replace the product that a bundle names: a stranger's card must not choose which files are read."""
        from geobind.towers.options import BUNDLED

        if isinstance(info.context, dict) and BUNDLED in info.context:
            return tuple(part for part in os.environ.get(SOURCE_VARIABLE, "").split(os.pathsep) if part)
        return value

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if (self.quantisation == "linear") != (self.scale is not None):
            raise ValueError("`scale` belongs to `quantisation: linear`, which needs it")
        if self.scale == 0 or (self.offset and self.scale is None):
            raise ValueError("`scale` must not be 0, and `offset` needs `quantisation: linear`")
        if isinstance(self.year, tuple) and self.source and len(self.year) != len(self.source):
            raise ValueError(
                f"`year` has {len(self.year)} values for {len(self.source)} sources; give as many"
            )
        if address := next((path for path in self.source if _ADDRESS.match(path)), None):
            raise ValueError(
                f"`source` {address:.80} is an address; products are read from files: download it"
            )
        kinds = {_kind(path) for path in self.source}
        if "parquet" in kinds and self.column is None:
            raise ValueError("a GeoParquet `source` needs `column`, the name of the embeddings' column")
        if "zarr" in kinds and self.variable is None:
            raise ValueError("a Zarr `source` needs `variable`, the name of the embeddings' array")
        return self

    def requires(self) -> Mapping[str, str]:
        """Return the packages that read these products."""
        kinds = {_kind(path) for path in self.source}
        needed = {"rasterio": INSTALL["rasterio"]} if "raster" in kinds else {}
        return needed | ({"zarr": _INSTALL_ZARR} if "zarr" in kinds else {})

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build the identity, or a linear head where the shared space has another width.

        The head starts orthogonal: into a wider space it keeps all cosines as they are.
        """
        from torch import nn

        from geobind.towers import Tower

        if width == self.size:
            return nn.Identity()
        head = nn.Linear(self.size, width, bias=False)
        nn.init.orthogonal_(head.weight)
        return Tower(nn.Identity(), head)

    def prepare(self, raw: Any, *, training: bool = False) -> Tensor:
        """Return the embedding of a place, or the one that is given, float32 (S,).

        Raises:
            DataError: It is neither; or the product has no embedding of that place and year.
        """
        import torch

        place = self._read_place(raw)
        vector_S = self._read_vector(raw) if place is None else self.look_up(place)
        return torch.from_numpy(vector_S)

    def picture(self, raw: Any) -> str | None:
        """Write a place as people do."""
        place = self._read_place(raw)
        return None if place is None else str(place)

    def look_up(self, place: geobind.Place) -> NDArray[np.float32]:
        """Return the embedding that the product has of a place, float32 (S,).

        Products of the year nearest to the place's time come first, then in the order of `source`.

        Raises:
            DataError: No product is named, none covers the place, all are of another year, the embedding is
                missing there, or a product is not what the options say.
        """
        if not self.source:
            raise DataError(
                "no product to look a place up in: set `source` in the recipe. For a bundle, which "
                f"cannot name files on your disk, set {SOURCE_VARIABLE}=PRODUCT before it is loaded, or give "
                "embeddings in place of places"
            )
        absences: list[str] = []
        for path in self._by_year(place):
            try:
                return self._look_up_in(path, place)
            except _AbsentError as absence:
                absences.append(str(absence))
        listed = "; ".join(absences[:3]) + (f"; and {len(absences) - 3} more" if len(absences) > 3 else "")
        raise DataError(f"no embedding of {_describe(place)}: {listed}; name a product of that place")

    def _read_place(self, raw: Any) -> geobind.Place | None:
        place = raw
        if isinstance(raw, str):
            try:
                lat, lon = (float(word) for word in re.split(r"[,;\s]+", raw.strip()[:100]))
            except ValueError as error:
                raise DataError(f"cannot read {raw!r:.80} as a place; give {self.accepts}") from error
            place = geobind.Place(lat, lon)
        if not isinstance(place, geobind.Place):
            return None
        try:
            on_earth = abs(place.lat) <= 90 and -180 <= place.lon <= 360
        except TypeError as error:
            raise DataError(f"{raw!r:.80} is no place; give {self.accepts}") from error
        if not on_earth:  # NaN is nowhere either
            raise DataError(f"{raw!r:.80}: latitude or longitude is out of range; give {self.accepts}")
        return place if place.lon <= 180 else place._replace(lon=place.lon - 360)

    def _read_vector(self, raw: Any) -> NDArray[np.float32]:
        """Read an embedding that is given: an array of integers is as stored, all else as it is."""
        from geobind.data import read_numbers

        stored = hasattr(raw, "dtype") and "int" in str(raw.dtype)
        try:
            values = np.asarray(raw) if stored else read_numbers(raw)
        except DataError as error:
            raise DataError(f"{error}; an embedding is wanted: give {self.accepts}") from error
        if values.shape != (self.size,):
            raise DataError(
                f"an embedding has {self.size} numbers, not the shape {values.shape}; give {self.accepts}"
            )
        try:
            return self._convert(values, "the embedding given", stored=stored)
        except _AbsentError as absence:
            raise DataError(str(absence)) from None

    def _convert(self, stored_S: NDArray[Any], where: str, *, stored: bool = True) -> NDArray[np.float32]:
        """Dequantise one embedding and check that it is there."""
        if stored:
            check_dtype(stored_S.dtype, self.quantisation, where)
            if self.quantisation == "alphaearth" and (stored_S == -128).any():
                raise _AbsentError(f"{where} is masked (-128)")
            stored_S = dequantise(stored_S, self.quantisation, self.scale or 1.0, self.offset)
        with np.errstate(over="ignore"):
            vector_S = stored_S.astype(np.float32)
        if not np.isfinite(vector_S).all():
            raise _AbsentError(f"{where} holds NaN or infinity")
        if not vector_S.any():
            raise _AbsentError(f"{where} is all zeros")
        return vector_S

    def _by_year(self, place: geobind.Place) -> list[str]:
        """Return the sources of allowed years, the nearest year first; of two as near, the earlier.

        Raises:
            DataError: All are of another year, or the place has no time to choose by.
        """
        if self.year is None:
            return [*self.source]
        years = self.year if isinstance(self.year, tuple) else (self.year,) * len(self.source)
        known = ", ".join(map(str, sorted(set(years))))
        if place.time is None:
            if len(set(years)) > 1:
                raise DataError(
                    f"the place {place} has no time, and there are products of {known}; fill the "
                    "table's column `time`"
                )
            return [*self.source]
        wanted = place.time.astimezone(UTC).year if place.time.tzinfo else place.time.year
        ranked = sorted((abs(year - wanted), year, number) for number, year in enumerate(years))
        if ranked[0][0] > self.within_years:
            raise DataError(
                f"no product of {wanted} for {_describe(place)}: there are those of {known}; name one "
                f"under `source`, or allow {ranked[0][0]} with `within_years`"
            )
        return [self.source[number] for gap, _, number in ranked if gap <= self.within_years]

    def _look_up_in(self, path: str, place: geobind.Place) -> NDArray[np.float32]:
        kind = _kind(path)
        if kind == "parquet":
            stored_S, where = read_point(self, path, place)
        elif kind == "zarr":
            stored_S, where = read_cell(path, self.variable or "", self.size, place)
        else:
            stored_S, where = read_pixel(path, self.size, place)
        return self._convert(stored_S, where)


class _AbsentError(DataError):
    """A product has no embedding of a place; another may have."""


def dequantise(
    stored: NDArray[Any], quantisation: Quantisation, scale: float = 1.0, offset: float = 0.0
) -> NDArray[np.float64]:
    """Turn stored numbers into those of embeddings.

    AlphaEarth's int8 are sign(v) (|v| / 127.5)^2: finer near 0, where most of its numbers are.
    """
    values = np.asarray(stored, dtype=np.float64)
    if quantisation == "alphaearth":
        return np.sign(values) * (values / 127.5) ** 2
    return values * scale + offset if quantisation == "linear" else values


def check_dtype(dtype: np.dtype[Any], quantisation: Quantisation, where: str) -> None:
    """Raise where stored numbers cannot be of this quantisation.

    Raises:
        DataError: They are of another type.
    """
    if dtype.kind not in "fiu":
        raise DataError(f"{where} is of type {dtype}, not numbers")
    if quantisation == "none" and dtype.kind != "f":
        raise DataError(
            f"{where} is of type {dtype}, so it is quantised: set `quantisation` to alphaearth, or linear"
        )
    if quantisation == "alphaearth" and dtype != np.int8:
        raise DataError(
            f"{where} is of type {dtype}, and AlphaEarth's quantisation is of int8: set "
            f"`quantisation` to {'none' if dtype.kind == 'f' else 'linear'}"
        )
    if quantisation == "linear" and dtype.kind == "f":
        raise DataError(f"{where} is of type {dtype}, not quantised: set `quantisation: none`")


def _kind(path: str) -> Literal["parquet", "zarr", "raster"]:
    suffix = Path(path).suffix.lower()
    return "parquet" if suffix in (".parquet", ".geoparquet") else "zarr" if suffix == ".zarr" else "raster"


def _describe(place: geobind.Place) -> str:
    return f"{place.lat:g}, {place.lon:g}" + (f" in {place.time.year}" if place.time else "")


# GeoTIFF


def read_pixel(path: str, size: int, place: geobind.Place) -> tuple[NDArray[Any], str]:
    """Read the pixel of a raster that a place lies in, as stored; also return what messages call it.

    Raises:
        DataError: The raster cannot be read, or has other than `size` bands.
    """
    from geobind.data.rasters.opening import open_raster, report_raster_damage
    from geobind.data.rasters.places import find_covered_places, metres_to_pixels
    from geobind.data.rasters.window import Box, read_box

    @report_raster_damage
    def read(file: str | Path) -> tuple[NDArray[Any], str]:
        extent = _extent(str(file), _stamp(file))
        lat_1, lon_1 = np.array([place.lat]), np.array([place.lon])
        if not _near(extent, place) or not find_covered_places(file, lat_1, lon_1)[0]:
            raise _AbsentError(f"{file} does not cover it{_describe_extent(extent)}")
        dataset = open_raster(file)
        if dataset.count != size:
            raise DataError(f"{file} has {dataset.count} bands, not {size}: set `size`, or name another")
        kinds = set(dataset.dtypes)
        if len(kinds) > 1:
            raise DataError(f"{file} has bands of several types ({', '.join(sorted(kinds))})")
        column, row = metres_to_pixels(dataset, place.lat, place.lon)[:2, 2]
        x, y = min(int(column), dataset.width - 1), min(int(row), dataset.height - 1)
        where = f"{file}, pixel {x}, {y}"
        values, valid = read_box(
            dataset, [*dataset.indexes], Box(x, y, 1, 1, 1, 1), smooth=False, where=where
        )
        if valid is not None:
            raise _AbsentError(f"{where} is missing (nodata)")
        return values[:, 0, 0].astype(kinds.pop()), where

    return read(path)


@lru_cache(maxsize=_MAX_SOURCES)
def _extent(path: str, _stamp: object) -> tuple[float, float, float, float] | None:
    from geobind.data.rasters.places import measure_extent

    return measure_extent(path)


def _stamp(path: str | Path) -> tuple[int, ...] | None:
    try:
        return file_stamp(os.stat(path))
    except (OSError, ValueError):
        return None  # opening says what is wrong


def _near(extent: tuple[float, float, float, float] | None, place: geobind.Place) -> bool:
    """Return whether a raster may cover a place, so that far ones need not be opened."""
    if extent is None or not np.isfinite(extent).all():
        return True
    west, south, east, north = extent
    is_between = south - _MARGIN <= place.lat <= north + _MARGIN
    turns = (place.lon + turn for turn in (-360, 0, 360))
    return is_between and (west > east or any(west - _MARGIN <= lon <= east + _MARGIN for lon in turns))


def _describe_extent(extent: tuple[float, float, float, float] | None) -> str:
    if extent is None:
        return ""
    west, south, east, north = extent
    return f" (latitudes {south:.4g} to {north:.4g}, longitudes {west:.4g} to {east:.4g})"


# GeoParquet


class Points(NamedTuple):
    """The points of a product from south to north, mapped into memory, so that processes share them."""

    lat_N: NDArray[np.float64]
    lon_N: NDArray[np.float64]
    row_N: NDArray[np.int64]  # of the file, and of `vector_RS`
    vector_RS: NDArray[Any]  # as stored


def read_point(options: Earth, path: str, place: geobind.Place) -> tuple[NDArray[Any], str]:
    """Return the embedding of the nearest point of a GeoParquet file, as stored, and what messages call it.

    Raises:
        DataError: The file cannot be read or has no such embeddings.
    """
    from geobind.utils.geo import EARTH_KM, chord_to_km, to_unit_sphere

    columns = (options.column or "", options.lat_column, options.lon_column)
    points = _open_points(path, _stamp(path), columns, options.size, os.environ.get("GEOBIND_CACHE"))
    reach = math.degrees(options.max_km / EARTH_KM) * (1 + 1e-9)
    first, end = np.searchsorted(points.lat_N, [place.lat - reach, place.lat + reach], side="left")
    at_3 = to_unit_sphere(np.array([[place.lat, place.lon]]))[0]
    nearest, chord = -1, math.inf
    for start in range(int(first), int(end), _CHUNK):
        part = slice(start, min(start + _CHUNK, int(end)))
        others_N3 = to_unit_sphere(np.stack([points.lat_N[part], points.lon_N[part]], axis=1))
        chord_N = np.linalg.norm(others_N3 - at_3, axis=1)
        number = int(chord_N.argmin())
        if chord_N[number] < chord:
            nearest, chord = start + number, float(chord_N[number])
    km = float(chord_to_km(np.array([chord]))[0]) if nearest >= 0 else math.inf
    if km > options.max_km:
        raise _AbsentError(f"{path} has no point within {options.max_km:g} km (`max_km`)")
    row = int(points.row_N[nearest])
    return np.array(points.vector_RS[row]), f"{path}, row {row}"


@lru_cache(maxsize=32)
def _open_points(
    path: str, stamp: object, columns: tuple[str, str, str], size: int, _cache: str | None
) -> Points:
    from geobind.data import build_once, cache_root, open_binary
    from geobind.utils.hashing import short_fingerprint

    with open_binary(path):  # no pipe, no address, no pointer of Git LFS
        pass
    address = short_fingerprint(os.path.realpath(path), stamp, columns, size, _FORMAT)
    folder = build_once(
        cache_root() / "earth_points" / address,
        lambda target: _index_points(Path(path), columns, size, target),
    )
    arrays = (np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in Points._fields)
    return Points(*arrays)


def _index_points(path: Path, columns: tuple[str, str, str], size: int, target: Path) -> None:
    """Write the points of a GeoParquet file, sorted by latitude, and its embeddings as they are stored."""
    from geobind.data.parquet import ParquetManifest, read_record_batches, report_damage

    manifest = ParquetManifest(path)
    column, lat, lon = columns
    for name in (column, lat, lon):
        if name not in manifest.columns:
            known = ", ".join(list(manifest.columns)[:30])
            option = {column: "column", lat: "lat_column", lon: "lon_column"}[name]
            raise DataError(f"{path} has no column '{name}' (`{option}`); its columns: {known}")
    dtype = _vector_dtype(path, column, manifest.file.schema_arrow.field(column).type, size)
    tables = [*manifest.batches({"lat": lat, "lon": lon}, None)]
    place_2N = [
        np.concatenate([np.empty(0), *(table[name].to_numpy() for table in tables)]).astype(np.float64)
        for name in ("lat", "lon")
    ]
    count = len(place_2N[0])
    row_N = np.flatnonzero(np.isfinite(place_2N[0]) & np.isfinite(place_2N[1]))
    if not len(row_N):
        raise DataError(f"{path} has no row with a place")
    row_N = row_N[np.argsort(place_2N[0][row_N], kind="stable")]
    vector_RS = np.lib.format.open_memmap(target / "vector_RS.npy", "w+", dtype, (count, size))
    first = 0
    with report_damage(path):
        for batch in read_record_batches(path, manifest.file, [column]):
            batch.validate(full=True)
            vector_RS[first : first + batch.num_rows] = _vectors(path, column, batch.column(0), size, first)
            first += batch.num_rows
    vector_RS.flush()
    np.save(target / "row_N.npy", row_N)
    for name, values_N in zip(("lat_N", "lon_N"), place_2N, strict=True):
        np.save(target / f"{name}.npy", values_N[row_N])


def _vector_dtype(path: Path, column: str, kind: Any, size: int) -> np.dtype[Any]:
    """Return the type of the numbers in a column of embeddings."""
    import pyarrow as pa

    is_fixed = pa.types.is_fixed_size_list(kind)
    if not (is_fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise DataError(f"column '{column}' of {path} holds {kind}, not lists of {size} numbers")
    if is_fixed and kind.list_size != size:
        raise DataError(f"column '{column}' of {path} holds {kind.list_size} numbers, not {size}: set `size`")
    if not (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        raise DataError(f"column '{column}' of {path} holds lists of {kind.value_type}, not of numbers")
    return np.dtype(kind.value_type.to_pandas_dtype())


def _vectors(path: Path, column: str, lists: Any, size: int, first: int) -> NDArray[Any]:
    """Return lists as an array (rows, S).

    Raises:
        DataError: A row has none, or one of another length.
    """
    from geobind.utils.arrow import pc

    length_N = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    values = lists.flatten()
    if (length_N != size).any() or values.null_count:
        wrong = int(np.argmax(length_N != size)) if (length_N != size).any() else 0
        row = first + wrong
        holds = "none" if length_N[wrong] < 0 else f"{length_N[wrong]} numbers"
        if length_N[wrong] == size:
            row = first + int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))) // size
            holds = "one with a gap"
        raise DataError(
            f"{path}: row {row}: column '{column}' must hold an embedding of {size} numbers, not {holds}"
        )
    return values.to_numpy(zero_copy_only=False).reshape(-1, size)


# Zarr


class Grid(NamedTuple):
    """An array of embeddings over degrees."""

    array: Any  # (S, Y, X)
    lat_Y: NDArray[np.float64]
    lon_X: NDArray[np.float64]


def read_cell(path: str, variable: str, size: int, place: geobind.Place) -> tuple[NDArray[Any], str]:
    """Read the cell of a Zarr store that a place lies in, as stored; also return what messages call it.

    Raises:
        DataError: The store cannot be read, or has no such array.
    """
    grid = _open_grid(path, variable, size, _stamp(path), os.getpid())
    gap_Y, gap_X = np.abs(grid.lat_Y - place.lat), np.abs((grid.lon_X - place.lon + 180) % 360 - 180)
    y, x = int(gap_Y.argmin()), int(gap_X.argmin())
    half_Y, half_X = (np.abs(np.diff(axis)).max() / 2 * (1 + 1e-6) for axis in (grid.lat_Y, grid.lon_X))
    if gap_Y[y] > half_Y or gap_X[x] > half_X:
        bounds = (grid.lon_X.min(), grid.lat_Y.min(), grid.lon_X.max(), grid.lat_Y.max())
        raise _AbsentError(f"{path} does not cover it{_describe_extent(bounds)}")
    try:
        return np.asarray(grid.array[:, y, x]), f"{path}, cell {y}, {x}"
    except Exception as error:  # codecs raise what they like
        raise DataError(f"{path}: cell {y}, {x} of '{variable}' cannot be read: {error}") from error


@lru_cache(maxsize=32)
def _open_grid(path: str, variable: str, size: int, _stamp: object, _process: int) -> Grid:
    try:
        zarr: Any = import_module("zarr")
    except ImportError as error:
        raise DataError(f"Zarr products need zarr ({error}): {_INSTALL_ZARR}") from error
    if not os.path.isdir(path):
        raise DataError(f"{path}: no such folder; a Zarr store is a folder on this machine")
    try:
        group = zarr.open_group(os.path.abspath(path), mode="r")
        arrays = {name: array for name, array in group.arrays()}
    except Exception as error:  # metadata of strangers, for which zarr has no base class of errors
        raise DataError(f"{path} cannot be opened as a Zarr store: {error}") from error
    lat, lon = ("lat" if "lat" in arrays else "latitude"), ("lon" if "lon" in arrays else "longitude")
    for name in (variable, lat, lon):
        if name not in arrays:
            raise DataError(f"{path} has no array '{name}'; its arrays: {', '.join(sorted(arrays))}")
        if math.prod(arrays[name].chunks) * arrays[name].dtype.itemsize > _MAX_CHUNK_BYTES:
            raise DataError(f"{path}: '{name}' has chunks of over 1 GB, which must be read whole")
    shape = (size, *arrays[lat].shape, *arrays[lon].shape)
    if len(shape) != 3 or arrays[variable].shape != shape or not 2 <= min(shape[1:]):
        raise DataError(
            f"{path}: '{variable}' has the shape {arrays[variable].shape}; (band, y, x) is wanted, "
            f"with {size} bands (`size`) and the lengths of '{lat}' and '{lon}', which have {shape[1:]}"
        )
    if max(shape[1:]) > _MAX_COORDINATES:
        raise DataError(f"{path}: has over {_MAX_COORDINATES:,} coordinates on an axis")
    try:
        axes = [np.asarray(arrays[name][:], dtype=np.float64) for name in (lat, lon)]
    except Exception as error:
        raise DataError(f"{path}: '{lat}' or '{lon}' cannot be read: {error}") from error
    return Grid(arrays[variable], *axes)


@geobind.hookimpl
def geobind_modalities() -> list[type[geobind.Modality]]:
    """Provide the modality of this package."""
    return [Earth]
