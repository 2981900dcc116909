"""The cost of searching and mapping an archive, against the least that they can take.

    python benchmarks/search.py [--rows 1000000] [--width 512] [--rounds 9] [--only exact|recall|map]

`exact`: one query over all rows in float16, ten matches, by each kernel; the limit is the sum of the
same bytes, which reads all of them once. `recall`: recall at 10 with filters of several shares, of the
search and of the engine alone. `map`: embedding tiles, and embedding them and mapping a query, GeoTIFF
included. One thread, CPU seconds, in turns; printed are medians of the ratios of neighbours with bootstrap
intervals.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from paired import ratio, take_turns

from geobind import Binder
from geobind.archive import Archive, TileGrid, model_digest, write_archive
from geobind.maps import map_query, write_map
from geobind.plugins import registry
from geobind.search import Exact, create_index, measure_recall
from geobind.search import index as indexes

SHARES = (1.0, 0.5, 0.1, 0.02, 0.01, 0.001)


def clustered_rows(count: int, width: int, clusters: int = 2000) -> np.ndarray:
    """Rows around centres, of unit length, float16."""
    random = np.random.default_rng(0)
    centre = random.standard_normal((clusters, width), dtype=np.float32)
    rows = np.empty((count, width), np.float16)
    for start in range(0, count, 50_000):
        size = min(50_000, count - start)
        part = centre[random.integers(0, clusters, size)] + random.standard_normal((size, width), np.float32)
        rows[start : start + size] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def time_exact(args: argparse.Namespace) -> None:
    rows = clustered_rows(args.rows, args.width)
    index = Exact()
    index.add(rows)
    query = rows[7].astype(np.float32) + rows[8]
    words = rows.reshape(-1).view(np.int64)

    def search(kernel: str) -> Callable[[], object]:
        def call() -> object:
            indexes.has_fast_kernel = lambda: kernel == "numkong"
            indexes.has_half_product = lambda: kernel == "torch in float16"
            return index.search(query, 10)

        return call

    kernels = ["torch in float32"]
    kernels += ["torch in float16"] if indexes.has_half_product() else []
    kernels += ["numkong"] if indexes.has_fast_kernel() else []
    calls = {"stream": words.sum, **{kernel: search(kernel) for kernel in kernels}}
    try:
        import faiss
    except ImportError:
        pass
    else:
        flat = faiss.index_factory(args.width, "SQfp16", faiss.METRIC_INNER_PRODUCT)
        faiss.omp_set_num_threads(1)
        flat.train(rows[:1000].astype(np.float32))
        for start in range(0, len(rows), 65_536):
            flat.add(rows[start : start + 65_536].astype(np.float32))
        calls["faiss"] = lambda: flat.search(query[None], 10)
    times = take_turns(calls, args.rounds)
    print(f"{args.rows:,} x {args.width} float16, stream {1000 * np.median(times['stream']):.1f} ms")
    for name in sorted(calls.keys() - {"stream"}):
        print(f"{name} / stream: {ratio(times[name], times['stream'])}")


def show_recall(args: argparse.Namespace) -> None:
    count = min(args.rows, 200_000)
    rows = clustered_rows(count, 64)
    place = np.random.default_rng(1).uniform((-60, -180), (60, 180), (count, 2))
    index = create_index("faiss")
    index.add(rows)
    start = time.process_time()
    measured = measure_recall(index, place, count=60)
    print(f"faiss over {count:,} x 64: built and measured in {time.process_time() - start:.0f} CPU s")
    random, queries = np.random.default_rng(2), rows[::4001].astype(np.float32)
    efforts = {k.effort for k in measured}
    for share in SHARES:
        right = {"search": 0, **{str(effort): 0 for effort in sorted(efforts)[:3]}}
        total = 0
        for query in queries:
            far = np.abs(place - place[random.integers(count)]).max(axis=1)
            inside = (
                None if share == 1 else np.argpartition(far, round(share * count) - 1)[: round(share * count)]
            )
            truth = index.exact.search(query, 10, inside).rows_QK
            total += truth.size
            right["search"] += int(np.isin(truth, index.search(query, 10, inside).rows_QK).sum())
            chosen = None if inside is None else np.sort(inside)
            for effort in sorted(efforts)[:3]:
                found = index.approximate(query, 10, chosen, effort)[0].rows_QK
                right[str(effort)] += int(np.isin(truth, found).sum())
        left = round(share * count)
        used = indexes.choose_effort(measured, left, count, 10)
        engines = ", ".join(f"{n} {v / total:.3f}" for n, v in right.items() if n != "search")
        how = "exact" if used is None else f"effort {used}"
        print(
            f"share {share:7.1%}: search {right['search'] / total:.3f} ({how}); the engine alone: {engines}"
        )


def time_map(args: argparse.Namespace) -> None:
    side = 48
    options = {"timm": {"model": "resnet10t", "pretrained": False}, "size": 64}
    binder = Binder({"satellite": registry().get("satellite").model_validate(options)}, 128, seed=0)
    tiles = list(np.random.default_rng(0).integers(0, 256, (side * side, 64, 64, 3), dtype=np.uint8))
    row, column = np.divmod(np.arange(side * side), side)
    grid = TileGrid(
        crs="EPSG:32631",
        transform=(640, 0, 5e5, 0, -640, 5e6),
        rows=side,
        columns=side,
        size_m=640,
        stride_m=640,
    )
    with tempfile.TemporaryDirectory() as folder:
        path, drawn = Path(folder) / "a.parquet", Path(folder) / "map.tif"

        def embed() -> torch.Tensor:
            return binder.embed("satellite", tiles, progress=False)

        vectors = embed().numpy()
        model = model_digest(binder, "satellite")
        write_archive(
            path, vectors, 45 - row * 0.005, 3 + column * 0.008, modality="satellite", model=model, row=row,
            column=column, grid=grid, size_m=640,
        )  # fmt: skip

        def embed_and_map() -> None:
            embed()
            write_map(map_query(Archive.open(path), vectors[0]), drawn)

        times = take_turns({"embed": embed, "embed and map": embed_and_map}, args.rounds)
    print(
        f"{side * side:,} tiles of 64 pixels, embed and map / embed: "
        f"{ratio(times['embed and map'], times['embed'])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parts = {"exact": time_exact, "recall": show_recall, "map": time_map}
    parser.add_argument("--only", choices=parts)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, part in parts.items():
        if args.only in (None, name):
            part(args)


if __name__ == "__main__":
    main()
