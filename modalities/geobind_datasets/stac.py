"""STAC-GeoParquet: a table of STAC items, with their assets, files and places."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from pydantic import Field

from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import walk_files
from geobind_datasets.common import Box, Place, compute_middle, parse_wkb_box, read_raster_extent, to_degrees

_RASTERS = (".tif", ".tiff", ".jp2")
_READ = (
    *("id", "collection", "assets", "bbox", "geometry", "datetime", "start_datetime", "license"),
    *("eo:cloud_cover", "proj:epsg", "proj:code", "proj:bbox", "proj:shape"),
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # one letter is a drive of Windows
_ROWS = 256  # items read at a time


def read_column_names(table: Path) -> list[str]:
    """Return the columns of a table.

    Raises:
        DataError: It is no Parquet file.
    """
    return list(_opened(table).schema_arrow.names)


def _opened(table: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(table)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{table}: not a Parquet file that can be read: {error}") from error


def read_items(table: Path, more: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Return the items of a table by row, with the columns that are needed, and more.

    Raises:
        DataError: It has not these columns, or is damaged.
    """
    import pyarrow as pa

    file = _opened(table)
    there = file.schema_arrow.names
    lacking = [name for name in more if name and name not in there]
    if lacking:
        raise DataError(f"{table}: has no column '{lacking[0]}'; its columns: {', '.join(there)}")
    number = 0
    try:
        for batch in file.iter_batches(_ROWS, columns=[name for name in there if name in (*_READ, *more)]):
            for item in batch.to_pylist():
                yield number, item
                number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{table}: damaged after row {number}: {error}") from error


