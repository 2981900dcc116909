"""Maps of phrases and sounds over scenes of toy Earth, compared with what is true in each cell.

    python benchmarks/map_truth.py BUNDLE [BUNDLE ...] [--scenes 6] [--columns 64] [--rows 48] [--folder DIR]

A scene is a GeoTIFF of rendered tiles, a cell of 640 m each, whose facts are known: regions, months and
planets that no bundle was trained on. Its cells are embedded into an archive, and queries become maps.
Printed are rank correlations (Spearman) of map and fact: of every wording of each fact's highest grade, and
of eight sounds of places where a fact is strong.

Last comes the contrast: the spread of a map's similarities over the median spread of maps of ordinary queries
(captions of other places, or rows of the archive). Does it tell queries whose maps are right from others?
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from geobind import Binder
from geobind.archive import Archive, embed_raster
from geobind.data import read_pixels
from geobind.maps import map_query
from geobind.search import Query, embed_query
from geobind_toyearth import captions
from geobind_toyearth.planet import FACTS, Places, Planet
from geobind_toyearth.sounds import render_sounds
from geobind_toyearth.tiles import render_tiles

SIDE = 64  # pixels of a cell, 10 m each
RATE = 16_000
# Planet, north, west, month: cells of half a degree, at noon. Chosen by facts alone: each varies in each.
SCENES = (
    (0, 54, 58, 11),
    (13, 48, 108, 12),
    (12, 70, 126, 10),
    (15, 54, -156, 1),
    (16, 51, 46, 11),
    (17, 51, 121, 2),
)
# Every wording of a fact's highest grade; what is in braces is filled in.
PHRASES = {
    "snow": captions.SNOW,
    "forest": captions.TREES,
    "crops": captions.CROPS,
    "bare": captions.BARE,
    "buildings": captions.HOUSES,
    "roads": captions.ROADS,
    "relief": captions.RELIEF,
    "rain": captions.RAIN,
    "sea": captions.SEA,
}
FILLED = {"kind": "pine", "crop": "golden", "ground": "rock", "fall": "rain"}
SOUNDS = ("water", "snow", "rain", "forest", "roads", "wind")
GOALS = {("words", "snow"): 0.75, ("sounds", "water"): 0.7}


class Scene(NamedTuple):
    """A scene and what is true in its cells, by rows."""

    name: str
    path: Path
    places: Places
    shape: tuple[int, int]

    def fact(self, name: str) -> np.ndarray:
        return self.places.facts[:, FACTS.index(name)].reshape(self.shape)


def render_scene(folder: Path, number: int, rows: int, columns: int) -> Scene:
    """Render a scene into a GeoTIFF."""
    import rasterio

    planet, north, west, month = SCENES[number]
    row, column = np.divmod(np.arange(rows * columns), columns)
    lat, lon = north - 0.5 * row, (west + 0.5 * column + 180) % 360 - 180
    month_N, hour_N = np.full(len(row), float(month)), np.full(len(row), 12.0)
    places = Places(lat, lon, month_N, hour_N, Planet(planet).facts(lat, lon, month_N, hour_N))
    path = folder / f"scene{number}_{rows}x{columns}.tif"
    if not path.exists():
        tiles = render_tiles(places, planet, SIDE, 10.0).reshape(rows, columns, SIDE, SIDE, 3)
        image = tiles.transpose(4, 0, 2, 1, 3).reshape(3, rows * SIDE, columns * SIDE)
        with rasterio.open(
            path, "w", driver="GTiff", width=image.shape[2], height=image.shape[1], count=3, dtype="uint8",
            crs="EPSG:32631", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), tiled=True,
            compress="deflate",
        ) as file:  # fmt: skip
            file.write(image)
    return Scene(f"planet {planet}, {north}N {west}E, month {month}", path, places, (rows, columns))


def embed_scene(binder: Binder, scene: Scene, folder: Path) -> Archive:
    """Embed the cells of a scene."""
    path = folder / f"{scene.path.stem}.parquet"
    archive = embed_raster(
        binder, "satellite", scene.path, path, size_m=10 * SIDE, fresh=True, progress=False
    )
    assert archive is not None and len(archive) == np.prod(scene.shape)
    return archive


def rank(values: np.ndarray) -> np.ndarray:
    """Ranks, the mean of equal ones."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Return the rank correlation, 0 where one side does not vary."""
    one, other = rank(one.ravel()), rank(other.ravel())
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def list_queries(binder: Binder) -> list[tuple[str, str, Query]]:
    """Return queries with their kind and fact."""
    found = [
        ("words", fact, embed_query(binder, {"text": phrase.format(**FILLED)}))
        for fact, grades in PHRASES.items()
        for phrase in grades[-1][1]
    ]
    places = Planet(0).places(3000, seed=99)  # others than any table of recipes has
    for fact in SOUNDS:
        strong = np.argsort(-places.facts[:, FACTS.index(fact)])[:8]
        waves = render_sounds(places.take(strong), 0, 2.0, RATE)
        embedded = binder.embed("audio", [(wave, RATE) for wave in waves], progress=False)
        mean = torch.nn.functional.normalize(embedded.mean(0), dim=0)
        found.append(("sounds", fact, Query(mean.numpy(), f"eight sounds of {fact}")))
    return found


