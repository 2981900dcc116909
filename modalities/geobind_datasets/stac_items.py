"""Items of STAC-GeoParquet tables: their assets, files and places."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from geobind.errors import DataError
from geobind.importers.contract import LeftOut
from geobind_datasets.places import Box, Place, box_of_wkb, degrees_of, middle

_RASTERS = (".tif", ".tiff", ".jp2")
_READ = (
    *("id", "collection", "assets", "bbox", "geometry", "datetime", "start_datetime", "license"),
    *("eo:cloud_cover", "proj:epsg", "proj:code", "proj:bbox", "proj:shape"),
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # one letter is a drive of Windows
_ROWS = 256  # items read at a time


def columns_of(table: Path) -> list[str]:
    """The columns of a table.

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


def items_of(table: Path, more: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The items of a table by row, with the columns that are needed, and more.

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


def assets_of(item: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The assets of an item; a table keeps those that only other items have as nulls."""
    assets: Any = item.get("assets") or {}
    if not isinstance(assets, dict):
        raise DataError(f"item {item.get('id')}: 'assets' must be a struct of assets by name")
    named = cast("dict[str, Any]", assets)
    return {name: asset for name, asset in named.items() if isinstance(asset, dict) and asset.get("href")}


def first_assets(table: Path) -> dict[str, dict[str, Any]]:
    """The assets of the first items by name: not every item has all of them."""
    found: dict[str, dict[str, Any]] = {}
    for _, item in islice(items_of(table, ()), _ROWS):
        found = assets_of(item) | found
    return found


def is_raster(asset: Mapping[str, Any]) -> bool:
    """Whether an asset is a GeoTIFF or JPEG 2000, by its media type or its name."""
    kind, href = str(asset.get("type") or "").lower(), str(asset["href"]).lower()
    return "tiff" in kind or "jp2" in kind or urlsplit(href).path.endswith(_RASTERS)


def local_file(href: Any, asset: str, folder: Path) -> Path | LeftOut:
    """The file that an asset names, or why it is none."""
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


def place_of(item: Mapping[str, Any], where: str) -> Place | None:
    """The middle of an item: of its bbox, else of its geometry, else of its box in its own CRS.

    Raises:
        DataError: Its geometry is damaged, or its CRS is not known; `where` names the item.
    """
    box, geometry, projected = _box(item.get("bbox")), item.get("geometry"), _box(item.get("proj:bbox"))
    try:
        if box is None and isinstance(geometry, bytes):
            box = box_of_wkb(geometry)
        epsg = item.get("proj:epsg")
        crs = item.get("proj:code") or (f"EPSG:{int(epsg)}" if epsg else None)
        if box is not None or crs is None or projected is None:
            return box and middle(box)
        return degrees_of(crs, (projected[0] + projected[2]) / 2, (projected[1] + projected[3]) / 2)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _box(value: Any) -> Box | None:
    """A box of four or six numbers, in a struct (as specified) or a list (as in older files)."""
    if isinstance(value, dict):
        said = cast("dict[str, Any]", value)
        edges: list[Any] = [said.get(name) for name in ("xmin", "ymin", "xmax", "ymax")]
    elif isinstance(value, list) and len(cast("list[Any]", value)) in (4, 6):
        numbers = cast("list[Any]", value)
        edges = [numbers[index] for index in ((0, 1, 2, 3) if len(numbers) == 4 else (0, 1, 3, 4))]
    else:
        return None
    return None if None in edges else cast("Box", tuple(float(edge) for edge in edges))
