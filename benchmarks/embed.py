"""The cost of `Binder.embed`: against decoding the same files and calling the encoder by hand.

    python benchmarks/embed.py [--files 64] [--rounds 15] [--batch 32]

The two take turns, each with all files; of neighbours, in CPU seconds, the ratio is taken, and printed is the
median with a bootstrap interval. Which comes first changes from round to round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from paired import ratio, take_turns
from PIL import Image

from geobind import Binder
from geobind.evaluation import unit
from geobind.plugins import registry


def write_images(folder: Path, count: int) -> list[Path]:
    random = np.random.default_rng(0)
    files = [folder / f"{i}.jpg" for i in range(count)]
    for file in files:
        small = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((256, 256), Image.Resampling.BICUBIC).save(file, quality=90)
    return files


def by_hand(binder: Binder, files: list[Path], batch: int) -> torch.Tensor:
    modality, encoder = binder.modalities["satellite"], binder.encoders["satellite"]
    parts = []
    with torch.no_grad():
        for start in range(0, len(files), batch):
            prepared = torch.stack([modality.prepare(file) for file in files[start : start + batch]])
            parts.append(unit(encoder(prepared)))
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    modality = (
        registry().get("satellite").model_validate({"timm": {"model": "resnet18", "pretrained": False}})
    )
    binder = Binder({"satellite": modality}, 512, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder), args.files)
        calls = {
            "by hand": lambda: by_hand(binder, files, args.batch),
            "embed": lambda: binder.embed("satellite", files, batch_size=args.batch),
        }
        assert torch.allclose(calls["by hand"](), calls["embed"](), atol=1e-6)
        times = take_turns(calls, args.rounds)
    for name, values in times.items():
        print(
            f"{name}: {statistics.median(values):.3f} CPU s for {args.files} files "
            f"({min(values):.3f} to {max(values):.3f})"
        )
    print(f"embed / by hand: {ratio(times['embed'], times['by hand'])}")


if __name__ == "__main__":
    main()
