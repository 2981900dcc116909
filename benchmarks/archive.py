"""The cost of an archive beyond the encoder's, its memory, and that of a resumed job.

    python benchmarks/archive.py [--rounds 5] [--tiles 64] [--memory] [--encoder small resnet18]

A scene of its own is written; its tiles are embedded by a job (read, cut, prepared, embedded, written,
joined) and by the bare encoder on tensors that are prepared already, in turns. Of neighbours, in CPU seconds,
the ratio and the difference a tile are taken; printed is the median with a bootstrap interval. `--memory`
prints the peak memory of processes of their own that embed 10^4 and 10^5 tiles.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from paired import difference, ratio, take_turns

from geobind import Binder
from geobind.archive import embed_raster
from geobind.plugins import registry

SIDE = 64  # pixels of a tile
ENCODERS = {
    "small": {
        "model": "resnet10t",
        "pretrained": False,
        "options": {"channels": [24, 48, 96, 128], "stem_width": 12, "global_pool": "catavgmax"},
    },
    "resnet18": {"model": "resnet18", "pretrained": False},
    "resnet50": {"model": "resnet50", "pretrained": False},
}


def build(name: str) -> Binder:
    options = {"timm": ENCODERS[name], "size": SIDE}
    return Binder({"satellite": registry().get("satellite").model_validate(options)}, 128, seed=0)


def write_scene(path: Path, tiles: int, side: int = SIDE) -> Path:
    """Write a tiled, compressed GeoTIFF of smooth noise, so many tiles a side."""
    import rasterio

    size = tiles * side
    draw = np.random.default_rng(0)
    profile = {"driver": "GTiff", "count": 3, "height": size, "width": size, "dtype": "uint8", "tiled": True}
    where = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    with rasterio.open(path, "w", **profile, compress="deflate", crs="EPSG:32631", transform=where) as file:
        for row in range(0, size, side):
            strip = draw.integers(0, 200, (3, side // 4, size // 4)).repeat(4, 1).repeat(4, 2)
            noise = draw.integers(0, 20, strip.shape)
            file.write((strip + noise).astype(np.uint8), window=rasterio.windows.Window(0, row, size, side))
    return path


def measure_time(name: str, tiles: int, rounds: int) -> None:
    binder = build(name)
    with tempfile.TemporaryDirectory() as folder:
        scene = write_scene(Path(folder) / "scene.tif", tiles)
        pixels = torch.randint(0, 256, (64, SIDE, SIDE, 3), dtype=torch.uint8).numpy()
        batch = torch.stack([binder.modalities["satellite"].prepare(tile) for tile in pixels])
        count = tiles * tiles

        def encode() -> None:
            with torch.no_grad():
                for _ in range(count // 64):
                    binder("satellite", batch)

        def archive() -> None:
            out = Path(folder) / "scene.parquet"
            embed_raster(binder, "satellite", scene, out, size_m=10 * SIDE, fresh=True, progress=False)

        times = take_turns({"bare": encode, "archive": archive}, rounds)
        bare = 1000 * float(np.median(times["bare"])) / count
        print(f"{name}: encoder {bare:.3f} ms a tile; {count} tiles, {rounds} rounds")
        print(f"  archive / bare encoder: {ratio(times['archive'], times['bare'])}")
        print(f"  beyond it, microseconds a tile: {difference(times['archive'], times['bare'], count / 1e6)}")


def measure_memory(tiles: int) -> None:
    """Print the peak memory of a process that embeds so many tiles a side, of 8 pixels each."""
    code = f"""
import resource, sys, torch
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import archive
torch.set_num_threads(1)
binder = archive.build("small")
with archive.tempfile.TemporaryDirectory() as folder:
    scene = archive.write_scene(Path(folder) / "scene.tif", {tiles}, 8)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = Path(folder) / "scene.parquet"
    archive.embed_raster(binder, "satellite", scene, out, size_m=80, progress=False)
    print(began // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = run.stdout.split()
    print(f"{tiles * tiles:,} tiles: peak {after} MiB, {before} before the job")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=64, help="of the scene, along a side")
    parser.add_argument("--encoder", nargs="*", choices=ENCODERS, default=["small", "resnet18"])
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.encoder:
        measure_time(name, args.tiles, args.rounds)
    if args.memory:
        for tiles in (100, 316):
            measure_memory(tiles)


if __name__ == "__main__":
    main()
