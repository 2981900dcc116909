"""Loading data: speed against PyTorch and WebDataset, decoders, memory over an epoch, a million rows.

    python benchmarks/data.py images   [--count 1000] [--side 256] [--rounds 5] [--batch 50]
    python benchmarks/data.py bytes    [as images]
    python benchmarks/data.py sounds   [--count 200] [--kind flac] [--rounds 5] [--batch 20]
    python benchmarks/data.py decoders [--rounds 5]
    python benchmarks/data.py epoch    [--rows 100000]
    python benchmarks/data.py million  [--rows 1000000]
    python benchmarks/data.py workers  [--count 200] [--batch 4096] [--workers 0 1 2] [--rounds 3]

Files are made in a temporary folder; `--folder` keeps them. Times are CPU seconds of one thread, ratios
medians of those within a round, because other programs may share the machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "task", choices=["images", "bytes", "sounds", "decoders", "epoch", "million", "workers"]
    )
    parser.add_argument("--count", type=int)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--kind", default="flac", choices=["flac", "wav", "ogg"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["GEOBIND_CACHE"] = str(folder / "cache")
        run(given, folder)


def run(given: argparse.Namespace, folder: Path) -> None:
    if given.task in ("images", "bytes"):
        import data_speed

        if not (folder / "manifest.csv").exists():
            data_speed.write_tiles(folder, given.count or 1000, given.side)
        data_speed.speed(given.task, folder, given.batch or 50, given.rounds)
    elif given.task == "sounds":
        import data_speed

        if not (folder / "manifest.csv").exists():
            data_speed.write_sounds(folder, given.count or 200, given.kind)
        data_speed.speed("sounds", folder, given.batch or 20, given.rounds)
    elif given.task == "workers":
        import data_speed

        if not (folder / "manifest.csv").exists():
            data_speed.write_tiles(folder, given.count or 200, given.side)
        data_speed.scale(folder, given.batch or 4096, given.workers, given.rounds)
    elif given.task == "decoders":
        import data_decoders

        data_decoders.compare(given.rounds)
    else:
        import data_memory

        rows = given.rows or (100_000 if given.task == "epoch" else 1_000_000)
        {"epoch": data_memory.epoch, "million": data_memory.million}[given.task](
            folder, rows, given.batch or 100
        )


if __name__ == "__main__":
    main()
