r"""Detect what any modality describes in a large image or scene: boxes of the most similar windows.

    python detect.py BUNDLE scene.tif --size-m 480 --size-m 640 --query text="deep snow" --out snow.geojson
    python detect.py BUNDLE scene.tif --size-m 480 --query audio=@surf.wav --query text="a lake" \
        --weight text=-0.5 --out sea.geojson
    python detect.py BUNDLE photo.png --size-px 64 --query ground_image=@wood.jpg --out boxes.json

Windows of each size slide over the scene, a part of their side at a time, and are embedded once into an
archive for each size: another query of the same scene costs no forward pass. The similarities of each size
are a map, whose peaks do not overlap; of peaks of several sizes that overlap the most similar one stays.
"""

# K boxes, four pixels each: left, top, right, bottom

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

from geobind import Binder, GeobindError
from geobind.archive import Archive, embed_raster
from geobind.errors import DataError
from geobind.maps import QueryMap, find_regions, map_query
from geobind.search import Query, embed_query, parse_query

PLAIN = "EPSG:32631"  # CRS that an image without one is given, a metre to a pixel; it never leaves this file
_CORNER = (500_000.0, 5_000_000.0)
OVERLAP = 0.1  # a larger one finds an object several times


class Scene(NamedTuple):
    """A raster that windows slide over."""

    path: Path  # of the raster that is read
    name: str
    georeferenced: bool
    to_pixels: Any  # affine transform from the CRS to columns and rows


class Detections(NamedTuple):
    """Boxes by their similarity to a query, best first."""

    query: str
    score_K: NDArray[np.float32]
    box_K4: NDArray[np.float64]  # left, top, right, bottom in pixels of the scene
    geometry: list[dict[str, Any] | None]  # footprints in degrees (GeoJSON)

    def to_json(self) -> dict[str, Any]:
        """Return the boxes as pixels."""
        rows = zip(self.score_K.tolist(), self.box_K4.tolist(), strict=True)
        boxes = [{"similarity": round(score, 6), "box": [round(x, 2) for x in box]} for score, box in rows]
        return {"query": self.query, "boxes": boxes}

    def to_geojson(self) -> dict[str, Any]:
        """Return the boxes as a FeatureCollection (RFC 7946), the pixels among the properties."""
        features = [
            {"type": "Feature", "geometry": geometry, "properties": {"rank": number + 1, **box}}
            for number, (geometry, box) in enumerate(zip(self.geometry, self.to_json()["boxes"], strict=True))
        ]
        return {"type": "FeatureCollection", "name": self.query, "features": features}


def open_scene(path: Path, folder: Path) -> Scene:
    """Open a georeferenced raster; an image without a CRS is copied into `folder` with one.

    Raises:
        DataError: It cannot be read.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with (
            warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
            rasterio.open(path) as file,
        ):
            if file.crs is not None:
                return Scene(path, path.name, True, ~file.transform)
            transform = rasterio.Affine(1, 0, _CORNER[0], 0, -1, _CORNER[1])
            folder.mkdir(parents=True, exist_ok=True)
            copy = folder / f"{path.stem}.tif"
            profile = {
                "count": file.count,
                "dtype": file.dtypes[0],
                "width": file.width,
                "height": file.height,
            }
            with rasterio.open(
                copy, "w", "GTiff", crs=PLAIN, transform=transform, tiled=True, **profile
            ) as out:
                for _, window in out.block_windows(1):
                    out.write(file.read(window=window), window=window)
            return Scene(copy, path.name, False, ~transform)
    except RasterioError as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from None


def embed_windows(
    binder: Binder, scene: Scene, folder: Path, sizes: Sequence[float], stride: float = 0.25, **options: Any
) -> list[Archive]:
    """Embed the windows of a scene into one archive for each size; those that are there are kept.

    Args:
        binder: The model.
        scene: The scene.
        folder: Of the archives.
        sizes: Sides of the windows: metres, or pixels of an image without a CRS.
        stride: From one window to the next, as a share of the side.
        options: Of `embed_raster`, and `modality`: what a window is; default: the anchor.

    Raises:
        DataError: A window is larger than the scene, or the stride is not in (0, 1].
        PluginError: The binder has no such modality.
    """
    if not sizes or not 0 < stride <= 1:
        raise DataError(
            f"give one size of windows or more and a stride in (0, 1], not {sizes} and {stride:g}"
        )
    modality = options.pop("modality", binder.anchor)
    binder.modality(modality)
    if not scene.georeferenced:
        check_pixels(scene, max(sizes))
    folder.mkdir(parents=True, exist_ok=True)
    archives: list[Archive] = []
    for size in sorted(set(sizes), reverse=True):  # one that is too large is refused before any work
        out = folder / f"{modality}_{size:g}_{stride:g}_{name_content(scene.path)}.parquet"
        archive = embed_raster(
            binder, modality, scene.path, out, size_m=size, stride_m=size * stride, **options
        )
        assert archive is not None  # only a share of a job has none
        archives.append(archive)
    return archives


def name_content(path: Path) -> str:
    """Return a short name of a file by its size and time, so that another scene has other archives."""
    facts = path.stat()
    return hashlib.sha256(f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:8]


def check_pixels(scene: Scene, size: float) -> None:
    """Refuse a window that an image cannot hold.

    Raises:
        DataError: The window is larger than the image.
    """
    import rasterio

    with rasterio.open(scene.path) as file:
        if size > min(file.width, file.height):
            raise DataError(
                f"{scene.name}: has {file.width} x {file.height} pixels, and a window of {size:g} x {size:g} "
                "is larger; give a smaller --size-px"
            )


def detect(
    scene: Scene,
    archives: Sequence[Archive],
    query: Query,
    k: int = 20,
    *,
    overlap: float = OVERLAP,
    least: float | None = None,
    binder: Binder | None = None,
    change: Callable[[QueryMap], QueryMap] = lambda drawn: drawn,
) -> Detections:
    """Find the boxes of a scene that a query describes best.

    Args:
        scene: The scene.
        archives: Its windows, one archive for each size.
        query: What `embed_query` gives.
        k: At most so many boxes.
        overlap: Intersection over union with a better box, above which a box is left out.
        least: Similarity below which no box is taken.
        binder: Scores by its bridge where it has one for the two modalities, else by cosines.
        change: Changes the map of each size before its peaks are sought.

    Raises:
        DataError: The query is of another width than the archives, or k is below 1.
    """
    scores: list[NDArray[np.float32]] = []
    boxes: list[NDArray[np.float64]] = []
    geometry: list[dict[str, Any] | None] = []
    for archive in archives:
        bridge = binder.bridge(query.modality, archive.modality) if binder and query.modality else None
        drawn = change(map_query(archive, query, bridge=bridge))
        peaks = find_regions(archive, drawn, 4 * k, overlap=overlap, least=least)
        scores.append(peaks.similarity_K)
        boxes.append(find_pixels(archive, scene, peaks.rows_K))
        geometry += [feature["geometry"] for feature in peaks.to_geojson()["features"]]
    score_N, box_N4 = np.concatenate(scores), np.concatenate(boxes)
    kept_K = nms(torch.from_numpy(box_N4), torch.from_numpy(score_N.astype(np.float64)), overlap)[:k].numpy()
    return Detections(query.label, score_N[kept_K], box_N4[kept_K], [geometry[n] for n in kept_K.tolist()])


def find_pixels(archive: Archive, scene: Scene, rows_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the boxes of an archive's rows in pixels of the scene (K, 4)."""
    grid, down_N, across_N = archive.grid, archive.row_N, archive.column_N
    assert grid is not None and down_N is not None and across_N is not None  # `map_query` has checked it
    a, b, c, d, e, f = grid.transform
    column_K, row_K = across_N[rows_K] + 0.5, down_N[rows_K] + 0.5
    x_K, y_K = a * column_K + b * row_K + c, d * column_K + e * row_K + f
    to = scene.to_pixels
    middle_K2 = np.stack([to.a * x_K + to.b * y_K + to.c, to.d * x_K + to.e * y_K + to.f], axis=1)
    # The grid's step is a stride in pixels, and a window so many strides wide.
    step_2 = np.abs([to.a * a + to.b * d, to.d * b + to.e * e])
    half_2 = step_2 * grid.size_m / grid.stride_m / 2
    return np.concatenate([middle_K2 - half_2, middle_K2 + half_2], axis=1)