def measure(binder: Binder, scene: Scene, folder: Path, references: np.ndarray) -> list[dict[str, object]]:
    archive = embed_scene(binder, scene, folder)
    rows = archive.read_vectors()
    ordinary = {
        "captions": float(np.median((rows @ references.T).std(axis=0))),
        "rows": float(np.median((rows @ rows[:: max(1, len(rows) // 300)].T).std(axis=0))),
    }
    results: list[dict[str, object]] = []
    for kind, fact, query in list_queries(binder):
        drawn = map_query(archive, query).similarity_HW
        truth = scene.fact(fact)
        results.append(
            {
                "scene": scene.name,
                "kind": kind,
                "fact": fact,
                "query": query.label,
                "varies": float(truth.std()),
                "rho": spearman(drawn, truth),
                **{f"contrast to {name}": float(drawn.std()) / spread for name, spread in ordinary.items()},
            }
        )
    return results


def print_facts(results: Sequence[dict[str, object]]) -> None:
    """Print the median rank correlation of each fact over queries and scenes where it varies."""
    print(f"{'':8}{'fact':12}{'median':>8}{'lowest':>8}{'highest':>8}{'maps':>6}")
    keys = list(dict.fromkeys((str(one["kind"]), str(one["fact"])) for one in results))
    for kind, fact in keys:
        rho = [
            one["rho"]
            for one in results
            if (one["kind"], one["fact"]) == (kind, fact) and one["varies"] > 0.1
        ]
        goal = GOALS.get((kind, fact))
        if not rho:
            print(f"{kind:8}{fact:12}  varies in no scene")
            continue
        words = "" if goal is None else f"  goal {goal}: {'met' if np.median(rho) >= goal else 'MISSED'}"
        print(f"{kind:8}{fact:12}{np.median(rho):8.2f}{min(rho):8.2f}{max(rho):8.2f}{len(rho):6}{words}")


def print_contrast(results: Sequence[dict[str, object]]) -> None:
    """Print how well contrast tells right maps from others."""
    known = [one for one in results if one["varies"] > 0.1]
    rho = np.array([one["rho"] for one in known])
    for name in ("contrast to captions", "contrast to rows"):
        contrast = np.array([one[name] for one in known])
        print(f"{name}: rank correlation with rho {spearman(contrast, rho):.2f} over {len(known)} maps")
        third = np.quantile(contrast, (1 / 3, 2 / 3))
        for low, high in ((-np.inf, third[0]), (third[0], third[1]), (third[1], np.inf), (1.1, np.inf)):
            inside = (contrast > low) & (contrast <= high)
            if inside.any():
                words = f"  {max(low, 0):.2f} to {high:.2f}: {inside.sum():4} maps, median rho "
                print(f"{words}{np.median(rho[inside]):5.2f}, rho > 0.3 in {(rho[inside] > 0.3).mean():.2f}")


def draw_picture(binder: Binder, scene: Scene, folder: Path, out: Path) -> None:
    """Draw a scene, and its maps of a sentence and of sounds beside what is true."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    archive = embed_scene(binder, scene, folder)
    queries = list_queries(binder)
    chosen = [
        next(one for one in queries if one[:2] == key) for key in (("words", "snow"), ("sounds", "water"))
    ]
    height, width = scene.shape
    image = read_pixels(scene.path, 0, 0, width * SIDE, height * SIDE)[::8, ::8]
    panels = [("the scene", image, {})]
    for _, fact, query in chosen:
        drawn = map_query(archive, query).similarity_HW
        low, high = np.percentile(drawn, (2, 98))
        panels.append((f"map of {query.label}", drawn, {"vmin": low, "vmax": high}))
        panels.append(
            (
                f"{fact}, as it is (rank correlation {spearman(drawn, scene.fact(fact)):.2f})",
                scene.fact(fact),
                {},
            )
        )
    figure = Figure(figsize=(10, 4.9), dpi=80, layout="constrained")
    axes = figure.subplot_mosaic([["0", "1", "3"], ["0", "2", "4"]], width_ratios=(1.25, 1, 1))
    for number, (title, values, options) in enumerate(panels):
        axis = axes[str(number)]
        axis.imshow(values, cmap="viridis", **options)
        axis.set_title(title, fontsize=9, loc="left", parse_math=False)
        axis.set_axis_off()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None}, pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--scenes", type=int, default=6, choices=range(1, len(SCENES) + 1))
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="keeps the scenes")
    parser.add_argument("--out", type=Path, help="a JSON file for all figures")
    parser.add_argument("--picture", type=Path, help="a PNG file: the scene numbered --scenes, and two maps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, object]] = []
    others = Planet(21).places(300, seed=5)
    texts = [several[0] for several in captions.write_captions(others, 21, 1)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if args.picture:
            scene = render_scene(folder, args.scenes - 1, args.rows, args.columns)
            draw_picture(Binder.load(args.bundles[0]), scene, folder, args.picture)
            return
        for name in args.bundles:
            binder = Binder.load(name)
            references = binder.embed("text", texts, progress=False, numpy=True)
            for number in range(args.scenes):
                scene = render_scene(folder, number, args.rows, args.columns)
                own = measure(binder, scene, folder, references)
                results += [{"bundle": name, **one} for one in own]
            print(f"\n{name}, {args.scenes} scenes")
            print_facts([one for one in results if one["bundle"] == name])
            print_contrast([one for one in results if one["bundle"] == name])
    if len(args.bundles) > 1:
        print(f"\nall {len(args.bundles)} bundles")
        print_facts(results)
        print_contrast(results)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
