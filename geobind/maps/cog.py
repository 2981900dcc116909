"""Maps as cloud-optimized GeoTIFFs: with tags, statistics and overviews; painted, with legends and STAC."""

# H rows and W columns of a map, K classes

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import geobind
from geobind.data.rasters.opening import require_rasterio
from geobind.errors import DataError, did_you_mean
from geobind.maps.similarity import ClassMap, QueryMap
from geobind.utils.files import replace_atomic, write_atomic, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_TAG = 2000  # letters of a tag
_STEPS = 255  # colours of a painted map, beside the transparent 0
_INK = "#1d2125"


def write_map(drawn: QueryMap | ClassMap, path: str | Path) -> Path:
    """Write a map as a cloud-optimized GeoTIFF; return its path.

    A map of similarities has a band of float32 with NaN for no tile, and a second one where there are
    probabilities. A map of classes has a band of bytes with 0 for no tile, and colours. The tags
    `geobind_query`, `geobind_model`, `geobind_source` and `geobind_classes` say what it shows.

    Raises:
        DataError: rasterio is not installed, or the CRS cannot be used.
        StorageError: The file cannot be written.
    """
    if isinstance(drawn, ClassMap):
        names = {str(number): label for number, label in enumerate(drawn.labels, start=1)}
        tags = _describe(drawn.of) | {"geobind_classes": json.dumps(names, ensure_ascii=False)[:_MAX_TAG]}
        colours = {number: colour for number, colour in enumerate(class_colours(len(drawn.labels)), start=1)}
        return _write_cog(
            Path(path), drawn.of, {"class": drawn.class_HW}, 0, tags, colours={0: (0, 0, 0, 0), **colours}
        )
    bands = {"difference of similarities" if drawn.change else "cosine similarity": drawn.similarity_HW}
    if drawn.probability_HW is not None:
        bands[f"probability of {drawn.probability_of}"] = drawn.probability_HW
    return _write_cog(Path(path), drawn, bands, np.nan, _describe(drawn))


def paint_map(drawn: QueryMap, path: str | Path, colours: str = "viridis") -> Path:
    """Write a map as a cloud-optimized GeoTIFF of bytes with a colour table; return its path.

    Its colours go from the 2nd to the 98th percentile, those of a change as far below 0 as above.

    Args:
        drawn: The map.
        path: The file.
        colours: A colour map of matplotlib.

    Raises:
        DataError: There is no such colour map; otherwise as `write_map`.
    """
    table = colour_table(colours)
    low, high = find_range(drawn)
    share_HW = np.clip((drawn.similarity_HW - low) / (high - low), 0, 1)
    level_HW = np.where(np.isnan(share_HW), 0, 1 + np.round(np.nan_to_num(share_HW) * (_STEPS - 1)))
    tags = _describe(drawn) | {"geobind_range": f"{low:.6g} {high:.6g}", "geobind_colours": colours}
    bands = {f"similarity from {low:.4g} (1) to {high:.4g} ({_STEPS})": level_HW.astype(np.uint8)}
    levels = {number: tuple(int(v) for v in colour) for number, colour in enumerate(table, start=1)}
    return _write_cog(Path(path), drawn, bands, 0, tags, colours={0: (0, 0, 0, 0), **levels})


def find_range(drawn: QueryMap) -> tuple[float, float]:
    """Return the least and greatest similarity that is painted."""
    known = drawn.similarity_HW[np.isfinite(drawn.similarity_HW)]
    if not len(known):
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(known, (2, 98)))
    if drawn.change:
        high = max(abs(low), abs(high))
        low = -high
    return (low, high) if high - low > 1e-6 else (low - 0.5e-6, low + 0.5e-6)


def colour_table(name: str) -> NDArray[np.uint8]:
    """Return the colours (255, 4) of a colour map.

    Raises:
        DataError: There is none of this name.
    """
    from matplotlib import colormaps

    if name not in colormaps:
        hint = did_you_mean(name, colormaps, "such as viridis, magma, cividis or RdBu_r")
        raise DataError(f"no colour map '{name}'; {hint}")
    return (colormaps[name](np.linspace(0, 1, _STEPS)) * 255).round().astype(np.uint8)


