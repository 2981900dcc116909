"""Cut a satellite window around each of your places out of a public STAC catalogue; write a manifest of them.

    python cut_windows.py places.csv --out tiles --size-m 1280 --time 2024-05-01/2024-09-30

Only the windows are downloaded: scenes are cloud-optimised GeoTIFFs, of which GDAL reads the blocks it needs.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.warp import transform
from rasterio.windows import Window
from rasterio.windows import transform as transform_of_window

EARTH_SEARCH = "https://earth-search.aws.element84.com/v1"
MAX_BYTES = 20_000_000  # of an answer of the catalogue
MAX_PIXELS = 4096  # along a window's side
TRIES = 3
# Read only what is asked for, wait no longer than a minute, and open GeoTIFFs alone.
GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
}


class CutError(Exception):
    """An error that a user can mend."""


@dataclass(frozen=True)
class Spot:
    """A row of the user's table."""

    key: str
    lat: float
    lon: float


@dataclass(frozen=True)
class Scene:
    """An item of the catalogue: when it was taken, and where its asset lies."""

    name: str
    time: str
    clouds: float
    address: str


def read_places(path: Path) -> list[Spot]:
    """Read the places of a CSV file with columns lat and lon, and key where there is one.

    Raises:
        CutError: It has no such columns, or a cell is no place; says which line.
    """
    places: list[Spot] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"lat", "lon"} <= set(rows.fieldnames or ()):
            raise CutError(f"{path}: needs columns lat and lon; has {', '.join(rows.fieldnames or ())}")
        for row in rows:
            line = f"{path}:{rows.line_num}"
            try:
                lat, lon = float(row["lat"]), float(row["lon"])
            except (TypeError, ValueError):
                raise CutError(f"{line}: '{row['lat']}', '{row['lon']}' are no degrees") from None
            if not (-90 <= lat <= 90 and -180 <= lon <= 180):
                raise CutError(f"{line}: latitude {lat:g} or longitude {lon:g} is out of range")
            places.append(Spot(row.get("key") or f"place_{rows.line_num}", lat, lon))
    key, count = Counter(place.key for place in places).most_common(1)[0] if places else ("", 0)
    if count > 1:
        raise CutError(f"{path}: key '{key}' is there twice")
    if not places:
        raise CutError(f"{path}: has no rows")
    return places


def find_scenes(
    catalogue: str, collection: str, asset: str, place: Spot, period: str, *, clouds: float, most: int = 10
) -> list[Scene]:
    """Return the scenes of a place and a period, the clearest first.

    Raises:
        CutError: The catalogue cannot be reached, or what it answers is no list of items.
    """
    query = {
        "collections": [collection],
        "bbox": [place.lon - 1e-4, place.lat - 1e-4, place.lon + 1e-4, place.lat + 1e-4],
        "datetime": period,
        "limit": 100,
    }
    answer = _post(f"{catalogue.rstrip('/')}/search", query)
    scenes: list[Scene] = []
    for item in answer.get("features") or ():
        try:
            properties = item["properties"]
            scene = Scene(
                str(item["id"]),
                str(properties["datetime"]),
                float(properties.get("eo:cloud_cover") or 0),
                str(item["assets"][asset]["href"]),
            )
        except (KeyError, TypeError, ValueError):
            raise CutError(
                f"{catalogue}: an item of {collection} has no asset '{asset}' or no time; try --asset"
            ) from None
        if scene.clouds <= clouds:
            scenes.append(scene)
    return sorted(scenes, key=lambda scene: (scene.clouds, scene.time))[:most]


def _post(address: str, query: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        address, json.dumps(query).encode(), {"Content-Type": "application/json", "User-Agent": "geobind"}
    )
    for attempt in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                body = response.read(MAX_BYTES + 1)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise CutError(f"{address} refuses the search: {error.code} {error.reason}") from None
            reason: object = error
        except OSError as error:
            reason = error
        if attempt == TRIES - 1:
            raise CutError(f"{address} cannot be reached: {reason}")
        time.sleep(2**attempt)
    try:
        answer = json.loads(body[:MAX_BYTES])
    except ValueError:
        raise CutError(f"{address}: its answer is no JSON, or over {MAX_BYTES // 1_000_000} MB") from None
    if not isinstance(answer, dict):
        raise CutError(f"{address}: its answer is no list of items")
    return answer


def to_gdal(address: str, *, local: bool) -> str:
    """Return the name under which GDAL reads an address that a catalogue gives.

    Raises:
        CutError: It is not of https or an open bucket; of a catalogue on this machine, http too.
    """
    parts = urllib.parse.urlsplit(address)
    if parts.scheme == "s3" and parts.netloc:
        return f"/vsis3/{parts.netloc}{parts.path}"
    if parts.scheme == "https" or (local and parts.scheme == "http" and parts.hostname == "127.0.0.1"):
        return f"/vsicurl/{address}"
    raise CutError(f"'{address[:100]}' is not read: only https and s3 addresses are")


