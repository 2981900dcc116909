"""STAC-GeoParquet: a table of STAC items, whose assets lie beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind_datasets.places import Place, of_raster
from geobind_datasets.stac_items import (
    assets_of,
    columns_of,
    first_assets,
    is_raster,
    items_of,
    local_file,
    place_of,
)

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
        """Windows of rasters, and files of other images."""
        return {name: Column(kind, f"asset '{asset}'") for name, (asset, kind) in self._chosen().items()}

    def folders(self) -> list[Path]:
        """The folder of assets."""
        return [self._folder(source) for source in self.sources]

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the tables item by item."""
        chosen = self._chosen()
        for table, folder in self._tables():
            for number, item in items_of(table, (self.label, self.split)):
                yield self._row(item, chosen, folder, f"{table}: row {number}")

    def notes(self) -> list[str]:
        """Say what becomes of the assets."""
        return [
            "assets that are addresses (https, s3, ...) are left out: geobind reads files only; "
            "download them first"
        ]

    def _folder(self, source: Path) -> Path:
        return self.root or (source if source.is_dir() else source.parent)

    def _tables(self) -> list[tuple[Path, Path]]:
        """The tables, each with the folder of its assets."""
        found: list[tuple[Path, Path]] = []
        for source in self.sources:
            inside = [path for path in source.rglob("*") if path.suffix.lower() in _TABLES]
            # A partitioned table is one table: its assets are named from the folder it is given as.
            found += [
                (path, self._folder(source)) for path in (sorted(inside) if source.is_dir() else [source])
            ]
        if not found:
            raise self.misplaced("there is no Parquet file")
        for table, _ in found:
            lacking = [name for name in _NEEDED if name not in columns_of(table)]
            if lacking:
                raise self.misplaced(f"{table.name} has no column {lacking[0]}")
        return found

    def _chosen(self) -> dict[str, _Asset]:
        """The asset of each column, and how it is read."""
        table = self._tables()[0][0]
        first = first_assets(table)
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

    def _row(
        self, item: Mapping[str, Any], chosen: Mapping[str, _Asset], folder: Path, where: str
    ) -> Row | LeftOut:
        cloud = item.get("eo:cloud_cover")
        if self.max_cloud is not None and cloud is not None and cloud > self.max_cloud:
            return LeftOut(f"has more than {self.max_cloud:g} % of clouds")
        place = place_of(item, where)
        assets = assets_of(item)
        cells: dict[str, Any] = {}
        for name, (asset, kind) in chosen.items():
            file = local_file(assets.get(asset, {}).get("href"), asset, folder)
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
        """A window around the item's middle, or the whole asset."""
        said: dict[str, Any] = {"raster": file} | ({"bands": list(self.bands)} if self.bands else {})
        if self.size_m:
            if place is None:
                return LeftOut("has no place to cut a window around")
            return said | {"size_m": self.size_m} | ({"gsd": self.gsd} if self.gsd else {})
        shape = asset.get("proj:shape") or item.get("proj:shape")
        try:
            width, height = (int(shape[1]), int(shape[0])) if shape else of_raster(file)[:2]
        except DataError:
            return LeftOut("its raster is missing or cannot be opened")
        if width * height > _MOST:
            return LeftOut(f"has more than {_MOST // 1_000_000} million pixels: give option size_m")
        return said | {"x": 0, "y": 0, "width": width, "height": height}


class _Asset(NamedTuple):
    """An asset of the items, and the kind of cell it makes."""

    name: str
    kind: Literal["window", "file"]