def write_boxes(detections: Detections, scene: Scene, out: Path) -> None:
    """Write boxes as GeoJSON (NAME.geojson) or as pixels (NAME.json).

    Raises:
        DataError: Another name, or GeoJSON of an image without a CRS.
    """
    if out.suffix not in {".geojson", ".json"}:
        raise DataError(f"{out}: name it NAME.geojson for places, or NAME.json for pixels")
    if out.suffix == ".geojson" and not scene.georeferenced:
        raise DataError(f"{out}: {scene.name} has no CRS, so its boxes have no places; name it NAME.json")
    values = detections.to_geojson() if out.suffix == ".geojson" else detections.to_json()
    out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """Detect by a query of the command line and write the boxes."""
    parser = argparse.ArgumentParser(description="Detect what a query of any modality describes.")
    parser.add_argument("bundle", help="the folder of a bundle or run, or its id on the hub")
    parser.add_argument("scene", type=Path, help="a georeferenced raster, or an image")
    parser.add_argument(
        "--query", action="append", default=[], metavar="NAME=VALUE", help="as `geobind search`"
    )
    parser.add_argument("--weight", action="append", default=[], metavar="NAME=NUMBER", help="of parts")
    parser.add_argument("--size-m", action="append", type=float, default=[], help="side of windows, metres")
    parser.add_argument("--size-px", action="append", type=float, default=[], help="... pixels of an image")
    parser.add_argument("--stride", type=float, default=0.25, help="of windows, as a share of their side")
    parser.add_argument("--modality", help="what a window is; default: the anchor")
    parser.add_argument("-k", type=int, default=20, help="boxes")
    parser.add_argument("--overlap", type=float, default=OVERLAP, help="of two boxes (IoU), at most")
    parser.add_argument("--least", type=float, help="smallest similarity")
    parser.add_argument("--folder", type=Path, default=Path("windows"), help="of the archives")
    parser.add_argument("--out", type=Path, required=True, help="NAME.geojson, or NAME.json for pixels")
    given = parser.parse_args(words)
    binder = Binder.from_pretrained(given.bundle)
    query = embed_query(binder, parse_query(given.query, given.weight, binder.modalities))
    scene = open_scene(given.scene, given.folder)
    sizes, other, option = (
        (given.size_m, given.size_px, "--size-m")
        if scene.georeferenced
        else (given.size_px, given.size_m, "--size-px")
    )
    if other or not sizes:
        kind = "is georeferenced" if scene.georeferenced else "has no CRS"
        raise DataError(f"{scene.name} {kind}: give the sizes of its windows by {option}")
    options = {"modality": given.modality} if given.modality else {}
    archives = embed_windows(binder, scene, given.folder, sizes, given.stride, **options)
    found = detect(scene, archives, query, given.k, overlap=given.overlap, least=given.least, binder=binder)
    write_boxes(found, scene, given.out)
    print(f"{len(found.score_K)} boxes of {found.query} in {scene.name}: {given.out}")


if __name__ == "__main__":
    try:
        main()
    except GeobindError as error:
        sys.exit(f"error: {error}")
