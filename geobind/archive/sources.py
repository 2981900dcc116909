"""Sources of an archive: tiles of a raster, rows of a table or files of a folder, in blocks of neighbours."""

# N rows of a block, or of a part of one

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
from pydantic import ValidationError

from geobind.archive.archive import to_moment
from geobind.archive.grid import (
    SIDE,
    Frames,
    Lattice,
    NamedCells,
    find_named_cells,
    lay_grid,
    measure_corners,
    measure_frames,
    measure_middle,
    measure_side,
    parse_naming,
)
from geobind.archive.table import order_by_place
from geobind.data.manifest import hash_manifest
from geobind.data.options import ColumnChoice, DataOptions, RasterOptions
from geobind.data.table import Table, first_observation, open_table
from geobind.errors import DataError
from geobind.utils.files import is_hidden
from geobind.utils.formatting import format_first_fault

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = SIDE * SIDE  # rows of a block
_SAMPLE, _SAMPLES = 65_536, 32  # bytes of a raster that are hashed, and in how many places
_MEND = "mend or remove it and run the command again, or leave out whatever cannot be read with --skip-broken"
_OWN = 0.01  # share by which a tile of the raster's own pixels may be larger or smaller than asked for


class Inputs(NamedTuple):
    """Raw inputs and what an archive says of each; those that have nothing to embed are left out."""

    raws: list[Any]
    names: list[str]
    columns: Mapping[str, Any]


class _Placed(NamedTuple):
    """Where the tiles of a block lie, and the columns that follow from it."""

    frames: Frames
    columns: Mapping[str, NDArray[Any]]


class InputSource(Protocol):
    """Protocol of what is embedded into an archive; it pickles small and opens files when asked."""

    mend: ClassVar[str]  # advice for a message about an input that cannot be prepared

    @property
    def name(self) -> str:
        """Name of the source in messages and in the archive."""
        ...

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        ...

    def count(self, block: int) -> int:
        """Return how many rows a block has at most."""
        ...

    def read(self, block: int, start: int, end: int) -> Inputs:
        """Read some rows of a block.

        Raises:
            DataError: The source cannot be read.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the rows, as plain values."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what the archive's metadata state of the source."""
        ...

    def resolve(self) -> Self:
        """Return the same source by an absolute path, with nothing opened, for other processes."""
        ...