def cut_window(name: str, place: Spot, size_m: float, out: Path) -> float:
    """Write a window around a place in the scene's own pixels; return the share of it that is there.

    Raises:
        CutError: The scene has no CRS, or the window has too many pixels.
    """
    with rasterio.Env(**GDAL), rasterio.open(name, driver="GTiff") as scene:
        if scene.crs is None:
            raise CutError(f"{name}: has no CRS")
        step = 100 / 111_195  # degrees of 100 m
        east = step / math.cos(math.radians(place.lat))
        x_3, y_3 = transform(
            "EPSG:4326",
            scene.crs,
            [place.lon, place.lon + east, place.lon],
            [place.lat, place.lat, place.lat + step],
        )
        columns, rows = ~scene.transform * (np.array(x_3), np.array(y_3))
        # A tenth more, since the grid of a scene may be turned against north.
        width = math.ceil(1.1 * size_m * abs(columns[1] - columns[0]) / 100)
        height = math.ceil(1.1 * size_m * abs(rows[2] - rows[0]) / 100)
        if max(width, height) > MAX_PIXELS:
            raise CutError(f"--size-m {size_m:g} is {max(width, height)} pixels; at most {MAX_PIXELS}")
        window = Window(round(columns[0] - width / 2), round(rows[0] - height / 2), width, height)
        pixels = scene.read(window=window, boundless=True, fill_value=scene.nodata or 0)
        is_there = scene.dataset_mask(window=window, boundless=True) > 0
        if scene.nodata is None:
            is_there &= pixels.any(axis=0)  # what lies beyond a scene's edge is 0 in every band
        share = float(np.mean(is_there))
        if share > 0:
            profile = {
                "driver": "GTiff", "width": width, "height": height, "count": scene.count, "crs": scene.crs,
                "dtype": scene.dtypes[0], "nodata": scene.nodata, "compress": "deflate",
                "transform": transform_of_window(window, scene.transform),
            }  # fmt: skip
            part = out.with_suffix(f".{os.getpid()}.part")
            with rasterio.open(part, "w", **profile) as file:
                file.write(pixels)
            part.replace(out)
    return share


def cut_all(places: list[Spot], options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield a row of the manifest for each place that has a window; windows that are there are kept."""
    host = urllib.parse.urlsplit(options.catalogue).hostname
    for number, place in enumerate(places, 1):
        safe = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in place.key)
        out = options.out / f"{number:06d}_{safe[:60]}.tif"
        note = out.with_suffix(".json")
        if not (out.is_file() and note.is_file()):
            scenes = find_scenes(
                options.catalogue,
                options.collection,
                options.asset,
                place,
                options.time,
                clouds=options.clouds,
            )
            for scene in scenes:
                try:
                    share = cut_window(
                        to_gdal(scene.address, local=host == "127.0.0.1"), place, options.size_m, out
                    )
                except rasterio.errors.RasterioError as error:
                    print(f"{place.key}: {scene.name} cannot be read: {error}", file=sys.stderr)
                    continue
                if share >= options.min_valid:
                    note.write_text(json.dumps({"scene": scene.name, "time": scene.time}), encoding="utf-8")
                    break
                out.unlink(missing_ok=True)
            else:
                print(
                    f"{place.key}: none of {len(scenes)} scenes covers it; widen --time or --clouds",
                    file=sys.stderr,
                )
                continue
        taken = json.loads(note.read_text(encoding="utf-8"))
        print(f"{number}/{len(places)} {place.key}: {taken['scene']}")
        row = {"key": place.key, "lat": place.lat, "lon": place.lon, "time": taken["time"]}
        yield {**row, "satellite": out.name, "scene": taken["scene"]}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("places", type=Path, help="CSV with columns lat, lon and, if there is one, key")
    parser.add_argument("--out", type=Path, default=Path("tiles"), help="folder of windows and manifest.csv")
    parser.add_argument("--size-m", type=float, default=1280, help="side of a window in metres")
    parser.add_argument("--time", required=True, help="period, such as 2024-05-01/2024-09-30")
    parser.add_argument("--clouds", type=float, default=20, help="most clouds of a scene, in percent")
    parser.add_argument(
        "--min-valid", type=float, default=0.9, help="least share of a window that has pixels"
    )
    parser.add_argument("--catalogue", default=EARTH_SEARCH, help="root of a STAC API")
    parser.add_argument("--collection", default="sentinel-2-l2a")
    parser.add_argument("--asset", default="visual", help="name of the asset; visual is 8-bit RGB at 10 m")
    options = parser.parse_args()
    try:
        parts = urllib.parse.urlsplit(options.catalogue)
        if parts.scheme != "https" and parts.hostname != "127.0.0.1":
            raise CutError(f"--catalogue {options.catalogue}: an https address is wanted")
        places = read_places(options.places)
        options.out.mkdir(parents=True, exist_ok=True)
        rows = list(cut_all(places, options))
        if not rows:
            raise CutError("no place has a window")
        manifest = options.out / "manifest.csv"
        with manifest.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        print(f"{len(rows)} of {len(places)} places: {manifest}")
    except (CutError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
