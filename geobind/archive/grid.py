"""Grids of tiles over a raster: where each tile's middle lies, its footprint, and its published name."""

# N tiles; source: the raster's own pixels, (column, row) from its upper left corner

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from geobind.archive.table import TileGrid, order_along_curve, order_by_place
from geobind.data.options import RasterOptions
from geobind.data.rasters.opening import open_raster, report_raster_damage
from geobind.data.rasters.places import find_covered_places, find_turn, measure_spacing, metres_to_pixels
from geobind.data.rasters.window import is_upright
from geobind.errors import DataError
from geobind.utils.geo import degrees_per_metre

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

SIDE = 32  # tiles along each side of a block
_NEARLY = 0.02  # a stride this near to whole pixels is whole: maps of UTM are off by 0.0004, of LAEA by 0.01
_EDGE = 1e-6  # tiles by which a grid may stick out through rounding
_RADIUS_KM = 6378.137  # of the sphere that Major TOM divides
_MAX_LAT = 89.9  # nearer to a pole no window is cut
_MAX_TILES = 2**31


class Frames(NamedTuple):
    """Where tiles lie: their middles in source pixels and degrees, and how metres lie in the raster."""

    x_N: NDArray[np.float64]
    y_N: NDArray[np.float64]
    lat_N: NDArray[np.float64]  # NaN where the CRS has no such place
    lon_N: NDArray[np.float64]
    to_source_N22: NDArray[np.float64]  # metres east and north to source pixels


