"""Measure detectors of toy Earth's objects: average precision by queries of every modality, and by chance.

    python measure_detector.py BUNDLE [--seeds 3] [--scenes 10] [--picture detector.png] [--out detector.json]

Objects with known boxes lie in scenes that no recipe trained on. For each kind of object and each modality
of the bundle a query is made from sentences, or from observations of other places of that kind; no query sees
the scene. "Against the rest" is the same query minus the mean of the queries of all kinds.

A box is right where its intersection over union with an object of the kind, not found before, is 0.5 or more.
Average precision is the area under precision by recall of the boxes of a kind in a scene, and the figure its
mean over kinds and scenes. Intervals resample scenes (bootstrap, 95 %).

Chance: random similarities of the windows, and random embeddings as queries. Baseline: tiles as queries of
the same encoder with random weights. Tiles as queries of the trained one are what the windows allow.
"""

# K detections of a kind, S scenes, O objects, N examples

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detect import Detections, Scene, detect, embed_windows, open_scene
from numpy.typing import NDArray
from toy_scenes import KINDS, ToyScene, build_scene, draw_places, set_facts, write_scene

from geobind import Binder
from geobind.archive import Archive
from geobind.errors import DataError
from geobind.evaluation import unit
from geobind.maps import QueryMap
from geobind.search import Query
from geobind_toyearth import Places, render_heights, render_photos, render_sounds, render_tiles

SIZES = (400.0, 520.0, 640.0)  # metres
BOXES = 20  # for each kind and scene
RIGHT = 0.5  # intersection over union of a right box
EXAMPLES = 8
RATE = 16_000  # Hz
AGAINST = "against the rest"
WORDS: dict[str, tuple[str, ...]] = {
    "woods": ("dense forest", "deep leafy forest", "endless woods"),
    "fields": ("endless fields", "fields all around", "vast farmland"),
    "sand": ("a desert of sand", "nothing but sand", "a waste of sand"),
    "town": ("a town", "a crowded town", "city blocks"),
    "snow": ("deep snow", "heavy snow cover", "snow deep over everything"),
    "sea": ("open sea", "the vast sea", "sea as far as one can see"),
}
# How observations of places are rendered, by modality.
RENDERERS: dict[str, Callable[[Places, int], list[Any]]] = {
    "satellite": lambda places, seed: list(render_tiles(places, seed)),
    "ground_image": lambda places, seed: list(render_photos(places, seed)),
    "audio": lambda places, seed: [(wave, RATE) for wave in render_sounds(places, seed, 2.0, RATE)],
    "elevation": lambda places, seed: list(render_heights(places, seed)),
}
SUMS = (("text", "audio"), ("text", "ground_image", "audio"))


class Ranked(NamedTuple):
    """The detections of a kind in one scene, and how many objects of it there are."""

    score_K: NDArray[np.float64]
    right_K: NDArray[np.bool_]
    objects: int


Method = dict[str, list[Ranked]]  # by kind, over scenes


def judge(found: Detections, scene: ToyScene, kind: str) -> Ranked:
    """Mark the detections that have an object of their kind, which no better one has found."""
    box_O4 = scene.box_O4[np.array(scene.kinds) == kind].astype(np.float64)
    taken_O = np.zeros(len(box_O4), bool)
    right_K = np.zeros(len(found.score_K), bool)
    for number, box in enumerate(found.box_K4):
        overlap_O = np.where(taken_O, 0.0, intersection_over_union(box, box_O4))
        if len(overlap_O) and overlap_O.max() >= RIGHT:
            taken_O[overlap_O.argmax()] = right_K[number] = True
    return Ranked(found.score_K.astype(np.float64), right_K, len(box_O4))


