"""The page's server: a query against the embedding of it, tiles, many clients, first paint, weight.

    PYTHONPATH=tests/helpers python benchmarks/serve.py [--rounds 15] [--rows 72] [--columns 96] [--clip]
        [--only query|tiles|load|paint|weight]

The server is `geobind serve` in a process of its own, over an archive of random unit vectors and a raster of
noise with overviews. Rounds alternate between `Binder.embed` of a text, or sound, never seen before, in this
process, and the query of another one over HTTP, both with one thread; medians are compared. The towers are
those of the recipe three_modal, and with `--clip` a text tower of the size of CLIP's ViT-B/32; all weights
are random. First paint needs Chromium.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import chromium
import numpy as np
import served

import geobind
from geobind.binder import build_binder
from geobind.recipe import load_recipe

PIXELS, METRES = 64, 640.0
CRS, CORNER = "EPSG:32632", (400_000.0, 5_200_000.0)


def write_scene(path: Path, rows: int, columns: int) -> None:
    """Write a raster of noise with overviews."""
    import rasterio

    side = METRES / PIXELS
    place = rasterio.Affine(side, 0, CORNER[0], 0, -side, CORNER[1])
    coarse = np.random.default_rng(0).integers(0, 255, (3, rows * 4, columns * 4), np.uint8)
    image = coarse.repeat(PIXELS // 4, 1).repeat(PIXELS // 4, 2)
    served.write_scene(path, image, crs=CRS, transform=place, nodata=None, tiled=True, compress="deflate")
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4, 8, 16, 32])


def write_world(home: Path, rows: int, columns: int, clip: bool) -> geobind.Binder:
    """Write bundle, archive and raster."""
    changes = ["modalities.text.clip.model=ViT-B-32", "width=512"] if clip else []
    binder = build_binder(load_recipe("three_modal", changes))
    binder.save(home / "bundle")
    row, column = (axis.ravel() for axis in np.mgrid[:rows, :columns])
    vectors = np.random.default_rng(1).standard_normal((len(row), binder.width), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    grid = served.make_grid(rows, columns, METRES, crs=CRS, corner=CORNER)
    served.write_tiles(home / "scene.parquet", binder, vectors, row, column, grid)
    write_scene(home / "scene.tif", rows, columns)
    return binder


@contextmanager
def serve(home: Path):
    """Run `geobind serve`; give its port."""
    words = ["scene.parquet", "--bundle", "bundle", "--raster", "scene.tif", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "geobind", "serve", *words], cwd=home, stdout=subprocess.PIPE, text=True
    )
    try:
        yield int(process.stdout.readline().split("/")[2].rpartition(":")[2])
    finally:
        process.terminate()
        process.wait()


class Client:
    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, path: str, body: bytes | None = None):
        self.connection.request("GET" if body is None else "POST", path, body)
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def query(self, **part):
        return self.ask("/api/query", json.dumps({"parts": [part]}).encode())


def timed(function, *words) -> float:
    began = time.perf_counter()
    function(*words)
    return 1000 * (time.perf_counter() - began)


def describe(values: list[float]) -> str:
    return f"{statistics.median(values):7.2f} ms (from {min(values):.2f} to {max(values):.2f})"


def measure_query(binder, port: int, rounds: int) -> None:
    client = Client(port)

    def ask_sound(content: bytes) -> None:
        found = json.loads(client.ask("/api/embed/audio", content)[1])
        client.query(modality="audio", embedding=found["embedding"])

    kinds = {
        "text": (
            lambda n: binder.embed("text", f"a wood by the river, number {n}"),
            lambda n: client.query(modality="text", text=f"a lake in the hills, number {n}"),
        ),
        "sound": (
            lambda n: binder.embed("audio", geobind.Content(served.make_sound(2 * n, seconds=2))),
            lambda n: ask_sound(served.make_sound(2 * n + 1, seconds=2)),
        ),
    }
    for kind, (embed, query) in kinds.items():
        for n in range(5):
            embed(10_000 + n), query(10_000 + n)
        bare, whole = [], []
        for n in range(rounds):
            bare.append(timed(embed, n))
            whole.append(timed(query, n))
        ratio = statistics.median(whole) / statistics.median(bare)
        more = min(whole) - min(bare)
        print(f"{kind:6} embed   {describe(bare)}")
        print(f"{kind:6} query   {describe(whole)}   ratio {ratio:.2f}; the fastest: {more:+.2f} ms")


def measure_tiles(port: int, rounds: int) -> None:
    client = Client(port)
    about = json.loads(client.ask("/api/about")[1])
    west, south, east, north = about["extent"]
    name = json.loads(client.query(modality="text", text="snow")[1])["name"]
    other = json.loads(client.query(modality="text", text="sea")[1])["name"]
    rng = np.random.default_rng(0)
    for zoom in (about["scene"]["zoom"] - 6, about["scene"]["zoom"] - 3, about["scene"]["zoom"]):
        places = np.stack([rng.uniform(south, north, rounds), rng.uniform(west, east, rounds)], axis=1)
        tiles = (served.address_of(lat, lon, zoom)[0] for lat, lon in places.tolist())
        found: dict[str, list[float]] = {}
        for tile in dict.fromkeys(tiles):
            where = f"{tile.z}/{tile.x}/{tile.y}"
            for kind, path in (
                ("scene", f"scene/{where}"),
                ("map", f"map/{name}/{where}"),
                ("map, second query", f"map/{other}/{where}"),
            ):
                found.setdefault(kind, []).append(timed(client.ask, f"/api/{path}"))
        for kind, values in found.items():
            print(f"zoom {zoom:2} {kind:18} {describe(values)}, {len(values)} tiles")


def measure_load(port: int) -> None:
    """Ask 24 queries at once beside 30 clients that stall, and look at the page meanwhile."""
    with ExitStack() as stack:
        for _ in range(30):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(served.UPLOAD)
        statuses: list[int] = []

        def ask(n: int) -> None:
            statuses.append(Client(port).query(modality="text", text=f"a new wood {n}")[0])

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(24)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        looks = [timed(Client(port).ask, "/api/about") for _ in range(10)]
        for thread in threads:
            thread.join()
        spent = time.perf_counter() - began
        counts = {status: statuses.count(status) for status in sorted(set(statuses))}
        print(f"24 queries at once beside 30 stalled uploads: {counts} in {spent:.2f} s")
        print(f"the page meanwhile {describe(looks)}")


def measure_paint(port: int, rounds: int) -> None:
    if chromium.BROWSER is None:
        print("no chromium here")
        return
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    with chromium.Browser() as page:
        page.size(1280, 800)
        values = []
        for _ in range(rounds):
            page.open(f"http://127.0.0.1:{port}/#a.text=deep+snow")
            page.wait("document.querySelectorAll('#gallery .tile').length === 24")
            values.append(page.wait(paint))
        print(f"first visit: first contentful paint {values[0]:.0f} ms")
        print(f"later visits: first contentful paint {describe(values[1:])}")


def measure_weight() -> None:
    folder = Path(geobind.__file__).parent / "serving" / "page"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as wheel:
        for one in sorted(folder.iterdir()):
            wheel.write(one, one.name)
    raw = sum(one.stat().st_size for one in folder.iterdir())
    print(f"files of the page: {raw / 1e6:.2f} MB, in the wheel {len(file.getvalue()) / 1e6:.3f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=72)
    parser.add_argument("--columns", type=int, default=96)
    parser.add_argument("--clip", action="store_true")
    parser.add_argument("--only", choices=["query", "tiles", "load", "paint", "weight"])
    chosen = parser.parse_args()
    wanted = [chosen.only] if chosen.only else ["query", "tiles", "load", "paint", "weight"]
    if "weight" in wanted:
        measure_weight()
    if wanted == ["weight"]:
        return
    with tempfile.TemporaryDirectory() as folder:
        binder = write_world(Path(folder), chosen.rows, chosen.columns, chosen.clip)
        with serve(Path(folder)) as port:
            print(f"{chosen.rows * chosen.columns:,} rows of width {binder.width}")
            if "query" in wanted:
                measure_query(binder, port, chosen.rounds)
            if "tiles" in wanted:
                measure_tiles(port, chosen.rounds)
            if "load" in wanted:
                measure_load(port)
            if "paint" in wanted:
                measure_paint(port, 6)


if __name__ == "__main__":
    main()