@dataclass(frozen=True)
class RasterTiles:
    """Tiles of a raster: of a grid over it, or of the named cells of a published grid.

    Tiles are the raster's own pixels where these are, within one hundredth, what is asked for; otherwise each
    is resampled as `read_window` does.
    """

    path: Path
    options: RasterOptions  # with size_m
    stride_m: float
    naming: str = "raster"
    time: np.datetime64 | None = None
    nodata: float | None = None
    # How a raster is read decides whether its tiles are what the model takes.
    mend: ClassVar[str] = (
        "give the range of its values to show (--stretch LOW,HIGH), or the --bands that the model takes"
    )

    @property
    def name(self) -> str:
        """The raster's file name."""
        return self.path.name

    @cached_property
    def lattice(self) -> Lattice | None:
        """The grid over the raster; None where a published grid names cells."""
        if parse_naming(self.naming) is not None:
            return None
        return lay_grid(self.path, self.options.size_m or 0, self.stride_m)

    @cached_property
    def cells(self) -> NamedCells | None:
        """The named cells that the raster covers; None with a grid of its own."""
        km = parse_naming(self.naming)
        return None if km is None else find_named_cells(self.path, km)

    @cached_property
    def side(self) -> int:
        """Pixels along a tile's side."""
        return measure_side(self.path, self.options)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        if self.cells is not None:
            return -(-len(self.cells.name_N) // BLOCK)
        return len(self._grid.blocks_K2)

    @property
    def _grid(self) -> Lattice:
        if self.lattice is None:
            raise DataError(f"{self.path}: has no grid of its own with --grid {self.naming}")
        return self.lattice

    def count(self, block: int) -> int:
        """Return how many tiles a block has, missing ones included."""
        if self.cells is not None:
            return min(BLOCK, len(self.cells.name_N) - block * BLOCK)
        return self._grid.count(block)

    def read(self, block: int, start: int, end: int) -> Inputs:
        """Read those of a block's tiles that have enough pixels."""
        placed, part = self._places(block), np.s_[start:end]
        raws, share_N = self._cut(Frames(*(values[part] for values in placed.frames)))
        kept = np.flatnonzero((share_N >= self.options.min_valid) & (share_N > 0))
        columns = {name: values[part][kept] for name, values in placed.columns.items()}
        columns["valid"] = share_N[kept].astype(np.float32)
        file = self.path.name
        names = [f"{file}: tile {name}" for name in columns["id"].tolist()]
        return Inputs([raws[n] for n in kept.tolist()], names, columns)

    def __getstate__(self) -> dict[str, Any]:
        """Return its state without the places that it keeps, which do not pickle."""
        return {name: value for name, value in vars(self).items() if name != "_places"}

    @cached_property
    def _places(self) -> Callable[[int], _Placed]:
        """Where a block's tiles lie; kept for the rest of the block, as PROJ's work begins anew each time."""
        return lru_cache(maxsize=2)(self._place_block)

    def _place_block(self, block: int) -> _Placed:
        from geobind.data.rasters.opening import open_raster

        dataset = open_raster(self.path)
        columns: dict[str, Any] = {}
        if self.cells is not None:
            chosen = np.s_[block * BLOCK : (block + 1) * BLOCK]
            columns["id"] = self.cells.name_N[chosen]
            frames = _frame_places(dataset, self.cells.lat_N[chosen], self.cells.lon_N[chosen])
        else:
            row_N, column_N = self._grid.list_tiles(block)
            columns |= {"row": row_N.astype(np.int32), "col": column_N.astype(np.int32)}
            stem, places = self.path.stem, zip(row_N.tolist(), column_N.tolist(), strict=True)
            columns["id"] = np.array([f"{stem}/{row}/{column}" for row, column in places], object)
            frames = measure_frames(dataset, *self._grid.place(row_N, column_N))
        columns |= {"lat": frames.lat_N, "lon": frames.lon_N}
        columns["corners"] = measure_corners(dataset, frames, self.options.size_m or 0)
        if self.time is not None:
            columns["time"] = np.full(len(columns["id"]), self.time)
        return _Placed(frames, columns)

    def _cut(self, frames: Frames) -> tuple[list[Any], NDArray[np.float64]]:
        """Return tiles and the share of each that is there; one that lies nowhere on Earth has none."""
        from geobind.data.rasters.window import cut_window, is_upright, read_squares

        known = np.flatnonzero(np.isfinite(frames.lat_N))
        size_m, side = self.options.size_m or 0, self.side
        to_source_K22 = frames.to_source_N22[known]
        south_up = bool(len(known)) and bool((to_source_K22[:, 1, 1] > 0).all())
        upright_K22 = to_source_K22 * ([[1], [-1]] if south_up else [[1], [1]])
        extent_K2 = np.abs(np.stack([upright_K22[:, 0, 0], upright_K22[:, 1, 1]], axis=1)) * size_m
        own = bool(is_upright(upright_K22).all()) and bool((np.abs(extent_K2 / side - 1) <= _OWN).all())
        raws: list[Any] = [None] * len(frames.lat_N)
        share_N = np.zeros(len(raws))
        if not len(known):
            return raws, share_N
        if own:
            x_K, y_K = (
                np.round(axis[known] - side / 2).astype(np.int64) for axis in (frames.x_N, frames.y_N)
            )
            squares = read_squares(
                self.path, x_K, y_K, side, self.options, south_up=south_up, nodata=self.nodata
            )
            share_N[known] = squares.share_N
            for n, image in zip(known.tolist(), squares.images, strict=True):
                raws[n] = image
            return raws, share_N
        if self.nodata is not None:
            raise DataError(
                f"{self.path}: tiles must be resampled, which would mix the value {self.nodata:g} into them; "
                f"write it into the file (gdal_edit.py -a_nodata {self.nodata:g}) in place of --nodata"
            )
        options = self.options.model_copy(update={"min_valid": 0.0, "gsd": size_m / side})
        for n in known.tolist():
            lat, lon = float(frames.lat_N[n]), float(frames.lon_N[n])
            raws[n], share_N[n] = cut_window(self.path, lat, lon, options)
        return raws, share_N

    def describe(self) -> dict[str, Any]:
        """Return the raster's size and a hash of samples of it, its grid, and how it is read."""
        lattice = self.lattice
        return {
            "raster": self.path.name,
            "content": hash_samples(self.path),
            "grid": self.naming if lattice is None else lattice.grid.model_dump(mode="json"),
            "reading": self.reading,
            "time": None if self.time is None else str(self.time),
            "pixels": self.side,
        }

    def state(self) -> dict[str, Any]:
        """Return the grid and how the raster is read, for the archive's metadata."""
        grid = None if self.lattice is None else self.lattice.grid
        facts = {"grid": grid, "naming": self.naming, "pixels": self.side, "reading": self.reading}
        return {**facts, "timed": self.time is not None}

    def resolve(self) -> Self:
        """Return the same tiles by the raster's absolute path."""
        return replace(self, path=self.path.resolve())

    @property
    def reading(self) -> dict[str, Any]:
        """How the raster is read, as plain values; what is as usual is left out."""
        chosen = self.options.model_dump(mode="json", exclude_defaults=True)
        chosen |= {"min_valid": self.options.min_valid}
        return chosen if self.nodata is None else {**chosen, "nodata": self.nodata}


def _frame_places(dataset: Any, lat_N: NDArray[np.float64], lon_N: NDArray[np.float64]) -> Frames:
    """Return the frames of places, by the raster's map around each."""
    from geobind.data.rasters.places import metres_to_pixels

    maps_N33 = np.stack(
        [metres_to_pixels(dataset, lat, lon) for lat, lon in zip(lat_N.tolist(), lon_N.tolist(), strict=True)]
    )
    return Frames(maps_N33[:, 0, 2], maps_N33[:, 1, 2], lat_N, lon_N, maps_N33[:, :2, :2])


def hash_samples(path: Path) -> str:
    """Return a hash of a file's size and of samples over all of it, the same wherever the file lies.

    Raises:
        DataError: It cannot be read.
    """
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            total.update(str(size).encode())
            for at in np.linspace(0, max(0, size - _SAMPLE), _SAMPLES).astype(np.int64).tolist():
                file.seek(at)
                total.update(file.read(_SAMPLE))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    return total.hexdigest()


@dataclass(frozen=True)
class ManifestRows:
    """Rows of a manifest or a dataset that have the modality, along a Hilbert curve over the Earth."""

    options: DataOptions
    base: Path
    modality: str
    split: str | None = None
    mend: ClassVar[str] = _MEND

    @cached_property
    def table(self) -> Table:
        """The rows, those without a place last."""
        table = open_table(self.options.narrow([self.modality]), self.base, (self.modality,))
        table = table if self.split is None else table.split(self.split)
        table = table.take(table.rows_with((self.modality,)))
        if not len(table):
            table.samples(self.modality)  # says which column is missing or empty
        place_NLL = table.places_LL
        return table if place_NLL is None else table.take(order_by_place(*place_NLL.T))

    @property
    def name(self) -> str:
        """The table's name."""
        return self.table.name

    @cached_property
    def places_LL(self) -> NDArray[np.float64] | None:
        """Latitude and longitude of each row, NaN where unknown; None if no row has them."""
        return self.table.places_LL

    @cached_property
    def times(self) -> NDArray[np.datetime64] | None:
        """When; None if no row has it."""
        return self.table.time

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-len(self.table) // BLOCK)

    def count(self, block: int) -> int:
        """Return how many rows a block has."""
        return min(BLOCK, len(self.table) - block * BLOCK)

    def read(self, block: int, start: int, end: int) -> Inputs:
        """Read some rows of a block."""
        rows = range(block * BLOCK + start, block * BLOCK + end)
        part = np.s_[rows.start : rows.stop]
        keys = [self.table.keys[row] for row in rows]
        columns: dict[str, Any] = {"id": np.array(keys, object)}
        if self.places_LL is not None:
            columns |= dict(zip(("lat", "lon"), self.places_LL[part].T, strict=True))
        if self.times is not None:
            columns["time"] = self.times[part]
        samples = self.table.samples(self.modality)
        return Inputs([_first(samples, row, key) for row, key in zip(rows, keys, strict=True)], keys, columns)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.table.keys)}

    def find(self, name: str) -> Any:
        """Return the observation of the row that has this key; None if there is none."""
        row = self._rows.get(name)
        return None if row is None else _first(self.table.samples(self.modality), row, name)

    def describe(self) -> dict[str, Any]:
        """Return the manifest's content and the columns that are read."""
        options = self.options.model_dump(mode="json", exclude_defaults=True, exclude={"manifest", "root"})
        content = None
        if self.options.manifest is not None:
            content = hash_manifest(self.base / self.options.manifest)
        return {"table": self.name, "content": content, "data": options, "split": self.split}

    def state(self) -> dict[str, Any]:
        """Return whether rows have a place and a time, for the archive's metadata."""
        return {"timed": self.times is not None, "placed": self.places_LL is not None}

    def resolve(self) -> Self:
        """Return the same rows by an absolute path."""
        return replace(self, base=self.base.resolve())