def class_colours(count: int) -> list[tuple[int, int, int, int]]:
    """Return so many colours that can be told apart, those of colour-blind people's palette first."""
    from matplotlib.colors import hsv_to_rgb, to_rgb

    first = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7d7d7d")
    colours = [to_rgb(name) for name in first[:count]]
    golden = 0.618034
    for number in range(count - len(colours)):
        hue = (number * golden) % 1
        colours.append(tuple(hsv_to_rgb((hue, 0.55 + 0.4 * (number % 2), 0.85 - 0.3 * (number % 3) / 2))))
    return [tuple(round(255 * float(part)) for part in (*colour, 1.0)) for colour in colours]  # pyright: ignore[reportReturnType]


def draw_legend(drawn: QueryMap | ClassMap, path: Path, colours: str = "viridis") -> None:
    """Write the legend of a painted map, or of classes with their shares, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from geobind.utils.formatting import format_percent, shorten

    if isinstance(drawn, ClassMap):
        figure = Figure(figsize=(4.2, 0.4 + 0.26 * len(drawn.labels)), layout="constrained")
        palette = class_colours(len(drawn.labels))
        handles = [
            Patch(
                facecolor="#" + bytes(colour[:3]).hex(),
                label=f"{shorten(label, 40)}  {format_percent(share)}",
            )
            for label, share, colour in zip(drawn.labels, drawn.shares, palette, strict=True)
        ]
        figure.legend(handles=handles, loc="center left", frameon=False, labelcolor=_INK)
    else:
        colour_table(colours)
        figure = Figure(figsize=(5, 1.0), layout="constrained")
        shades = ScalarMappable(Normalize(*find_range(drawn)), colours)
        bar = figure.colorbar(shades, cax=figure.add_subplot(), orientation="horizontal", extend="both")
        words = "change of cosine similarity" if drawn.change else "cosine similarity"
        bar.set_label(f"{words} to {shorten(drawn.label, 60)}", color=_INK, parse_math=False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


def _describe(drawn: QueryMap) -> dict[str, str]:
    """Return the tags of a map."""
    tags = {
        "geobind_query": drawn.label,
        "geobind_model": drawn.model,
        "geobind_source": drawn.source,
        "geobind_version": geobind.__version__,
    }
    if drawn.span is not None:
        tags["geobind_time"] = "/".join(drawn.span)
    return {name: value[:_MAX_TAG] for name, value in tags.items() if value}


def _write_cog(
    path: Path,
    drawn: QueryMap,
    bands: Mapping[str, NDArray[Any]],
    nodata: float,
    tags: Mapping[str, str],
    colours: Mapping[int, tuple[int, ...]] | None = None,
) -> Path:
    """Write bands by name as a cloud-optimized GeoTIFF.

    Raises:
        DataError: rasterio is not installed, or the CRS or the transform cannot be used.
        StorageError: The file cannot be written.
    """
    rasterio = require_rasterio()
    from rasterio.shutil import copy

    first = next(iter(bands.values()))
    whole = first.dtype.kind in "ui"
    profile = {
        "driver": "MEM",
        "height": first.shape[0],
        "width": first.shape[1],
        "count": len(bands),
        "dtype": first.dtype.name,
        "nodata": nodata,
        "transform": rasterio.Affine(*drawn.transform),
    }
    options = {
        "COMPRESS": "DEFLATE",
        "PREDICTOR": "YES",
        "BLOCKSIZE": "512",
        "OVERVIEW_RESAMPLING": "MODE" if whole else "AVERAGE",
        "NUM_THREADS": "1",
        "BIGTIFF": "IF_SAFER",
    }
    try:
        with rasterio.Env(GDAL_PAM_ENABLED="NO"), rasterio.open("", "w", crs=drawn.crs, **profile) as memory:
            memory.update_tags(**tags)
            for number, (name, values_HW) in enumerate(bands.items(), start=1):
                memory.write(values_HW, number)
                memory.set_band_description(number, name)
                memory.update_tags(number, **_measure(values_HW, nodata))
            if colours is not None:
                memory.write_colormap(1, colours)
            with replace_atomic(path) as temporary:
                copy(memory, temporary, driver="COG", **options)
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError) as error:
        raise DataError(f"{path}: the map cannot be written as a GeoTIFF: {error}") from error
    return path


def _measure(values_HW: NDArray[Any], nodata: float) -> dict[str, str]:
    """Return a band's statistics as GDAL names them."""
    known = values_HW[np.isfinite(values_HW)] if np.isnan(nodata) else values_HW[values_HW != nodata]
    if not len(known):
        return {}
    figures = {
        "MINIMUM": known.min(),
        "MAXIMUM": known.max(),
        "MEAN": known.mean(dtype=np.float64),
        "STDDEV": known.std(dtype=np.float64),
        "VALID_PERCENT": 100 * known.size / values_HW.size,
    }
    return {f"STATISTICS_{name}": f"{float(value):.7g}" for name, value in figures.items()}