def list_assets(item: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the assets of an item; a table keeps those that only other items have as nulls."""
    assets: Any = item.get("assets") or {}
    if not isinstance(assets, dict):
        raise DataError(f"item {item.get('id')}: 'assets' must be a struct of assets by name")
    named = cast("dict[str, Any]", assets)
    return {name: asset for name, asset in named.items() if isinstance(asset, dict) and asset.get("href")}


def list_first_assets(table: Path) -> dict[str, dict[str, Any]]:
    """Return the assets of the first items by name: not every item has all of them."""
    found: dict[str, dict[str, Any]] = {}
    for _, item in islice(read_items(table, ()), _ROWS):
        found = list_assets(item) | found
    return found


def is_raster(asset: Mapping[str, Any]) -> bool:
    """Return whether an asset is a GeoTIFF or JPEG 2000, by its media type or its name."""
    kind, href = str(asset.get("type") or "").lower(), str(asset["href"]).lower()
    return "tiff" in kind or "jp2" in kind or urlsplit(href).path.endswith(_RASTERS)


def find_local_file(href: Any, asset: str, folder: Path) -> Path | LeftOut:
    """Find the file that an asset names, or the reason why there is none."""
    if not isinstance(href, str) or not href.strip():
        return LeftOut(f"has no asset '{asset}'")
    scheme = _SCHEME.match(href)
    if scheme and scheme[0].lower() != "file:":
        return LeftOut(f"asset '{asset}' is an address ({scheme[0].lower()}...), not a file here")
    if href.startswith("/vsi"):
        return LeftOut(f"asset '{asset}' is an address (/vsi...), not a file here")
    named = urlsplit(href)
    if scheme and named.netloc not in ("", "localhost"):
        return LeftOut(f"asset '{asset}' lies on another machine")
    inside = os.path.abspath(folder)
    path = os.path.abspath(os.path.join(inside, unquote(named.path) if scheme else href))
    if "\0" in path or not path.startswith(os.path.join(inside, "")):
        return LeftOut(f"asset '{asset}' lies outside of the folder of assets (see option root)")
    return Path(path)


def find_place(item: Mapping[str, Any]) -> Place | None:
    """Return the middle of an item: of its bbox, else of its geometry, else of its box in its own CRS.

    A bbox around the globe says nothing of a scene that crosses the antimeridian, and an empty geometry
    nothing at all: the next of them then counts.

    Raises:
        DataError: Its geometry is damaged, or its CRS is not known.
    """
    geometry, projected = item.get("geometry"), _box(item.get("proj:bbox"))
    box = _box(item.get("bbox"))
    if (place := box and compute_middle(box)) is not None:
        return place
    shape = parse_wkb_box(geometry) if isinstance(geometry, bytes) and geometry else None
    if (place := shape and compute_middle(shape)) is not None:
        return place
    epsg = item.get("proj:epsg")
    crs = item.get("proj:code") or (f"EPSG:{int(epsg)}" if epsg else None)
    if crs is None or projected is None:
        return None
    return to_degrees(crs, (projected[0] + projected[2]) / 2, (projected[1] + projected[3]) / 2)


def _box(value: Any) -> Box | None:
    """Return a box of four or six numbers, in a struct (as specified) or a list (as in older files)."""
    if isinstance(value, dict):
        said = cast("dict[str, Any]", value)
        edges: list[Any] = [said.get(name) for name in ("xmin", "ymin", "xmax", "ymax")]
    elif isinstance(value, list) and len(cast("list[Any]", value)) in (4, 6):
        numbers = cast("list[Any]", value)
        edges = [numbers[index] for index in ((0, 1, 2, 3) if len(numbers) == 4 else (0, 1, 3, 4))]
    else:
        return None
    return None if None in edges else cast("Box", tuple(float(edge) for edge in edges))


_TABLES = (".parquet", ".geoparquet")
_NEEDED = ("id", "assets")
_MOST = 4096 * 4096  # pixels of an asset that is one observation


class Stac(Importer):
    """Items of a STAC catalogue, kept as STAC-GeoParquet."""

    name: ClassVar[str] = "stac"
    title: ClassVar[str] = "STAC-GeoParquet, a table of STAC items with local assets"
    home: ClassVar[str] = "https://github.com/radiantearth/stac-geoparquet-spec"
    licence: ClassVar[str] = "that of the items"
    citation: ClassVar[str] = "that of the items"
    layout: ClassVar[str] = """
        items.parquet                          columns id, assets, bbox, ...; or a folder of such files
        scenes/a.tif                           what assets name by relative names, under the table's folder
    """
    columns: ClassVar[Mapping[str, Column]] = {
        "satellite": Column("window", "the items' one raster asset; or what `assets` says")
    }

    assets: dict[str, str] = Field(
        default={},
        description='The asset that each column holds: {"satellite": "visual"}; by default satellite holds '
        "the only asset that is a raster.",
    )
    root: Path | None = Field(
        default=None,
        description="The folder that assets lie in, if not the table's; names are relative to it.",
    )
    size_m: float | None = Field(
        default=None,
        gt=0,
        description="Metres a side of a window around an item's middle; by default all of it.",
    )
    gsd: float | None = Field(default=None, gt=0, description="Metres a pixel of such a window.")
    bands: tuple[int, ...] = Field(
        default=(), description="Bands of rasters, counted from 1; by default all."
    )
    label: str = Field(default="", description="The column that becomes `label`, such as collection.")
    split: str = Field(default="", description="The column that becomes `split`.")
    max_cloud: float | None = Field(
        default=None, ge=0, le=100, description="Leave out what has more clouds, in %."
    )

    def contents(self) -> Mapping[str, Column]:
        """Return window columns for rasters, and file columns for other images."""
        return {name: Column(kind, f"asset '{asset}'") for name, (asset, kind) in self._chosen().items()}

    def folders(self) -> list[Path]:
        """Return the folder of assets."""
        return [self._folder(source) for source in self.sources]

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the tables item by item."""
        chosen = self._chosen()
        for table, folder in self._tables():
            for _, item in read_items(table, (self.label, self.split)):
                yield self._row(item, chosen, folder)

    def notes(self) -> list[str]:
        """Return notes on the use of the assets."""
        return [
            "assets that are addresses (https, s3, ...) are left out: geobind reads files only; "
            "download them first"
        ]

    def _folder(self, source: Path) -> Path:
        return self.root or (source if source.is_dir() else source.parent)

    def _tables(self) -> list[tuple[Path, Path]]:
        """Return the tables, each with the folder of its assets."""
        found: list[tuple[Path, Path]] = []
        for source in self.sources:
            inside = [path for path in walk_files(source) if path.suffix.lower() in _TABLES]
            # A partitioned table is one table: its assets are named from the folder it is given as.
            found += [
                (path, self._folder(source)) for path in (sorted(inside) if source.is_dir() else [source])
            ]
        if not found:
            raise self.misplaced("there is no Parquet file")
        for table, _ in found:
            lacking = [name for name in _NEEDED if name not in read_column_names(table)]
            if lacking:
                raise self.misplaced(f"{table.name} has no column {lacking[0]}")
        return found

    def _chosen(self) -> dict[str, _Asset]:
        """Return the asset of each column, and how it is read."""
        table = self._tables()[0][0]
        first = list_first_assets(table)
        assets = self.assets
        if not assets:
            rasters = [name for name, asset in first.items() if is_raster(asset)]
            if len(rasters) != 1:
                raise DataError(
                    f"{table}: {len(rasters)} of an item's assets ({', '.join(first) or 'none'}) are "
                    'rasters; say which, with an option such as assets={"satellite": "visual"}'
                )
            assets = {"satellite": rasters[0]}
        for name, asset in assets.items():
            if asset not in first:
                raise DataError(
                    f"{table}: items have no asset '{asset}' for column '{name}'; "
                    f"they have {', '.join(first) or 'none'}"
                )
        return {
            name: _Asset(asset, "window" if is_raster(first[asset]) else "file")
            for name, asset in assets.items()
        }

    def _row(self, item: Mapping[str, Any], chosen: Mapping[str, _Asset], folder: Path) -> Row | LeftOut:
        cloud = item.get("eo:cloud_cover")
        if self.max_cloud is not None and cloud is not None and cloud > self.max_cloud:
            return LeftOut(f"has more than {self.max_cloud:g} % of clouds")
        try:
            place = find_place(item)
        except DataError as error:
            return LeftOut(f"has no place that can be read: {error}")
        assets = list_assets(item)
        cells: dict[str, Any] = {}
        for name, (asset, kind) in chosen.items():
            file = find_local_file(assets.get(asset, {}).get("href"), asset, folder)
            cell = (
                file
                if isinstance(file, LeftOut) or kind == "file"
                else self._window(file, item, assets[asset], place)
            )
            if isinstance(cell, LeftOut):
                if len(chosen) == 1:
                    return cell
                continue
            cells[name] = cell
        if not cells:
            return LeftOut("none of its assets is a local file that can be used")
        lat, lon = place or (None, None)
        time = item.get("datetime") or item.get("start_datetime")
        row: Row = {"key": item["id"], "lat": lat, "lon": lon, "time": time, "licence": item.get("license")}
        row |= {"label": item.get(self.label) if self.label else None}
        return {**row, **cells} | ({"split": item.get(self.split)} if self.split else {})

    def _window(
        self, file: Path, item: Mapping[str, Any], asset: Mapping[str, Any], place: Place | None
    ) -> dict[str, Any] | LeftOut:
        """Return a window around the item's middle, or the whole asset."""
        said: dict[str, Any] = {"raster": file} | ({"bands": list(self.bands)} if self.bands else {})
        if self.size_m:
            if place is None:
                return LeftOut("has no place to cut a window around")
            return said | {"size_m": self.size_m} | ({"gsd": self.gsd} if self.gsd else {})
        shape = asset.get("proj:shape") or item.get("proj:shape")
        try:
            width, height = (int(shape[1]), int(shape[0])) if shape else read_raster_extent(file)[:2]
        except DataError:
            return LeftOut("its raster is missing or cannot be opened")
        if width * height > _MOST:
            return LeftOut(f"has more than {_MOST // 1_000_000} million pixels: give option size_m")
        return said | {"x": 0, "y": 0, "width": width, "height": height}


class _Asset(NamedTuple):
    """An asset of the items, and the kind of cell it makes."""

    name: str
    kind: Literal["window", "file"]