def _first(samples: Any, row: int, key: str) -> Any:
    """Return a row's first observation, or the error of reading it."""
    try:
        return first_observation(samples[row])
    except DataError as error:
        return error


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder and those below it, in the order of their names; GeoTIFFs have a place."""

    folder: Path
    pattern: str = "*"
    mend: ClassVar[str] = _MEND

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @cached_property
    def files(self) -> list[str]:
        """The names of the files, relative to the folder.

        Raises:
            DataError: There are none.
        """
        names: list[str] = []
        for home, folders, files in os.walk(self.folder):
            folders[:] = sorted(folder for folder in folders if not is_hidden(folder))
            inside = Path(home).relative_to(self.folder).as_posix()
            start = "" if inside == "." else f"{inside}/"
            names += [start + name for name in files if not is_hidden(name) and fnmatch(name, self.pattern)]
        if not names:
            raise DataError(f"{self.folder}: has no files that match '{self.pattern}'")
        return sorted(names)

    @cached_property
    def placed(self) -> bool:
        """Whether files have a place: the first one that says so decides."""
        return self.place(self.files[0]) is not None

    def place(self, name: str) -> tuple[float, float] | None:
        """Return the latitude and longitude of a GeoTIFF's middle; None where it has none."""
        if not name.lower().endswith((".tif", ".tiff", ".jp2")):
            return None
        from geobind.data.rasters.opening import open_raster

        try:
            dataset = open_raster(self.folder / name)
            frames = measure_middle(dataset)
        except DataError:  # embedding it says what is wrong, if anything is
            return None
        lat, lon = float(frames.lat_N[0]), float(frames.lon_N[0])
        return (lat, lon) if np.isfinite([lat, lon]).all() else None

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-len(self.files) // BLOCK)

    def count(self, block: int) -> int:
        """Return how many files a block has."""
        return min(BLOCK, len(self.files) - block * BLOCK)

    def read(self, block: int, start: int, end: int) -> Inputs:
        """Return the paths of some files of a block."""
        names = self.files[block * BLOCK + start : block * BLOCK + end]
        columns: dict[str, Any] = {"id": np.array(names, object)}
        if self.placed:
            places = [self.place(name) or (np.nan, np.nan) for name in names]
            columns |= dict(zip(("lat", "lon"), np.array(places).T, strict=True))
        return Inputs([self.folder / name for name in names], names, columns)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.files)

    def find(self, name: str) -> Path | None:
        """Return the file of this name; None if the folder lists none, so that no name leads out of it."""
        return self.folder / name if name in self._known else None

    def describe(self) -> dict[str, Any]:
        """Return a hash of the names and sizes of the files."""
        total = hashlib.sha256()
        for name in self.files:
            total.update(f"{name}\0{(self.folder / name).stat().st_size}\0".encode())
        return {"folder": self.name, "content": total.hexdigest(), "pattern": self.pattern}

    def state(self) -> dict[str, Any]:
        """Return whether files have a place, for the archive's metadata."""
        return {"placed": self.placed}

    def resolve(self) -> Self:
        """Return the same files by the folder's absolute path."""
        return replace(self, folder=self.folder.resolve())