def write_stac_item(drawn: QueryMap | ClassMap, path: Path) -> Path:
    """Write a STAC 1.1 item beside a map's file, NAME.tif.json; return its path.

    Raises:
        DataError: The map's corners have no place on Earth.
        StorageError: The file cannot be written.
    """
    shown = drawn.of if isinstance(drawn, ClassMap) else drawn
    values = _measure(shown.similarity_HW, np.nan)
    ring, box = _outline(shown, path)
    first, last = shown.span or (None, None)
    properties: dict[str, Any] = {
        # Where no time of the tiles is known, that of the map itself.
        "datetime": first if first == last and first else None if first else _now(),
        "created": _now(),
        "geobind:query": shown.label,
        "geobind:model": shown.model,
        "geobind:source": shown.source,
    }
    properties |= {"start_datetime": first, "end_datetime": last} if first != last else {}
    properties |= {"geobind:classes": list(drawn.labels)} if isinstance(drawn, ClassMap) else {}
    asset: dict[str, Any] = {
        "href": f"./{path.name}",
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "title": shown.label,
    }
    if not isinstance(drawn, ClassMap) and values:
        numbers = {
            name: float(values[f"STATISTICS_{name.upper()}"]) for name in ("minimum", "maximum", "mean")
        }
        asset |= {"data_type": "float32", "nodata": "nan", "statistics": numbers}
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": path.stem,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": box,
        "properties": properties,
        "links": [],
        "assets": {"map": asset},
    }
    out = path.with_name(f"{path.name}.json")  # NAME.json may be an archive's
    write_json(out, item)
    return out


def _outline(drawn: QueryMap, path: Path) -> tuple[list[list[float]], list[float]]:
    """Return a map's outline in degrees, closed and counterclockwise, and its west, south, east, north."""
    rasterio = require_rasterio()
    from rasterio.warp import transform

    (height, width), (a, b, c, d, e, f) = drawn.similarity_HW.shape, drawn.transform
    corners = [(0, 0), (0, height), (width, height), (width, 0)]
    if a * e - b * d > 0:  # rows go from south to north
        corners.reverse()
    x = [a * column + b * row + c for column, row in corners]
    y = [d * column + e * row + f for column, row in corners]
    try:
        lon, lat = (list(axis) for axis in transform(drawn.crs, "EPSG:4326", x, y)[:2])
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError) as error:
        raise DataError(f"{path}: its corners cannot be expressed in degrees: {error}") from error
    if not np.isfinite([*lon, *lat]).all():
        raise DataError(f"{path}: its corners have no place on Earth")
    ring = [[round(float(east), 8), round(float(north), 8)] for east, north in zip(lon, lat, strict=True)]
    box = [min(p[0] for p in ring), min(p[1] for p in ring), max(p[0] for p in ring), max(p[1] for p in ring)]
    return [*ring, ring[0]], box


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