def intersection_over_union(box: NDArray[np.float64], box_O4: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compare a box with others (O,)."""
    side_O2 = np.minimum(box[2:], box_O4[:, 2:]) - np.maximum(box[:2], box_O4[:, :2])
    shared_O = np.clip(side_O2, 0, None).prod(axis=1)
    return shared_O / ((box[2:] - box[:2]).prod() + (box_O4[:, 2:] - box_O4[:, :2]).prod(axis=1) - shared_O)


def average_precision(ranked: Ranked) -> float:
    """Compute the area under precision by recall of detections, best first; NaN without an object."""
    if not ranked.objects:
        return float("nan")
    right_K = ranked.right_K[np.argsort(-ranked.score_K, kind="stable")]
    precision_K = np.cumsum(right_K) / np.arange(1, len(right_K) + 1)
    # Precision at a recall is the best at that recall or a higher one.
    precision_K = np.maximum.accumulate(precision_K[::-1])[::-1]
    return float(precision_K[right_K].sum() / ranked.objects)


def score_scenes(method: Method) -> NDArray[np.float64]:
    """Compute the average precision of each kind in each scene (kinds, S); NaN where a scene has none."""
    return np.array([[average_precision(one) for one in ranked] for ranked in method.values()])


def build_queries(binder: Binder, seed: int) -> dict[str, dict[str, Query]]:
    """Build the queries of every kind of object, each also against the mean of all kinds."""
    of_kind = {kind: build_queries_of(binder, kind, seed) for kind in KINDS}
    for name in [*of_kind["sea"]]:
        all_KD = np.stack([queries[name].vector for queries in of_kind.values()])
        for queries in of_kind.values():
            against_1D = queries[name].vector[None] - all_KD.mean(axis=0, keepdims=True)
            queries[f"{name}, {AGAINST}"] = as_query(against_1D, None)
    return of_kind


def build_queries_of(binder: Binder, kind: str, seed: int) -> dict[str, Query]:
    """Build a query of a kind of object for every modality that has sentences or a renderer, and for sums.

    Examples are observations of other places, of planet 0, that have the facts of the kind.
    """
    places = set_facts(draw_places(EXAMPLES, 1000 + seed, planet=0), kind)
    embedded: dict[str, NDArray[np.float32]] = {}
    for name in binder.modalities:
        if name == "text":
            embedded[name] = binder.embed(name, list(WORDS[kind]), numpy=True)
        elif name in RENDERERS:
            embedded[name] = binder.embed(name, RENDERERS[name](places, seed), numpy=True)
    if not embedded:
        raise DataError(
            f"none of {', '.join(binder.modalities)} has queries here: text, {', '.join(RENDERERS)}"
        )
    queries = {name: as_query(rows_ND, name) for name, rows_ND in embedded.items()}
    if "audio" in embedded:
        queries["audio, one example"] = as_query(embedded["audio"][:1], "audio")
    for names in SUMS:
        if set(names) <= set(queries):
            mean_3D = np.stack([queries[name].vector for name in names])
            queries[" + ".join(names)] = as_query(mean_3D, None)
    return queries


def as_query(rows_ND: NDArray[np.float32], modality: str | None) -> Query:
    """Return the direction of the mean of some embeddings as a query."""
    mean_1D = unit(torch.from_numpy(rows_ND.mean(axis=0, keepdims=True)))
    return Query(mean_1D[0].numpy(), modality or "sum", modality)


def draw_random(seed: int) -> Callable[[QueryMap], QueryMap]:
    """Return a function that replaces the similarities of a map by random ones."""
    rng = np.random.default_rng(seed)

    def change(drawn: QueryMap) -> QueryMap:
        random_HW = rng.random(drawn.similarity_HW.shape, dtype=np.float32)
        return replace(drawn, similarity_HW=np.where(np.isnan(drawn.similarity_HW), np.nan, random_HW))

    return change


def detect_kinds(
    binder: Binder, untrained: Binder, seed: int, scenes: int, folder: Path
) -> tuple[dict[str, Method], list[tuple[ToyScene, Scene, list[Archive]]]]:
    """Detect every kind in every scene of a seed by every query, and by chance."""
    of_kind, tile_of = build_queries(binder, seed), build_queries(untrained, seed)
    rng = np.random.default_rng((seed, 7))
    methods: dict[str, Method] = {}

    def add(name: str, kind: str, ranked: Ranked) -> None:
        methods.setdefault(name, {}).setdefault(kind, []).append(ranked)

    built: list[tuple[ToyScene, Scene, list[Archive]]] = []
    for number in range(scenes):
        made = build_scene(seed, number)
        path = folder / f"scene_{seed}_{number}.tif"
        # One that is there is left as it is: archives belong to a file and its time.
        raster = open_scene(path if path.exists() else write_scene(made, path), folder)
        archives, plain = (
            embed_windows(one, raster, folder / name, SIZES, workers=0, progress=False)
            for name, one in (("trained", binder), ("untrained", untrained))
        )
        built.append((made, raster, archives))
        for kind in KINDS:
            for name, query in of_kind[kind].items():
                add(name, kind, judge(detect(raster, archives, query, BOXES), made, kind))
            for name in (binder.anchor, f"{binder.anchor}, {AGAINST}"):
                found = detect(raster, plain, tile_of[kind][name], BOXES)
                add(f"{name}, untrained", kind, judge(found, made, kind))
            vector_1D = rng.standard_normal((1, binder.width)).astype(np.float32)
            found = detect(raster, archives, as_query(vector_1D, None), BOXES)
            add("random embeddings", kind, judge(found, made, kind))
            shuffled = draw_random(1000 * seed + number)
            found = detect(raster, archives, of_kind[kind][binder.anchor], BOXES, change=shuffled)
            add("random boxes", kind, judge(found, made, kind))
    return methods, built


def report(parts: Sequence[dict[str, Method]], anchor: str, times: int = 2000) -> list[dict[str, Any]]:
    """Return a record for each query: the figure, its interval, its gain over text, each seed, each kind."""
    scores = {name: [score_scenes(part[name]) for part in parts] for name in parts[0]}
    scene_S = {name: np.nanmean(np.concatenate(of, axis=1), axis=0) for name, of in scores.items()}
    count = len(scene_S[anchor])
    drawn = np.random.default_rng(0).integers(count, size=(times, count))  # the same scenes for all queries
    records: list[dict[str, Any]] = []
    for name, of in scores.items():
        record: dict[str, Any] = {
            "query": name,
            "AP": float(scene_S[name].mean()),
            "interval": find_interval(scene_S[name][drawn]),
            "share_of_tile": float(scene_S[name].mean() / scene_S[anchor].mean()),
            "seeds": [float(np.nanmean(part, axis=0).mean()) for part in of],
            "kinds": dict(zip(KINDS, np.nanmean(np.concatenate(of, axis=1), axis=1).tolist(), strict=True)),
        }
        if "text" in scene_S and name != "text":
            record["over_text"] = find_interval((scene_S[name] - scene_S["text"])[drawn])
        records.append(record)
    return sorted(records, key=lambda record: -record["AP"])


def find_interval(drawn: NDArray[np.float64]) -> list[float]:
    """Return the 95 % interval of the means of resampled scenes."""
    return np.quantile(drawn.mean(axis=1), (0.025, 0.975)).tolist()


def print_table(records: Sequence[dict[str, Any]]) -> None:
    """Print a line for each query: AP, interval, share of the tile's own, gain over text, seeds, kinds."""
    kinds = "".join(f"{kind:>8}" for kind in KINDS)
    print(f"{'query':32} {'AP':>5} {'95 %':>14} {'share':>6}  {'over text':>16}  {'each seed':<18}{kinds}")
    for record in records:
        low, high = record["interval"]
        gain = "[{:+.3f}, {:+.3f}]".format(*record["over_text"]) if "over_text" in record else ""
        seeds = " ".join(f"{value:.3f}" for value in record["seeds"])
        cells = "".join(f"{record['kinds'][kind]:8.3f}" for kind in KINDS)
        print(
            f"{record['query']:32} {record['AP']:5.3f} [{low:.3f}, {high:.3f}] {record['share_of_tile']:6.2f}"
            f"  {gain:>16}  {seeds:<18}{cells}"
        )


def draw_picture(binder: Binder, built: tuple[ToyScene, Scene, list[Archive]], seed: int, out: Path) -> None:
    """Draw a scene, and the boxes that queries of several modalities find."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from PIL import Image

    made, raster, archives = built
    colours = dict(
        zip(KINDS, ("#ff9f1c", "#f8f32b", "#e0aaff", "#ff4d6d", "#00e5ff", "#ffffff"), strict=True)
    )
    names = [name for name in ("text", "audio", "ground_image", "elevation") if name in binder.modalities][:3]
    queries = build_queries(binder, seed)
    figure = Figure(figsize=(3 * (1 + len(names)), 3.5), dpi=75, layout="constrained")
    for axis, name in zip(figure.subplots(1, 1 + len(names)), ("what is there", *names), strict=True):
        axis.imshow(made.image_HWC)
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_axis_off()
        for kind, colour in colours.items():
            own = np.array(made.kinds) == kind
            boxes = made.box_O4[own]
            if name in names:
                # As many boxes as there are objects.
                boxes = detect(raster, archives, queries[kind][f"{name}, {AGAINST}"], int(own.sum())).box_K4
            for left, top, right, bottom in boxes:
                box = Rectangle(
                    (left, top), right - left, bottom - top, fill=False, color=colour, linewidth=1.6
                )
                axis.add_patch(box)
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    figure.legend(
        handles, list(colours), loc="outside lower center", ncols=6, fontsize=8, facecolor="#888888"
    )
    drawn = io.BytesIO()
    FigureCanvasAgg(figure).print_png(drawn)
    # 64 colours: textures of three bytes a pixel do not compress.
    Image.open(drawn).convert("RGB").quantize(64).save(out, optimize=True)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it and a picture where asked to."""
    parser = argparse.ArgumentParser(description="Measure detectors of toy Earth's objects.")
    parser.add_argument("bundle", help="the folder of a bundle or run trained on toy Earth")
    parser.add_argument("--seeds", type=int, default=3, help="of scenes")
    parser.add_argument("--scenes", type=int, default=10, help="of each seed")
    parser.add_argument("--folder", type=Path, help="keeps scenes and archives")
    parser.add_argument("--picture", type=Path, help="a PNG of one scene")
    parser.add_argument("--out", type=Path, help="a JSON file of all figures")
    given = parser.parse_args(words)
    if given.seeds < 1 or given.scenes < 1:
        raise DataError("give one seed and one scene, or more")
    binder = Binder.from_pretrained(given.bundle)
    untrained = Binder(
        {binder.anchor: binder.modality(binder.anchor)}, binder.width, pretrained=False, seed=0
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        parts: list[dict[str, Method]] = []
        for seed in range(given.seeds):
            methods, built = detect_kinds(binder, untrained, seed, given.scenes, folder)
            parts.append(methods)
            if seed == 0 and given.picture:
                draw_picture(binder, built[0], seed, given.picture)
    records = report(parts, binder.anchor)
    print(f"{given.seeds} x {given.scenes} scenes, boxes of {', '.join(f'{size:g}' for size in SIZES)} m")
    print_table(records)
    if given.out:
        given.out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