def build_reading(**values: Any) -> RasterOptions:
    """Return how a raster is read.

    Raises:
        DataError: A value is none that `RasterOptions` takes.
    """
    try:
        return RasterOptions.model_validate({n: v for n, v in values.items() if v is not None})
    except ValidationError as error:
        raise DataError(format_first_fault(error)) from None


def open_source(
    data: str | Path | DataOptions,
    modality: str,
    columns: Mapping[str, ColumnChoice],
    *,
    split: str | None = None,
    pattern: str = "*",
) -> ManifestRows | FolderFiles:
    """Return the rows of a manifest or dataset, or the files of a folder that holds no manifest.

    Raises:
        DataError: There is neither, or an option does not go with it.
    """
    if isinstance(data, DataOptions):
        return ManifestRows(data, Path(), modality, split)
    path = Path(data)
    if is_folder_of_files(path):
        if columns or split is not None:
            raise DataError(f"{path}: is a folder of files, which has no columns and no splits")
        return FolderFiles(path, pattern)
    if pattern != "*":
        raise DataError(f"{path}: is a manifest, whose rows name their files; a pattern is for a folder")
    return ManifestRows(DataOptions(manifest=path, columns=dict(columns)), Path(), modality, split)


def is_folder_of_files(path: Path) -> bool:
    """Return whether a folder is one of files to embed: without a Parquet file, it is no manifest."""
    if not path.is_dir():
        return False
    inside = (entry for entry in path.iterdir() if not is_hidden(entry.name))
    return not any(entry.suffix.lower() == ".parquet" and entry.is_file() for entry in inside)


def parse_time(text: str | None) -> np.datetime64 | None:
    """Return a moment of ISO 8601 in UTC.

    Raises:
        DataError: It is none.
    """
    if text is None:
        return None
    try:
        return to_moment(text)
    except ValueError:
        raise DataError(f"--time {text}: give a moment such as 2024-07-01 or 2024-07-01T10:30:00Z") from None