@dataclass(frozen=True)
class Lattice:
    """The blocks of a grid over a raster, and the tiles of each."""

    grid: TileGrid
    to_source: tuple[float, float, float, float]  # x = x0 + column step_x, y = y0 + row step_y, of middles

    @cached_property
    def blocks_K2(self) -> NDArray[np.int64]:
        """The first row and column of each block, along a Hilbert curve."""
        rows, columns = -(-self.grid.rows // SIDE), -(-self.grid.columns // SIDE)
        row_K, column_K = (axis.ravel() for axis in np.mgrid[:rows, :columns])
        return np.stack([row_K, column_K], axis=1)[order_along_curve(column_K, row_K)] * SIDE

    def count(self, block: int) -> int:
        """Return how many tiles a block has."""
        row, column = self.blocks_K2[block]
        return int(min(SIDE, self.grid.rows - row) * min(SIDE, self.grid.columns - column))

    def list_tiles(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows and columns of the tiles of a block."""
        row, column = self.blocks_K2[block]
        across = min(SIDE, self.grid.columns - column)
        row_N, column_N = np.divmod(np.arange(self.count(block)), across)
        return row + row_N, column + column_N

    def place(self, row_N: NDArray[np.int64], column_N: NDArray[np.int64]) -> tuple[Any, Any]:
        """Return the middles of tiles in source pixels."""
        x, y, step_x, step_y = self.to_source
        return x + column_N * step_x, y + row_N * step_y


@report_raster_damage
def lay_grid(path: str | Path, size_m: float, stride_m: float) -> Lattice:
    """Lay a grid of whole tiles over a raster, from its upper left corner, with north at the top.

    Rows of a raster that goes from south to north are counted from the north too. Less than a stride at the
    far edges may stay without tiles. A raster around the Earth has tiles over its seam.

    Raises:
        DataError: The raster has no place on Earth, or is smaller than a tile.
    """
    dataset = open_raster(Path(path))
    width, height = dataset.width, dataset.height
    frames = _require_middle(dataset, path)
    metres_x, metres_y = np.hypot(*np.linalg.inv(frames.to_source_N22[0]))  # of a source pixel
    across, down = size_m / metres_x, size_m / metres_y
    step_x, step_y = _to_whole(stride_m / metres_x), _to_whole(stride_m / metres_y)
    across, down = _to_whole(across), _to_whole(down)
    turn = find_turn(dataset)
    if turn and width >= turn - 0.5:
        columns = math.floor(turn / step_x + _EDGE)
    else:
        columns = math.floor((width - across) / step_x + _EDGE) + 1
    rows = math.floor((height - down) / step_y + _EDGE) + 1
    if rows < 1 or columns < 1:
        raise DataError(
            f"{path}: has {width} x {height} pixels, and a tile of {size_m:g} m is {across:.0f} x "
            f"{down:.0f}: give a smaller --size-m"
        )
    if rows * columns > _MAX_TILES:
        raise DataError(f"{path}: {rows} x {columns} tiles are too many; give a larger --stride-m")
    x, y = across / 2, down / 2
    if dataset.transform.e > 0 and not dataset.transform.b:  # its first row is the southernmost
        y, step_y = height - down / 2, -step_y
    corner = _to_crs(dataset, x - step_x / 2, y - step_y / 2)
    a, b, _, d, e, _, *_ = dataset.transform
    grid = TileGrid(
        crs=dataset.crs.to_string() if dataset.crs.to_epsg() else dataset.crs.to_wkt(),
        transform=(a * step_x, b * step_y, corner[0], d * step_x, e * step_y, corner[1]),
        rows=rows,
        columns=columns,
        size_m=size_m,
        stride_m=stride_m,
    )
    return Lattice(grid, (x, y, step_x, step_y))


def _to_whole(pixels: float) -> float:
    whole = round(pixels)
    return float(whole) if whole and abs(pixels - whole) <= max(_NEARLY * pixels, 1e-9) else pixels


def measure_frames(dataset: DatasetReader, x_N: NDArray[Any], y_N: NDArray[Any]) -> Frames:
    """Return where middles of tiles lie on Earth, and how metres lie around each.

    Raises:
        DataError: The raster has no CRS or geotransform.
    """
    from rasterio.warp import transform

    if dataset.crs is None or dataset.transform.is_identity:
        lacks = "CRS" if dataset.crs is None else "geotransform"
        raise DataError(
            f"{dataset.name}: does not say where on Earth it lies (it has no {lacks}); write it: "
            "gdal_edit.py -a_srs EPSG:CODE -a_ullr ..."
        )
    count = len(x_N)
    steps_52 = np.array([(0, 0), (-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)])
    points_25N = np.stack([x_N + steps_52[:, :1], y_N + steps_52[:, 1:]]).reshape(2, -1)
    x, y = _to_crs(dataset, *points_25N)
    with np.errstate(invalid="ignore", over="ignore"):
        lon, lat = (
            np.array(axis).reshape(5, count) for axis in transform(dataset.crs, "EPSG:4326", x, y)[:2]
        )
        known_N = (np.isfinite(lon) & np.isfinite(lat)).all(axis=0) & (np.abs(lat[0]) < 90)
        lon, lat = np.where(known_N, lon, 0.0), np.where(known_N, lat, 0.0)
        north_N, east_N = degrees_per_metre(lat[0])
        lon_x_N, lon_y_N = (_wrap(lon[side + 1] - lon[side]) / east_N for side in (1, 3))
        lat_x_N, lat_y_N = ((lat[side + 1] - lat[side]) / north_N for side in (1, 3))
        metres_N22 = np.stack([np.stack([lon_x_N, lon_y_N], -1), np.stack([lat_x_N, lat_y_N], -1)], -2)
        known_N &= np.abs(np.linalg.det(metres_N22)) > 1e-12
        metres_N22[~known_N] = np.eye(2)
    lat_N, lon_N = (np.where(known_N, axis[0], np.nan) for axis in (lat, lon))
    to_source_N22: NDArray[np.float64] = np.linalg.inv(metres_N22).astype(np.float64)
    return Frames(x_N, y_N, lat_N, _wrap(lon_N), to_source_N22)


def measure_middle(dataset: DatasetReader) -> Frames:
    """Return the frame of a raster's middle, as `measure_frames`; NaN where that is no place on Earth."""
    return measure_frames(dataset, np.array([dataset.width / 2]), np.array([dataset.height / 2]))


def _require_middle(dataset: DatasetReader, path: str | Path) -> Frames:
    frames = measure_middle(dataset)
    if not np.isfinite(frames.lat_N[0]):
        raise DataError(f"{path}: its middle is no place on Earth; cut out a part that is (gdal_translate)")
    return frames


def _to_crs(dataset: DatasetReader, x: Any, y: Any) -> tuple[Any, Any]:
    """Return source pixels as coordinates of the raster's CRS."""
    a, b, c, d, e, f, *_ = dataset.transform
    return a * x + b * y + c, d * x + e * y + f


def _wrap(lon_N: NDArray[Any]) -> NDArray[np.float64]:
    """Return longitudes within -180 and 180."""
    return np.where(np.abs(lon_N) <= 180, lon_N, (lon_N + 180) % 360 - 180)


def measure_corners(dataset: DatasetReader, frames: Frames, size_m: float) -> NDArray[np.float64]:
    """Return the corners of tiles in degrees (N, 4, 2), counterclockwise from the lower left."""
    from rasterio.warp import transform

    side_42 = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * size_m / 2
    moved_N42 = np.einsum("nij,kj->nki", frames.to_source_N22, side_42)
    upright_N = is_upright(frames.to_source_N22) | is_upright(frames.to_source_N22 * [[1], [-1]])
    # Upright tiles are cut along the raster's own rows and columns.
    straight_N42 = np.einsum("nii,ki->nki", frames.to_source_N22, side_42)
    moved_N42 = np.where(upright_N[:, None, None], straight_N42, moved_N42)
    points_2M = np.stack([frames.x_N[:, None] + moved_N42[..., 0], frames.y_N[:, None] + moved_N42[..., 1]])
    x, y = _to_crs(dataset, *points_2M.reshape(2, -1))
    lon, lat = (np.array(axis).reshape(-1, 4) for axis in transform(dataset.crs, "EPSG:4326", x, y)[:2])
    corners_N42 = np.stack([_wrap(lon), lat], axis=2)
    return np.where(np.isfinite(frames.lat_N)[:, None, None], corners_N42, np.nan)


class NamedCells(NamedTuple):
    """Cells of a published grid: their names and middles."""

    name_N: NDArray[np.object_]
    lat_N: NDArray[np.float64]
    lon_N: NDArray[np.float64]


def parse_naming(text: str) -> float | None:
    """Return the kilometres of `majortom:10km`; None of `raster`, the raster's own grid.

    Raises:
        DataError: It is neither.
    """
    if text == "raster":
        return None
    kind, _, distance = text.partition(":")
    try:
        km = float(distance.removesuffix("km")) if kind == "majortom" and distance.endswith("km") else 0.0
    except ValueError:
        km = 0.0
    if not 0.01 <= km <= 5000:
        raise DataError(f"--grid {text}: there are `raster` and `majortom:10km`, with any distance in km")
    return km


@report_raster_damage
def find_named_cells(path: str | Path, km: float) -> NamedCells:
    """Find the cells of the Major TOM grid whose middle a raster covers, along a Hilbert curve.

    A cell is named by its lower left corner: rows up (U) or down (D) from the equator, columns right (R) or
    left (L) from Greenwich (Francis and Czerkawski, arXiv:2402.12095).

    Raises:
        DataError: The raster covers no cell's middle.
    """
    dataset = open_raster(Path(path))
    x, y = (
        axis.ravel()
        for axis in np.meshgrid(*(np.linspace(0, n, 33) for n in (dataset.width, dataset.height)))
    )
    frames = measure_frames(dataset, x, y)
    lat_N, lon_N = (axis[np.isfinite(axis)] for axis in (frames.lat_N, frames.lon_N))
    if not len(lat_N):
        raise DataError(f"{path}: lies nowhere on Earth that its CRS can express")
    height = 180 / math.ceil(math.pi * _RADIUS_KM / km)
    margin = max(2 * height, float(np.ptp(lat_N)) / 8)
    rows = range(
        math.floor(max(-90.0, lat_N.min() - margin) / height),
        math.ceil(min(90.0, lat_N.max() + margin) / height),
    )
    found: list[NamedCells] = []
    for row in rows:
        bottom = row * height
        count = max(1, math.ceil(2 * math.pi * _RADIUS_KM * math.cos(math.radians(bottom)) / km))
        width = 360 / count
        column_N = np.arange(-(count // 2), count - count // 2)
        cell_lat_N, cell_lon_N = np.full(count, bottom + height / 2), _wrap((column_N + 0.5) * width)
        if abs(bottom + height / 2) > _MAX_LAT:
            continue
        near_N = _near_longitudes(cell_lon_N, lon_N, margin=width * 2 + float(np.ptp(lon_N)) / 8)
        if not near_N.any():
            continue
        inside_N = np.zeros(count, bool)
        inside_N[near_N] = find_covered_places(path, cell_lat_N[near_N], cell_lon_N[near_N])
        of_row = f"{abs(row)}{'U' if row >= 0 else 'D'}"
        names = [f"{of_row}_{abs(n)}{'R' if n >= 0 else 'L'}" for n in column_N[inside_N].tolist()]
        found.append(NamedCells(np.array(names, dtype=object), cell_lat_N[inside_N], cell_lon_N[inside_N]))
    name_N, cell_lat_N, cell_lon_N = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if not len(name_N):
        raise DataError(f"{path}: covers the middle of no cell of {km:g} km; give smaller cells")
    order_N = order_by_place(cell_lat_N, cell_lon_N)
    return NamedCells(name_N[order_N], cell_lat_N[order_N], cell_lon_N[order_N])


def _near_longitudes(
    lon_N: NDArray[np.float64], samples_M: NDArray[np.float64], margin: float
) -> NDArray[np.bool_]:
    """Return which longitudes lie within a margin of the shortest span around the Earth of samples."""
    ordered = np.sort(samples_M)
    gaps = np.diff(np.append(ordered, ordered[0] + 360))
    widest = int(np.argmax(gaps))
    start = ordered[(widest + 1) % len(ordered)]
    span = 360 - gaps[widest]
    return (lon_N - start + margin) % 360 <= span + 2 * margin


@report_raster_damage
def measure_side(path: str | Path, options: RasterOptions) -> int:
    """Return the side in pixels of a raster's tiles: those at its middle, so that all are alike.

    Raises:
        DataError: The raster's middle is no place on Earth.
    """
    dataset = open_raster(Path(path))
    frames = _require_middle(dataset, path)
    to_source = metres_to_pixels(dataset, float(frames.lat_N[0]), float(frames.lon_N[0]))
    return max(1, round((options.size_m or 0) / (options.gsd or measure_spacing(to_source))))
